"""The page that says whether the posterior of a fit can be used."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from page_checks import checked
from torch import Tensor

import pyro_vi
from pyro_vi import OpenedRun, afterwards
from pyro_vi.afterwards.measuring import MEASURES
from pyro_vi.afterwards.reported import page_of
from pyro_vi.cli.entry import main
from pyro_vi.errors import InputError
from pyro_vi.reporting.page import DIAGNOSTICS, Page, Section

EVERY = dict(MEASURES)
SECTIONS = ["fit", *DIAGNOSTICS, "training", "pictures"]


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 6, dtype=x.dtype), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    """The posterior is N(x / 2, 1 / 2) in each dimension."""
    slope = pyro.param("slope", torch.tensor(0.4, dtype=x.dtype))
    scale = pyro.param("scale", torch.tensor(0.6, dtype=x.dtype), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, scale).to_event(1))


@pytest.fixture(autouse=True)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what a test looks at is measured, unless it is about all sections."""
    whole = request.function is test_the_page_of_a_run_has_each_section_and_says_why_one_is_missing
    wanted = EVERY if whole else ("evidence", "reliability", "calibration")
    for name in set(EVERY) - set(wanted):
        monkeypatch.delitem(MEASURES, name)


def section(page: Page, anchor: str) -> Section:
    return next(one for one in page.sections if one.anchor == anchor)


@pytest.mark.slow
def test_the_page_of_a_run_has_each_section_and_says_why_one_is_missing(folder: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(folder.parent)
    path = pyro_vi.report(folder, rows=20)
    found = checked(path.read_text(encoding="utf-8"))
    assert path == folder / "report.html"
    assert [name for name in found.ids if name in SECTIONS] == SECTIONS
    assert found.images >= 8
    assert path.stat().st_size < 8_000_000


@pytest.mark.slow
def test_a_run_in_memory_needs_a_file_and_is_not_changed(opened: OpenedRun, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in opened.pair.state_dict().items()}
    with pytest.raises(InputError, match="no folder to write the page to; give out=FILE"):
        opened.report()
    path = opened.report(out=tmp_path / "new" / "mine.html")
    assert path == tmp_path / "new" / "mine.html"
    assert all(torch.equal(tensor, before[name]) for name, tensor in opened.pair.state_dict().items())
    page = page_of(opened)
    # The guide is the posterior: all weights are equal, and the evidence is exact.
    assert section(page, "reliability").verdict == "pass"
    gap = [row[1] for table in section(page, "evidence").tables for row in table.rows if row[0].text.startswith("gap")]
    assert gap[0].order == pytest.approx(0, abs=1e-9)


@pytest.mark.slow
def test_rows_are_numbered_as_they_were_handed_over(tmp_path: Path) -> None:
    x = torch.randn(60, 6, generator=torch.Generator().manual_seed(0)).double()
    x[:, 0] = torch.arange(60)
    run = pyro_vi.fit(model, guide, x, steps=2, heldout=0.5, progress=False, compile=False)
    page = page_of(pyro_vi.open(run), rows=7)
    assert "7 of 30, evenly spaced, held-out rows" in page.about
    numbers, values = section(page, "reliability").tables[-2:]
    assert [row[0].order for row in values.rows] == [row[1].order for row in values.rows]
    assert [row[0].order for row in numbers.rows] == [row[0].order for row in values.rows]


@pytest.mark.slow
def test_the_verdict_changes_if_the_scale_of_the_guide_is_halved_by_hand() -> None:
    x = torch.randn(400, 6, generator=torch.Generator().manual_seed(1)).double() * 2**0.5
    options: dict[str, Any] = {"steps": 1500, "lr": 0.01, "seed": 2, "progress": False, "compile": False}
    run = pyro_vi.fit(model, guide, x, **options)
    assert run.params["scale"].item() == pytest.approx(0.5**0.5, abs=0.02)
    before = page_of(pyro_vi.open(run))
    halved = run.pair.guide
    with torch.no_grad():
        (scale,) = (value for name, value in halved.named_parameters() if "scale" in name)
        scale -= np.log(2)  # the parameter is the log of the scale
    assert run.params["scale"].item() == pytest.approx(0.5**0.5 / 2, abs=0.01)
    after = page_of(pyro_vi.open(run))
    assert section(before, "reliability").verdict == "pass" and before.judgement.level == "pass"
    assert section(after, "reliability").verdict == "fail" and after.judgement.level == "fail"
    assert after.judgement.headline == "Do not use this posterior as it is."


@pytest.mark.slow
def test_a_point_estimate_cannot_be_judged(tmp_path: Path) -> None:
    x = torch.randn(30, 3, generator=torch.Generator().manual_seed(0))
    run = pyro_vi.fit("linear_gaussian(latent_dim=1)", "point", x, steps=2, progress=False, compile=False)
    page = page_of(pyro_vi.open(run))
    assert page.judgement.level == "none"
    assert section(page, "reliability").absent.startswith("Not applicable: ")


@pytest.mark.slow
def test_of_a_comparison_the_best_fit_is_judged_also_from_its_folder(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("data.npy", np.random.default_rng(0).normal(size=(40, 3)))
    words = [
        "compare",
        "linear_gaussian(latent_dim=1)",
        "diag_normal",
        "--data",
        "data.npy",
        "--steps",
        "3",
        "--compile",
        "no",
    ]
    assert main([*words, "--audit-draws", "0", "--particles", "20", "--out", "made", "--report"]) == 0
    made = Path("made/report.html").read_text(encoding="utf-8")
    found = checked(made)
    assert [name for name in found.ids if name in ("comparison", *SECTIONS)] == ["comparison", *SECTIONS]
    assert main(["report", "made", "--out", "again.html"]) == 0
    again = Path("again.html").read_text(encoding="utf-8")
    judged = [text for text in checked(again).text if text.endswith("(judged on this page)")]
    assert judged == [text for text in found.text if text.endswith("(judged on this page)")] and len(judged) == 1


@pytest.mark.slow
def test_names_of_files_and_columns_are_shown_as_text(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    hostile = "<img src=x onerror=alert(1)>"
    frame = np.random.default_rng(0).normal(size=(40, 2))
    lines = [f"{hostile},b$<b>", *(f"{a},{b}" for a, b in frame)]
    Path("<script>alert(1)<.csv").write_text("\n".join(lines))
    out = tmp_path / "<script>"
    options: dict[str, Any] = {"steps": 2, "progress": False, "compile": False, "out": out}
    pyro_vi.fit("linear_gaussian(latent_dim=1)", "diag_normal", "<script>alert(1)<.csv", **options)
    found = checked(pyro_vi.report(out, rows=10).read_text(encoding="utf-8"))
    assert any(hostile in text for text in found.text)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run; give the folder of a fit or a comparison"):
        afterwards.report(tmp_path)

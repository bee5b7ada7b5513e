"""What a comparison of guides, or one of several seeds, says: what the data tell apart, ranks, and guides without numbers."""

import dataclasses
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from made_comparisons import comparison
from rich.console import Console

from pyro_vi.comparing import Comparison
from pyro_vi.elbo.heldout import Evaluation
from pyro_vi.reporting.document import to_dict
from pyro_vi.reporting.guides import guide_table
from pyro_vi.reporting.plots_of_standings import behind_the_best
from pyro_vi.reporting.saving import save
from pyro_vi.reporting.summary import conclude, table
from pyro_vi.support import finite

BASE = torch.linspace(-30.0, -20.0, 100).double()
NOISE = torch.tensor([1.0, -1.0] * 50).double()


def made(elbos: dict[str, torch.Tensor], **options: Any) -> Comparison:
    """A comparison of guides with given ELBOs of 100 data."""
    names = tuple(elbos)
    one = comparison(names, ())
    results = {
        name: dataclasses.replace(
            result,
            evaluation=Evaluation(elbos[name] + 1, torch.ones(100).double()),
            parameters={"guide": 1000 * (k + 1), "model": 12345},
        )
        for k, (name, result) in enumerate(one.results.items())
    }
    settings = {"across": "guides", "estimator": "mean_field", "guide": ", ".join(names), **options}
    return dataclasses.replace(one, results=results, **settings)


def with_seeds(*seeds: dict[str, torch.Tensor], **options: Any) -> Comparison:
    first, *others = (made(elbos, seed=k, **options) for k, elbos in enumerate(seeds))
    return dataclasses.replace(first, repeats=tuple(others))


def rows(found: Comparison) -> dict[str, list[str]]:
    """Cells of the table by guide."""
    console = Console(width=200, file=io.StringIO())
    console.print(table(found))
    lines = [line for line in console.file.getvalue().splitlines() if line.startswith(" ")]
    cells = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    return {line[0]: line[1:] for line in cells if len(line) > 1}


THREE = {"a": BASE, "b": BASE + 0.5 + 0.1 * NOISE, "c": BASE + 0.45 + 0.5 * NOISE}


def test_what_the_data_tell_apart_and_what_they_cannot():
    """b is ahead of a by 0.5 ± 0.01, and of c by 0.05 ± 0.04, which may be nothing: p = 0.216."""
    first, second = conclude(made(THREE))
    assert first == (
        "On held-out data, b has the highest ELBO of 3 guides: beyond error, a is behind by 0.500 ± 0.010 nats per datum "
        "(paired over 100 held-out data; p-values adjusted for 3 pairs); this is one seed, and another may differ by as much."
    )
    assert second == (
        "The held-out data cannot tell b and c apart by their ELBO: c is behind by 0.050 ± 0.040 nats per datum (p = 0.22)."
    )


def test_where_all_data_share_latents_the_draws_tell_guides_apart():
    """The ELBO is one number for the data set, and its differences are paired over draws."""
    base = made(THREE, on="training")
    results = {
        name: dataclasses.replace(
            result, shared=True, evaluation=dataclasses.replace(result.evaluation, of_draws=THREE[name][:50])
        )
        for name, result in base.results.items()
    }
    first, second = conclude(dataclasses.replace(base, results=results))
    assert "On training data, b has the highest ELBO of 3 guides" in first and "(paired over 50 draws; " in first
    assert second.startswith("The draws cannot tell b and c apart by their ELBO: c is behind by ")


def test_every_column_has_a_rank():
    found = rows(made(THREE, refused={"d": "it has no form"}))
    assert list(found) == ["guide", "b", "c", "a", "d"]
    assert found["b"][:2] == ["-24.50 ± 0.29 (1)", "best"] and found["b"][-2:] == ["2,000 (2)", "1.00 (1)"]
    assert found["a"][:2] == ["-25.00 ± 0.29 (3)", "0.500 [0.480, 0.520]"] and found["a"][-2] == "1,000 (1)"
    assert found["c"][0].endswith("(1)") and found["d"] == ["refused"]


def with_evidence(found: Comparison, ess: dict[str, float]) -> Comparison:
    """The same with an evidence of all data, which rises by one nat from guide to guide, from that many effective draws."""
    results = {
        name: dataclasses.replace(
            result,
            evidence=xr.Dataset(
                {"ess": ("data", np.full(100, ess[name])), "log_evidence": ("data", BASE.numpy() + 3 + k)},
                attrs={"method": "iw", "value": -22.0 + k, "se": 0.01},
            ),
        )
        for k, (name, result) in enumerate(found.results.items())
    }
    return dataclasses.replace(found, results=results)


def test_an_evidence_from_few_draws_tells_no_guides_apart():
    """Under importance sampling with a poor guide, the evidence of one and the same model may be 1 nat off, or 10."""
    good = " ".join(conclude(with_evidence(made(THREE), {"a": 500.0, "b": 500.0, "c": 500.0})))
    assert "c has the highest evidence of 3 guides" in good
    poor = conclude(with_evidence(made(THREE), {"a": 500.0, "b": 500.0, "c": 2.0}))
    assert not any("highest evidence" in line or "smallest gap" in line for line in poor)
    assert (
        "Guides are not compared by evidence and gap: the evidence under c is not to be trusted." in poor
        and "On held-out data, b has the highest ELBO of 3 guides" in poor[0]
    )


def test_a_refused_guide_and_a_point_estimate_have_their_sentences():
    base = made({**THREE, "d": BASE}, refused={"e": "it has no form"}, note="Each fit sees all rows.")
    nothing = torch.full((100,), math.nan)
    point = dataclasses.replace(
        base.results["d"],
        evaluation=Evaluation(nothing, nothing, log_joint=BASE),
        objective="log p(x, z)",
        note="MAP: no ELBO",
    )
    found = dataclasses.replace(base, results={**base.results, "d": point})
    sentences = conclude(found)
    assert sentences[0] == "Each fit sees all rows."
    assert "of 3 guides" in sentences[1]
    assert sentences[-2:] == ["d: MAP: no ELBO.", "Guide e is not compared: it has no form."]
    assert rows(found)["d"] == ["-", "-", "-", "-", "-25.00", "4,000 (4)", "1.00 (1)"]


SHIFTS = (0.5, 0.1, 0.9, 0.3)


def test_over_seeds_a_difference_is_beyond_the_spread_or_within_it():
    """b is ahead of a by 0.45 under each seed; of c by 0.25 ± 0.17 on average, and each time beyond the error of the data."""
    seeds = [{"a": BASE + s, "b": BASE + s + 0.45 + 0.1 * NOISE, "c": BASE + s + 0.2 - s + 0.25} for s in SHIFTS]
    seeds = [{**one, "c": one["b"] - (s - 0.2) + 0.1 * NOISE} for s, one in zip(SHIFTS, seeds, strict=True)]
    found = with_seeds(*seeds)
    first, second = conclude(found)
    assert first == (
        "Over 4 seeds, on held-out data, b has the highest mean ELBO of 3 guides: beyond error, a is behind by 0.45 ± 0.00 "
        "nats per datum (± standard error over seeds; standard deviation 0.00 for a; p-values adjusted for 3 pairs)."
    )
    assert second == (
        "Over 4 seeds, on held-out data, the distance to the ELBO of b is beyond error but within the spread over seeds: "
        "c is behind by 0.25 ± 0.17 nats per datum (p = 0.48)."
    )
    assert rows(found)["b"][0] == "-24.10 ± 0.17 (1)"
    document = json.loads(json.dumps(finite(to_dict(found)), allow_nan=False))
    entry = document["guides"]["c"]
    assert document["seeds"] == [0, 1, 2, 3] and document["seed"] == 0
    assert entry["over_seeds"]["elbo"]["values"] == [pytest.approx(-24.35)] * 4
    behind = entry["behind"]["elbo"]
    assert (behind["best"], behind["apart"]) == ("b", False)
    assert behind["value"] == pytest.approx(0.25) and behind["sd_over_seeds"] == pytest.approx(0.3416, abs=1e-4)


def test_estimators_under_several_seeds():
    """The same sentences, in which fits are under estimators; the table has ± over seeds."""
    seeds = [{"trace": BASE + s, "stl": BASE + s + 0.45 + 0.1 * NOISE} for s in SHIFTS]
    found = with_seeds(*seeds, across="estimators", estimator="", guide="a guide")
    assert conclude(found)[0].startswith(
        "Over 4 seeds, on held-out data, the fit under stl has the highest mean ELBO of 2 fits: beyond error, trace is behind"
    )
    console = Console(width=200, file=io.StringIO())
    console.print(table(found))
    text = console.file.getvalue()
    assert "-24.10 ± 0.17" in text and "± one standard error over 4 seeds" in text and "seeds 0 to 3" in text
    entry = to_dict(found)["estimators"]["stl"]
    assert entry["over_seeds"]["elbo"]["mean"] == pytest.approx(-24.1) and entry["behind"]["elbo"] is None


def test_the_document_of_guides():
    document = json.loads(json.dumps(finite(to_dict(made(THREE, refused={"d": "no form"}))), allow_nan=False))
    assert "estimators" not in document and "seeds" not in document
    assert (document["estimator"], document["guide"]) == ("mean_field", "a, b, c")
    assert document["guides"]["d"] == {"refused": "no form"}
    entry = document["guides"]["a"]
    assert entry["parameters"] == {"guide": 1000, "model": 12345}
    assert entry["ranks"] == {"elbo": 3, "parameters": 1, "train_seconds": 1}
    assert entry["behind"]["elbo"]["value"] == pytest.approx(0.5) and entry["behind"]["elbo"]["apart"]
    assert document["guides"]["b"]["behind"] == {"elbo": None}


@pytest.mark.parametrize("count", [1, 3])
def test_the_picture_shows_each_distance_with_its_interval(count):
    found = with_seeds(*[{name: v + s for name, v in THREE.items()} for s in SHIFTS[:count]])
    figure = behind_the_best(found)
    elbo, seconds = figure.axes
    bars = [container[0].get_xdata()[0] for container in elbo.containers]
    assert bars == [pytest.approx(0.05), pytest.approx(0.5)]
    filled = [container[0].get_markerfacecolor() != "white" for container in elbo.containers]
    assert filled == [False, True]
    assert [label.get_text() for label in elbo.get_yticklabels()] == ["b", "c", "a"]
    assert [patch.get_width() for patch in seconds.patches] == [1.0] * 3
    assert ("one seed" in [text.get_text() for text in figure.legends[0].get_texts()]) == (count > 1)


@pytest.mark.slow
def test_pictures_of_guides_are_saved(tmp_path):
    names = [path.name for path in save(made(THREE), tmp_path)]
    assert names[:3] == ["training_curves.png", "behind_the_best.png", "reconstructions.png"]
    with pytest.raises(Exception, match="fewer than two fits"):
        behind_the_best(made({"a": BASE}))


def test_an_evidence_that_is_not_to_be_trusted_ranks_no_guide():
    def evidences(ess: float) -> list[str]:
        table = guide_table(with_evidence(made(THREE), {"a": 500.0, "b": 500.0, "c": ess}))
        (column,) = (c for c in table.columns if str(c.header) == "evidence")
        return sorted(str(cell).rpartition(" ")[2] for cell in column.cells)

    assert evidences(500.0) == ["(1)", "(2)", "(3)"]
    assert evidences(2.0) == ["(?)"] * 3

"""Pictures are chosen by facts, written in the format asked for, and never a reason to lose a fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from picture_toys import (
    LENGTHS,
    TARGET,
    Plane,
    Topics,
    by_class,
    comparison,
    copy,
    copying,
    keys,
    line,
    mostly_second,
    narrow,
    nothing,
    of_class,
    pressed,
    sequences,
    slopes,
    table,
    two,
    vectors,
    walk,
    walked,
)

import pyro_vi
from pyro_vi.comparing import Comparison
from pyro_vi.data import ColumnSpec
from pyro_vi.errors import InputError, UsageError
from pyro_vi.reporting.pictures import plotting
from pyro_vi.reporting.pictures.plotting import PICTURES, Picture, chosen, plot
from pyro_vi.reporting.saving import save

PLAIN = ("reconstructions", "prior_samples", "latent_traversal")


def _made(which: str) -> Comparison:
    label = (ColumnSpec("label", (), "class", ("a", "b")),)
    roll, lengths = sequences(12, 9, 5)
    return {
        "vectors": lambda: comparison(copying, copy, vectors(30, 3)),
        "images with labels": lambda: comparison(
            by_class, of_class, (vectors(30, 64), np.arange(30) % 2), image_shape=(8, 8), others=label
        ),
        "components": lambda: comparison(two, nothing, vectors(30, 2)),
        "music": lambda: comparison(keys, pressed, ((roll > 0).float(), lengths), others=LENGTHS, support="boolean"),
        "series": lambda: comparison(walk, walked, sequences(), others=LENGTHS, features=("hand x", "hand y")),
        "series without a plane": lambda: comparison(walk, walked, sequences(), others=LENGTHS),
        "topics": lambda: comparison(Topics(), mostly_second, np.ones((30, 4), dtype=int)),
        "regression": lambda: comparison(line, slopes, table(), features=("u", "v", "w"), others=TARGET),
        "target": lambda: comparison(Plane(), narrow, None),
    }[which]()


CHOSEN = {
    "vectors": (*PLAIN, "latent_means"),
    "images with labels": (*PLAIN, "samples_by_class", "latent_means"),
    "components": (*PLAIN, "components"),
    "music": ("piano_roll",),
    "series": ("bands", "paths"),
    "series without a plane": ("bands",),
    "topics": ("top_words",),
    "regression": ("predictions", "coefficients", "marginals"),
    "target": ("marginals", "density"),
}
"""Pictures of each kind of model, which has no name that the table of pictures could know."""


@pytest.mark.parametrize("which", CHOSEN)
def test_facts_choose_the_pictures(which: str) -> None:
    assert [one.name for one in chosen(_made(which))] == ["training_curves", *CHOSEN[which]]


def test_every_picture_of_model_and_data_is_chosen_for_some_kind_and_not_for_another() -> None:
    named = [one.name for one in PICTURES if one.of_facts is not None]
    for name in named:
        assert 0 < sum(name in found for found in CHOSEN.values()) < len(CHOSEN)


@pytest.mark.slow
def test_a_failing_picture_is_one_line_and_the_others_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(made: Comparison) -> Any:
        raise RuntimeError("the first line\nthe second line")

    monkeypatch.setattr(plotting, "PICTURES", (Picture(broken), *PICTURES))
    with pytest.warns(UserWarning, match=r"^no picture broken: RuntimeError: the first line$") as caught:
        paths = save(_made("vectors"), tmp_path)
    assert len(caught) == 1
    assert [path.stem for path in paths] == ["training_curves", *CHOSEN["vectors"]]
    with pytest.raises(RuntimeError, match="the first line"):  # who asks for it by name sees where it fails
        plot(_made("vectors"), only="broken")


def test_facts_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(made: Comparison) -> Any:
        raise InputError("the model fails")

    monkeypatch.setattr(plotting, "facts_of", fails)
    with pytest.warns(UserWarning, match=r"^no pictures of model and data: InputError: the model fails$"):
        assert list(plot(_made("vectors"))) == ["training_curves"]


@pytest.mark.parametrize("format, start", [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_files_have_the_format_and_equal_bytes(tmp_path: Path, format: Any, start: bytes) -> None:
    made = comparison(copying, copy, vectors(30, 2))
    for folder in ("one", "two"):
        plot(made, out=tmp_path / folder, format=format, only="latent_means")
    one, other = (tmp_path / folder / f"latent_means.{format}" for folder in ("one", "two"))
    assert one.read_bytes().startswith(start) and one.read_bytes() == other.read_bytes()
    assert [path.name for path in (tmp_path / "one").iterdir()] == [one.name]


def test_wrong_names_are_refused() -> None:
    made = comparison(copying, copy, vectors(30, 2))
    with pytest.raises(UsageError, match="format must be one of png, svg, pdf, not 'jpg'"):
        plot(made, format="jpg")
    with pytest.raises(UsageError, match="no picture named 'latent_mean'; did you mean 'latent_means'"):
        plot(made, only="latent_mean")
    with pytest.raises(InputError, match="'density' does not apply"):
        plot(made, only=["density"])


@pytest.mark.slow
def test_nothing_global_changes() -> None:
    settings, state, numbers = dict(matplotlib.rcParams), torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    for which in ("images with labels", "regression", "target"):
        plot(_made(which))
    assert dict(matplotlib.rcParams) == settings and not Gcf.get_all_fig_managers()
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numbers)  # type: ignore[index]


@pytest.mark.slow
def test_equal_calls_give_equal_points() -> None:
    figures = [plot(comparison(copying, copy, vectors(30, 3)), only="latent_means") for _ in range(2)]
    one, other = (figure["latent_means"].axes[0].collections[0].get_offsets() for figure in figures)
    assert np.array_equal(one, other)


@pytest.mark.slow
def test_a_fit_is_drawn_under_the_names_of_its_folder(tmp_path: Path) -> None:
    run = pyro_vi.fit("linear_gaussian(latent_dim=2)", "exact", vectors(40, 3), steps=2, progress=False, out=tmp_path)
    figures = pyro_vi.plot(run)
    assert list(figures) == ["training_curves", *CHOSEN["vectors"]]
    assert "model linear_gaussian(latent_dim=2), guide exact" in figures["latent_means"].get_suptitle()
    assert "LinearGaussian" in pyro_vi.plot(replace(run, out=None))["latent_means"].get_suptitle()


def test_references_of_latents_that_the_model_does_not_share_call_for_no_picture(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plotting, "reference_of", lambda facts: {"mu[1]": np.zeros(9)})
    assert "marginals" not in [one.name for one in chosen(_made("vectors"))]
    assert "marginals" in [one.name for one in chosen(_made("regression"))]

"""The script of docs/models.md: it shows every model of the shelf, by the command that it measured."""

import functools
import operator
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from script_files import script

import pyro_vi
from pyro_vi.cli.entry import COMMANDS
from pyro_vi.data import load
from pyro_vi.models import TABLE
from pyro_vi.reporting.pictures.plotting import PICTURES

SHELF = script("shelf_of_models")


def test_every_model_is_shown_in_one_picture_that_there_is() -> None:
    assert {entry.name for entry in SHELF.ENTRIES} == set(TABLE)
    assert {entry.what for entry in SHELF.ENTRIES} <= {picture.name for picture in PICTURES}


def test_a_command_asks_for_the_fit_that_is_measured() -> None:
    every = functools.reduce(
        operator.or_, [Annotated[c, tyro.conf.subcommand(name=c.__name__.lower())] for c in COMMANDS]
    )
    for entry in SHELF.ENTRIES:
        command = tyro.cli(every, args=shlex.split(entry.command)[1:])
        assert (command.model, command.guide, command.data) == (entry.model, entry.guide, entry.data)
        assert {name: getattr(command, name) for name in entry.options} == entry.options


def test_numbers_and_pictures_stand_between_their_marks() -> None:
    found = {
        entry.name: {"bound": -k / 3, "unit": "in all", "seconds": 7.4} for k, entry in enumerate(SHELF.ENTRIES[:2])
    }
    first, second = SHELF.ENTRIES[:2]
    page = "\n".join(f"{part}\n{SHELF.START.format(part)}\nold\n{SHELF.END}" for part in ("table", "gallery"))
    text = SHELF.put(SHELF.put(page, "table", SHELF.table(found)), "gallery", SHELF.gallery(found))
    assert "old" not in text and text.count(SHELF.END) == 2
    assert f"| [{second.name}](#{second.name}) | `{second.guide}`, `{second.data}` | -0.33 in all | 7 |" in text
    assert f"### {first.name}\n" in text and f"```\n{first.command}\n```" in text
    assert SHELF.put(text, "table", SHELF.table(found)) == text


@pytest.mark.slow
def test_a_model_is_measured(tmp_path: Path) -> None:
    entry = replace(next(entry for entry in SHELF.ENTRIES if entry.name == "linear_gaussian"), guide="diag_normal")
    one = SHELF.fitted(entry, tmp_path, steps=3)
    assert one["unit"] == "per held-out datum" and one["bound"] < 0
    file = tmp_path / "linear_gaussian.png"
    with Image.open(file) as image:
        assert len(np.unique(np.asarray(image.convert("L")))) > 20
    assert file.stat().st_size <= SHELF.BYTES


@pytest.mark.slow
def test_the_bound_of_one_series_is_that_of_the_series() -> None:
    """The guide is the posterior, so that each draw of the ELBO is the evidence."""
    x = np.random.default_rng(0).normal(size=30).cumsum()
    run = pyro_vi.fit("state_space", "exact", torch.as_tensor(x), steps=1, progress=False)
    bound, unit = SHELF.bound_of(run)
    assert unit == "in all"
    np.testing.assert_allclose(bound, float(run.model.log_evidence(run.data.example(30)[0]).detach()), rtol=1e-9)


def test_no_data_are_one_row_without_columns() -> None:
    data = load("none")
    assert data.columns == () and data.spec.num_data == 1

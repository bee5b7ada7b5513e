"""How a run was called, as it can be typed again."""

import shlex
from dataclasses import fields
from typing import Any

import pytest
import tyro

from pyro_vi.cli.commands import Compare, Fit
from pyro_vi.fitting import Options, given
from pyro_vi.reporting.page.recalled import DEFAULTS, PYTHON_ONLY, commands_of


def recalled(command: str, arguments: dict[str, Any], **options: Any) -> dict[str, str]:
    call = given(command, arguments, Options(**options))
    return {one.label: one.text for one in commands_of({"given": call})}


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 5, "lr": 0.01, "shuffle": False, "drop_last": True, "compile": False},
        {"epochs": 3, "stop": "heldout", "optimizer": "sgd(momentum=0.9)", "compile": True, "free_bits": 0.5},
    ],
)
def test_the_command_line_means_the_same_call(options: dict[str, Any]) -> None:
    arguments = {"model": "a $(b)/'c'.py:D", "guide": "diag_normal", "data": "digits(labels=100)", "elbo": "trace"}
    program, command, *words = shlex.split(recalled("fit", arguments, **options)["On the command line"])
    assert (program, command) == ("pyro-vi", "fit")
    again = tyro.cli(Fit, args=words)
    assert (again.model, again.guide, again.data, again.elbo) == tuple(arguments.values())
    assert Options(**again.options()) == Options(**options)


def test_a_comparison_has_its_guides_and_estimators() -> None:
    arguments = {
        "model": "vae",
        "guide": ["diag_normal", "full"],
        "data": "digits",
        "elbos": ["trace", "stl"],
        "seeds": 2,
    }
    words = shlex.split(recalled("compare", arguments)["On the command line"])[2:]
    again = tyro.cli(Compare, args=words)
    assert (again.guide, again.more, again.elbos, again.seeds) == ("diag_normal", ("full",), ("trace", "stl"), 2)


def test_what_the_command_line_cannot_say_is_said_in_python() -> None:
    arguments = {"model": lambda: None, "guide": "diag_normal", "data": "digits"}
    found = recalled("fit", arguments, lr={"guide": 0.1, "model": 0.2})
    assert "On the command line" not in found
    assert found["In Python"] == "pyro_vi.fit(model, 'diag_normal', 'digits', lr={'guide': 0.1, 'model': 0.2})"


def test_each_option_is_one_of_the_command_line_or_of_python_alone() -> None:
    typed = {field.name for field in (*fields(Fit), *fields(Compare))}
    apart = {"out", "resume", "progress", "allow", "callbacks"}
    assert set(DEFAULTS) - typed - apart == set(PYTHON_ONLY) & set(DEFAULTS)

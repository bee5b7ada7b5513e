"""One program bound by itself, beside a partner that does nothing."""

from typing import Any

from torch import nn

from pyro_vi.programs.build import pair_of


def nothing(*args: Any) -> None:
    """A program without sites and parameters."""


def bind_one(program: Any, args: tuple[Any, ...]) -> nn.Module:
    """Return a program as a module that owns its parameters."""
    return pair_of(nothing, program, args).guide

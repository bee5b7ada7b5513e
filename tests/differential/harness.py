"""The harness of the differential test: a program, and the steps that `pyro.infer.SVI` takes on it.

* `Program` is a model and a guide as their author calls them, with arguments and an estimator.
* `made` makes a program under a fixed seed; `svi` trains it by `pyro.infer.SVI`; `values` reads the parameters that a model
  and a guide meet in a run.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO
from torch import Tensor

from pyro_vi.support import kept_generators, seed_generators

STEPS = 4


@dataclass(frozen=True)
class Program:
    """A model and a guide, their arguments and the estimator.

    Attributes:
        rows: N, the number of data that a loss per datum is divided by: the size of the plate of data, or the rows of the
            first column without one.
        drawn: True if the author leaves initial values to chance: the fit draws others than SVI.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    elbo: Callable[[], ELBO] = Trace_ELBO
    rows: int = 1
    drawn: bool = False


@contextmanager
def float64() -> Iterator[None]:
    """Make float64 the default dtype of the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def made(make: Callable[[], Program]) -> Program:
    """Make a program: its data and networks are the same in every call."""
    with kept_generators(), pyro.get_param_store().scope():
        seed_generators(20)
        return make()


def adam() -> Any:
    """Return the optimizer of both sides."""
    return pyro.optim.Adam({"lr": 0.01})


@dataclass(frozen=True)
class Trained:
    """The losses of SVI's steps, each summed over the data, and the parameters before and after them."""

    losses: list[float]
    start: dict[str, Tensor]
    end: dict[str, Tensor]


def svi(
    program: Program,
    start: Mapping[str, Tensor] | None = None,
    optimizer: Callable[[], Any] = adam,
    steps: int = STEPS,
) -> Trained:
    """Train a program by `pyro.infer.SVI` from the generators' seed 0 on.

    A loss evaluated first creates the parameters, and shows the estimator how plates are nested: Pyro draws for that.

    Args:
        program: the program; its networks are changed.
        start: values that replace the initial ones.
        optimizer: makes the optimizer.
        steps: number of steps.
    """
    with kept_generators(), pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elbo = program.elbo()
        SVI(program.model, program.guide, optimizer(), elbo).evaluate_loss(*program.args, **program.kwargs)
        store = pyro.get_param_store()
        for name in [name for name in store if name.startswith("__baseline_")]:
            del store[name]  # the moving average of a baseline starts at the first step
        for name, value in (start or {}).items():
            _assign(name, value)
        first = values(program)
        seed_generators(0)
        stepper = SVI(program.model, program.guide, optimizer(), elbo)
        losses = [float(stepper.step(*program.args, **program.kwargs)) for _ in range(steps)]
        return Trained(losses, first, values(program))


def values(program: Program, model: Any = None, guide: Any = None) -> dict[str, Tensor]:
    """Return the value of each parameter that the guide and the model meet in a run, by Pyro's name."""
    found = {}
    with kept_generators(), torch.no_grad():
        trace = poutine.trace(guide or program.guide).get_trace(*program.args, **program.kwargs)
        replayed = poutine.replay(model or program.model, trace=trace)
        for nodes in (trace.nodes, poutine.trace(replayed).get_trace(*program.args, **program.kwargs).nodes):
            for name, node in nodes.items():
                if node["type"] == "param" and node["value"] is not None:
                    found[name] = node["value"].detach().clone()
    return found


def _assign(name: str, value: Tensor) -> None:
    store = pyro.get_param_store()
    if name in store:
        constraint = store._constraints[name]
        with torch.no_grad():
            store._params[name].copy_(torch.distributions.transform_to(constraint).inv(value))

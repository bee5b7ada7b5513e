"""Explanation of a failed step: the parameter, site or datum that is not finite, in one line with a remedy.

* `blame` explains a `Step` whose loss or gradient is not finite, `overflow` a state that is not, and `failed` an exception.
* `NotTaken` and `Overflowed` are the errors: after the first, the fit is as it was before the step.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from pyro_vi.data import Batch, length_of
from pyro_vi.errors import FitError, of_program
from pyro_vi.estimators import Objective, Parts
from pyro_vi.fitting.causes import of_gradient, of_loss
from pyro_vi.fitting.settings import Position
from pyro_vi.programs import Pair, kept_buffers
from pyro_vi.support import generators, kept_generators, set_generators

Found = TypeVar("Found")


def where(now: Position) -> str:
    """Return the step that is taken at a position, in words for a message.

    Example:
        >>> where(Position(step=12, epoch=1, batch=0))
        'at step 13 (epoch 1, batch 0)'
    """
    return f"at step {now.step + 1} (epoch {now.epoch}, batch {now.batch})"


class NotTaken(FitError):
    """A step that was not taken: the fit is as it was before it."""


class Failed(NotTaken):
    """A program failed, and the fit is as it was before that."""


class Overflowed(FitError):
    """A fit whose present state is not finite."""


@dataclass(frozen=True)
class Step:
    """A step that cannot be taken, for its explanation.

    Attributes:
        place: the step, from `where`.
        loss: its loss.
        weight: weight of the KL.
        factor: of the loss, in the gradient.
        rows: row numbers of the batch in the data as they were handed over.
        batch: the batch.
        generators: state of the generators before the step, from which the same draw is repeated.
    """

    place: str
    loss: float
    weight: float
    factor: float
    rows: Tensor
    batch: Batch
    generators: Mapping[str, Any]


def blame(objective: Objective, step: Step, parameters: Mapping[str, Tensor]) -> str:
    """Explain a loss or a gradient that is not finite: by the site, the data and their values, and by the parameters.

    Args:
        objective: the pair and its estimator.
        step: the step.
        parameters: the parameters that are fitted, by name.
    """
    with kept_generators(), kept_buffers(objective.pair):
        set_generators(step.generators)
        if isinstance(step.batch, Parts):
            step = _first_bad(objective, step, step.batch, parameters)
            set_generators(step.generators)
        if math.isfinite(step.loss):
            return _of_gradient(objective, step, parameters)
        start = f"the loss is {step.loss} {step.place}"
        found = _tried(lambda: of_loss(objective, step.rows, step.batch))
        if found:
            return f"{start}: {found}; check those values, or lower lr"
        return f"{start}: the sum of the sites' terms overflows; standardise the data, or lower lr"


def _first_bad(objective: Objective, step: Step, parts: Parts, parameters: Mapping[str, Tensor]) -> Step:
    """Return the first of accumulated batches whose loss or gradient is not finite, as a step of its own."""
    for batch, rows in zip(parts, step.rows.split([length_of(batch) for batch in parts]), strict=True):
        before, loss = generators(), objective(batch, step.weight)
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        if not bool(loss.isfinite()) or not all(g is None or _finite(g) for g in found):
            return replace(step, loss=float(loss.detach()), rows=rows, batch=batch, generators=before)
    return step


def _of_gradient(objective: Objective, step: Step, parameters: Mapping[str, Tensor]) -> str:
    found = _tried(lambda: of_gradient(objective, step.weight, step.factor, parameters, step.rows, step.batch))
    names, told = found or ("", "")
    start = (
        f"the gradient{f' of {names}' if names else ''} is not finite {step.place}, though the loss is {step.loss:.4g}"
    )
    return (
        f"{start}{f': {told}' if told else ''}; a derivative is infinite there, as that of sqrt at 0: clamp its argument, "
        "also within torch.where, or lower lr"
    )


def _tried(explain: Callable[[], Found]) -> Found | None:
    """An explanation, or None if a program fails while one is looked for."""
    try:
        return explain()
    except Exception:
        return None


def not_finite(pair: Pair) -> frozenset[str]:
    """Return the names of the buffers of a pair that are not finite, such as a mask of infinities."""
    return frozenset(name for name, buffer in pair.named_buffers() if not _finite(buffer))


def overflow(pair: Pair, optimizer: Optimizer | None = None, apart: Collection[str] = ()) -> str:
    """Name the first parameter, buffer or state of the optimizer that is not finite, with a remedy.

    Args:
        pair: the pair.
        optimizer: its optimizer, if its state is looked at.
        apart: names of buffers that need not be finite.

    Returns:
        The name and the remedy; an empty string if all are finite.
    """
    owned = pair.owned()
    found = [f"parameter '{name}'" for name, (_, parameter) in owned.items() if not _finite(parameter)]
    if not found:
        buffers = ((name, buffer) for name, buffer in pair.named_buffers() if name not in apart)
        found = [f"buffer '{name.partition('.')[2]}'" for name, buffer in buffers if not _finite(buffer)]
    if not found and optimizer is not None:
        found = [
            f"'{key}' of parameter '{name}' in the optimizer's state"
            for name, (_, parameter) in owned.items()
            for key, value in optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor) and not _finite(value)
        ]
    return f"an update overflowed and made {found[0]} not finite; lower lr, or set clip_norm" if found else ""


def _finite(value: Tensor) -> bool:
    # A finite sum has finite terms, and takes a twentieth of the time; that of finite terms may overflow.
    return bool(value.sum().isfinite()) or bool(value.isfinite().all())


@contextmanager
def failing(pair: Pair, place: str) -> Iterator[None]:
    """Turn an exception in the block, such as a Cholesky factorisation of NaN, into a `FitError` that names the step."""
    try:
        yield
    except Exception as error:
        raise failed(pair, place, error) from error


def failed(pair: Pair, place: str, error: Exception) -> FitError:
    """Make the `FitError` for an exception that a program of the pair, or its optimizer, raised."""
    if isinstance(error, FitError):  # of the optimizer
        return FitError(f"{place}, {error}")
    found = overflow(pair)
    kind = Overflowed if found else Failed
    return kind(f"the pair fails {place}: {found or of_program(error)}")

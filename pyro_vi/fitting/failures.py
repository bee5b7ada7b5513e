"""Explanation of a failed step: the parameter, site or datum that is not finite, in one line with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.elbo import draw_traces, from_run
from pyro_vi.errors import FitError, of_program
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import traits_of
from pyro_vi.fitting.settings import Position
from pyro_vi.programs import Pair


def where(now: Position) -> str:
    """Return the step that is taken at a position, in words for a message.

    Example:
        >>> where(Position(step=12, epoch=1, batch=0))
        'at step 13 (epoch 1, batch 0)'
    """
    return f"at step {now.step + 1} (epoch {now.epoch}, batch {now.batch})"


def blame(objective: Objective, value: float, place: str, rows: Tensor, batch: Batch, generator: Tensor) -> str:
    """Explain a loss that is not finite, by a parameter or by the site and the data whose term is not finite.

    Args:
        objective: the pair and its estimator.
        value: the loss.
        place: the step, from `where`.
        rows: row numbers of the batch in the data as they were handed over.
        batch: the batch.
        generator: state of torch's generator before the step, from which the same draw is repeated.
    """
    start = f"the loss is {value} {place}"
    found = overflow(objective.pair)
    if found:
        return f"{start}: {found}"
    torch.set_rng_state(generator)
    with torch.no_grad():
        run = draw_traces(objective.pair.model, objective.pair.guide, batch)
    terms = from_run(run, length_of(batch), kl=traits_of(objective.elbo).kl)
    for name, site in terms.sites.items():
        for what, part in (("log p", site.log_p), ("log q", site.log_q), ("KL", site.kl)):
            if part is not None and not bool(part.isfinite().all()):
                bad = rows[(~part.isfinite()).nonzero()[:, -1].cpu()].tolist() if site.local else []
                data = f" for data {', '.join(map(str, bad[:5]))}{' …' if len(bad) > 5 else ''}" if bad else ""
                return f"{start}: {what} of site '{name}' is not finite{data}; check those values, or lower lr"
    return f"{start}: the sum of the sites' terms overflows; standardise the data, or lower lr"


def overflow(pair: Pair) -> str:
    """Name the first parameter that is not finite, with a remedy; return an empty string if all are finite."""
    for name, (_, parameter) in pair.owned().items():
        if not bool(parameter.isfinite().all()):
            return (
                f"the step before made parameter '{name}' not finite, so its gradient overflowed; "
                "lower lr, or set clip_norm"
            )
    return ""


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
    return FitError(f"the pair fails {place}: {overflow(pair) or of_program(error)}")

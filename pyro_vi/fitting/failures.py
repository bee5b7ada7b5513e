"""What went wrong at a step: which parameter, site or datum is not finite, in one line with a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.elbo import draw_traces, from_run
from pyro_vi.errors import FitError, first_line
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import kl_treatment
from pyro_vi.fitting.settings import Position
from pyro_vi.programs import Pair


def where(now: Position) -> str:
    """The step that is taken at a position.

    Example:
        >>> where(Position(step=12, epoch=1, batch=0))
        'at step 13 (epoch 1, batch 0)'
    """
    return f"at step {now.step + 1} (epoch {now.epoch}, batch {now.batch})"


def blame(objective: Objective, value: float, place: str, rows: Tensor, batch: Batch, generator: Tensor) -> str:
    """Why a loss is not finite: the parameters, or the site and the data whose term is not.

    ``rows`` are the numbers of the data of the batch, ``generator`` is torch's state before the step: the same draw is made
    again.
    """
    said = f"the loss is {value} {place}"
    found = overflow(objective.pair)
    if found:
        return f"{said}: {found}"
    torch.set_rng_state(generator)
    with torch.no_grad():
        run = draw_traces(objective.pair.model, objective.pair.guide, batch)
    terms = from_run(run, len(batch[0]), kl=kl_treatment(objective.elbo))
    for name, site in terms.sites.items():
        for what, part in (("log p", site.log_p), ("log q", site.log_q), ("KL", site.kl)):
            if part is not None and not bool(part.isfinite().all()):
                bad = rows[(~part.isfinite()).nonzero()[:, -1].cpu()].tolist() if site.local else []
                data = f" for data {', '.join(map(str, bad[:5]))}{' …' if len(bad) > 5 else ''}" if bad else ""
                return f"{said}: {what} of site '{name}' is not finite{data}; check those values, or lower lr"
    return f"{said}: the sum of the sites' terms overflows; standardise the data, or lower lr"


def overflow(pair: Pair) -> str:
    """Which parameter is not finite, if one is; else nothing."""
    for name, (_, parameter) in pair.owned().items():
        if not bool(parameter.isfinite().all()):
            return (
                f"the step before made parameter '{name}' not finite, so its gradient overflowed; "
                "lower lr, or set clip_norm"
            )
    return ""


@contextmanager
def failing(pair: Pair, place: str) -> Iterator[None]:
    """Say where a program failed: it may raise on parameters that it cannot take (a Cholesky factor of NaN, say)."""
    try:
        yield
    except Exception as error:
        raise failed(pair, place, error) from error


def failed(pair: Pair, place: str, error: Exception) -> FitError:
    """The error of a fit whose programs raised another."""
    return FitError(f"the pair fails {place}: {overflow(pair) or first_line(error)}")

"""ELBO estimators by name: each is a `pyro.infer.ELBO`, usable as ``loss=`` of a plain `pyro.infer.SVI`."""

import copy
import inspect
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.errors import InputError, UsageError
from pyro_vi.pairs import Pair
from pyro_vi.specs import check_options, parse, unknown
from pyro_vi.terms import KL


@dataclass(frozen=True)
class Estimator:
    """An entry of the table: the class, how it treats the KL, and what it is in one line."""

    cls: type[ELBO]
    kl: KL
    about: str


TABLE: dict[str, Estimator] = {
    "trace": Estimator(Trace_ELBO, "sampled", "log p(x, z) - log q(z) of the draw, total derivative (sampled KL)"),
    "mean_field": Estimator(
        TraceMeanField_ELBO, "analytic", "KL in closed form wherever one is registered, else sampled"
    ),
}


def get(name: str, **options: Any) -> ELBO:
    """An estimator of the ELBO by its name, with the options of its class.

    Args:
        name: a name of the table, with options in parentheses where wanted: ``"trace(num_particles=4)"``.
        options: keyword arguments of the class, such as ``num_particles`` and ``vectorize_particles``.

    Raises:
        UsageError: an unknown name or option.

    Example:
        >>> type(get("mean_field", num_particles=2)).__name__
        'TraceMeanField_ELBO'
    """
    target, written = parse(name)
    if target not in TABLE:
        raise unknown("ELBO estimator", target, TABLE)
    options = {**written, **options}
    cls = TABLE[target].cls
    known = [p.name for p in inspect.signature(cls).parameters.values()]
    check_options(f"ELBO estimator '{target}'", options, known)
    return cls(**options)


def named(elbos: Any) -> dict[str, ELBO]:
    """Estimators by the name to report them under: from a name, an `ELBO`, or several of these.

    An instance is copied: Pyro's estimators remember the plate nesting of the first model that they meet.

    Raises:
        UsageError: an unknown name, or the same one twice.
    """
    given = [elbos] if isinstance(elbos, (str, ELBO)) else list(elbos)
    result: dict[str, ELBO] = {}
    for elbo in given:
        name = elbo if isinstance(elbo, str) else _name(elbo)
        if name in result:
            raise UsageError(f"ELBO estimator '{name}' is named twice; name each one once")
        result[name] = get(elbo) if isinstance(elbo, str) else copy.deepcopy(elbo)
    if not result:
        raise UsageError(f"name at least one ELBO estimator; there are: {', '.join(TABLE)}")
    return result


def _name(elbo: ELBO) -> str:
    return next((name for name, entry in TABLE.items() if type(elbo) is entry.cls), type(elbo).__name__)


def differentiable_loss(elbo: Any, pair: Pair, args: Batch) -> Tensor:
    """−ELBO of one evaluation, whose gradient is the estimator's; `pyro.infer.ELBO` itself does not promise the method.

    Raises:
        InputError: the estimator has none.
    """
    if not hasattr(elbo, "differentiable_loss"):
        raise InputError(f"{type(elbo).__name__} has no differentiable_loss; use one of: {', '.join(TABLE)}")
    loss: Tensor = elbo.differentiable_loss(pair.model, pair.guide, *args)
    return loss


def kl_treatment(elbo: ELBO) -> KL:
    """Whether an estimator uses closed forms of the KL where they exist."""
    return "analytic" if isinstance(elbo, TraceMeanField_ELBO) else "sampled"

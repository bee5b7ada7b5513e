"""The table of ELBO estimators, and estimators by name: each is a `pyro.infer.ELBO`."""

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO

from pyro_vi.errors import UsageError, first_line
from pyro_vi.estimators.analytic import Analytic
from pyro_vi.estimators.dreg import DReG
from pyro_vi.estimators.iwae import IWAE
from pyro_vi.estimators.relaxed import Relaxed
from pyro_vi.estimators.renyi import Renyi
from pyro_vi.estimators.score import Mixed, Score
from pyro_vi.estimators.stl import STL
from pyro_vi.estimators.vimco import VIMCO
from pyro_vi.support import check_options, flag, parse, real, unknown, whole


@dataclass(frozen=True)
class Entry:
    """An entry of the table: the class of an estimator, and a line about it."""

    cls: type[ELBO]
    about: str


TABLE: dict[str, Entry] = {
    # Pyro's own
    "trace": Entry(Trace_ELBO, "log p(x, z) - log q(z) of the draw, total derivative (sampled KL)"),
    "mean_field": Entry(TraceMeanField_ELBO, "KL in closed form wherever one is registered, else sampled"),
    "graph": Entry(TraceGraph_ELBO, "score function with the costs downstream of each site, and baselines"),
    "enum": Entry(TraceEnum_ELBO, "discrete sites marked for enumeration summed exactly"),
    "tmc": Entry(TraceTMC_ELBO, "tensor Monte Carlo: every combination of the draws of marked sites"),
    # ours
    "analytic": Entry(Analytic, "KL in closed form at each site where that is right, else sampled"),
    "stl": Entry(STL, "path derivative: no gradient noise at the exact posterior"),
    "iwae": Entry(IWAE, "importance-weighted bound, total derivative"),
    "dreg": Entry(DReG, "importance-weighted bound, doubly reparameterised gradient"),
    "renyi": Entry(Renyi, "Rényi bound of order alpha, total derivative"),
    "score": Entry(Score, "score function with the other draws as baseline, for any latent"),
    "mixed": Entry(Mixed, "through the draws where they can be reparameterised, score function elsewhere"),
    "vimco": Entry(VIMCO, "importance-weighted bound, score function with a baseline for each draw"),
    "relaxed": Entry(Relaxed, "straight through discrete draws by Gumbel-softmax; biased"),
}

PYROS = {
    cls.__name__: cls
    for cls in (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO, TraceTMC_ELBO, RenyiELBO)
}
"""Pyro's names of its estimators, which stand for its classes with their own options."""


def get(name: str, **options: Any) -> ELBO:
    """An estimator of the ELBO by its name, with the options of its class.

    Args:
        name: a name of the table, or Pyro's name of a class, with options in parentheses where wanted:
            ``"trace(num_particles=4)"``, ``"Trace_ELBO"``.
        options: keyword arguments of the class, such as ``num_particles`` and ``vectorize_particles``.

    Raises:
        UsageError: an unknown name or option.

    Example:
        >>> type(get("mean_field", num_particles=2)).__name__
        'TraceMeanField_ELBO'
    """
    target, written = parse(name)
    if target not in TABLE and target not in PYROS:
        raise unknown("ELBO estimator", target, (*TABLE, *(PYROS if target != target.lower() else ())))
    options = {**written, **options}
    cls: type[ELBO] = TABLE[target].cls if target in TABLE else PYROS[target]
    known = [p.name for p in inspect.signature(cls).parameters.values()]
    check_options(f"ELBO estimator '{target}'", options, known)
    # Pyro's classes do not check these themselves.
    for option in {"alpha", "temperature"} & options.keys():
        options[option] = real(option, options[option])
    if "num_particles" in options:
        options["num_particles"] = whole("num_particles", options["num_particles"], 1)
    if options.get("vectorize_particles") is not None:
        options["vectorize_particles"] = flag("vectorize_particles", options["vectorize_particles"])
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise UsageError(f"ELBO estimator '{target}': {first_line(error)}") from error


def named(elbos: object) -> dict[str, ELBO]:
    """Estimators by the name to report them under: from a name, an `ELBO`, or several of these.

    An instance is copied: Pyro's estimators remember the plate nesting of the first model that they meet.

    Raises:
        UsageError: an unknown name, or the same one twice.
    """
    given = list(elbos) if isinstance(elbos, Iterable) and not isinstance(elbos, (str, ELBO)) else [elbos]
    result: dict[str, ELBO] = {}
    for elbo in given:
        if not isinstance(elbo, (str, ELBO)):
            raise UsageError(
                f"{elbo!r} is no ELBO estimator; give a name such as 'trace', or an object such as Trace_ELBO()"
            )
        name = elbo if isinstance(elbo, str) else _name(elbo)
        if name in result:
            raise UsageError(f"ELBO estimator '{name}' is named twice; name each one once")
        result[name] = get(elbo) if isinstance(elbo, str) else copy.deepcopy(elbo)
    if not result:
        raise UsageError(f"name at least one ELBO estimator; there are: {', '.join(TABLE)}")
    return result


def _name(elbo: ELBO) -> str:
    return next((name for name, entry in TABLE.items() if type(elbo) is entry.cls), type(elbo).__name__)

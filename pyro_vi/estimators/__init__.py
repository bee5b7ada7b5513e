"""ELBO estimators by name: each is a `pyro.infer.ELBO`, usable as ``loss=`` of a plain `pyro.infer.SVI`."""

import copy
import inspect
import math
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceMeanField_ELBO, TraceTMC_ELBO
from torch import Tensor

from pyro_vi.data import Batch
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.analytic import Analytic
from pyro_vi.estimators.bound import Bound
from pyro_vi.estimators.dreg import DReG
from pyro_vi.estimators.iwae import IWAE
from pyro_vi.estimators.relaxed import Relaxed
from pyro_vi.estimators.renyi import Renyi
from pyro_vi.estimators.score import Mixed, Score
from pyro_vi.estimators.stl import STL
from pyro_vi.estimators.vimco import VIMCO
from pyro_vi.pairs import Pair
from pyro_vi.specs import check_options, parse, unknown
from pyro_vi.terms import KL, KLSource, terms_of_pair


@dataclass(frozen=True)
class Estimator:
    """An entry of the table: the class, how it treats the KL, and what it is in one line."""

    cls: type[ELBO]
    kl: KL
    about: str


TABLE: dict[str, Estimator] = {
    # Pyro's own
    "trace": Estimator(Trace_ELBO, "sampled", "log p(x, z) - log q(z) of the draw, total derivative (sampled KL)"),
    "mean_field": Estimator(
        TraceMeanField_ELBO, "analytic", "KL in closed form wherever one is registered, else sampled"
    ),
    "graph": Estimator(
        TraceGraph_ELBO, "sampled", "score function with the costs downstream of each site, and baselines"
    ),
    "enum": Estimator(TraceEnum_ELBO, "sampled", "discrete sites marked for enumeration summed exactly"),
    "tmc": Estimator(TraceTMC_ELBO, "sampled", "tensor Monte Carlo: every combination of the draws of marked sites"),
    # ours
    "analytic": Estimator(Analytic, "analytic", "KL in closed form at each site where that is right, else sampled"),
    "stl": Estimator(STL, "sampled", "path derivative: no gradient noise at the exact posterior"),
    "iwae": Estimator(IWAE, "sampled", "importance-weighted bound, total derivative"),
    "dreg": Estimator(DReG, "sampled", "importance-weighted bound, doubly reparameterised gradient"),
    "renyi": Estimator(Renyi, "sampled", "Rényi bound of order alpha, total derivative"),
    "score": Estimator(Score, "sampled", "score function with the other draws as baseline, for any latent"),
    "mixed": Estimator(
        Mixed, "sampled", "through the draws where they can be reparameterised, score function elsewhere"
    ),
    "vimco": Estimator(VIMCO, "sampled", "importance-weighted bound, score function with a baseline for each draw"),
    "relaxed": Estimator(Relaxed, "sampled", "straight through discrete draws by Gumbel-softmax; biased"),
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
    """−bound of one evaluation, whose gradient is the estimator's; `pyro.infer.ELBO` itself does not promise the method.

    Raises:
        InputError: the estimator has none.
    """
    refuse_without_loss(elbo)
    summing = isinstance(elbo, (TraceEnum_ELBO, TraceTMC_ELBO)) or getattr(elbo, "vectorize_particles", False)
    if summing and not isinstance(elbo, Bound) and math.isinf(elbo.max_plate_nesting):
        # Pyro would guess the same, and write so to stderr.
        nesting = max(layout.max_plate_nesting for layout in pair.layouts(args))
        elbo.max_plate_nesting = nesting + int(elbo.vectorize_particles and elbo.num_particles > 1)
    if isinstance(elbo, TraceGraph_ELBO):
        value, surrogate = elbo._loss_and_surrogate_loss(pair.model, pair.guide, args, {})
        return -torch.as_tensor(value).detach() + (surrogate - surrogate.detach())
    loss: Tensor = elbo.differentiable_loss(pair.model, pair.guide, *args)
    return loss


def refuse_without_loss(elbo: ELBO) -> None:
    """Raise InputError for an estimator without `differentiable_loss`."""
    if not hasattr(elbo, "differentiable_loss") and not isinstance(elbo, TraceGraph_ELBO):
        raise InputError(f"{type(elbo).__name__} has no differentiable_loss; use one of: {', '.join(TABLE)}")


def kl_treatment(elbo: ELBO) -> KL:
    """Whether an estimator uses closed forms of the KL where they exist."""
    if isinstance(elbo, Bound):
        return "sampled" if elbo.kl == "sampled" else "analytic"
    return "analytic" if isinstance(elbo, TraceMeanField_ELBO) else "sampled"


def needs_reparametrized(elbo: ELBO) -> bool:
    """Whether an estimator's gradient goes through every draw, and would be lost where a site cannot be reparameterised."""
    return elbo.gradient in ("total", "path", "doubly") if isinstance(elbo, Bound) else kl_treatment(elbo) == "analytic"


def kl_sources(elbo: ELBO, pair: Pair, args: Batch) -> dict[str, KLSource]:
    """Where each latent site's KL comes from under an estimator, looked up on one draw of the batch."""
    if isinstance(elbo, Bound):
        return elbo.sources(pair.model, pair.guide, args)
    summed = _marked(pair, args) if isinstance(elbo, (TraceEnum_ELBO, TraceTMC_ELBO)) else set()
    found = terms_of_pair(pair, args, kl=kl_treatment(elbo), seed=0).sources
    return {**found, **{name: KLSource("enumerated") for name in summed}}


def _marked(pair: Pair, args: Batch) -> set[str]:
    sites = [site for layout in pair.layouts(args) for site in layout.latents.values()]
    return {site.name for site in sites if site.enumerated}


def known_biased(elbo: ELBO) -> bool:
    """Whether an estimator's gradient is biased by its making, as a relaxation's is."""
    return isinstance(elbo, Bound) and elbo.gradient == "relaxed"


def target(elbo: ELBO) -> str:
    """What an estimator estimates: ``"elbo"``, ``"iwae(5)"``: only gradients of the same bound can agree."""
    if isinstance(elbo, Bound) and elbo.bound != "elbo" and elbo.num_particles > 1:
        order = f", alpha={elbo.alpha}" if elbo.bound == "renyi" else ""
        return f"{elbo.bound}({elbo.num_particles}{order})"
    return "tmc" if isinstance(elbo, TraceTMC_ELBO) else "elbo"

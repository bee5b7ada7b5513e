"""What an estimator sees of a pair: K draws from the guide, and the same draws again as constants.

`draw_sample` runs the programs in whatever parameter store is in force, so that estimators serve a plain `pyro.infer.SVI`
as well as modules. `Plan` is what is found out once for a pair: whether K draws can be made in one run, and at which sites
an analytic KL would be wrong.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_vi.errors import InputError
from pyro_vi.pairs import PARTICLES, Plate
from pyro_vi.terms import SiteTerms, Terms, from_traces

Values = dict[str, Tensor]


class Give(Messenger):
    """Sites take given values, still as draws and not as observations."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True


class Relax(Messenger):
    """Discrete sites draw straight through: a discrete value whose gradient is that of its Gumbel-softmax relaxation."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature

    def _pyro_sample(self, msg: Any) -> None:
        fn, extra = msg["fn"], 0
        if msg["is_observed"] or fn.has_rsample or type(fn).__name__ == "_Subsample":
            return
        while isinstance(fn, torch.distributions.Independent):
            fn, extra = fn.base_dist, extra + fn.reinterpreted_batch_ndims
        temperature = torch.as_tensor(self.temperature, dtype=fn.logits.dtype, device=fn.logits.device)
        if isinstance(fn, torch.distributions.Bernoulli):
            soft: Any = dist.RelaxedBernoulliStraightThrough(temperature, logits=fn.logits)
        elif isinstance(fn, torch.distributions.OneHotCategorical):
            soft = dist.RelaxedOneHotCategoricalStraightThrough(temperature, logits=fn.logits)
        else:
            raise InputError(
                f"site '{msg['name']}' ({type(fn).__name__}) has no relaxation here; write it as Bernoulli or "
                "OneHotCategorical, or use 'score'"
            )
        msg["value"], msg["done"] = soft.rsample(), True


@dataclass(frozen=True)
class Plan:
    """What is found out once for a pair: where particles stand, whether they can, and what an analytic KL may not touch."""

    nesting: int
    vectorized: bool
    refused: Mapping[str, str]
    programs: tuple[Any, Any]  # kept alive, so that their ids stay theirs


@dataclass(frozen=True)
class _Run:
    """Traces of one run with all values drawn in it, those of subsampling included."""

    model_trace: Any
    guide_trace: Any
    values: Values


@dataclass(frozen=True)
class Sample:
    """K draws of a pair on a batch.

    Attributes:
        live: their terms, each of shape ``(K, B)`` or ``(K,)``, with gradients through the draws.
        reparametrized: by latent site, whether its draw carries a gradient.
    """

    live: Terms
    reparametrized: Mapping[str, bool]
    runs: tuple[_Run, ...]
    pair: tuple[Any, Any]
    args: tuple[Any, ...]
    particles: int | None
    plan: Plan
    kl: str

    def fixed(self, leaves: bool) -> tuple[Terms, list[Values]]:
        """Terms of the same draws taken as constants, and those constants: leaves that require gradients, if asked.

        The programs run again on the given values, so that also a guide whose log-density is cached with its draw, and one
        whose later sites depend on earlier ones, are seen at fixed values with live parameters.
        """
        parts, constants = [], []
        for run in self.runs:
            given = {name: value.detach() for name, value in run.values.items()}
            if leaves:
                given = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in given.items()}
            model, guide = self.pair
            with Give(given):
                traces = _run(model, guide, self.args, self.particles, self.plan.nesting)
            parts.append(_terms(traces, self.args, self.plan, self.kl, score=True))
            constants.append(given)
        return _stack(parts, self.particles), constants

    def drawn(self) -> list[Values]:
        """The draws themselves, with their gradients."""
        return [run.values for run in self.runs]


def draw_sample(
    owner: Any,
    model: Any,
    guide: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    count: int,
    vectorize: bool | None,
    kl: str,
    temperature: float | None,
) -> Sample:
    """Make K draws; ``owner`` keeps the `Plan` of each pair that it met. See `Sample`."""
    plans = owner.__dict__.setdefault("_plans", {})
    key = (id(model), id(guide))
    if key not in plans:
        plans[key] = _plan(model, guide, args, kwargs, count, vectorize, kl)
    plan: Plan = plans[key]
    pair = (_with(model, kwargs), _with(guide, kwargs))
    particles = count if plan.vectorized and count > 1 else None
    runs, parts = [], []
    for _ in range(1 if particles else count):
        if temperature is None:
            run = _run(*pair, args, particles, plan.nesting)
        else:
            run = _run(pair[0], _relaxed(pair[1], temperature), args, particles, plan.nesting)
        runs.append(run)
        parts.append(_terms(run, args, plan, kl, score=True))
    sites = {n: s["fn"].has_rsample for n, s in runs[0].guide_trace.nodes.items() if s["type"] == "sample"}
    return Sample(_stack(parts, particles), sites, tuple(runs), pair, args, particles, plan, kl)


def _with(program: Any, kwargs: Mapping[str, Any]) -> Any:
    return (lambda *args: program(*args, **kwargs)) if kwargs else program


def _relaxed(guide: Any, temperature: float) -> Any:
    def run(*args: Any) -> Any:
        with Relax(temperature):
            return guide(*args)

    return run


def _run(model: Any, guide: Any, args: tuple[Any, ...], particles: int | None, nesting: int) -> _Run:
    if particles is not None:
        plate = pyro.plate(PARTICLES, particles, dim=-1 - nesting)
        model, guide = plate(model), plate(guide)
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    values = {
        name: node["value"]
        for trace in (model_trace, guide_trace)
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and isinstance(node["value"], Tensor)
    }
    model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    model_trace.compute_log_prob()
    guide_trace.compute_log_prob()
    return _Run(model_trace, guide_trace, {name: value for name, value in values.items() if name != PARTICLES})


def _terms(run: _Run, args: tuple[Any, ...], plan: Plan, kl: str, score: bool = False) -> Terms:
    length = len(args[0]) if args and isinstance(args[0], Tensor) and args[0].dim() else 1
    plate = _data_plate(run.model_trace, length)
    missing = [n for n, s in _latents(run.model_trace).items() if n not in run.guide_trace.nodes]
    if missing:
        raise InputError(f"the guide has no site '{missing[0]}' of the model; sample it in the guide")
    if kl == "sampled":
        return from_traces(run.model_trace, run.guide_trace, plate, length, kl="sampled", score=score)
    refused = {**plan.refused, **_scaled_apart(run)}
    terms = from_traces(run.model_trace, run.guide_trace, plate, length, kl="analytic", refused=refused, score=score)
    if kl == "strict":
        for name, source in terms.sources.items():
            if source.kind != "analytic":
                raise InputError(
                    f"kl='strict': the KL of site '{name}' cannot be analytic: {source.reason}; choose a prior and a guide with "
                    "a closed form (say, a Normal prior under a normal guide), or kl='analytic' to sample it"
                )
    return terms


def _scaled_apart(run: _Run) -> dict[str, str]:
    apart = {}
    for name, node in _latents(run.model_trace).items():
        ours, theirs = (torch.as_tensor(n["scale"]) for n in (node, run.guide_trace.nodes[name]))
        if not torch.equal(ours.double(), theirs.double()):
            apart[name] = "model and guide scale it differently"
    return apart


def _latents(trace: Any) -> dict[str, Any]:
    return {n: s for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]}


def _data_plate(trace: Any, length: int) -> Plate | None:
    """The plate that all observed sites share, read from a trace: as `pyro_vi.pairs.Prototype.data_plate`."""
    stacks = [
        [f for f in n["cond_indep_stack"] if f.vectorized and f.name != PARTICLES]
        for n in trace.nodes.values()
        if n["type"] == "sample" and n["is_observed"]
    ]
    shared = [f for f in stacks[0] if all(f.name in [g.name for g in s] for s in stacks)] if stacks else []
    shared.sort(key=lambda frame: frame.dim)
    frame = next((f for f in shared if f.size == length), shared[0] if shared else None)
    return None if frame is None else Plate(frame.name, frame.dim, frame.full_size)


def _stack(parts: list[Terms], particles: int | None) -> Terms:
    """Terms of K draws with the draws as first dimension, however they were made."""
    if particles is not None:
        return parts[0]

    def together(name: str, what: str) -> Tensor | None:
        values = [getattr(part.sites[name], what) for part in parts]
        return None if values[0] is None else torch.stack(values)

    sites: dict[str, SiteTerms] = {
        name: replace(
            site,
            log_p=together(name, "log_p"),
            log_q=together(name, "log_q"),
            kl=together(name, "kl"),
            score=together(name, "score"),
        )
        for name, site in parts[0].sites.items()
    }
    return replace(parts[0], sites=sites)


def weights(terms: Terms) -> tuple[Tensor, float]:
    """Log-weights of shape ``(K, R)`` and the factor f with bound = f Σ_r bound_r.

    With local latents only there is a weight for each datum, and f = N / B. A latent shared by all data makes one weight of
    them all, which exists only where the batch is all the data.

    Raises:
        InputError: a shared latent under a subsampled plate.
    """
    shared = [name for name, site in terms.sites.items() if site.latent and not site.local]
    if not shared:
        return terms.log_weight, terms.num_data / terms.rows
    if terms.rows > 1 and terms.num_data != terms.rows:
        raise InputError(
            f"site '{shared[0]}' is shared by all data, so a many-sample bound needs all {terms.num_data} of them at once, "
            f"not {terms.rows}; use the ELBO ('trace', 'stl', 'score'), or full batches"
        )
    return terms.num_data * terms.log_weight.mean(-1, keepdim=True), 1.0


def _plan(
    model: Any,
    guide: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    count: int,
    vectorize: bool | None,
    kl: str,
) -> Plan:
    pair = (_with(model, kwargs), _with(guide, kwargs))
    with torch.random.fork_rng(), torch.no_grad(), poutine.block():
        run = _run(*pair, args, None, 0)
        nodes = [n for t in (run.model_trace, run.guide_trace) for n in t.nodes.values() if n["type"] == "sample"]
        nesting = max(len(node["fn"].batch_shape) for node in nodes)
        refused = _refused(*pair, args) if kl != "sampled" else {}
        plan = Plan(nesting, False, refused, (model, guide))
        vectorized = vectorize if vectorize is not None else count > 1 and _vectorizes(pair, args, plan, run)
    return replace(plan, vectorized=vectorized)


def _vectorizes(pair: tuple[Any, Any], args: tuple[Any, ...], plan: Plan, single: _Run) -> bool:
    """As `pyro_vi.draws.vectorizes`, in the parameter store that is in force."""
    try:
        many = _run(*pair, args, 2, plan.nesting)
        together = _terms(many, args, plan, "sampled").elbo
    except (RuntimeError, ValueError, IndexError, AssertionError, TypeError):
        return False
    apart = []
    for k in range(2):
        values = {}
        for name, value in many.values.items():
            like = single.values[name]
            if name in many.guide_trace.nodes:
                if value.shape[:1] != (2,) or value[k].numel() != like.numel():
                    return False
                value = value[k].reshape(like.shape)
            values[name] = value
        with Give(values):
            apart.append(_terms(_run(*pair, args, None, 0), args, plan, "sampled").elbo)
    expected = torch.stack(apart)
    tolerance = 1e-4 if expected.dtype == torch.float32 else 1e-9
    return together.shape == expected.shape and torch.allclose(together, expected, rtol=tolerance, atol=tolerance)


def _refused(model: Any, guide: Any, args: tuple[Any, ...]) -> dict[str, str]:
    """Sites at which an analytic KL is wrong: z whose prior depends on a latent that the guide draws given z.

    There E_q of the closed form is taken over draws that already know z. Dependence is what the values show, by tracking
    which draws enter the parameters of which site, and not the order of the statements.
    """
    ours = _parents(model, args)
    theirs = _parents(guide, args)
    refused = {}
    for name in ours:
        later = {other for other in theirs if name in _ancestors(other, theirs)}
        clash = sorted(ours[name] & later)
        if clash:
            refused[name] = f"its prior depends on '{clash[0]}', which the guide draws given '{name}'"
    return refused


def _parents(program: Any, args: tuple[Any, ...]) -> dict[str, set[str]]:
    found: Any = get_dependencies(program, args)["prior_dependencies"]
    return {name: set(above) - {name} for name, above in found.items()}


def _ancestors(name: str, parents: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    stack = list(parents.get(name, ()))
    while stack:
        one = stack.pop()
        if one not in seen:
            seen.add(one)
            stack += parents.get(one, ())
    return seen

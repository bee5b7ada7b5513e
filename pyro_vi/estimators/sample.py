"""K draws of a pair from the guide, and the same draws again as constants.

`draw_sample` runs the programs in whatever parameter store is in force, so that estimators serve a plain `pyro.infer.SVI`
as well as modules. `Plan` holds facts about a pair that are found out once: whether K draws can be made in one run, and the
sites at which an analytic KL would be wrong.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from torch import Tensor

from pyro_vi.elbo import (
    KL,
    Reasons,
    Run,
    SiteTerms,
    Terms,
    apart,
    by_dependence,
    draw_traces,
    draws_at_once,
    from_run,
    length_of,
    refuse_unguided,
    shared,
    unwrapped,
)
from pyro_vi.errors import InputError, first_line
from pyro_vi.programs import Give, Program, Relax, Straighten, Values, data_plate_of, describe, kept_buffers, role_of
from pyro_vi.support import kept_generators


@dataclass(frozen=True)
class Plan:
    """Facts about a pair that are found out once.

    Attributes:
        nesting: number of batch dimensions right of the particles.
        vectorized: whether K draws can be made in one run.
        dependence: by site at which an analytic KL would be wrong because of its dependence, the reason.
    """

    nesting: int
    vectorized: bool
    dependence: Reasons


Plans = dict[tuple[Program, Program], Plan]
"""Plans by model and guide. Not by their ids: a bound method is a new object, equal to the last, at each look."""


@dataclass(frozen=True)
class Sample:
    """K draws of a pair on a batch.

    Attributes:
        live: their terms, each of shape ``(K, B)`` or ``(K,)``, with gradients through the draws.
        reparametrized: by site that the guide draws, whether its draw carries a gradient.
        runs: the run of each draw, or one run of all.
        at_once: K where the draws were made in one run; None where they were made one by one.
    """

    live: Terms
    reparametrized: Mapping[str, bool]
    runs: tuple[Run, ...]
    pair: tuple[Program, Program]
    args: tuple[Any, ...]
    at_once: int | None
    plan: Plan
    kl: str

    def fixed(self, leaves: bool) -> tuple[Terms, list[Values]]:
        """Terms of the same draws taken as constants, and those constants: leaves that require gradients, if asked.

        The programs run again on the given values, so that also a guide whose log-density is cached with its draw, and one
        whose later sites depend on earlier ones, are seen at fixed values with live parameters. A Delta is no draw: its value
        is computed again, from the constants.

        Raises:
            InputError: the guide's log-density is known only with its own draw.
        """
        runs, constants = self.again(leaves)
        return self.terms_of(runs), constants

    def again(self, leaves: bool) -> tuple[list[Run], list[Values]]:
        """The runs of the programs on the constants, and these, for `fixed`."""
        runs, constants = [], []
        for drawn in self.runs:
            computed = {n for n, s in _sampled(drawn.guide_trace) if isinstance(unwrapped(s["fn"]), Delta)}
            given = {name: value.detach() for name, value in drawn.values.items() if name not in computed}
            if leaves:
                given = {n: v.requires_grad_() if v.is_floating_point() else v for n, v in given.items()}
            model, guide = self.pair
            try:
                with Give(given):
                    run = draw_traces(model, guide, self.args, self.at_once, self.plan.nesting)
            except (KeyError, NotImplementedError) as error:  # a flow without an inverse
                raise InputError(
                    "this gradient scores given draws, which the guide cannot do "
                    f"({type(error).__name__}: {first_line(error)}); use 'trace', 'analytic' or 'iwae'"
                ) from error
            runs.append(run)
            constants.append(given)
        return runs, constants

    def terms_of(self, runs: Sequence[Run]) -> Terms:
        """The terms of runs, one for each draw, or one of all."""
        return _stack([_terms(run, self.args, self.plan, self.kl) for run in runs], self.at_once)

    def need_scale_outside(self) -> None:
        """Raise InputError where a plate is subsampled whose scale would stand inside the logarithm of a bound."""
        for run in self.runs:
            plate = data_plate_of(run.model_trace)
            for node in (*run.model_trace.nodes.values(), *run.guide_trace.nodes.values()):
                for frame in node["cond_indep_stack"] if node["type"] == "sample" else ():
                    if frame.size != frame.full_size and (plate is None or frame.name != plate.name):
                        raise InputError(
                            f"plate '{frame.name}' is subsampled and is not a vectorized plate of all data, so a "
                            "many-sample bound would have its scale inside the logarithm; use the ELBO ('trace', "
                            "'stl', 'score'), or full batches"
                        )

    def drawn(self) -> list[Values]:
        """The draws themselves, with their gradients."""
        return [run.values for run in self.runs]


def draw_sample(
    plans: Plans,
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    particles: int,
    vectorize: bool | None,
    kl: str,
    temperature: float | None,
) -> Sample:
    """Make K draws, by the plan of the pair among ``plans``, or by a new one that is added to them. See `Sample`."""
    key = (model, guide)
    if key not in plans:
        plans[key] = make_plan(model, guide, args, kwargs, particles, vectorize, kl)
    plan = plans[key]
    pair = (_with(model, kwargs), _with(guide, kwargs))
    at_once = particles if plan.vectorized and particles > 1 else None
    runs: list[Run] = []
    parts = []
    for _ in range(1 if at_once else particles):
        # If the programs choose the minibatch, all draws share it, because a weight belongs to one datum.
        with ExitStack() as handlers:
            handlers.enter_context(Give(runs[0].subsamples if runs else {}))
            if temperature is not None:  # outside the particles, so that each particle has its own draw
                handlers.enter_context(Straighten())
                handlers.enter_context(Relax(temperature))
            run = draw_traces(*pair, args, at_once, plan.nesting)
        runs.append(run)
        parts.append(_terms(run, args, plan, kl))
    sites = {n: bool(s["fn"].has_rsample) for n, s in _sampled(runs[0].guide_trace)}
    return Sample(_stack(parts, at_once), sites, tuple(runs), pair, args, at_once, plan, kl)


def _sampled(trace: Any) -> list[tuple[str, Any]]:
    return [(n, s) for n, s in trace.nodes.items() if s["type"] == "sample" and not s["is_observed"]]


def _with(program: Program, kwargs: Mapping[str, Any]) -> Program:
    return (lambda *args: program(*args, **kwargs)) if kwargs else program


def _terms(run: Run, args: tuple[Any, ...], plan: Plan, kl: str) -> Terms:
    refuse_unguided(run)
    kind: KL = "sampled" if kl == "sampled" else "analytic"
    terms = from_run(run, length_of(args), kl=kind, dependence=plan.dependence, score=True)
    if kl == "strict":
        _demand_analytic(terms, run, plan)
    return terms


def _demand_analytic(terms: Terms, run: Run, plan: Plan) -> None:
    for name, source in terms.sources.items():
        if source.kind == "analytic":
            continue
        if name not in run.model_trace:
            remedy = "do without the auxiliary site"
        elif apart(run.model_trace.nodes[name], run.guide_trace.nodes[name]):
            remedy = "do it alike in both"
        elif name in plan.dependence:
            remedy = "draw the sites in the model's order in the guide"
        else:
            remedy = "choose a prior and a guide with a closed form (say, Normal under Normal)"
        fns = [t.nodes[name]["fn"] for t in (run.guide_trace, run.model_trace) if name in t.nodes]
        raise InputError(
            f"kl='strict': KL({' || '.join(describe(fn) for fn in fns)}) of site '{name}' cannot be analytic: "
            f"{source.reason}; {remedy}, or use kl='analytic' to sample it"
        )


def _stack(parts: list[Terms], at_once: int | None) -> Terms:
    """Return the terms of K draws with the draws as first dimension, whether they were made in one run or one by one."""
    if at_once is not None:
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


def weights(terms: Terms) -> tuple[Tensor, Any]:
    """Log-weights of shape ``(K, R)`` and the factor f with bound = f Σ_r bound_r.

    With local latents only there is a weight for each datum, and f = N / B. A latent that all data share makes one weight of
    them all, which exists only where the batch is all the data; so does a factor outside of the data's plate. A scale that all
    sites have in common is a part of f, so that the bound is that many times the unscaled one.

    Raises:
        InputError: a shared latent under a subsampled plate, or a scale that cannot be taken out of the logarithm.
    """
    latent = [n for n, s in terms.sites.items() if s.drawn and not s.local]
    joint = latent or [n for n, s in terms.sites.items() if not s.local and s.source is None]
    outer = terms.outer
    if (outer is None and latent) or (isinstance(outer, Tensor) and outer.numel() > 1):
        raise InputError(
            "poutine.scale would stand inside the logarithm of a many-sample bound: the data are scaled "
            + ("by a tensor" if outer is not None else f"and site '{latent[0]}', which all data share, is not")
            + "; use the ELBO ('trace', 'stl', 'score'), or do without the scale"
        )
    outer = 1.0 if outer is None else outer
    if not joint:
        return terms.log_weight / outer, terms.num_data / terms.rows * outer
    if terms.rows > 1 and terms.num_data != terms.rows:
        raise InputError(
            f"site '{joint[0]}' is shared by all data, so a many-sample bound needs all {terms.num_data} of them at once, "
            f"not {terms.rows}; use the ELBO ('trace', 'stl', 'score'), or full batches"
        )
    return terms.num_data * terms.log_weight.mean(-1, keepdim=True) / outer, outer


def make_plan(
    model: Program,
    guide: Program,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    particles: int,
    vectorize: bool | None,
    kl: str,
) -> Plan:
    """Find out about a pair, by running it once, and with two draws at once and one by one if ``particles`` is above 1.

    Raises:
        InputError: ``vectorize`` is true for programs that are not written for it, or the guide has a factor whose gradient is
            not known.
    """
    pair = (_with(model, kwargs), _with(guide, kwargs))
    with kept_generators(), torch.no_grad(), poutine.block(), kept_buffers(model), kept_buffers(guide):
        run = draw_traces(*pair, args)
        _refuse_factors(run)
        dependence = by_dependence(*pair, args) if kl != "sampled" and len(shared(run)) > 1 else {}
        vectorized = vectorize is not False and particles > 1 and draws_at_once(*pair, args, run)
    if vectorize and particles > 1 and not vectorized:
        raise InputError(NOT_VECTORIZED)
    return Plan(run.nesting, vectorized, dependence)


NOT_VECTORIZED = (
    "vectorize_particles=True needs programs that take a further batch dimension on the left, and these give other numbers "
    "with it, or fail; leave vectorize_particles out"
)


def _refuse_factors(run: Run) -> None:
    for name, node in run.guide_trace.nodes.items():
        if node["type"] == "sample" and role_of(node) == "factor" and not node["fn"].has_rsample:
            raise InputError(
                f"the guide's factor '{name}' is not marked as a function of reparameterised draws, so its gradient is not "
                "known; mark it by has_rsample=True, or use Pyro's 'trace'"
            )

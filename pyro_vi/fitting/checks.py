"""Check of a pair for silent errors, on one batch before a fit; each finding has a remedy.

* `check` runs a pair and returns a list of `Finding`; `refuse` raises on errors among them.
* Each rule is a function from one run of the pair (`_View`) to findings; `RULES` lists the rules.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.elbo import Terms, draw_traces, from_run
from pyro_vi.errors import InputError, first_line
from pyro_vi.estimators.contract import Traits
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import traits_of
from pyro_vi.programs import Pair, Program, Prototype, Site, isolated, pair_of

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One finding of a check. A fit does not start if there is an error; it warns of warnings, and ignores notes."""

    code: str
    severity: Severity
    site: str | None
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


@dataclass(frozen=True)
class _View:
    """One run of the pair: its sites, its traces and its ELBO terms."""

    pair: Pair
    args: Batch
    model: Prototype
    guide: Prototype
    model_trace: Any
    guide_trace: Any
    terms: Terms
    traits: Traits
    num_data: int | None

    @property
    def shared(self) -> list[str]:
        return [name for name in self.model.latents if name in self.guide.sites]


def check(
    model: Program,
    guide: Program,
    batch: Batch | Tensor,
    *,
    elbo: str | ELBO | None = None,
    num_data: int | None = None,
) -> list[Finding]:
    """Run a pair on one batch and look for errors that would make a fit wrong without a message.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor, or the tuple that the programs are called with.
        elbo: the estimator that the fit will use; some errors exist under some estimators only.
        num_data: number of training data, if the batch is a part of them.

    Returns:
        The findings, errors first; an empty list for a correct pair.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("rate", dist.Normal(0.0, 1.0))
        >>> [finding.code for finding in check(model, guide, torch.ones(9))]
        ['guide-support']
    """
    args = batch if isinstance(batch, tuple) else (batch,)
    estimator = next(iter(named(elbo).values())) if elbo is not None else None
    bad = _not_finite(args)
    if bad:
        return [bad]
    try:
        pair = pair_of(model, guide, args)
    except InputError as error:
        return [_failing(error)]
    return check_pair(pair, args, elbo=estimator, num_data=num_data)


def check_pair(pair: Pair, args: Batch, *, elbo: ELBO | None, num_data: int | None) -> list[Finding]:
    """`check` for a pair that is bound already."""
    bad = _not_finite(args)
    if bad:
        return [bad]
    traits = Traits() if elbo is None else traits_of(elbo)
    try:
        layout, guide_layout = pair.layouts(args)
        missing = list(_missing(layout, guide_layout, traits))
        if missing:
            return missing
        with isolated(seed=0, validation=False):
            try:
                run = draw_traces(pair.model, pair.guide, args)
                terms = from_run(run, length_of(args), kl=traits.kl)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                shapes = ", ".join(str(tuple(a.shape)) for a in args if isinstance(a, Tensor))
                text = first_line(error).rstrip(":")
                raise InputError(f"log p and log q fail on a batch of shape {shapes}: {text}") from error
    except InputError as error:
        return [_failing(error)]
    view = _View(pair, args, layout, guide_layout, run.model_trace, run.guide_trace, terms, traits, num_data)
    found = [finding for rule in RULES for finding in rule(view)]
    order = ("error", "warning", "note")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def refuse(findings: Iterable[Finding]) -> None:
    """Raise InputError on the first error among findings, which come errors first, and warn of the warnings.

    Raises:
        InputError: a finding is an error.
    """
    for finding in findings:
        if finding.severity == "error":
            raise InputError(str(finding))
        if finding.severity == "warning":
            warnings.warn(str(finding), stacklevel=3)


def _not_finite(args: Batch) -> Finding | None:
    for i, column in enumerate(args):
        if isinstance(column, Tensor) and column.is_floating_point() and not bool(column.isfinite().all()):
            count = int((~column.isfinite()).sum())
            text = f"column {i} of the batch has {count} values that are NaN or infinite"
            remedy = "drop those rows, or fill them with numbers and mask them in the model"
            return Finding("data-not-finite", "error", None, text, remedy)
    return None


def _failing(error: InputError) -> Finding:
    return Finding("program-fails", "error", None, str(error), "correct the program, or give it data that fit")


def _missing(model: Prototype, guide: Prototype, traits: Traits) -> Iterator[Finding]:
    have = ", ".join(model.latents) or "none"
    for name, site in model.latents.items():
        summed = site.enumerated and traits.sums_marked
        if name not in guide.sites and not summed:
            text = f"the guide has no site '{name}', so the latent would be drawn from the prior, without a KL"
            remedy = f"sample '{name}' in the guide" + (", or use the estimator 'enum'" if site.enumerated else "")
            yield Finding("missing-in-guide", "error", name, text, remedy)
    for name, site in guide.sites.items():
        if name not in model.sites and not site.auxiliary:
            text = f"the guide samples '{name}', which the model does not have (its latent sites: {have})"
            remedy = "rename it, or mark it with infer={'is_auxiliary': True}"
            yield Finding("missing-in-model", "error", name, text, remedy)
    for name, site in model.latents.items():
        other = guide.sites.get(name)
        if other is not None and _shape(site) != _shape(other):
            text = (
                f"one draw of site '{name}' has shape {site.batch_shape + site.event_shape} in the model and "
                f"{other.batch_shape + other.event_shape} in the guide"
            )
            yield Finding("shape-mismatch", "error", name, text, "give both the same plates and dimension")


def _shape(site: Site) -> tuple[int, ...]:
    shape = site.batch_shape + site.event_shape
    while shape[:1] == (1,):  # dimensions of size 1 on the left broadcast
        shape = shape[1:]
    return shape


def _observed_shape(view: _View) -> Iterator[Finding]:
    for name in view.model.observed:
        node = view.model_trace.nodes[name]
        shape, value = node["fn"].batch_shape + node["fn"].event_shape, node["value"].shape
        if torch.broadcast_shapes(shape, value) != shape:
            text = (
                f"site '{name}' has shape {tuple(shape)} in the model, but its observed values have shape {tuple(value)}, "
                "so numbers are scored several times"
            )
            yield Finding("observed-shape", "error", name, text, "give the model the width of the data")


def _observed_support(view: _View) -> Iterator[Finding]:
    for name, site in view.model.observed.items():
        node = view.model_trace.nodes[name]
        good = node["fn"].support.check(node["value"])
        if not bool(good.all()):
            text = (
                f"{int((~good).sum())} of {good.numel()} observed values of site '{name}' are outside the support of "
                f"{site.distribution}, where the likelihood is not a density"
            )
            yield Finding(
                "outside-support", "error", name, text, "use another likelihood, or binarise or rescale the data"
            )


def _guide_support(view: _View) -> Iterator[Finding]:
    for name in view.shared:
        site, other = view.model.sites[name], view.guide.sites[name]
        node = view.model_trace.nodes[name]
        inside = bool(node["fn"].support.check(node["value"]).all())
        if not inside or (type(_base(site.support)) is not type(_base(other.support)) and _narrower(site, other)):
            text = (
                f"the guide's {other.distribution} for site '{name}' has a different support from the model's "
                f"{site.distribution}, so log p of some draws is -inf or undefined"
            )
            remedy = "use a guide with the model's support, such as 'diag_normal'"
            yield Finding("guide-support", "error", name, text, remedy)


def _base(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _narrower(site: Any, other: Any) -> bool:
    # The types alone prove a difference only for a guide on all reals and a model on a part of them. A Delta, with which
    # Pyro's own guides return transformed draws, claims all reals for any value; the check of the draw covers it.
    if "Delta" in other.distribution:
        return False
    real = type(torch.distributions.constraints.real)
    return isinstance(_base(other.support), real) and not isinstance(_base(site.support), real)


def _reparametrized(view: _View) -> Iterator[Finding]:
    if not view.traits.through_draws:
        return
    for name in view.shared:
        if not view.guide.sites[name].reparametrized:
            kind = view.guide.sites[name].distribution
            text = f"the guide's {kind} at '{name}' cannot be reparameterised, so its gradient is lost"
            yield Finding(
                "not-reparametrized", "error", name, text, "use the estimator 'score' or 'mixed', or a continuous guide"
            )


def _fallback(view: _View) -> Iterator[Finding]:
    for name, source in view.terms.sources.items():
        if source.reason:
            text = f"the KL of site '{name}' is sampled, not analytic: {source.reason}"
            remedy = "choose a prior and a guide with a closed form if that matters"
            yield Finding("kl-fallback", "note", name, text, remedy)


def _order(view: _View) -> Iterator[Finding]:
    if not view.traits.trusts_order:
        return
    guide_order = [name for name in view.guide.sites if name in view.shared]
    if guide_order != view.shared:
        text = f"the guide samples {', '.join(guide_order)}, the model {', '.join(view.shared)}: an analytic KL may be wrong"
        yield Finding("site-order", "warning", guide_order[0], text, "sample in the model's order, or use 'analytic'")


def _scales(view: _View) -> Iterator[Finding]:
    for name in view.shared:
        ours, theirs = (torch.as_tensor(t.nodes[name]["scale"]) for t in (view.model_trace, view.guide_trace))
        if not torch.allclose(ours.double(), theirs.double(), rtol=1e-6):
            text = f"site '{name}' is scaled by {_number(ours)} in the model and by {_number(theirs)} in the guide"
            remedy = "give both the same plate (size and subsample) and the same poutine.scale"
            yield Finding("scale-mismatch", "error", name, text, remedy)


def _number(value: Tensor) -> str:
    return f"{float(value):g}" if value.numel() == 1 else "a tensor"


def _batch_as_all(view: _View) -> Iterator[Finding]:
    plate = view.model.data_plate
    if view.num_data is None or view.num_data <= len(view.args[0]) or (plate is not None and plate.size > plate.length):
        return
    for name, site in view.model.latents.items():
        if plate is None or plate.name not in site.plates:
            text = (
                f"'{name}' is shared by all {view.num_data} data, but a batch of {len(view.args[0])} counts as all of them, "
                "so its posterior would be too wide"
            )
            remedy = f"write the plate as pyro.plate('data', {view.num_data}, subsample=...)"
            yield Finding("batch-as-all", "error", name, text, remedy)


def _tensor_monte_carlo(view: _View) -> Iterator[Finding]:
    if view.traits.scale_inside and view.terms.rows != view.terms.num_data:
        rows, num_data = view.terms.rows, view.terms.num_data
        text = f"'tmc' puts the scale of {rows} of {num_data} data inside a logarithm, so the bound is biased"
        yield Finding("tmc-subsampled", "error", None, text, "use full batches, or 'enum' or 'score'")


def _unregistered(view: _View) -> Iterator[Finding]:
    owned = {id(p) for p in view.pair.parameters()}
    foreign = [leaf for leaf in _leaves(view.terms.loss) if id(leaf) not in owned]
    if foreign:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in foreign[:3])
        text = (
            f"{len(foreign)} tensors that need gradients are not parameters of the pair (shapes {shapes}), "
            "so they never train"
        )
        remedy = "register their network: make it a submodule, or call pyro.module on it in the program"
        yield Finding("unregistered", "error", None, text, remedy)


def _leaves(value: Tensor) -> Iterator[Tensor]:
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [before for before, _ in node.next_functions]


RULES: tuple[Callable[[_View], Iterator[Finding]], ...] = (
    _observed_shape,
    _observed_support,
    _guide_support,
    _reparametrized,
    _scales,
    _batch_as_all,
    _tensor_monte_carlo,
    _unregistered,
    _order,
    _fallback,
)

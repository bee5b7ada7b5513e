"""The terms of one ELBO draw: log p, log q and, where it exists, the analytic KL, per site and per datum.

Every other module reads the ELBO through this one decomposition. For local latents z_n, global latents w, data x_n:

    ELBO = Σ_n [ log p(x_n | z_n, w) − KL_n ] − KL_w,   KL = log q − log p of the draw, or in closed form.

* `KLSource` says where a site's KL comes from, and why it is not analytic where that was wanted.
* `SiteTerms` are one site's summands; `Terms` are those of all sites, and their sums.
* `terms` makes one draw; `from_run` decomposes a run that was made already.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from pyro.distributions import Delta, ExpandedDistribution, MaskedDistribution
from pyro.distributions.util import broadcast_shape, scale_and_mask
from torch import Tensor
from torch.distributions import Independent, kl_divergence

import pyro_vi.elbo.kl  # noqa: F401  (registers closed forms that torch lacks)
from pyro_vi.data import Batch, length_of
from pyro_vi.elbo.closed import Reasons, dependence_of, refused, same
from pyro_vi.elbo.traces import PARTICLES, Run, draw_traces
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.programs import (
    Pair,
    Plate,
    Program,
    data_plate_of,
    describe,
    isolated,
    kept_buffers,
    pair_and_args,
    role_of,
)
from pyro_vi.support import Whole, seed_from, word

KL = Literal["analytic", "sampled"]


@dataclass(frozen=True)
class KLSource:
    """The source of a latent site's KL, and the reason if an analytic one was wanted and there is none."""

    kind: Literal["analytic", "sampled", "enumerated"]
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.kind} ({self.reason})" if self.reason else self.kind


@dataclass(frozen=True)
class SiteTerms:
    """One site's summands of one draw, in nats.

    A local site's tensors have the shape ``(..., B)`` of the batch, without the factor N / B of a subsampled data plate;
    a global site's have the shape ``(...)``, where ``...`` is empty, or the number of particles.

    ``log_p`` is None for an auxiliary site, ``log_q`` for an observed one; ``kl`` is the closed form, or None. ``drawn`` is
    true if the guide draws the site at random: not a Delta, whose value is a function of the other draws, nor a factor.
    ``score`` is log q of such a site without any scale, whose gradient is the score function; None unless it was asked for.
    ``scale`` is the factor of log q, without the N / B of a subsampled data plate.
    """

    name: str
    local: bool
    log_p: Tensor | None
    log_q: Tensor | None
    kl: Tensor | None
    source: KLSource | None
    score: Tensor | None = None
    drawn: bool = False
    scale: Any = 1.0

    @property
    def latent(self) -> bool:
        return self.log_q is not None

    @property
    def divergence(self) -> Tensor:
        """The site's KL term: its closed form if it is there, else log q − log p of the draw."""
        if self.kl is not None:
            return self.kl
        if self.log_q is None:
            raise ValueError(f"site '{self.name}' is observed and has no KL")
        return self.log_q if self.log_p is None else self.log_q - self.log_p


@dataclass(frozen=True)
class Terms:
    """The terms of one ELBO draw.

    Attributes:
        sites: the summands by site, in the order of the model.
        num_data: full size N of the data plate, else the batch's length: what *per datum* divides by.
        rows: number of data in this batch, B; 1 if the model has no data plate.
        outer: the scale that all sites have in common (`pyro.poutine.scale`), without N / B and without the weight of an
            annealed KL: it belongs outside of the logarithm of a many-sample bound. None where the data are scaled and another
            site is not scaled as they are.
    """

    sites: Mapping[str, SiteTerms]
    num_data: int
    rows: int
    outer: Any = 1.0

    @property
    def sources(self) -> dict[str, KLSource]:
        return {name: site.source for name, site in self.sites.items() if site.source is not None}

    def _sum(self, parts: Mapping[str, Tensor]) -> Tensor:
        # A global site belongs to all N data equally.
        total: Tensor | None = None
        for name, value in parts.items():
            share = value if self.sites[name].local else value.unsqueeze(-1) / self.num_data
            total = share if total is None else total + share
        if total is None:
            return torch.zeros(self.rows)
        return total.expand(*total.shape[:-1], self.rows)

    @cached_property
    def reconstruction(self) -> Tensor:
        """log p(x_n | z) of the draw, per datum: shape ``(..., B)``."""
        return self._sum({n: s.log_p for n, s in self.sites.items() if not s.latent and s.log_p is not None})

    @cached_property
    def kl(self) -> Tensor:
        """The KL of all latent sites, per datum: shape ``(..., B)``."""
        return self._sum({n: s.divergence for n, s in self.sites.items() if s.latent})

    @property
    def elbo(self) -> Tensor:
        """The value reconstruction − KL, per datum: shape ``(..., B)``, in nats."""
        return self.reconstruction - self.kl

    @property
    def log_weight(self) -> Tensor:
        """log p(x_n, z) − log q(z) of the draw, per datum, with no closed form in it: shape ``(..., B)``."""
        sampled = {
            n: s.log_q if s.log_p is None else s.log_q - s.log_p for n, s in self.sites.items() if s.log_q is not None
        }
        return self.reconstruction - self._sum(sampled)

    @property
    def loss(self) -> Tensor:
        """−ELBO of the full data, as Pyro's estimators report it: −N times the mean over the batch. Shape ``(...)``."""
        return -self.num_data * self.elbo.mean(-1)


def terms(model: Program, guide: Program, batch: Any, *, kl: KL = "analytic", seed: Whole | None = None) -> Terms:
    """Terms of one draw z ~ q(z | x): log p, log q and KL(q ‖ p) per site and per datum.

    Their sum is the loss of Pyro's `Trace_ELBO` (``kl="sampled"``) or `TraceMeanField_ELBO` (``kl="analytic"``) under the
    same seed: see `Terms.loss`.

    Args:
        model: generative program, a module or a function.
        guide: variational program, called with the same batch.
        batch: a tensor, or a tuple of what the programs are called with.
        kl: ``"analytic"`` uses a closed form wherever one is registered, ``"sampled"`` nowhere.
        seed: seed of the draw; by default the generators continue from their present state.

    Raises:
        InputError: a program fails on the batch.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
        >>> draw = terms(model, guide, torch.tensor([0.3, 1.3]), seed=0)
        >>> draw.sites["z"].kl, draw.sources["z"].kind
        (tensor([0.1078, 0.3078]), 'analytic')
    """
    word("kl", kl, ("analytic", "sampled"))
    seed = None if seed is None else seed_from(seed)
    pair, args = pair_and_args(model, guide, batch, copied=False)
    with naming_programs("the pair fails on the batch", always=True):
        return terms_of_pair(pair, args, kl=kl, seed=seed)


def terms_of_pair(pair: Pair, args: Batch, *, kl: KL = "analytic", seed: int | None = None) -> Terms:
    """`terms` of a pair that is bound already."""
    with isolated(seed), kept_buffers(pair):
        run = draw_traces(pair.model, pair.guide, args)
        dependence = dependence_of(pair, args, run) if kl == "analytic" else {}
    return from_run(run, length_of(args), kl=kl, dependence=dependence)


def from_run(
    run: Run,
    length: int,
    *,
    kl: KL = "analytic",
    dependence: Reasons | None = None,
    score: bool = False,
) -> Terms:
    """Decompose one run of a pair: one draw, or many in the plate of particles. See `terms`.

    ``length`` is the batch's: what *per datum* divides by where there is no data plate. ``dependence`` are the reasons of
    `pyro_vi.elbo.closed.by_dependence` for which a site's KL is sampled. With ``score`` each site that the guide draws has its
    unscaled log q too.

    Raises:
        InputError: the guide samples what the model observes or computes; a site is in the data's plate in one program only.
    """
    model_trace, guide_trace = run.model_trace, run.guide_trace
    plate = data_plate_of(model_trace)
    reasons = refused(run, dependence or {}) if kl == "analytic" else {}
    sites: dict[str, SiteTerms] = {}
    for name, node in model_trace.nodes.items():
        if node["type"] != "sample" or role_of(node) == "deterministic":
            continue
        local = _local(node, plate)
        log_p = _reduce(node["log_prob"], node, plate)
        if node["is_observed"] or name not in guide_trace.nodes:
            # A latent site that the guide lacks is drawn from the prior: its log p stands alone, as in Pyro's loss.
            sites[name] = SiteTerms(name, local, log_p, None, None, None)
            continue
        other = guide_trace.nodes[name]
        if plate is not None and _local(other, plate) != local:
            raise InputError(
                f"site '{name}' is in the data's plate '{plate.name}' in one program and not in the other, so that its terms "
                f"belong to no datum; sample it in pyro.plate('{plate.name}', ...) in both"
            )
        log_q = _reduce(other["log_prob"], other, plate)
        if kl == "sampled":
            closed, source = None, KLSource("sampled")
        elif name in reasons:
            closed, source = None, KLSource("sampled", reasons[name])
        else:
            closed, source = _closed_form(node, other, plate)
        sites[name] = SiteTerms(name, local, log_p, log_q, closed, source, *_drawn(other, plate, score))
    for name, node in guide_trace.nodes.items():
        if node["type"] != "sample" or role_of(node) == "deterministic":
            continue
        if role_of(node) != "factor":
            _refuse_double(name, model_trace)
        if name not in sites or role_of(node) == "factor":
            log_q = _reduce(node["log_prob"], node, plate)
            # As in Pyro's loss, what the guide adds to its density or observes counts as log q. It is no draw, and has no KL.
            source = KLSource("sampled", "" if kl == "sampled" else "the model has no such site")
            own = f"guide.{name}" if name in sites else name
            sites[own] = SiteTerms(
                own,
                _local(node, plate),
                None,
                log_q,
                None,
                None if node["is_observed"] else source,
                *_drawn(node, plate, score),
            )
    rows, num_data = (1, length) if plate is None else (plate.length, plate.size)
    return Terms(sites, max(num_data, 1), rows, _outer(run, plate))


UNANNEALED = "_pyro_vi_scale"
"""Key of a site's ``infer`` under which whoever anneals the KL leaves the scale that the program gave the site."""


def _outer(run: Run, plate: Plate | None) -> Any:
    """See `Terms.outer`."""
    scales: dict[bool, list[Any]] = {True: [], False: []}
    for node in (n for t in (run.model_trace, run.guide_trace) for n in t.nodes.values() if n["type"] == "sample"):
        if role_of(node) != "deterministic":
            own = (node["infer"] or {}).get(UNANNEALED, node["scale"])
            scales[role_of(node) == "observed"].append(own / _factor(node, plate))
    data = scales[True]
    if all(isinstance(scale, int | float) and math.isclose(scale, 1) for scale in data):
        return 1.0
    return data[0] if all(same(scale, data[0]) for scale in (*data, *scales[False])) else None


def _refuse_double(name: str, model_trace: Any) -> None:
    node = model_trace.nodes.get(name)
    if node is not None and node["type"] == "sample" and node["is_observed"]:
        what = "observes" if role_of(node) == "observed" else "computes"
        raise InputError(
            f"the guide samples '{name}', which the model {what}, so that its log q is no part of an ELBO; leave '{name}' out "
            f"of the guide, or hide it: poutine.block(guide, hide=['{name}'])"
        )


def _closed_form(model_node: Any, guide_node: Any, plate: Plate | None) -> tuple[Tensor | None, KLSource]:
    q, p = guide_node["fn"], model_node["fn"]
    try:
        value = kl_divergence(q, p)
    except NotImplementedError:
        return None, KLSource("sampled", f"no closed form of KL({describe(q)} || {describe(p)}) is registered")
    if torch.as_tensor(value).shape not in ((), q.batch_shape):
        return None, KLSource("sampled", "model and guide give it different batch shapes")
    # Pyro's TraceMeanField_ELBO scales and masks the KL as the guide's site is.
    value = scale_and_mask(value, scale=guide_node["scale"], mask=guide_node["mask"])
    return _reduce(torch.as_tensor(value).expand(q.batch_shape), guide_node, plate), KLSource("analytic")


def _drawn(node: Any, plate: Plate | None, score: bool) -> tuple[Tensor | None, bool, Any]:
    """The score, `drawn` and the scale of a guide's site, for `SiteTerms`."""
    drawn = not node["is_observed"] and not isinstance(unwrapped(node["fn"]), Delta)
    value = None
    if drawn and score:
        masked = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"])
        value = _reduce(masked, node, plate, scaled=False)
    return value, drawn, node["scale"] / _factor(node, plate)


def _factor(node: Any, plate: Plate | None) -> float:
    """N / B of the data plate at a site: 1 outside of it."""
    frames = node["cond_indep_stack"]
    return next((f.full_size / f.size for f in frames if plate is not None and f.name == plate.name), 1.0)


def unwrapped(fn: Any) -> Any:
    """A distribution without its masks, expansions and event dimensions."""
    while isinstance(fn, (MaskedDistribution, ExpandedDistribution, Independent)):
        fn = fn.base_dist
    return fn


def _local(node: Any, plate: Plate | None) -> bool:
    return plate is not None and any(frame.name == plate.name for frame in node["cond_indep_stack"])


def _reduce(value: Tensor, node: Any, plate: Plate | None, scaled: bool = True) -> Tensor:
    """Sum a site's log-density over all batch dimensions but those of the particles and of the data plate."""
    names = (PARTICLES,) if plate is None else (PARTICLES, plate.name)
    keep = [(frame.dim, frame) for frame in node["cond_indep_stack"] if frame.name in names]
    dims = [dim for dim, _ in keep]
    if dims:
        value = value.expand(broadcast_shape(value.shape, _frame_shape(keep)))
    others = [dim for dim in range(-value.dim(), 0) if dim not in dims]
    return (value.sum(others) if others else value) / (_factor(node, plate) if scaled else 1)


def _frame_shape(keep: list[tuple[int, Any]]) -> tuple[int, ...]:
    shape = [1] * max(-dim for dim, _ in keep)
    for dim, frame in keep:
        shape[dim] = max(frame.size, 1)  # a plate without a size has that of its sites
    return tuple(shape)

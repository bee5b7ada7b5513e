"""The posterior of each datum as a density of vectors, up to log p(x): what a family is optimised on.

* `Target` evaluates log p(x, u) + log |dz/du| for many vectors u of each datum at once, with gradients; sites that the guide
  leaves to enumeration are summed out. `Target.guide_density` gives log q(u | x) of the guide there, and
  `Target.guide_draws` its draws with their weights.
* `target_of` makes it from a pair, or raises InputError with the reason why there is none.
"""

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor, nn

from pyro_vi.amortized import Call, Frame
from pyro_vi.amortized.density import coupled, log_joint
from pyro_vi.data import Batch, fresh, length_of, tensors_in
from pyro_vi.elbo import MEMORY, Facts, draw_traces, enumerated_run, from_run, nesting_of, quoted, weight_of_terms
from pyro_vi.elbo.traces import PARTICLES
from pyro_vi.elbo.weights import summed_weight
from pyro_vi.errors import InputError
from pyro_vi.programs import Give, Pair, trace_of_guide, without_numbers

LARGEST = 256
"""Most numbers of one vector: a search needs a matrix of this size for each datum."""
LOG_2PI = math.log(2 * math.pi)


@dataclass
class Target:
    """log p(x_n, u_n) of each datum as a function of vectors u_n on the unconstrained scale.

    If latents are shared by all data, or there is no data plate, one vector stands for the whole data set.

    Attributes:
        pair: model and guide.
        args: the data.
        facts: the facts about the pair.
        frame, call: the latents of the model, and their view of this batch.
        whole: True for one vector for the whole data set.
        rows: number of vectors, R.
        sizes: length of the part of a vector that belongs to each site, by name.
        hidden: which numbers of a vector the model masks, (R, D). They count as N(0, 1) in every density here, so that the best
            q of them is N(0, 1), and adds 0 to the ELBO.
        nesting: number of batch dimensions of the programs.
        chunk: draws at once.
        together, guide_together: the model, and the guide, take many draws in one run.
    """

    pair: Pair
    args: Batch
    facts: Facts
    frame: Frame
    call: Call
    whole: bool
    rows: int
    sizes: Mapping[str, int]
    hidden: Tensor
    nesting: int
    chunk: int
    together: bool = True
    guide_together: bool = True

    @property
    def size(self) -> int:
        """Length of a vector, D."""
        return sum(self.sizes.values())

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the programs' latents."""
        return self.frame.dtype

    def prior(self) -> tuple[Tensor, Tensor]:
        """The centre and the standard deviation of the prior, (R, D) each."""
        found = []
        for which in ("start", "spread"):
            sites = {name: getattr(self.call.sites[name], which) for name in self.sizes}
            found.append(self._vectors({name: self._wide(name, value) for name, value in sites.items()}).double())
        return found[0], found[1].clamp(min=1e-6)

    def value(self, u: Tensor) -> Tensor:
        """log p(x, u) without gradients, (K, R), in double precision, at u of shape (K, R, D)."""
        with torch.no_grad():
            return torch.cat([self._value(part) for part in u.split(self.chunk)])

    def value_and_gradient(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log p(x, u), (K, R), and its gradient, (K, R, D), in double precision."""
        values, gradients = [], []
        for part in u.split(self.chunk):
            point = part.detach().requires_grad_()
            with torch.enable_grad():
                value = self._value(point)
                (gradient,) = torch.autograd.grad(value.sum(), point)
            values.append(value.detach())
            gradients.append(gradient)
        return torch.cat(values), torch.cat(gradients)

    def guide_density(self, u: Tensor) -> Tensor:
        """log q(u | x) of the guide, (K, R), in double precision, with gradients in u."""
        if not self.guide_together:
            return torch.cat([self._guided(one.unsqueeze(0), False) for one in u])
        return self._guided(u, True)

    def guide_draws(self, draws: int) -> tuple[Tensor, Tensor]:
        """Draws of the guide, (K, R, D), and their log p(x, u) − log q(u | x), (K, R), from the generators as they are."""
        many = self.together and self.guide_together
        points, weights = [], []
        with torch.no_grad():
            for start in range(0, draws, self.chunk if many else 1):
                particles = min(self.chunk, draws - start) if many else None
                if self.facts.summed:
                    run = enumerated_run(self.pair, self.args, particles, self.nesting)
                    weight = summed_weight(run)
                else:
                    run = draw_traces(self.pair.model, self.pair.guide, self.args, particles, self.nesting)
                    weight = weight_of_terms(from_run(run, length_of(self.args), kl="sampled"))
                value = weight.total.unsqueeze(-1) if self.whole else weight.local + self._share(weight.shared)
                weights.append(value.reshape(-1, self.rows).double())
                points.append(self._unconstrained(run.values).reshape(-1, self.rows, self.size).double())
        return torch.cat(points), torch.cat(weights)

    def _share(self, shared: Tensor) -> Tensor:
        """The part of each datum in a number that all data share, such as a factor of the model."""
        size = self.facts.plate.size if self.facts.plate is not None else self.rows
        return shared.unsqueeze(-1) / max(size, 1)

    def _value(self, u: Tensor) -> Tensor:
        return self._joint(u) if self.together else torch.stack([self._joint(one) for one in u])

    def _joint(self, u: Tensor) -> Tensor:
        """log p(x, u) of vectors (K, R, D) or (R, D): (K, R) or (R,)."""
        values = self._sites(u)
        if self.facts.summed:
            local, shared = self._summed(values, u.dim() == 3)
        else:
            local, shared = log_joint(self.frame, self.call, values)
        total = (local.sum(-1) + shared).unsqueeze(-1) if self.whole else local + self._share(shared)
        return total.double().expand(u.shape[:-1]) + self._outside(u)

    def _outside(self, u: Tensor) -> Tensor:
        return -0.5 * torch.where(self.hidden, u.double().square() + LOG_2PI, 0.0).sum(-1)

    def _summed(self, values: Mapping[str, Tensor], many: bool) -> tuple[Tensor, Tensor]:
        """log Σ_k p(x, z, k) + log |dz/du|, over the states k of the sites that are left to enumeration."""
        z = {name: self.call.sites[name].bijection_on(u.device)(u) for name, u in values.items()}
        particles = next(iter(z.values())).shape[0] if many else None
        pair = Pair(self.pair.model, _Given(self.call, z))
        run = enumerated_run(pair, self.args, particles, self.frame.nesting)
        weight, jacobian = summed_weight(run), self._jacobian(values, z)
        if self.whole:
            return weight.local, weight.shared + jacobian.squeeze(-1)
        return weight.local + jacobian, weight.shared

    def _jacobian(self, u: Mapping[str, Tensor], z: Mapping[str, Tensor]) -> Tensor:
        """log |dz/du| of each vector, (*K, R), without that of masked sites."""
        total: Tensor | float = 0.0
        for name, value in z.items():
            site, shape = self.call.sites[name], self.frame.shape(self.call.sites[name])
            slope = site.bijection_on(value.device).log_abs_det_jacobian(u[name], value)
            batch = value.dim() - len(site.event_shape)
            slope = slope.flatten(batch).sum(-1) if slope.dim() > batch else slope
            if site.mask is not None:
                slope = torch.where(torch.as_tensor(site.mask), slope, 0)
            while slope.dim() < shape.nesting:
                slope = slope.unsqueeze(0)
            away = [dim for dim in range(-shape.nesting, 0) if dim not in shape.rows]
            slope = slope.sum(away) if away else slope
            total = total + (slope if shape.rows else slope.unsqueeze(-1))
        assert isinstance(total, Tensor)
        return total

    def _guided(self, u: Tensor, many: bool) -> Tensor:
        values = self._sites(u if many else u[0])
        z = {name: self.call.sites[name].bijection_on(v.device)(v) for name, v in values.items()}
        jacobian = self._jacobian(values, z)
        guide: Any = self.pair.guide
        if many:
            guide = pyro.plate(PARTICLES, len(u), dim=-1 - self.nesting)(guide)
            deeper = (1,) * (self.nesting - self.frame.nesting)
            z = {name: value.reshape((len(u), *deeper, *value.shape[1:])) for name, value in z.items()}
        with Give(z):
            trace = prune_subsample_sites(trace_of_guide(guide, fresh(self.args)))
        trace.compute_log_prob()
        total = jacobian.double() + self._outside(u if many else u[0])
        for name, node in trace.nodes.items():
            if node["type"] != "sample":
                continue
            if name not in z:
                raise InputError(f"the guide draws '{name}' besides the latents of the model")
            term = scale_and_mask(node["unscaled_log_prob"], mask=node["mask"]).double()
            kept = {f.dim for f in node["cond_indep_stack"] if f.name in (PARTICLES, self._plate)}
            away = [dim for dim in range(-term.dim(), 0) if dim not in kept]
            term = (term.sum(away) if away else term).reshape(-1, self.rows if kept - {-1 - self.nesting} else 1)
            total = total + term
        return total.reshape(len(u), self.rows)

    @property
    def _plate(self) -> str | None:
        return None if self.whole or self.facts.plate is None else self.facts.plate.name

    def _sites(self, u: Tensor) -> dict[str, Tensor]:
        """The sites on the unconstrained scale from vectors, (K, R, D) or (R, D)."""
        parts = u.to(self.dtype).split(list(self.sizes.values()), -1)
        shapes = {name: self.frame.shape(self.call.sites[name]) for name in self.sizes}
        return {
            name: shape.to_site(part if shape.rows else part.squeeze(-2))
            for (name, shape), part in zip(shapes.items(), parts, strict=True)
        }

    def _vectors(self, values: Mapping[str, Tensor]) -> Tensor:
        """Vectors from the sites on the unconstrained scale, the inverse of `_sites`."""
        parts = []
        for name in self.sizes:
            shape = self.frame.shape(self.call.sites[name])
            part = shape.to_vector(values[name])
            parts.append(part if shape.rows else part.unsqueeze(-2))
        return torch.cat(parts, -1)

    def _unconstrained(self, values: Mapping[str, Tensor]) -> Tensor:
        found = {}
        for name in self.sizes:
            value, deeper = values[name], self.nesting - self.frame.nesting
            if deeper and value.dim() - len(self.call.sites[name].event_shape) > self.nesting:
                value = value.reshape((value.shape[0], *value.shape[1 + deeper :]))
            found[name] = self.call.sites[name].bijection_on(value.device).inv(value)
        return self._vectors(found)

    def _wide(self, name: str, value: Tensor) -> Tensor:
        shape = self.frame.shape(self.call.sites[name])
        return value.expand((*shape.batch, *shape.event))


class _Given(nn.Module):
    """A program that puts the latent sites at values, in the place of a guide."""

    def __init__(self, call: Call, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.call, self.values = call, values

    def forward(self, *_: Any) -> None:
        """Put each site at its value, in its plates."""
        for name, value in self.values.items():
            site = self.call.sites[name]
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(self.call.plates[plate])
                pyro.sample(name, dist.Delta(value, event_dim=len(site.event_shape)))


def target_of(pair: Pair, args: Batch, facts: Facts, whole: bool) -> Target:
    """Return the target of a pair on a batch; call it within `isolated` and `evaluating`.

    Raises:
        InputError: there is none, as sites are discrete, the rows depend on each other, the model is random besides its sites,
            or a vector is too long; the message says which.
    """
    layout = pair.layouts(args)[0]
    discrete = [name for name, site in layout.latents.items() if site.support.is_discrete and name not in facts.summed]
    if discrete:
        what = "is" if len(discrete) == 1 else "are"
        raise InputError(f"the guide draws {quoted(discrete)}, which {what} discrete")
    own = without_numbers(pair.model, args)
    frame = Frame(pair.model, own, "full_normal", amortized=not whole, whole=not whole)
    call = frame.call(own, {})
    sizes = {name: frame.shape(site).numel for name, site in call.sites.items()}
    size = sum(sizes.values())
    if size > LARGEST:
        what = "all latents together have" if whole else "the latents of a datum have"
        raise InputError(f"{what} {size} numbers, and the search for the best q of a family takes {LARGEST} at most")
    rows = 1 if whole else call.plates[frame.data or ""].subsample_size
    layouts = pair.layouts(args)
    widest = max([a.numel() for a in tensors_in(args)] + [s.numel for layout in layouts for s in layout.sites.values()])
    chunk = max(1, MEMORY // max(widest, rows * size))
    hidden = torch.zeros(rows, size, dtype=torch.bool)
    target = Target(pair, own, facts, frame, call, whole, rows, sizes, hidden, nesting_of(pair, args), chunk)
    target.args = args
    masks = {n: torch.as_tensor(True if s.mask is None else s.mask) for n, s in call.sites.items()}
    if any(not bool(mask.all()) for mask in masks.values()):
        wide = {}
        for name, mask in masks.items():
            shape = frame.shape(call.sites[name])
            mask = mask.expand(shape.batch)
            wide[name] = mask.reshape((*mask.shape, *(1 for _ in shape.event))).expand((*shape.batch, *shape.event))
        target.hidden = ~target._vectors(wide)
    _proved(target)
    return target


def _proved(target: Target) -> None:
    """Find out if many draws can be made in one run, and compare the density with the weights of the guide's draws."""
    centre, spread = target.prior()
    noise = torch.randn(2, *centre.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u = centre + 0.1 * spread * noise
    target.together = False
    apart = target.value(u)
    if not torch.equal(apart.nan_to_num(), target.value(u).nan_to_num()):
        raise InputError(
            "log p(x, z) of the model differs between two runs at the same z: it has random numbers of its own"
        )
    target.together = _agree(lambda: _with(target, "together", True).value(u), apart)
    if not target.whole and target.rows > 1 and not target.facts.summed:
        with torch.enable_grad():
            point = u[0].detach().requires_grad_()
            local, shared = log_joint(target.frame, target.call, target._sites(point))
            if coupled(local, shared, {"z": point}) is not None:
                raise InputError(
                    "log p of a datum depends on latents of other data, so that no datum has an ELBO of its own"
                )
    with torch.no_grad():
        try:
            target.guide_together = False
            apart = target.guide_density(u)
            target.guide_together = _agree(lambda: _with(target, "guide_together", True).guide_density(u), apart)
            points, weights = target.guide_draws(2)
            density = target.value(points) - target.guide_density(points)
        except InputError:
            # The guide's density is not that of the model's latents alone. Its draws have weights still.
            target.guide_together = True
            return
    close = 1e-2 if target.dtype == torch.float32 else 1e-6
    finite = density.isfinite() & weights.isfinite()
    if not torch.allclose(density[finite], weights[finite], rtol=close, atol=close):
        raise InputError("log p(x, z) on the unconstrained scale does not agree with the weights of the guide's draws")


def _with(target: Target, name: str, value: bool) -> Target:
    setattr(target, name, value)
    return target


def _agree(run: Any, apart: Tensor) -> bool:
    try:
        found = run()
    except Exception:  # whatever a program raises in a form that it is not written for
        return False
    close = 1e-4 if apart.dtype == torch.float32 else 1e-5
    return found.shape == apart.shape and torch.allclose(found, apart, rtol=close, atol=close, equal_nan=True)

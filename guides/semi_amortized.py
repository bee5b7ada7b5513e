"""The semi-amortized guide: a diagonal normal from an encoder, refined for each datum by a few gradient steps."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.amortized import AmortizedGuide, Block, Call, Part
from pyro_vi.amortized.density import coupled, log_joint, refuse_noise
from pyro_vi.amortized.discrete import refuse_discrete
from pyro_vi.amortized.refining import fixed_normals, refined
from pyro_vi.data import Batch
from pyro_vi.errors import InputError

Numbers = dict[str, dict[str, Tensor]]
"""μ and log σ of each local site, each (*particles, *rows, D)."""
MOST, FEW = 32, 8
"""Most draws by default, and the draws for data that would need more."""


class SemiAmortized(AmortizedGuide):
    """Semi-amortized guide: q(z | x) = N(μ, σ²), refined from an encoder's (μ, log σ) by ascent of the ELBO of the datum.

    The ELBO is estimated from fixed noise (Kim et al. 2018, arXiv:1802.02550): antithetic standard normal draws that are
    the same at each call, so that q has no noise of its own. The steps follow the natural gradient, at most 2 standard
    deviations each, with a learned rate; a step that lowers this estimate for a datum is undone and its next is shorter, so
    that the refinement never ends below its start. Gradients go through the steps. Sites that all data share have free
    parameters; they are drawn first, and the local sites are refined given these draws. Everything else is as in
    ``diag_normal``, at many times the cost.

    Args:
        model: the generative program; all its latent sites must be continuous, and some of them local.
        batch: an example batch.
        steps: number of refining steps.
        draws: number of noise draws, even. With fewer than twice the numbers of a datum, only μ is refined: the noise of few
            draws is correlated, and log σ would follow it. By default twice the numbers of a datum, but at least 8; and 8 if
            that would be more than 32.
        rate: rate of the refining steps at the start; at 1, each step goes to the optimum of an uncorrelated normal.

    Other arguments: see `pyro_vi.amortized.AmortizedGuide`.

    Raises:
        InputError: a discrete site, a model without local sites, or one whose density is random or couples the rows.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = SemiAmortized(VAE(digits.spec, latent_dim=2), digits.example(4), steps=2)
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "semi_amortized"
    noise: Tensor

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        steps: int = 5,
        draws: int | None = None,
        rate: float = 0.5,
        **options: Any,
    ) -> None:
        if steps < 1:
            raise InputError(
                f"steps must be a whole number of at least 1, not {steps!r}; for none, use guide 'diag_normal'"
            )
        if draws is not None and (draws < 2 or draws % 2):
            raise InputError(f"draws must be an even number of at least 2, not {draws!r}")
        if not rate > 0:
            raise InputError(f"rate must be positive, not {rate!r}")
        refuse_discrete(model, batch, self.name)
        super().__init__(model, batch, **options)
        if self.encoder is None:
            raise InputError(
                "guide 'semi_amortized' refines what an encoder gives, and no latent site of the model has a row for each "
                "datum; use guide 'diag_normal'"
            )
        self.steps = steps
        some = next(iter(self.q.buffers()))
        local = {key for name, key in self.blocks.items() if self.frame.encoded(self.frame.sites[name])}
        start = torch.full((2,), math.log(rate), dtype=some.dtype)
        self.log_rate = nn.ParameterDict({key: nn.Parameter(start.clone()) for key in sorted(local)})
        with torch.no_grad():
            call = self.frame.call(batch, {})
            found = self._local(call, dict(super().numbers(call)))
            size = sum(numbers["loc"][0].numel() for numbers in found.values())
            self.draws = draws or (2 * max(size, 4) if 2 * size <= MOST else FEW)
            self.register_buffer("noise", fixed_normals(self.draws, size).to(some.dtype))
        self.at_once = False
        self._try(call, found)

    def parts(self, block: Block) -> dict[str, Part]:
        """μ and log σ of each number, before they are refined."""
        return {"loc": Part(torch.zeros(block.dim)), "log_scale": Part(self.log_scale(block))}

    def numbers(self, call: Call) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the sites that all data share, and then the local ones with their refined numbers."""
        found = dict(super().numbers(call))
        local = self._local(call, found)
        for name, numbers in found.items():
            if name not in local:
                yield name, numbers
        given = {name: call.draws[name] for name in found if name not in local}
        yield from self._refined(call, local, given).items()

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """N(μ, σ²) of each number."""
        return dist.Normal(numbers["loc"], numbers["log_scale"].exp())

    def describe(self) -> dict[str, str]:
        """Where the numbers of q come from at each site, in one phrase."""
        found = super().describe()
        for name, site in self.frame.sites.items():
            if self.frame.encoded(site):
                found[name] += f", refined by {self.steps} gradient steps"
        return found

    def _local(self, call: Call, numbers: Numbers) -> Numbers:
        return {name: value for name, value in numbers.items() if self.frame.encoded(call.sites[name])}

    def _refined(self, call: Call, start: Numbers, given: Mapping[str, Tensor]) -> Numbers:
        """The numbers of the local sites after the steps, given draws of the others."""
        lead = self._particles(call, given)
        noise, weights = self._noise(start, len(lead)), self._weights(call, start)
        names = list(start)
        flat = [start[name][part].expand(*lead, *start[name][part].shape) for name in names for part in _PARTS]
        rates = [self.log_rate[self.key(name)].exp() for name in names]

        def elbo(state: list[Tensor]) -> Tensor:
            now = {name: dict(zip(_PARTS, state[2 * i : 2 * i + 2], strict=True)) for i, name in enumerate(names)}
            entropy = [
                (weights[name] * numbers["log_scale"]).flatten(len(lead) + 1).sum(-1) for name, numbers in now.items()
            ]
            return self._log_joint(call, now, noise, given) + torch.stack(entropy).sum(0)

        enough = 2 * sum(numbers["loc"][0].numel() for numbers in start.values()) <= self.draws
        state = refined(elbo, flat, rates, self.steps, scales=enough)
        return {name: dict(zip(_PARTS, state[2 * i : 2 * i + 2], strict=True)) for i, name in enumerate(names)}

    def _log_joint(
        self, call: Call, numbers: Numbers, noise: Mapping[str, Tensor], given: Mapping[str, Tensor]
    ) -> Tensor:
        """Mean of log p(x, z) over the noise: of each row, (*particles, rows)."""
        vectors = {name: n["loc"] + n["log_scale"].exp() * noise[name] for name, n in numbers.items()}
        if self.at_once:
            return log_joint(self.frame, call, self._values(call, vectors), given)[0].mean(0)
        parts = [
            log_joint(self.frame, call, self._values(call, {name: v[i] for name, v in vectors.items()}), given)[0]
            for i in range(self.draws)
        ]
        return torch.stack(parts).mean(0)

    def _values(self, call: Call, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The sites on the unconstrained scale, from vectors in units of the prior."""
        values = {}
        for name, v in vectors.items():
            site = call.sites[name]
            start, spread = self.units(name, site, self.block(name))
            values[name] = self.shape(name, site).to_site(start + spread * v)
        return values

    def _noise(self, numbers: Numbers, particles: int) -> dict[str, Tensor]:
        """The noise of each local site, (draws, *particles, 1, *elements, D): the same for all rows of data."""
        shapes = {name: value["loc"].shape[1:] for name, value in numbers.items()}
        size = sum(shape.numel() for shape in shapes.values())
        # A batch may have more elements, or more steps, than the example.
        noise = self.noise if size <= self.noise.shape[-1] else fixed_normals(self.draws, size).to(self.noise)
        parts = noise[:, :size].split([shape.numel() for shape in shapes.values()], -1)
        return {
            name: part.reshape(self.draws, *(1,) * (particles + 1), *shape)
            for part, (name, shape) in zip(parts, shapes.items(), strict=True)
        }

    def _weights(self, call: Call, numbers: Numbers) -> dict[str, Tensor]:
        """How much the entropy of each number counts: 0 where the model masks it."""
        weights = {}
        for name, value in numbers.items():
            site, loc = call.sites[name], value["loc"]
            weight = torch.full_like(loc, site.scale)
            if site.mask is not None:
                mask = torch.as_tensor(site.mask, device=loc.device).expand(site.batch_shape)
                shape = self.shape(name, site)
                wide = mask.reshape(*mask.shape, *(1 for _ in shape.event)).expand(*mask.shape, *shape.event)
                weight = weight * shape.to_vector(wide)
            weights[name] = weight
        return weights

    def _particles(self, call: Call, given: Mapping[str, Tensor]) -> torch.Size:
        """The dimensions of draws of the shared sites that stand left of the model's."""
        found = [torch.Size()]
        for name, value in given.items():
            batch = value.shape[: value.dim() - len(call.sites[name].event_shape)]
            found.append(batch[: max(0, len(batch) - self.frame.nesting)])
        return torch.broadcast_shapes(*found)

    def _try(self, call: Call, numbers: Numbers) -> None:
        """Find out if the model takes many draws in one run; refuse one that is random besides its latents, or couples rows."""
        given = {
            name: site.bijection_on(site.start.device)(site.start)
            for name, site in call.sites.items()
            if name not in numbers
        }
        noise = self._noise(numbers, 0)
        with torch.enable_grad():
            single = {name: n["loc"].detach().requires_grad_() for name, n in numbers.items()}
            local, shared = log_joint(self.frame, call, self._values(call, single), given)
            refuse_noise(self.frame, local, log_joint(self.frame, call, self._values(call, single), given)[0])
            site = coupled(local, shared, single)
        if site is not None:
            raise InputError(
                f"guide 'semi_amortized' refines the rows of plate '{self.frame.data}' one by one, and log p of a row depends "
                f"on site '{site}' of other rows; use guide 'diag_normal'"
            )
        with torch.no_grad():
            apart = self._log_joint(call, numbers, noise, given)
            try:
                self.at_once = True
                together = self._log_joint(call, numbers, noise, given)
            except Exception:  # whatever a program raises in a form that it is not written for
                self.at_once = False
                return
        close = 1e-4 if apart.dtype == torch.float32 else 1e-9
        self.at_once = together.shape == apart.shape and torch.allclose(together, apart, rtol=close, atol=close)


_PARTS = ("loc", "log_scale")

"""The Laplace guide: a normal at the mode of log p(x, z), with the curvature there; nothing is learned."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pyro_vi.amortized import AmortizedGuide, Block, Call, NormalChain, Part, joined
from pyro_vi.amortized.density import coupled, log_joint, refuse_noise
from pyro_vi.amortized.discrete import refuse_discrete
from pyro_vi.amortized.newton import Peak, covariance_factor, peak_of
from pyro_vi.amortized.shapes import Shape
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs import Latent

MOST = 200
"""Most numbers of one normal: its Hessian has this many rows."""


class Laplace(AmortizedGuide):
    """Laplace guide: q(z | x) = N(u*, (−H)⁻¹) on the unconstrained scale, u* the mode of log p(x, z(u)) + log |dz/du|.

    H is the Hessian there (Tierney and Kadane 1986; on the unconstrained scale: arXiv:1603.00788). Each call finds the mode
    by damped Newton steps from the prior's centre: one normal for each datum if all sites are local, and one for everything
    otherwise. It has no parameters; u* and H depend on those of the model, with exact gradients. It is exact where the
    posterior is normal, and covers one mode only.

    Args:
        model: the generative program; all its latent sites must be continuous.
        batch: an example batch.
        iterations: most Newton steps.

    Raises:
        InputError: a site that is discrete, masked in part or in a plate that draws its rows; a model without a mode, with
            random numbers besides its latents, or with more than 200 numbers in one normal.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> digits = load("digits(standardize=True)")
        >>> guide = Laplace(LinearGaussian(digits.spec, latent_dim=2), digits.example(4))
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "laplace"
    joint = True
    whole = True

    def __init__(self, model: nn.Module, batch: Batch, *, iterations: int = 100) -> None:
        if iterations < 1:
            raise InputError(f"iterations must be a whole number of at least 1, not {iterations!r}")
        refuse_discrete(model, batch, self.name)
        super().__init__(model, batch)
        self.iterations = iterations
        self.together = not all(self.frame.rows(site) for site in self.frame.sites.values())
        if not self.together:
            self.together = self._coupled(batch)
        peak = self._peak(self.frame.call(batch, {}))
        if peak.rising:
            raise InputError(
                f"guide 'laplace' finds no mode of log p(x, z) within {iterations} steps: it still rises, and may have no "
                "upper bound; raise iterations, use guide 'full_normal', or write the model with noncentred latents"
            )

    def parts(self, block: Block) -> dict[str, Part]:
        """None: mode and curvature are found at each call."""
        return {}

    def numbers(self, call: Call) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the sites in the order of the model, each with the mode and the Cholesky factor of the covariance."""
        peak = self._peak(call)
        scale = next(iter(call.sites.values())).scale
        loc, tril = covariance_factor(lambda v: self._density(call, v), peak, scale)
        for name in call.sites:
            yield name, {"loc": loc, "tril": tril}

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """N(μ_k + L_k,<k ε_<k, L_kk L_kkᵀ) of the k-th site, with ε = L⁻¹ (z − μ)."""
        names = list(call.sites)
        chain = NormalChain(numbers["loc"], numbers["tril"])
        before = joined([call.vectors[other] for other in names[: names.index(name)]])
        return chain.given(chain.noise(before), self._places(call)[name])

    def refuse(self, name: str, site: Latent) -> None:
        """Refuse plates of which the model draws some rows, scales that differ, and masks on a part of a normal."""
        super().refuse(name, site)
        drawn = [p for p in site.plates if self.frame.plates[p].drawn and p != self.frame.data]
        if drawn:
            raise InputError(
                f"guide 'laplace' needs all rows of site '{name}' at once, and the model draws some in plate '{drawn[0]}'; "
                "take all rows of that plate, or use guide 'diag_normal'"
            )
        first = next(iter(self.frame.sites.values()))
        if site.scale != first.scale:
            raise InputError(
                f"guide 'laplace' has one normal for sites '{first.name}' and '{name}', and the model scales their densities "
                f"by {first.scale:g} and {site.scale:g}; use guide 'diag_normal', or one scale"
            )

    def chained(self, name: str, block: Block) -> bool:
        """True: later sites depend on every draw."""
        return True

    def describe(self) -> dict[str, str]:
        """Where the numbers of q come from at each site, in one phrase."""
        whose = "everything together" if self.together else "each datum"
        return dict.fromkeys(self.frame.sites, f"mode and curvature of log p(x, z), of {whose}")

    def shape(self, name: str, site: Latent) -> Shape:
        """The shape of a site on a batch; all rows are in one vector if one normal covers everything."""
        found = self.frame.shape(site)
        return replace(found, rows=()) if self.together else found

    def units(self, name: str, site: Latent, block: Block) -> tuple[Tensor, Tensor]:
        """The prior's centre and spread for the vector of a site; those of one row, repeated, if one normal covers all."""
        start, spread = block.units(name)
        if not (self.together and block.rows):
            return start, spread
        row, whole = self.frame.shape(site), self.shape(name, site)
        lengths = [self._length(dim, site) for dim in row.rows]
        both = [whole.to_vector(row.to_site(value.expand(*lengths, len(value)))) for value in (start, spread)]
        return both[0], both[1]

    def _length(self, dim: int, site: Latent) -> int:
        return site.batch_shape[dim]

    def _places(self, call: Call) -> dict[str, slice]:
        """The place of each site in the vector."""
        places, end = {}, 0
        for name, site in call.sites.items():
            begin, end = end, end + self.shape(name, site).numel
            places[name] = slice(begin, end)
        return places

    def _values(self, call: Call, v: Tensor) -> dict[str, Tensor]:
        """The sites on the unconstrained scale, of a vector in units of the prior."""
        values = {}
        for name, place in self._places(call).items():
            site = call.sites[name]
            start, spread = self.units(name, site, self.block(name))
            values[name] = self.shape(name, site).to_site(start + spread * v[..., place])
        return values

    def _density(self, call: Call, v: Tensor) -> Tensor:
        """log p(x, z) + log |dz/du|: of each row, (rows,), or of everything, ()."""
        local, shared = log_joint(self.frame, call, self._values(call, v))
        return shared + local.sum() if self.together else local

    def _start(self, call: Call) -> Tensor:
        """The centre of the prior."""
        name, site = next(iter(call.sites.items()))
        size = sum(self.shape(n, s).numel for n, s in call.sites.items())
        rows = [self._length(dim, site) for dim in self.shape(name, site).rows]
        if size > MOST:
            whose = (
                "all rows together, as sites are shared by the data or depend on other rows"
                if self.together
                else "a datum"
            )
            raise InputError(
                f"guide 'laplace' needs one normal of {size} numbers for {whose}, and serves {MOST} at most; use guide "
                "'low_rank_normal' or 'structured'"
            )
        start, _ = self.units(name, site, self.block(name))
        return start.new_zeros(*rows, size)

    def _peak(self, call: Call) -> Peak:
        self._refuse_part(call)
        return peak_of(lambda v: self._density(call, v), self._start(call), self.iterations)

    def _coupled(self, batch: Batch) -> bool:
        """True if log p(x, z) of a row depends on other rows; refuses a model whose density is another at each run."""
        call = self.frame.call(batch, {})
        with torch.enable_grad():
            v = self._start(call).requires_grad_()
            local, shared = log_joint(self.frame, call, self._values(call, v))
            again, _ = log_joint(self.frame, call, self._values(call, v))
            refuse_noise(self.frame, local, again)
            return coupled(local, shared, {"z": v}) is not None

    def _refuse_part(self, call: Call) -> None:
        """Refuse a part of the data where sites are shared by all of it: the mode would be that of the part."""
        if not self.together:
            return
        for plate in call.seen.values():
            if plate.size != plate.length:
                raise InputError(
                    f"guide 'laplace' has one normal for everything, and sees {plate.length} of the {plate.size} rows of plate "
                    f"'{plate.name}'; pass all rows, or use guide 'full_normal'"
                )

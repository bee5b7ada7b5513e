"""VAEs with several stochastic layers: a chain (Burda et al. 2015, arXiv:1509.00519), and a top-down path with skips."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.likelihoods import likelihood_of
from pyro_vi.networks import mlp, mlp_body
from pyro_vi.priors import prior_of
from pyro_vi.programs import data_plate

STRUCTURES = ("burda", "ladder")


class HierarchicalVAE(nn.Module):
    """Hierarchical VAE: z_L ~ N(0, I), z_l | z_{l+1}, …, z_L ~ N(μ_l, diag σ_l²) for l = L−1, …, 1, x | z_1, …, z_L ~ p(x; f).

    * ``"burda"``: μ_l and σ_l are networks of z_{l+1} alone, and f is one of z_1: the generative model of Burda et al.
      (arXiv:1509.00519), with L layers, and that of the ladder VAE of Sønderby et al. (arXiv:1602.02282).
    * ``"ladder"``: a deterministic path runs from the top to the data, h_l = g_l(h_{l+1}, z_l). μ_l and σ_l are linear in
      h_{l+1}, and f in h_1, so that every layer sees all layers above it, and x all of them (as in arXiv:2007.03898).

    The ladder VAE also infers from the top down. That is the guide's part: ``structured`` draws z_l given x and the sites that
    it depends on. Sites are ``z1``, …, ``zL``, from the data up.

    Args:
        data: description of the data set: shape, support, size.
        latent_dims: dimensions of z_1, …, z_L, from the data up; at least two.
        hidden: widths of the hidden layers of each network.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        structure: ``"burda"`` or ``"ladder"``.
        likelihood, scale, floor, levels: of x, as in `pyro_vi.models.vae.VAE`.
        prior, components, transforms: of z_L, as in `pyro_vi.models.vae.VAE`.

    Raises:
        InputError: the likelihood has no density at the data's values, or an option is out of range.

    Example:
        >>> from pyro_vi.data import load
        >>> model = HierarchicalVAE(load("digits").spec, latent_dims=(8, 2))
        >>> model.decode({"z1": torch.zeros(3, 8), "z2": torch.zeros(3, 2)}).shape
        torch.Size([3, 64])
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        latent_dims: tuple[int, ...] = (8, 4),
        hidden: tuple[int, ...] = (64,),
        activation: str = "tanh",
        structure: str = "burda",
        likelihood: str = "auto",
        scale: float = 1.0,
        floor: float = 0.01,
        levels: int | None = None,
        prior: str = "normal",
        components: int = 16,
        transforms: int = 2,
    ) -> None:
        super().__init__()
        good = isinstance(latent_dims, tuple | list) and all(isinstance(dim, int) and dim > 0 for dim in latent_dims)
        if not good or len(latent_dims) < 2:
            raise InputError(
                "latent_dims must hold at least two whole numbers of at least 1, as in latent_dims=(8, 4), "
                f"not {latent_dims!r}; one layer is model 'vae'"
            )
        if structure not in STRUCTURES:
            raise InputError(f"structure must be one of {', '.join(STRUCTURES)}, not {structure!r}")
        self.data, self.latent_dims, self.structure = data, tuple(latent_dims), structure
        self.law = likelihood_of(likelihood, data, scale=scale, floor=floor, levels=levels)
        self.likelihood = self.law.name
        ladder = structure == "ladder"
        self.steps, self.heads = nn.ModuleList(), nn.ModuleList()  # those of z_L first
        outputs = [2 * dim for dim in reversed(self.latent_dims[:-1])] + [self.law.numbers]
        width = 0
        for dim, count in zip(reversed(self.latent_dims), outputs, strict=True):
            if ladder:
                body = mlp_body(width + dim, hidden, activation)
                width = body.width
                self.steps.append(body)
                self.heads.append(nn.Linear(width, count))
            else:
                self.heads.append(mlp(dim, hidden, count, activation))
        self.law.register(self)
        self.prior = prior_of(
            prior, self.latent_dims[-1], data,
            components=components, transforms=transforms, hidden=hidden, activation=activation,
        )  # fmt: skip
        self.to(data.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Draw z_L, …, z_1 and score the batch ``x`` of shape ``(B, *event_shape)``; return ``x``, or a draw of x."""
        with data_plate(self.data.num_data, x):
            z = pyro.sample(f"z{len(self.latent_dims)}", self.prior(x))
            state, numbers = self._down(0, None, z)
            for place in range(1, len(self.latent_dims)):
                z = pyro.sample(f"z{len(self.latent_dims) - place}", conditional(numbers))
                state, numbers = self._down(place, state, z)
            value: Tensor = pyro.sample("x", self.law(numbers, self.law.kept(self)), obs=x)
        return value

    def observation(self, z: dict[str, Tensor]) -> Any:
        """Distribution of x given all layers, by the names of their sites, each of shape ``(..., latent_dims[l])``."""
        return self.law(self._numbers(z), self.law.kept(self))

    def decode(self, z: dict[str, Tensor]) -> Tensor:
        """E[x | z_1, …, z_L], of shape ``(..., *event_shape)``."""
        return self.law.mean(self._numbers(z), self.law.kept(self))

    def _numbers(self, z: dict[str, Tensor]) -> Tensor:
        state: Tensor | None = None
        numbers = torch.empty(0)
        for place in range(len(self.latent_dims)):
            state, numbers = self._down(place, state, z[f"z{len(self.latent_dims) - place}"])
        return numbers

    def _down(self, place: int, state: Tensor | None, z: Tensor) -> tuple[Tensor | None, Tensor]:
        """One layer down: the state of the path below z, and the numbers of what is drawn next."""
        if self.structure == "burda":
            return None, self.heads[place](z)
        if state is not None:
            z = torch.cat([state.expand(*z.shape[:-1], state.shape[-1]), z], -1)
        state = self.steps[place](z)
        return state, self.heads[place](state)


def conditional(numbers: Tensor) -> Any:
    """N(μ, diag σ²) from μ and log σ side by side."""
    loc, log_scale = numbers.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).to_event(1)

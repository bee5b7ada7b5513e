"""The diagonal normal guide, with an encoder for local sites and free parameters for global sites."""

import math
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to, constraints

from pyro_vi.data import Batch, length_of
from pyro_vi.errors import InputError
from pyro_vi.networks import Body, mlp_body
from pyro_vi.programs import ModelPlate, Site, prototype

_POSITIVE = (type(constraints.positive), type(constraints.nonnegative))  # biject_to uses the exponential for both


class DiagNormal(nn.Module):
    """Diagonal normal guide: q(z | x) = Π_d N(z_d; μ_d(x), σ_d(x)²), with μ and log σ from an encoder (arXiv:1312.6114).

    For a global site, μ and log σ are free parameters. For a site with a constrained support, the normal is mapped to the
    support by a bijection (Kucukelbir et al. 2017, arXiv:1603.00788).

    Args:
        model: the generative program; its latent sites, supports and shapes are read from a prototype run.
        batch: an example batch; the encoder reads all its columns that have one row per datum.
        hidden: widths of the encoder's hidden layers.
        activation: as in `pyro_vi.networks.mlp_body`.
        init_scale: initial standard deviations, on the unconstrained scale.

    Raises:
        InputError: the model has no latent site, or a latent site is discrete or does not have one row per datum of the batch.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = DiagNormal(VAE(digits.spec, latent_dim=2), digits.example(4))
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        hidden: tuple[int, ...] = (64,),
        activation: str = "tanh",
        init_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not init_scale > 0:
            raise InputError(f"init_scale is a standard deviation and must be positive, not {init_scale!r}")
        layout = prototype(model, batch)
        if not layout.latents:
            raise InputError("the model has no latent site, so there is nothing for a guide to do")
        for site in layout.latents.values():
            if site.support.is_discrete:
                raise InputError(
                    f"guide 'diag_normal' has a density for continuous values, but site '{site.name}' is discrete "
                    f"({site.distribution}); sum it out in the model, or write a guide with a discrete distribution"
                )
        self.sites, self.plates = layout.latents, layout.plates
        self.keys = _keys(self.sites)
        data = layout.data_plate
        self.data = data.name if data else None
        self.data_plate = ModelPlate(model, layout, batch) if data else None
        for site in self.sites.values():
            if data is not None and data.name in site.plates and site.batch_shape[data.dim] != length_of(batch):
                raise InputError(
                    f"guide 'diag_normal' encodes one row for each datum of plate '{data.name}', but in a batch of "
                    f"{length_of(batch)} rows site '{site.name}' has {site.batch_shape[data.dim]}: if the model draws a "
                    "minibatch of its own, call it with minibatches instead"
                )
        self.body: Body | None = mlp_body(_features(batch).shape[1], hidden, activation)
        self.loc, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        self.heads = nn.ModuleDict()
        for name, site in self.sites.items():
            shape = self._shape(site)
            if self.data in site.plates:
                # One head gives loc and log scale. The scale starts near ``init_scale``, so that no first draw is extreme.
                head = nn.Linear(self.body.width, 2 * math.prod(shape))
                with torch.no_grad():
                    head.bias[math.prod(shape) :] = math.log(init_scale)
                self.heads[self.keys[name]] = head
            else:
                self.loc[self.keys[name]] = nn.Parameter(torch.zeros(shape))
                self.log_scale[self.keys[name]] = nn.Parameter(torch.full(shape, math.log(init_scale)))
        if not self.heads:
            self.body = None
        self.to(site.dtype)

    def forward(self, *args: Tensor) -> dict[str, Tensor]:
        """Draw every latent site for the batch; return the draws by site."""
        plates = {
            name: self.data_plate(args)
            if self.data_plate is not None and name == self.data
            else pyro.plate(name, plate.size, dim=plate.dim)
            for name, plate in self.plates.items()
        }
        parameters = self.parameters_of(*args)
        draws = {}
        for name, site in self.sites.items():
            distribution = _distribution(*parameters[name], self._event_dim(site), site)
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(plates[plate])
                draws[name] = pyro.sample(name, distribution)
        return draws

    def parameters_of(self, *args: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """loc and scale of every site, on the unconstrained scale; those of a local site have one row per datum."""
        features = self.body(_features(args)) if self.body is not None else None
        result = {}
        for name, site in self.sites.items():
            if self.data in site.plates:
                # The encoder puts the rows first; they are moved to the dimension of the data plate.
                dim = self.plates[self.data].dim + len(site.batch_shape)
                values = self.heads[self.keys[name]](features).unflatten(-1, (2, *self._shape(site)))
                loc, log_scale = (v.movedim(0, dim) for v in values.unbind(1))
            else:
                loc, log_scale = self.loc[self.keys[name]], self.log_scale[self.keys[name]]
            result[name] = loc, log_scale.exp()
        return result

    def _shape(self, site: Site) -> tuple[int, ...]:
        """Unconstrained shape of the site, without the dimension of the data plate."""
        event = tuple(biject_to(site.support).inverse_shape(torch.Size(site.event_shape)))
        batch = list(site.batch_shape)
        if self.data in site.plates:
            del batch[self.plates[self.data].dim]
        return (*batch, *event)

    def _event_dim(self, site: Site) -> int:
        return len(biject_to(site.support).inverse_shape(torch.Size(site.event_shape)))


def _features(args: Batch) -> Tensor:
    """Concatenate the columns of a batch that have one row per datum: shape ``(B, features)``."""
    length = length_of(args)
    rows = [a.reshape(length, -1) for a in args if isinstance(a, Tensor) and a.dim() and len(a) == length]
    return torch.cat(rows, -1) if len(rows) > 1 else rows[0]


def _distribution(loc: Tensor, scale: Tensor, event_dim: int, site: Site) -> Any:
    """Diagonal normal, mapped to the site's support by its bijection.

    For real and positive supports it is a Normal or LogNormal, which have KL divergences in closed form.
    """
    support: Any = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    # Compared by type, because a copied guide has copies of its constraints, and a subclass may have its own bijection.
    if type(support) is type(constraints.real):
        return dist.Normal(loc, scale).to_event(event_dim)
    if type(support) in _POSITIVE and isinstance(support.lower_bound, int | float) and support.lower_bound == 0:
        return dist.LogNormal(loc, scale).to_event(event_dim)
    return dist.TransformedDistribution(dist.Normal(loc, scale).to_event(event_dim), [biject_to(site.support)])


def _keys(names: Iterable[str]) -> dict[str, str]:
    """Key of each site in a module container: its name without dots, and unlike any attribute of the containers."""
    keys: dict[str, str] = {}
    modules, parameters = nn.ModuleDict(), nn.ParameterDict()
    for name in names:
        key = name.replace(".", "__")
        while key in keys.values() or hasattr(modules, key) or hasattr(parameters, key):
            key += "_"
        keys[name] = key
    return keys

"""The diagonal normal guide, with an encoder for local sites and free parameters for global sites."""

import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vi.data import Batch, fresh
from pyro_vi.errors import InputError
from pyro_vi.networks import Body, mlp_body
from pyro_vi.programs import Latent, LatentPlate, Reading, innermost, kept_buffers, prototype

_POSITIVE = (type(constraints.positive), type(constraints.nonnegative))


class DiagNormal(nn.Module):
    """Diagonal normal guide: q(z | x) = Π_d N(z_d; μ_d(x), σ_d(x)²), with μ and log σ from an encoder (arXiv:1312.6114).

    For a global site, μ and log σ are free parameters; so they are for a local site of a program whose arguments have no rows
    of data, with a μ and a log σ for each row. For a site with a constrained support, the normal is mapped to the support by a
    bijection (Kucukelbir et al. 2017, arXiv:1603.00788). A site has the masks and the scales that it has in the model.

    The free parameters start at the median of the prior. Sites that the model marks for enumeration are left to the estimator.

    Args:
        model: the generative program; its latent sites, supports and shapes are read from a run on the batch.
        batch: an example batch; the encoder reads all its columns that have one row per datum.
        hidden: widths of the encoder's hidden layers.
        activation: as in `pyro_vi.networks.mlp_body`.
        init_scale: initial standard deviations, on the unconstrained scale. By default 1 for encoded sites, and for free
            parameters a tenth of the prior's standard deviation there, at most 0.1: a wider start takes thousands of steps to
            become narrow.
        amortized: False gives local sites free parameters for each row too; the batch must then be all data in one order.

    Raises:
        InputError: the model has no latent site; or a latent site is discrete, has a support without a bijection, or has other
            rows than the batch.

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
        init_scale: float | None = None,
        amortized: bool = True,
    ) -> None:
        super().__init__()
        if init_scale is not None and not init_scale > 0:
            raise InputError(f"init_scale is a standard deviation and must be positive, not {init_scale!r}")
        with Reading() as read:
            layout = prototype(model, batch)
        if not layout.latents:
            raise InputError("the model has no latent site, so there is nothing for a guide to do")
        # Sites that are marked for enumeration are left to the estimator.
        self.sites = {
            name: read.latents[name]
            for name in layout.latents
            if not (read.latents[name].enumerated and read.latents[name].support.is_discrete)
        }
        self._model = (model,)  # in a tuple, so that it does not become a submodule
        self._refuse(batch)
        self.keys = _keys(self.sites)
        self.plates = {
            name: plate for name, plate in read.plates.items() if any(name in s.plates for s in self.sites.values())
        }
        self.data = layout.data if layout.data in self.plates else None
        self.columns = self._columns(batch) if amortized else []
        self._refuse_chosen()
        self._sizes: dict[int, int] = {}
        self._follows = any(
            site.mask is not None or site.scale != 1 or self._varies(site) for site in self.sites.values()
        )
        self.body: Body | None = None
        if self.columns:
            self.body = mlp_body(_features(self._rows_of(batch)).shape[1], hidden, activation)
        self.loc, self.log_scale = nn.ParameterDict(), nn.ParameterDict()
        self.heads = nn.ModuleDict()
        for name, site in self.sites.items():
            shape, key = self._shape(site), self.keys[name]
            if self._encoded(site) and self.body is not None:
                # One head gives loc and log scale. The scale starts near ``init_scale``, so that no first draw is extreme.
                head = nn.Linear(self.body.width, 2 * math.prod(shape))
                with torch.no_grad():
                    head.bias[math.prod(shape) :] = math.log(1.0 if init_scale is None else init_scale)
                self.heads[key] = head
            else:
                start, spread = (self._all_rows(site, value).clone() for value in (site.start, site.spread))
                scale = 0.1 * spread.clamp(1e-4, 1.0) if init_scale is None else torch.full_like(start, init_scale)
                self.loc[key], self.log_scale[key] = nn.Parameter(start), nn.Parameter(scale.log())
        for site in self.sites.values():
            self.to(site.dtype)

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent site for the batch; return the draws by site."""
        rows = self._rows_of(args, kwargs)
        plates = {name: self._plate(plate, rows, args, kwargs) for name, plate in self.plates.items()}
        index = {name: plates[name].indices for name, plate in self.plates.items() if plate.drawn}
        parameters = self._locs_and_scales(rows, index)
        followed = self._follow(parameters, args, kwargs) if self._follows else self.sites
        draws = {}
        for name, site in self.sites.items():
            now = followed.get(name, site)
            distribution = _distribution(*parameters[name], site, now)
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(plates[plate])
                if now.mask is not None:
                    stack.enter_context(poutine.mask(mask=now.mask))
                if now.scale != 1:
                    stack.enter_context(poutine.scale(scale=now.scale))
                draws[name] = pyro.sample(name, distribution)
        return draws

    def parameters_of(self, *args: Any, **kwargs: Any) -> dict[str, tuple[Tensor, Tensor]]:
        """loc and scale of every site, on the unconstrained scale; those of a local site have one row per datum."""
        return self._locs_and_scales(self._rows_of(args, kwargs), {})

    def _locs_and_scales(self, rows: list[Tensor], index: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        features = None
        if self.body is not None:
            features = _features(rows).to(next(self.body.parameters()).dtype)
            features = features[index[self.data]] if self.data is not None and self.data in index else features
            features = self.body(features)
        result = {}
        for name, site in self.sites.items():
            if self._encoded(site) and features is not None and self.data is not None:
                # The encoder puts the rows first; they are moved to the dimension of the data plate.
                dim = self.plates[self.data].dim + len(site.batch_shape)
                values = self.heads[self.keys[name]](features).unflatten(-1, (2, *self._shape(site)))
                loc, log_scale = (v.movedim(0, dim) for v in values.unbind(1))
            else:
                loc, log_scale = self.loc[self.keys[name]], self.log_scale[self.keys[name]]
                for plate in site.plates:
                    if plate in index:
                        dim = self.plates[plate].dim - site.event_dim
                        loc, log_scale = (v.index_select(dim, index[plate]) for v in (loc, log_scale))
            result[name] = loc, log_scale.exp()
        return result

    # Rows, plates and shapes.

    def _columns(self, batch: Batch) -> list[int]:
        """Arguments with a row for each datum of the data plate: for each of all its data, if the model draws a minibatch."""
        if self.data is None:
            return []
        plate = self.plates[self.data]
        rows = plate.size if plate.drawn else plate.length
        return [i for i, a in enumerate(batch) if isinstance(a, Tensor) and a.dim() and len(a) == rows]

    def _rows_of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> list[Tensor]:
        values = [*args, *(kwargs or {}).values()]
        rows = [values[i] for i in self.columns]
        if any(len(column) != len(rows[0]) for column in rows):
            raise InputError(
                f"the columns of the batch have {', '.join(str(len(c)) for c in rows)} rows; give all the same"
            )
        return rows

    def _plate(self, plate: LatentPlate, rows: list[Tensor], args: Any, kwargs: Any) -> Any:
        if plate.name != self.data or not rows or plate.drawn:
            drawn = plate.length if plate.drawn else None
            return pyro.plate(plate.name, plate.size, subsample_size=drawn, dim=plate.dim)
        length, size = len(rows[0]), plate.size
        if length != plate.length and plate.size == plate.length:
            # Its size may be the length of any batch, or of all data; the model knows.
            if length not in self._sizes:
                self._sizes[length] = self._read(args, kwargs, self._centre({})).plates[plate.name].size
            size = self._sizes[length]
        if size <= length:
            return pyro.plate(plate.name, length, dim=plate.dim)
        # The row numbers do not matter: the batch is passed as values, and the scale depends on the number of rows only.
        return pyro.plate(plate.name, size, subsample=torch.arange(length, device=rows[0].device), dim=plate.dim)

    def _refuse_chosen(self) -> None:
        for plate in self.plates.values():
            if plate.size != plate.length and not plate.drawn and not (plate.name == self.data and self.columns):
                name = next(site.name for site in self.sites.values() if plate.name in site.plates)
                raise InputError(
                    f"guide 'diag_normal' cannot know which {plate.length} of the {plate.size} rows of plate '{plate.name}' "
                    f"site '{name}' belongs to, as no column of the batch has {plate.length} rows; pass all rows"
                )

    def _encoded(self, site: Latent) -> bool:
        return bool(self.columns) and self.data in site.plates

    def _shape(self, site: Latent) -> tuple[int, ...]:
        """Unconstrained shape of the site, without the dimension of the data plate if it is encoded."""
        batch = list(site.batch_shape)
        if self._encoded(site) and self.data is not None:
            del batch[self.plates[self.data].dim]
        return (*batch, *site.start.shape[len(site.batch_shape) :])

    def _all_rows(self, site: Latent, value: Tensor) -> Tensor:
        """A value for the rows of a run as one for all rows: where the model draws a minibatch, the first row's for each."""
        for name in site.plates:
            if self.plates[name].drawn:
                dim = self.plates[name].dim - site.event_dim
                value = value.narrow(dim, 0, 1).expand(
                    *(self.plates[name].size if i == dim % value.dim() else n for i, n in enumerate(value.shape))
                )
        return value

    def _varies(self, site: Latent) -> bool:
        """True if the bounds of the site's support differ from row to row, and other batches may have other rows."""
        if self.data not in site.plates or not (self._encoded(site) or self.plates[self.data].drawn):
            return False
        dim = self.plates[self.data].dim - len(site.event_shape)
        return any(bound.dim() >= -dim and bool((bound != bound.narrow(dim, 0, 1)).any()) for bound in site.bounds)

    # Masks, scales and supports at the time of a call.

    def _follow(self, parameters: Mapping[str, tuple[Tensor, Tensor]], args: Any, kwargs: Any) -> Mapping[str, Latent]:
        """The latent sites as they are in the model on this batch, on which masks and bounds of supports may depend."""
        return self._read(args, kwargs, self._centre(parameters)).latents

    def _centre(self, parameters: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        return {name: loc.detach() for name, (loc, _) in parameters.items()}

    def _read(self, args: Any, kwargs: Any, locs: Mapping[str, Tensor]) -> Reading:
        (model,) = self._model
        with torch.no_grad(), kept_buffers(model), poutine.block(), Reading(locs) as read:
            model(*fresh(args), **kwargs)
        return read

    def _refuse(self, batch: Batch) -> None:
        for site in self.sites.values():
            if site.support.is_discrete:
                raise InputError(
                    f"guide 'diag_normal' has a density for continuous values, but site '{site.name}' is discrete "
                    f"({site.distribution}); sum it out in the model, or write a guide with a discrete distribution"
                )
            if site.bijection is None:
                raise InputError(
                    f"guide 'diag_normal' knows no bijection to the support of site '{site.name}' ({site.distribution}); "
                    "write a guide for this site"
                )
        if any(site.bounds for site in self.sites.values()):
            other = self._read(batch, {}, {name: site.start + 0.1 * site.spread for name, site in self.sites.items()})
            for name, site in self.sites.items():
                if not all(torch.equal(*both) for both in zip(site.bounds, other.latents[name].bounds, strict=True)):
                    raise InputError(
                        f"the support of site '{name}' ({site.distribution}) depends on other latent sites, and guide "
                        "'diag_normal' has one for all draws; draw it on a fixed interval and scale it in the model"
                    )


def _features(rows: list[Tensor]) -> Tensor:
    """Concatenate columns with one row per datum: shape ``(B, features)``. Missing values count as 0."""
    flat = [
        torch.where(a.isfinite(), a, 0) if a.is_floating_point() else a for a in (a.reshape(len(a), -1) for a in rows)
    ]
    return torch.cat([a.to(_float(flat)) for a in flat], -1)


def _float(columns: list[Tensor]) -> torch.dtype:
    return next((a.dtype for a in columns if a.is_floating_point()), torch.get_default_dtype())


def _distribution(loc: Tensor, scale: Tensor, site: Latent, now: Latent) -> Any:
    """Diagonal normal, mapped to the site's present support by its bijection.

    For real and positive supports it is a Normal or LogNormal, which have KL divergences in closed form.
    """
    base = innermost(now.support)
    # Compared by type, because a copied guide has copies of its constraints, and a subclass may have its own bijection.
    if type(base) is type(constraints.real):
        return dist.Normal(loc, scale).to_event(site.event_dim)
    if type(base) in _POSITIVE and isinstance(base.lower_bound, int | float) and base.lower_bound == 0:
        return dist.LogNormal(loc, scale).to_event(site.event_dim)
    normal = dist.Normal(loc, scale).to_event(site.event_dim)
    return dist.TransformedDistribution(normal, [now.bijection_on(loc.device)])


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

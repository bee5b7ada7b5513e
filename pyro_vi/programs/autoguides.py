"""Pyro's AutoGuides made from a model: `model_for` leaves to the estimator what is summed out, and refuses what they get wrong.

An AutoGuide knows the latents of the model's first run by their place in it. It has no encoder, no mask and no scale.
"""

from typing import Any

from pyro import poutine
from pyro.infer import autoguide
from torch import Tensor, nn

from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs.latents import Latent, Reading
from pyro_vi.programs.layout import prototype

POINTS = (autoguide.AutoDelta, autoguide.AutoLaplaceApproximation)
"""Guides without a density: the mask and the scale of the model are all that count."""
ADDRESSED = (autoguide.AutoNormal, autoguide.AutoDelta, autoguide.AutoDiscreteParallel)
"""Guides with parameters for all rows of a plate of which the model draws some."""


def model_for(guide: type, name: str, model: nn.Module, batch: Batch, num_data: int) -> Any:
    """Return what one of Pyro's AutoGuides is made from: the model, without the sites that it marks for enumeration.

    A class of one's own, a messenger and a guide that is handed over made get the model as it is.

    Args:
        guide: the class.
        name: its name in messages.
        model: the model of the pair.
        batch: an example batch.
        num_data: number of data that batches are drawn from.

    Raises:
        InputError: a latent that the guide cannot serve; the message names the site, the reason and what would serve.
    """
    if not issubclass(guide, autoguide.AutoGuide) or getattr(autoguide, guide.__name__, None) is not guide:
        return model
    with Reading() as read:
        layout = prototype(model, batch)
    sites = {n: read.latents[n] for n in layout.latents}
    discrete = issubclass(guide, autoguide.AutoDiscreteParallel)
    hidden = [n for n, site in sites.items() if site.enumerated and site.support.is_discrete and not discrete]
    for site in (site for n, site in sites.items() if n not in hidden):
        _refuse_kind(site, name, discrete)
        if not issubclass(guide, POINTS):
            _refuse_part(site, name)
        for plate in (read.plates[p] for p in site.plates):
            size = max(plate.size, num_data if plate.name == layout.data else 0)
            if plate.drawn and not issubclass(guide, ADDRESSED):
                raise InputError(
                    f"guide '{name}' has parameters for the {plate.length} rows of plate '{plate.name}' at site "
                    f"'{site.name}', and the model draws others in each step; use guide 'auto_normal' or 'diag_normal'"
                )
            if plate.name == layout.data and not plate.drawn and plate.length < size:
                raise InputError(
                    f"guide '{name}' has parameters for each row of site '{site.name}', and cannot tell which {plate.length} "
                    f"of the {size} rows a batch holds; pass all rows in each step, or use guide 'diag_normal'"
                )
    return poutine.block(model, hide=hidden) if hidden else model


def _refuse_kind(site: Latent, name: str, discrete: bool) -> None:
    """Raise InputError for a discrete site in a guide of continuous ones, and the other way round."""
    what = f"site '{site.name}' ({site.distribution})"
    if discrete and not site.support.is_discrete:
        raise InputError(
            f"guide '{name}' serves discrete sites, and {what} is continuous; use guide 'diag_normal', which serves both"
        )
    if site.support.is_discrete and not discrete:
        raise InputError(
            f"guide '{name}' serves continuous sites, and {what} is discrete; use guide 'diag_normal', or mark the site with "
            "infer={'enumerate': 'parallel'} and fit with the estimator 'enum'"
        )


def _refuse_part(site: Latent, name: str) -> None:
    """Raise InputError for a site of which the model counts a part, where the guide counts all."""
    masked = isinstance(site.mask, Tensor) and not bool(site.mask.all())
    if masked or site.scale != 1:
        what = "masks some of it" if masked else f"scales its density by {site.scale:.4g}"
        raise InputError(
            f"guide '{name}' counts the density of all of site '{site.name}', and the model {what}, so that their difference "
            "is no bound; use guide 'diag_normal'"
        )

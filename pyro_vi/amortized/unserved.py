"""Refusals of latent sites that a guide made from a model cannot serve."""

from typing import Any

import torch
from pyro import poutine

from pyro_vi.amortized.discrete import refuse_states
from pyro_vi.data import Batch, fresh
from pyro_vi.errors import InputError
from pyro_vi.programs import Reading, isolated, kept_buffers


def refuse_unserved(frame: Any, batch: Batch) -> None:
    """Raise InputError for the first site that no guide of `pyro_vi.amortized` serves, with the reason and what would serve.

    Args:
        frame: the `pyro_vi.amortized.frame.Frame` of the model.
        batch: the example batch.
    """
    for site in frame.sites.values():
        if site.support.is_discrete:
            refuse_states(site, frame.guide)
        if site.bijection is None and not site.support.is_discrete:
            raise InputError(
                f"guide '{frame.guide}' knows no bijection to the support of site '{site.name}' ({site.distribution}); "
                "write a guide for this site, or draw it from another distribution in the model"
            )
    for plate in frame.plates.values():
        if (
            plate.size != plate.length
            and not frame.addressed(plate.name)
            and not (plate.name == frame.data and frame.columns)
        ):
            name = next(site.name for site in frame.sites.values() if plate.name in site.plates)
            raise InputError(
                f"guide '{frame.guide}' cannot know which {plate.length} of the {plate.size} rows of plate '{plate.name}' "
                f"site '{name}' belongs to, as no column of the batch has {plate.length} rows; pass all rows"
            )
    for site in frame.sites.values():
        drawn = [p for p in site.plates if frame.plates[p].drawn and p != frame.data]
        if frame.encoded(site) and drawn:
            raise InputError(
                f"guide '{frame.guide}' cannot encode site '{site.name}', of which the model draws some rows in plate "
                f"'{drawn[0]}'; take all rows of that plate"
            )
    if any(site.bounds for site in frame.sites.values()):
        held = {n: s.start + 0.1 * s.spread for n, s in frame.sites.items() if s.bijection is not None}
        (model,) = frame.model
        with (
            torch.no_grad(),
            kept_buffers(model),
            poutine.block(),
            isolated(0, validation=False),
            Reading(held) as other,
        ):
            model(*fresh(batch))
        for name, site in frame.sites.items():
            if not all(torch.equal(*both) for both in zip(site.bounds, other.latents[name].bounds, strict=True)):
                raise InputError(
                    f"the support of site '{name}' ({site.distribution}) depends on other latent sites, and guide "
                    f"'{frame.guide}' has one support for all draws; draw it on a fixed interval and scale it in the model"
                )

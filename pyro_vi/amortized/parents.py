"""The latent sites that a site depends on, in a guide that keeps the model's dependency."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyro.infer.inspect import get_dependencies
from torch import Tensor

from pyro_vi.amortized.frame import Frame
from pyro_vi.data import Batch, fresh
from pyro_vi.programs import isolated, kept_buffers

LAG = 2
"""Most steps back that a step of a series depends on."""


@dataclass(frozen=True)
class Parent:
    """A site that another one depends on: by its name, or in a series by its stem and by how many steps back it is."""

    name: str
    lag: int | None = None


def parents_of(frame: Frame, model: Any, batch: Batch) -> dict[str, dict[str, Parent]]:
    """Return the parents of each continuous site among the continuous sites before it, in the order of the model.

    They are those of its prior, and those with which it shares a child: given the child, they depend on each other. Sites that
    a step of a series shares with its neighbours are named by stem and lag, so that all steps have the same parents.

    Args:
        frame: the sites.
        model: the generative program.
        batch: its arguments.
    """
    names = [name for name, site in frame.sites.items() if site.states is None]
    found = _dependencies(model, batch)
    result: dict[str, dict[str, Parent]] = {}
    for place, name in enumerate(names):
        before = names[:place]
        if found is None:  # nothing is known, so that each site depends on all before it
            related = set(before)
        else:
            families = [set(ups) for down, ups in found.items() if name in ups or down == name]
            related = set().union(*families) if families else set()
        parents = {other: labelled(frame, name, other) for other in before if other in related}
        result[name] = {other: parent for other, parent in parents.items() if parent is not None}
    return result


def labelled(frame: Frame, name: str, other: str) -> Parent | None:
    """Return the parent of a site as the steps of its series call it; None for a step too far away."""
    mine, its = frame.step(name), frame.step(other)
    if its is None or mine is None:
        return Parent(other)
    lag = mine.step - its.step
    return Parent(its.stem, lag) if 0 <= lag <= LAG else None


def _dependencies(model: Any, batch: Batch) -> Mapping[str, Any] | None:
    try:
        with isolated(0, validation=False), kept_buffers(model):
            return dict(get_dependencies(model, fresh(batch))["prior_dependencies"])  # type: ignore[call-overload]
    except Exception:  # the program does what Pyro's tracked tensors do not support
        return None


def aligned(value: Tensor, rows: tuple[str, ...], wanted: tuple[str, ...]) -> Tensor:
    """Return vectors with rows along some plates, (*particles, *rows, D), as vectors for the rows of another site.

    Rows of a plate that the other site is not in are averaged; along its further plates, the values are repeated.
    """
    lead = value.dim() - 1 - len(rows)
    away = [lead + i for i, plate in enumerate(rows) if plate not in wanted]
    value = value.mean(away) if away else value
    kept = [plate for plate in rows if plate in wanted]
    ordered = [plate for plate in wanted if plate in kept]
    value = value.permute(*range(lead), *(lead + kept.index(plate) for plate in ordered), value.dim() - 1)
    for place, plate in enumerate(wanted):
        if plate not in kept:
            value = value.unsqueeze(lead + place)
    return value

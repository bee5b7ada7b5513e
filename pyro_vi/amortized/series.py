"""Series of sites: z_1, z_2, …, one for each step of a sequence, that share one network in a guide."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pyro_vi.programs import Latent, innermost

NUMBERED = re.compile(r"^(.*?)(\d+)(\D*)$")
"""The name of a step: what is before its number, the number, and what is after it."""


@dataclass(frozen=True)
class Step:
    """The place of a site in a series: its stem (``"z_"`` of ``"z_3"``) and its step, counted from 0."""

    stem: str
    step: int


def steps_of(sites: Mapping[str, Latent]) -> dict[str, Step]:
    """Return the sites that are steps of a series: those whose names differ by a number only, and that have one shape.

    A series has at least two sites inside of the same plates. Its steps are counted in the order of the numbers.

    Example:
        >>> steps_of({})
        {}
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for name in sites:
        match = NUMBERED.match(name)
        if match:
            found.setdefault(match[1] + match[3], []).append((int(match[2]), name))
    steps = {}
    for stem, members in found.items():
        kinds = {_kind(sites[name]) for _, name in members}
        if len(members) > 1 and len(kinds) == 1:
            steps.update({name: Step(stem, step) for step, (_, name) in enumerate(sorted(members))})
    return steps


def _kind(site: Latent) -> tuple[object, ...]:
    return site.plates, site.batch_shape, site.event_shape, type(innermost(site.support)), site.states is None

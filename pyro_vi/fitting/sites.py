"""The terms of the ELBO by site, as columns of a record.

* `columns_of` names them, and sums those of similar sites if there are many.
"""

import re
from collections.abc import Mapping
from typing import Any

OBSERVED, LATENT = "term_", "kl_"
"""How the names of the columns begin: E_q log p of an observed site, and the KL of a latent one."""

COLUMNS = 20
"""Most columns of each of the two kinds."""


def columns_of(observed: Mapping[str, Any], latents: Mapping[str, Any]) -> dict[str, float]:
    """Return the terms of sites as columns ``term_<site>`` and ``kl_<site>``, in the unit of the terms.

    The sum of the former minus that of the latter is the ELBO. If there are more than `COLUMNS` of a kind, the terms of
    sites whose names differ in numbers only are summed: ``kl_z_*``. If there are still too many, the last column, ``kl_*``,
    is the sum of all others.

    Example:
        >>> columns_of({"x": -3.0}, {"z": 0.5, "w": 0.25})
        {'term_x': -3.0, 'kl_z': 0.5, 'kl_w': 0.25}
        >>> columns_of({}, {f"z_{t}": 1.0 for t in range(30)})
        {'kl_z_*': 30.0}
    """
    found: dict[str, float] = {}
    for start, terms in ((OBSERVED, observed), (LATENT, latents)):
        for name, column in _named(list(terms)).items():
            key = start + column
            found[key] = found.get(key, 0.0) + float(terms[name])
    return found


def _named(names: list[str]) -> dict[str, str]:
    """Return the name of the column for each site."""
    if len(names) <= COLUMNS:
        return {name: name for name in names}
    short = {name: re.sub(r"\d+", "*", name) for name in names}
    groups = list(dict.fromkeys(short.values()))
    kept = {*groups} if len(groups) <= COLUMNS else {*groups[: COLUMNS - 1]}
    return {name: group if group in kept else "*" for name, group in short.items()}

"""The figure of predictive checks, drawn by ArviZ from the groups of `pyro_vi.reporting.predicting.predictive_tree`."""

import warnings
from typing import Any

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from pyro_vi.reporting.look import LOOK
from pyro_vi.reporting.predicting import NEW

SHOWN, MOST = 30, 5000
"""Draws that are drawn, and most observed numbers of each: a kernel density estimate of more takes long and looks the same."""


def plot_predictive(tree: xr.DataTree) -> dict[str, Figure]:
    """Return figures of the predictive checks by name, each with a panel for each observed site.

    ``predictive`` has the densities of 30 draws of the same data, and of the observed ones; ``predictive_new`` those of new
    data. ``pit`` has the ECDF of the PIT values minus that of uniform ones, with the simultaneous 99 % band for independent
    numbers;
    ``pit_new`` that of new data. Numbers of one datum depend on each other, so that the band is too narrow for data of many
    numbers.

    Args:
        tree: a DataTree of `predictive_tree`.
    """
    found = {}
    for suffix, group, pit in (("", "posterior_predictive", "pit"), ("_new", NEW, f"{NEW}_pit")):
        if group in tree.children:
            found[f"predictive{suffix}"] = _densities(tree, group)
            found[f"pit{suffix}"] = _pits(tree, pit)
    return found


def _densities(tree: xr.DataTree, group: str) -> Figure:
    """Densities of draws and data, by ArviZ's `plot_ppc_dist`."""
    import arviz_plots  # imported here because it takes long

    observed, drawn = _flat(tree, group)
    short = xr.DataTree.from_dict({"posterior_predictive": drawn, "observed_data": observed})
    whole = all(bool((v == np.round(v)).all()) for v in observed.data_vars.values())
    what = "new data" if group == NEW else "the same data"
    with warnings.catch_warnings(), matplotlib.rc_context(LOOK):
        warnings.simplefilter("ignore")
        made: Any = arviz_plots.plot_ppc_dist(
            short,
            kind="ecdf" if whole else "kde",
            num_samples=SHOWN,
            backend="matplotlib",
            figure_kwargs=_size(observed),
        )
    figure = _figure(made)
    figure.suptitle(f"Observed data (dark) and {SHOWN} draws of {what}", fontsize=10)
    return figure


def _flat(tree: xr.DataTree, group: str) -> tuple[xr.Dataset, xr.Dataset]:
    """Observed numbers that are not missing, at most 5000 of each site, and some draws of them."""
    observed, drawn = {}, {}
    for name, x in tree.observed_data.data_vars.items():
        if name not in tree[group]:
            continue
        values = x.values.reshape(-1).astype(float)
        here = np.flatnonzero(np.isfinite(values))
        here = here[np.unique(np.linspace(0, len(here) - 1, MOST).round().astype(int))]
        rep = _array(tree, group, name)
        rep = rep.reshape(*rep.shape[:2], -1)[:, :SHOWN, here]
        observed[name] = ([f"{name}_number"], values[here])
        drawn[name] = (["chain", "draw", f"{name}_number"], rep.astype(float))
    return xr.Dataset(observed), xr.Dataset(drawn, coords={"chain": [0], "draw": np.arange(len(rep[0]))})


def _array(tree: xr.DataTree, group: str, name: Any) -> np.ndarray:
    found: np.ndarray = tree[group].to_dataset()[name].values
    return found


def _pits(tree: xr.DataTree, group: str) -> Figure:
    """ECDF of the PIT values minus the uniform one, by ArviZ's `plot_ecdf_pit`."""
    import arviz_plots  # imported here because it takes long

    parts = {}
    for name, values in tree[group].data_vars.items():
        numbers = values.values.reshape(-1)
        numbers = numbers[np.isfinite(numbers)]
        parts[name] = numbers[np.unique(np.linspace(0, len(numbers) - 1, MOST // 2).round().astype(int))]
    length = min(map(len, parts.values()))
    flat = xr.Dataset({name: ("number", numbers[:length]) for name, numbers in parts.items()})
    state = np.random.get_state()  # ArviZ's bands draw from it
    try:
        with warnings.catch_warnings(), matplotlib.rc_context(LOOK):
            warnings.simplefilter("ignore")
            made: Any = arviz_plots.plot_ecdf_pit(
                xr.DataTree.from_dict({"pit": flat}),
                group="pit",
                sample_dims="number",
                backend="matplotlib",
                figure_kwargs=_size(flat),
            )
    finally:
        np.random.set_state(state)
    figure = _figure(made)
    what = "new data" if group.startswith(NEW) else "the same data"
    figure.suptitle(f"PIT values of the data, by draws of {what}", fontsize=10)
    return figure


def _size(data: xr.Dataset) -> dict[str, Any]:
    across = min(4, len(data.data_vars))
    return {"figsize": (max(4.4, 3.2 * across), 2.6 * -(-len(data.data_vars) // 4) + 0.7)}


def _figure(made: Any) -> Figure:
    """The figure of ArviZ's collection, which pyplot no longer holds."""
    import matplotlib.pyplot as plt

    figure: Figure = made.viz["figure"].item()
    plt.close(figure)
    return figure

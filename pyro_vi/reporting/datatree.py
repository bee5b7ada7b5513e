"""Export to ArviZ's DataTree: draws, predictions, log-likelihood and observed data of a pair, with plates as dimensions."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from pyro_vi.data import Batch
from pyro_vi.elbo import MEMORY, draw_traces, vectorizes
from pyro_vi.programs import Pair, Prototype, Site, evaluating, isolated, pair_and_args
from pyro_vi.support import versions, write_through


def to_datatree(
    model: Any,
    guide: Any,
    batch: Batch | Tensor,
    *,
    draws: int = 1000,
    seed: int = 0,
    groups: Mapping[str, xr.Dataset] | None = None,
) -> xr.DataTree:
    """Draw z ~ q(z | x), predict and score x by p(x | z), and return the results as a DataTree that ArviZ reads.

    Groups: ``posterior``, ``posterior_predictive``, ``prior``, ``log_likelihood``, ``observed_data`` and, for a batch of
    several columns, ``constant_data``. Batch dimensions are named after the model's plates. Draws of a guide are independent
    and form one chain, so their R-hat and ESS say nothing about the fit.

    Args:
        model: generative program.
        guide: variational program.
        batch: the data to condition on.
        draws: number of draws of each site; at most 100 of the prior.
        seed: seed of the draws.
        groups: further groups to add, such as ``fit`` and ``audit``.

    Example:
        >>> from pyro_vi import guides, models
        >>> from pyro_vi.data import load
        >>> from pyro_vi.programs import build_pair
        >>> digits = load("digits")
        >>> pair = build_pair("vae", "diag_normal", digits)
        >>> tree = to_datatree(pair.model, pair.guide, digits.example(3), draws=5)
        >>> dict(tree.posterior.z.sizes)
        {'chain': 1, 'draw': 5, 'data': 3, 'z_dim_0': 8}
    """
    return datatree_of_pair(*pair_and_args(model, guide, batch), draws=draws, seed=seed, groups=groups)


def datatree_of_pair(
    pair: Pair, args: Batch, *, draws: int = 1000, seed: int = 0, groups: Mapping[str, xr.Dataset] | None = None
) -> xr.DataTree:
    """`to_datatree` for a pair that is bound already."""
    layout, guide_layout = pair.layouts(args)
    found: dict[str, dict[str, list[np.ndarray]]] = {
        group: {} for group in ("posterior", "posterior_predictive", "log_likelihood", "prior")
    }
    nesting = max(layout.max_plate_nesting, guide_layout.max_plate_nesting)
    with evaluating(pair), isolated(seed, validation=False), torch.no_grad():
        vectorized = vectorizes(pair, args)
        widest = max([a.numel() for a in args] + [site.numel for site in layout.sites.values()])
        chunk = max(1, min(draws, MEMORY // widest)) if vectorized else 1
        for start in range(0, draws, chunk):
            count = min(chunk, draws - start)
            trace: Any = draw_traces(pair.model, pair.guide, args, count if vectorized else None, nesting).model_trace
            for name, site in layout.sites.items():
                node = trace.nodes[name]
                if not site.observed:
                    _append(found["posterior"], name, node["value"], count, site, vectorized)
                    continue
                _append(found["posterior_predictive"], name, node["fn"].sample(), count, site, vectorized)
                density = node["fn"].log_prob(node["value"])
                _append(found["log_likelihood"], name, density, count, site, vectorized, event=False)
        for _ in range(min(draws, 100)):
            trace = poutine.trace(pair.model).get_trace(*args)
            for name, site in layout.latents.items():
                _append(found["prior"], name, trace.nodes[name]["value"], 1, site, False)
        observed = {n: _numpy(trace.nodes[n]["value"], s) for n, s in layout.observed.items()}
    data: dict[str, dict[str, Any]] = {
        group: {name: np.concatenate(pieces)[None] for name, pieces in sites.items()}
        for group, sites in found.items()
        if sites
    }
    import arviz_base  # imported here because it takes as long as Pyro

    tree = arviz_base.from_dict(
        {**data, "observed_data": observed, **_constant(args)},
        dims={name: _dims(site, layout) for name, site in layout.sites.items()},
    )
    tree.attrs.update({f"version_{name}": version for name, version in versions().items()}, draws=draws, seed=seed)
    for name, dataset in (groups or {}).items():
        tree[name] = xr.DataTree(dataset)
    return tree


def write(tree: xr.DataTree, path: Path) -> Path:
    """Write a DataTree as compressed netCDF, atomically; return the path."""

    def save(temporary: Path) -> None:
        encoding = {
            node.path: {
                str(name): {"zlib": True, "complevel": 4} for name, v in node.data_vars.items() if v.size > 1000
            }
            for node in tree.subtree
        }
        tree.to_netcdf(temporary, engine="h5netcdf", encoding={k: v for k, v in encoding.items() if v})

    return write_through(path, save)


def history_dataset(history: list[dict[str, Any]]) -> xr.Dataset:
    """Return the records of a fit over the dimension ``step``, for the group ``fit``."""
    keys = [key for key in history[0] if key != "step"]
    columns = {key: ("step", np.array([record.get(key, np.nan) for record in history], dtype=float)) for key in keys}
    return xr.Dataset(columns, coords={"step": [record["step"] for record in history]})


def _append(
    into: dict[str, list[np.ndarray]],
    name: str,
    value: Tensor,
    count: int,
    site: Site,
    vectorized: bool,
    event: bool = True,
) -> None:
    # The plate of particles is leftmost; dimensions of size 1 between it and those of the site are dropped.
    shape = site.batch_shape + (site.event_shape if event else ())
    if not vectorized:
        value = value.expand(torch.broadcast_shapes(value.shape, shape))
    elif value.dim() <= len(shape):
        value = value.expand(count, *shape)
    into.setdefault(name, []).append(_numpy(value.reshape(count, *shape), site if event else None))


def _numpy(value: Tensor, site: Site | None) -> np.ndarray:
    support: Any = None if site is None else site.support
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    array: np.ndarray = value.detach().cpu().numpy()
    return array.astype(np.int8) if isinstance(support, type(constraints.boolean)) else array


def _dims(site: Site, layout: Prototype) -> list[str]:
    by_dim = {layout.plates[plate].dim: plate for plate in site.plates}
    rank = len(site.batch_shape)
    batch = [by_dim.get(i - rank, f"{site.name}_batch_{i}") for i in range(rank)]
    return batch + [f"{site.name}_dim_{i}" for i in range(len(site.event_shape))]


def _constant(args: Batch) -> dict[str, dict[str, np.ndarray]]:
    if len(args) < 2:
        return {}
    return {"constant_data": {f"column_{i}": column.cpu().numpy() for i, column in enumerate(args)}}

"""Export to ArviZ's DataTree: draws, predictions, log-likelihood and observed data of a pair, with plates as dimensions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine
from torch import Tensor

from pyro_vi.data import Batch, fresh, length_of, tensors_in
from pyro_vi.elbo import (
    MEMORY,
    Facts,
    Run,
    at_once,
    draw_traces,
    facts_of,
    from_run,
    nesting_of,
    one_run,
    posterior_trace,
    quoted,
    refuse_no_density,
    subsampled,
)
from pyro_vi.errors import InputError, UsageError, first_line, naming_programs
from pyro_vi.programs import Pair, evaluating, isolated, kept_buffers, pair_and_args
from pyro_vi.reporting.exported import Exported, exported, refuse_changing_rows
from pyro_vi.support import Whole, seed_from, shown, versions, whole, write_through


def to_datatree(
    model: Any,
    guide: Any,
    batch: Any,
    *,
    draws: Whole = 1000,
    seed: Whole = 0,
    groups: Mapping[str, xr.Dataset] | None = None,
    features: Sequence[str] = (),
) -> xr.DataTree:
    """Draw z ~ q(z | x), predict and score x by p(x | z), and return the results as a DataTree that ArviZ reads.

    Groups: ``posterior``, ``posterior_predictive``, ``prior``, ``log_likelihood``, ``observed_data``, ``sample_stats`` and,
    for a batch of several columns, ``constant_data``. ``sample_stats`` has ``log_p``, log p(x, z), and ``log_q``, log q(z | x),
    of each draw of all latents, in nats: what `arviz_stats.loo_approximate_posterior` asks for. Batch dimensions are named
    after the model's plates. Draws of a guide are independent and form one chain, so their R-hat and ESS say nothing about
    the fit.

    A `pyro.deterministic` site is in ``posterior`` and ``prior``, a `pyro.factor` in no group. A discrete site that the guide
    leaves to enumeration is drawn from its posterior given the guide's draws. Entries that a mask takes out of the model are
    NaN, and left out of ``log_likelihood``, so that LOO and WAIC do not count them: its coordinates then say which entry is
    which. A factor by `poutine.scale` is not in ``log_likelihood``. A model that cannot run from its prior has no group
    ``prior``, and a pair whose weights p(x, z) / q(z | x) are none, or a part of the data, no ``sample_stats``. Attributes
    say so in each case. Names have '.' for '/', and a plate named ``chain``, ``draw`` or as a site
    has ``_plate`` added.

    Args:
        model: generative program.
        guide: variational program.
        batch: the data to condition on.
        draws: number of draws of each site; at most 100 of the prior.
        seed: seed of the draws.
        groups: further groups to add, such as ``fit`` and ``audit``.
        features: names of the numbers of a datum, such as the columns of a table: coordinates of the observed sites.

    Raises:
        InputError: the guide lacks a latent site that cannot be summed out, or a program draws its own minibatch.

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
    with naming_programs("the pair fails in the export"):
        return datatree_of_pair(
            *pair_and_args(model, guide, batch), draws=draws, seed=seed, groups=groups, features=features
        )


def datatree_of_pair(
    pair: Pair,
    args: Batch,
    *,
    draws: Whole = 1000,
    seed: Whole = 0,
    groups: Mapping[str, xr.Dataset] | None = None,
    features: Sequence[str] = (),
) -> xr.DataTree:
    """`to_datatree` for a pair that is bound already."""
    draws, seed = whole("draws", draws, 1), seed_from(seed)
    if groups is not None and not isinstance(groups, Mapping):
        raise UsageError(f"groups must be a dictionary from names to datasets, not {shown(groups)}")
    facts = facts_of(pair, args)
    refuse_changing_rows(pair, args, facts)
    groups_of_draws = ("posterior", "posterior_predictive", "log_likelihood", "prior")
    found: dict[str, dict[str, list[np.ndarray]]] = {group: {} for group in groups_of_draws}
    unweighed, weights = _unweighed(pair, args, facts), []
    with evaluating(pair), isolated(seed, validation=False), kept_buffers(pair), torch.no_grad():
        single = posterior_trace(pair, args, facts, None)
        sites = exported(single)
        # Python code that computes a deterministic site may sum over the draws.
        vectorized = all(site.kind != "deterministic" for site in sites.values()) and at_once(pair, args, facts)
        tensors = [a.numel() for a in tensors_in(args)]
        widest = max(1, *tensors, *(int(np.prod(site.shape)) for site in sites.values()))
        chunk = max(1, min(draws, MEMORY // widest)) if vectorized else 1
        for start in range(0, draws, chunk):
            count = min(chunk, draws - start)
            particles = count if vectorized else None
            if facts.summed:
                trace = posterior_trace(pair, args, facts, particles)
            else:
                run = draw_traces(pair.model, pair.guide, args, particles, nesting_of(pair, args))
                trace = run.model_trace
                weights += [] if unweighed else [_densities(run, args)]
            for name, site in sites.items():
                node = trace.nodes[name]
                if site.kind != "data":
                    array = site.values(node["value"], count)
                    found["posterior"].setdefault(site.label, []).append(site.masked(array))
                    continue
                drawn, density = node["fn"].sample(), node["fn"].log_prob(node["value"])
                found["posterior_predictive"].setdefault(site.label, []).append(site.values(drawn, count))
                found["log_likelihood"].setdefault(site.label, []).append(site.values(density, count, event=False))
        without = _prior(pair, args, sites, min(draws, 100), found["prior"])
        observed = {
            s.label: s.masked(s.values(single.nodes[n]["value"], None)) for n, s in sites.items() if s.kind == "data"
        }
    data: dict[str, dict[str, Any]] = {
        group: {name: np.concatenate(pieces)[None] for name, pieces in arrays.items()}
        for group, arrays in found.items()
        if arrays
    }
    densities = data.pop("log_likelihood", {})
    import arviz_base  # imported here because it takes as long as Pyro

    tree = arviz_base.from_dict(
        {**data, **({"observed_data": observed} if observed else {}), **_constant(args)},
        dims={site.label: list(site.dims) for site in sites.values()},
        coords=_named(sites, features),
    )
    if densities:
        tree["log_likelihood"] = xr.DataTree(_log_likelihood(densities, sites))
    tree.attrs.update({f"version_{name}": version for name, version in versions().items()}, draws=draws, seed=seed)
    if weights:
        columns = {
            name: (["chain", "draw"], np.concatenate(parts)[None])
            for name, parts in zip(("log_p", "log_q"), zip(*weights, strict=True), strict=True)
        }
        tree["sample_stats"] = xr.DataTree(xr.Dataset(columns, coords={"chain": [0], "draw": np.arange(draws)}))
    tree.attrs.update(_remarks(sites, facts, without, unweighed))
    for name, dataset in (groups or {}).items():
        tree[name] = xr.DataTree(dataset)
    return tree


def _named(sites: Mapping[str, Exported], features: Sequence[str]) -> dict[str, list[str]]:
    """Names of features as coordinates of the last dimension of observed sites of that length."""
    return {
        site.dims[-1]: list(features)
        for site in sites.values()
        if features and site.kind == "data" and len(site.shape) > site.rank and site.shape[-1] == len(features)
    }


def _prior(
    pair: Pair, args: Batch, sites: Mapping[str, Exported], draws: int, into: dict[str, list[np.ndarray]]
) -> str:
    """Draw the sites from the prior; return the reason if the model cannot run from it, and then nothing is drawn."""
    found: dict[str, list[np.ndarray]] = {}
    try:
        for _ in range(draws):
            trace: Any = poutine.trace(pair.model).get_trace(*fresh(args))
            for name, site in sites.items():
                if site.kind != "data":
                    array = site.masked(site.values(trace.nodes[name]["value"], 1))
                    found.setdefault(site.label, []).append(array)
    except Exception as error:
        return f"left out, as the model does not run from its prior: {first_line(error)}"
    into.update(found)
    return ""


def _log_likelihood(densities: Mapping[str, np.ndarray], sites: Mapping[str, Exported]) -> xr.Dataset:
    """Lay out log-likelihoods; masked entries are left out, because ArviZ's LOO and WAIC are NaN if one entry is."""
    variables: dict[str, Any] = {}
    coordinates: dict[str, Any] = {}
    for site in sites.values():
        if site.label not in densities:
            continue
        array, dims = densities[site.label], list(site.dims[: site.rank])
        if site.mask is not None:
            array, indices = site.seen(array)
            dims = [f"{site.label}_seen"]
            coordinates |= {name: (dims, index) for name, index in indices.items()}
        variables[site.label] = (["chain", "draw", *dims], array)
    dataset = xr.Dataset(variables, coords=coordinates)
    return dataset.assign_coords({str(d): np.arange(n) for d, n in dataset.sizes.items()})


def _unweighed(pair: Pair, args: Batch, facts: Facts) -> str:
    """The reason why a draw has no weight p(x, z) / q(z | x) that is that of all data; empty if it has one."""
    if facts.summed:
        return "left out, as latents are summed out"
    if not pair.layouts(args)[0].latents:
        return "left out, as there are no latents"
    try:
        refuse_no_density(pair, args, facts)
    except InputError as error:
        return f"left out: {error}"
    run = one_run(pair, args, False)
    plate = subsampled(run.model_trace, run.guide_trace)
    if plate is None or (facts.plate is not None and plate == facts.plate.name and not facts.shared):
        return ""  # rows that have latents of their own have a weight of their own
    return f"left out, as plate '{plate}' holds a part of the data"


def _densities(run: Run, args: Batch) -> tuple[np.ndarray, np.ndarray]:
    """log p(x, z) and log q(z | x) of each draw of a run, of all latents and data, in double precision."""
    sites = from_run(run, length_of(args), kl="sampled").sites.values()

    def summed(name: str) -> np.ndarray:
        terms = [(getattr(site, name).double(), site.local) for site in sites if getattr(site, name) is not None]
        total = sum((term.sum(-1) if local else term for term, local in terms), torch.zeros((), dtype=torch.float64))
        found: np.ndarray = total.reshape(-1).cpu().numpy()
        return found

    return summed("log_p"), summed("log_q")


def _remarks(sites: Mapping[str, Exported], facts: Facts, without: str, unweighed: str) -> dict[str, str]:
    """Return the attributes that say what a number means where that is not the usual."""
    found = {}
    if facts.remark:
        found["objective"] = facts.remark
    if facts.summed:
        found["summed"] = f"{quoted(facts.summed)}: drawn from the posterior given the guide's draws, by infer_discrete"
    masked = {s.label: f"{int((~s.mask).sum())} of {s.mask.size}" for s in sites.values() if s.mask is not None}
    if masked:
        counts = ", ".join(f"{count} entries of '{label}'" for label, count in masked.items())
        found["masked"] = f"{counts} are no part of the model: NaN, and left out of log_likelihood"
    scaled = {s.label: s.scale for s in sites.values() if s.kind == "data" and abs(s.scale - 1) > 1e-6}
    if scaled:
        factors = ", ".join(f"'{label}' by {scale:.4g}" for label, scale in scaled.items())
        found["scaled"] = f"the model scales {factors} (poutine.scale); log_likelihood is without it"
    renamed = ", ".join(f"'{s.name}' is '{s.label}'" for s in sites.values() if s.name != s.label)
    if renamed:
        found["renamed"] = renamed
    if without:
        found["prior"] = without
    if unweighed:
        found["weights"] = unweighed
    return found


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
    keys = dict.fromkeys(key for record in history for key in record if key != "step")
    # A slash in the name of a site would make a group of netCDF.
    columns = {
        key.replace("/", "."): ("step", np.array([record.get(key, np.nan) for record in history], dtype=float))
        for key in keys
    }
    return xr.Dataset(columns, coords={"step": [record["step"] for record in history]})


def _constant(args: Batch) -> dict[str, dict[str, np.ndarray]]:
    """The tensors among several arguments, by position, or by key where an argument is a dictionary."""
    found: dict[str, np.ndarray] = {}
    for i, column in enumerate(args):
        named = column.items() if isinstance(column, Mapping) else [(f"column_{i}", column)]
        found |= {str(name).replace("/", "."): v.detach().cpu().numpy() for name, v in named if isinstance(v, Tensor)}
    return {"constant_data": found} if found and len(args) > 1 else {}

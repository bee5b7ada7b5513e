"""Does the model fit: data drawn from a fitted pair against the observed ones, by the groups that ArviZ reads.

* `predictive` compares test quantities, coverage of predictive intervals and, where it is defined, leave-one-out
  cross-validation; `predictive_of_pair` does so for a pair that is bound already.
* `predictive_tree` is the DataTree that it rests on: that of `to_datatree`, with draws of new data and PIT values.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro import poutine

from pyro_vi.data import Batch, fresh
from pyro_vi.diagnostics import evidence_of_pair
from pyro_vi.elbo import Facts, facts_of, posterior_trace, quoted
from pyro_vi.errors import InputError, first_line, naming_programs
from pyro_vi.programs import Give, Pair, Program, evaluating, isolated, kept_buffers, pair_and_args, trace_of_guide
from pyro_vi.reporting.checked_quantities import quantities
from pyro_vi.reporting.datatree import datatree_of_pair
from pyro_vi.reporting.exported import Exported, exported
from pyro_vi.reporting.predictive_sentences import conclude
from pyro_vi.support import Whole, seed_from, whole

NEW = "new_data"
"""Group of the draws x ~ p(x | z, w), with local latents z from the prior and latents w that all data share from the guide."""
LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Probabilities of the central predictive intervals."""


def predictive(model: Program, guide: Program, batch: Any, *, draws: Whole = 1000, seed: Whole = 0) -> xr.Dataset:
    """Return how data drawn from a fitted pair differ from the observed ones.

    For each observed site and each test quantity T (mean, standard deviation, least and largest value, share of zeros, standard
    deviation of the means of data, mean size of the correlations between features) the p-value is P(T(x_rep) > T(x)) + ½ P(=).
    There are two kinds of draws x_rep:

    * ``"same"``: of the same data again, x ~ p(x | z) with z ~ q(z | x). As the latents have seen the data, these p-values lie
      nearer to ½ than uniform numbers (Meng 1994, Annals of Statistics 22, 1142; Gelman et al. 1996, Statistica Sinica 6, 733):
      a small one is a misfit, others prove nothing.
    * ``"new"``: of new data, with z from its prior, and latents that all data share from the guide (Marshall and Spiegelhalter
      2003, Statistics in Medicine 22, 1649). These are the data that the model generates. There are none without local latents.

    The coverage of a central predictive interval is the share of observed numbers in it, by their PIT values,
    P(x_rep < x) + U P(x_rep = x) with U uniform.

    Leave-one-out cross-validation (Vehtari et al. 2017, arXiv:1507.04544) is defined if all latents are shared by all data. The
    draws are of the guide, and not of the posterior, which `arviz_stats.loo_approximate_posterior` corrects (Magnusson et al.
    2019, arXiv:1904.10679). With a latent z_n of each datum, 1 / p(x_n | z_n) would be a weight for z_n alone, which a guide
    that sees x_n does not correct. Then ``log_evidence`` is given instead, log p(x_n) by importance sampling: the expected log
    predictive density, if the data were not used in the fit.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with.
        draws: draws of each site.
        seed: seed of the draws.

    Returns:
        Over ``quantity`` (``site: name``) and ``replication``: ``observed``, ``replicated`` (mean of T(x_rep)), ``spread`` (its
        standard deviation), ``p`` and ``p_se``; ``p_adjusted``, two-sided and times the number of p-values; ``effect``, the
        difference in standard deviations of the data (mean, min, max) or as a share of the larger. Over ``site``,
        ``replication`` and ``level``: ``coverage`` with ``coverage_se`` over the data. Over ``site``: ``elpd_loo``,
        ``elpd_loo_se``, ``p_loo``, ``largest_khat`` and ``share_khat`` (over ArviZ's threshold), or NaN. ``log_evidence`` in
        nats per datum with its standard error. Attributes: ``verdict``, ``sentences``, ``rows``, ``draws``, and ``loo``, which
        says what LOO is or why there is none.

    Raises:
        InputError: the model observes nothing, or the pair cannot be exported (see `to_datatree`).

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("w", dist.Normal(x.mean(), len(x) ** -0.5))
        >>> found = predictive(model, guide, torch.linspace(-1.5, 1.5, 20), draws=200)
        >>> found.attrs["verdict"], round(float(found.elpd_loo[0]) / 20, 1)
        ('pass', -1.4)
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in the predictive checks"):
        return predictive_of_pair(pair, args, draws=draws, seed=seed)


def predictive_of_pair(
    pair: Pair, args: Batch, *, draws: Whole = 1000, seed: Whole = 0, tree: xr.DataTree | None = None
) -> xr.Dataset:
    """Return `predictive` for a pair that is already bound; ``tree`` is its `predictive_tree`, if it was made before."""
    draws, seed = whole("draws", draws, 50), seed_from(seed)
    tree = predictive_tree(pair, args, draws=draws, seed=seed) if tree is None else tree
    facts = facts_of(pair, args)
    found = _dataset(tree)
    leave, reason = _leave_one_out(tree, facts)
    found = found.assign(leave)
    found = found.assign(_evidence(pair, args, facts, draws, seed))
    found.attrs |= {"rows": _rows(tree), "draws": int(tree.posterior.sizes["draw"]), "seed": seed, "loo": reason}
    verdict, sentences = conclude(found)
    return found.assign_attrs(verdict=verdict, sentences=sentences)


def predictive_tree(pair: Pair, args: Batch, *, draws: Whole = 1000, seed: Whole = 0) -> xr.DataTree:
    """Return the DataTree of `to_datatree` with up to three more groups, which ArviZ reads as they are.

    ``new_data`` has draws of new data, at most 1000: ``plot_ppc_dist(tree, group="new_data")``. ``pit`` and ``new_data_pit``
    have the PIT values of the observed numbers: ``plot_ecdf_pit(tree, group="pit", sample_dims=list(tree.pit.dims))``.

    Raises:
        InputError: the model observes nothing.
    """
    draws, seed = whole("draws", draws, 50), seed_from(seed)
    tree = datatree_of_pair(pair, args, draws=draws, seed=seed)
    if "posterior_predictive" not in tree.children:
        raise InputError("the model observes nothing, so there are no data that it could fit")
    facts = facts_of(pair, args)
    local = [name for name in pair.layouts(args)[0].latents if name not in facts.shared]
    if local:
        new, reason = _new_data(pair, args, facts, min(draws, 1000), seed)
        if new is not None:
            like = tree.posterior_predictive
            variables = {name: (like[name].dims, array[None]) for name, array in new.items()}
            tree[NEW] = xr.DataTree(xr.Dataset(variables, coords=_coordinates(like, variables)))
        else:
            tree.attrs[NEW] = reason
    generator = np.random.default_rng(seed)
    for group, into in (("posterior_predictive", "pit"), (NEW, f"{NEW}_pit")):
        if group in tree.children:
            tree[into] = xr.DataTree(_pit(tree[group].to_dataset(), tree.observed_data.to_dataset(), generator))
    return tree


def _coordinates(like: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    count = next(iter(variables.values()))[1].shape[1]
    kept = {str(n): c for n, c in like.coords.items() if n not in ("chain", "draw")}
    return {**kept, "chain": [0], "draw": np.arange(count)}


def _new_data(pair: Pair, args: Batch, facts: Facts, draws: int, seed: int) -> tuple[dict[str, np.ndarray] | None, str]:
    """Draws x of new data by the label of the site; None and the reason if the model does not run from its prior."""
    found: dict[str, list[np.ndarray]] = {}
    with torch.no_grad(), evaluating(pair), isolated(seed + 1, validation=False), kept_buffers(pair):
        sites = exported(posterior_trace(pair, args, facts, None))
        try:
            for _ in range(draws):
                shared = {}
                if facts.shared:
                    nodes = trace_of_guide(pair.guide, fresh(args)).nodes
                    shared = {name: nodes[name]["value"] for name in facts.shared if name in nodes}
                with Give(shared):
                    trace: Any = poutine.trace(pair.model).get_trace(*fresh(args))
                for name, site in sites.items():
                    if site.kind == "data":
                        found.setdefault(site.label, []).append(_drawn(site, trace.nodes[name]["fn"]))
        except Exception as error:  # whatever a program raises on draws of its prior
            return None, f"left out, as the model does not run from its prior: {first_line(error)}"
    return {name: np.stack(parts) for name, parts in found.items()}, ""


def _drawn(site: Exported, fn: Any) -> np.ndarray:
    return site.values(fn.sample(), None)


def _pit(drawn: xr.Dataset, observed: xr.Dataset, generator: np.random.Generator) -> xr.Dataset:
    """P(x_rep < x) + U P(x_rep = x) of each observed number."""
    found = {}
    for name, x in observed.data_vars.items():
        if name not in drawn:
            continue
        rep = drawn[name].stack(sample=("chain", "draw"))
        below, equal = (rep < x).mean("sample"), (rep == x).mean("sample")
        found[name] = (below + equal * generator.uniform(size=x.shape)).where(x.notnull()).transpose(*x.dims)
    return xr.Dataset(found).drop_vars("sample", errors="ignore")


def _dataset(tree: xr.DataTree) -> xr.Dataset:
    groups = {"same": "posterior_predictive", **({"new": NEW} if NEW in tree.children else {})}
    numbers: dict[str, dict[str, list[float]]] = {}
    coverages: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    names = [str(name) for name in tree.observed_data.data_vars if name in tree.posterior_predictive]
    for name in names:
        data = tree.observed_data[name]
        x = data.values.astype(float)
        discrete = np.issubdtype(tree.posterior_predictive[name].dtype, np.integer) or bool((x == np.round(x)).all())
        chosen = quantities(x, discrete)
        for kind, group in groups.items():
            drawn = tree[group].to_dataset()[name].values[0].astype(float)
            drawn = np.where(np.isnan(x), np.nan, drawn)
            for label, quantity in chosen.items():
                values = np.array([quantity(one) for one in drawn])
                at = quantity(x)
                p = float((values > at).mean() + 0.5 * (values == at).mean())
                row = numbers.setdefault(f"{name}: {label}", {})
                for key, value in (("observed", at), ("replicated", values.mean()), ("spread", values.std())):
                    row.setdefault(key, []).append(float(value))
                largest = max(abs(at), abs(float(values.mean())))
                size = float(np.nanstd(x)) if label in ("mean", "min", "max") else largest
                row.setdefault("effect", []).append(abs(at - float(values.mean())) / size if size else 0.0)
                row.setdefault("p", []).append(p)
                kept = (p * len(values) + 0.5) / (len(values) + 1)  # the error of a p of 0 is not 0
                row.setdefault("p_se", []).append((kept * (1 - kept) / len(values)) ** 0.5)
                tail = (min((values >= at).sum(), (values <= at).sum()) + 0.5) / (len(values) + 1)
                row.setdefault("two", []).append(min(1.0, 2 * tail))
            pit = tree["pit" if kind == "same" else f"{NEW}_pit"].to_dataset()[name].values
            coverages.setdefault(name, []).append(_coverage(pit))
    count = sum(len(row["two"]) for row in numbers.values())
    table = {key: np.array([row[key] for row in numbers.values()]) for key in next(iter(numbers.values()))}
    dims = ("quantity", "replication")
    columns: dict[str, Any] = {key: (dims, value) for key, value in table.items() if key != "two"}
    columns["p_adjusted"] = dims, np.minimum(1, count * table["two"])
    for k, key in enumerate(("coverage", "coverage_se")):
        shares = [[both[k] for both in coverages[name]] for name in names]
        columns[key] = ("site", "replication", "level"), np.array(shares)
    coords = {"quantity": [*numbers], "replication": [*groups], "site": names, "level": list(LEVELS)}
    return xr.Dataset(columns, coords=coords)


def _coverage(pit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of central intervals that hold the observed number, and their standard errors over the data."""
    rows = pit.reshape(len(pit), -1) if pit.ndim else pit.reshape(1, 1)
    inside = np.abs(rows - 0.5)[..., None] <= np.array(LEVELS) / 2
    seen = np.isfinite(rows).any(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the mean of a datum that is masked
        each = np.nanmean(np.where(np.isfinite(rows)[..., None], inside, np.nan), 1)[seen]
        error = each.std(0, ddof=1) / len(each) ** 0.5 if len(each) > 1 else np.full(len(LEVELS), np.nan)
    return each.mean(0), error


def _rows(tree: xr.DataTree) -> int:
    x = next(iter(tree.observed_data.data_vars.values()))
    return len(x) if x.ndim else 1


# Leave-one-out cross-validation.


def _leave_one_out(tree: xr.DataTree, facts: Facts) -> tuple[dict[str, Any], str]:
    """PSIS-LOO by site, NaN where there is none, and a sentence that says what it is or why there is none."""
    names = [str(name) for name in tree.observed_data.data_vars if name in tree.posterior_predictive]
    keys = ("elpd_loo", "elpd_loo_se", "p_loo", "largest_khat", "share_khat")
    table = {key: np.full(len(names), np.nan) for key in keys}
    reason = _no_loo(tree, facts)
    if not reason:
        import arviz_stats  # imported here because it takes long

        stats = tree.sample_stats
        for k, name in enumerate(names):
            if tree.log_likelihood[name].ndim < 3:
                continue
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what ArviZ warns of is in the sentences
                found = arviz_stats.loo_approximate_posterior(
                    tree, log_p=stats.log_p, log_q=stats.log_q, var_name=name, pointwise=True
                )
            khat = found.pareto_k.values
            numbers = (found.elpd, found.se, found.p, np.nanmax(khat), np.mean(khat > found.good_k))
            for key, value in zip(keys, numbers, strict=True):
                table[key][k] = float(value)
        reason = "PSIS-LOO of the draws of the guide, corrected to the posterior"
        if np.isnan(table["elpd_loo"]).all():
            reason = "none: the model has one observation, of which none can be left out"
    return {key: ("site", value) for key, value in table.items()}, reason


def _no_loo(tree: xr.DataTree, facts: Facts) -> str:
    local = facts.plate is not None and set(tree.posterior.data_vars) - {n.replace("/", ".") for n in facts.shared}
    if local and not facts.shared:
        return (
            "none: each datum has its own latents, which the guide infers from that datum, so that nothing is left out; the "
            "expected log predictive density is the mean of log p(x) over data that were not used in the fit"
        )
    if local:
        return (
            f"none: latents belong to single data ({quoted(sorted(map(str, local)))}), and to leave a datum out by its weight "
            "needs them integrated out of p(x | z, w); hold data out of the fit instead"
        )
    if "log_likelihood" not in tree.children:
        return "none: the model has no likelihood"
    if "sample_stats" not in tree.children:
        return f"none: the weights p(x, z) / q(z) are needed, and they are {tree.attrs.get('weights', 'not there')}"
    return ""


def _evidence(pair: Pair, args: Batch, facts: Facts, draws: int, seed: int) -> dict[str, Any]:
    """log p(x) per datum of local latents, where there is such a number."""
    if facts.shared or facts.plate is None:
        return {"log_evidence": np.nan, "log_evidence_se": np.nan}
    try:
        found = evidence_of_pair(pair, args, particles=draws, seed=seed, compile=False)
    except InputError:
        return {"log_evidence": np.nan, "log_evidence_se": np.nan}
    return {"log_evidence": found.attrs["value"], "log_evidence_se": found.attrs["se"]}

"""Collapse of latents to their prior: how much each unit of z_n knows about its datum, and why some know nothing.

* `collapse` measures it for the local latents of a pair; the sentences are those of `words`.
"""

import math
from typing import Any

import numpy as np
import torch
import xarray as xr

from pyro_vi.data import Batch, tensors_in
from pyro_vi.diagnostics.collapsing.linear_decoder import Spectrum, linear_decoder
from pyro_vi.diagnostics.collapsing.local_runs import spread
from pyro_vi.diagnostics.collapsing.unit_posteriors import posteriors_of
from pyro_vi.diagnostics.collapsing.unit_table import Columns, Measured, measured, over_data, summed_units, table_of
from pyro_vi.diagnostics.collapsing.words import conclude
from pyro_vi.elbo import Facts, facts_of, refuse_no_density, refuse_own_minibatch
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.programs import Pair, Program, evaluating, isolated, kept_buffers, pair_and_args
from pyro_vi.support import Whole, seed_from
from pyro_vi.support import whole as whole_number

ACTIVE = 0.01
"""Variance of the posterior mean over the data, in units of the prior's, from which a unit is active (arXiv:1509.00519)."""
PRIOR = 0.005
"""KL in nats below which a unit is said to be at its prior: that of a unit whose posterior mean has a variance of 0.01, if all
its KL is information, ½ log 1 / (1 − 0.01)."""
LOOKED_AT = 100
"""Most data at which the cause of a collapse is looked for."""


def collapse(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    draws: Whole = 100,
    seed: Whole = 0,
    rows: Whole = 1000,
) -> xr.Dataset:
    """Return what each unit of the local latents knows about its datum, and, of units that know nothing, whose fault it is.

    A unit is one number of z_n; a discrete state, or a point of a simplex, is one unit. For each unit:

    * KL(q(z_u | x_n) ‖ p(z_u)), mean over the data. Its closed form is used if there is one. If units depend on each other
      in the guide, it is the KL of each by itself, and their sum is below the whole.
    * The variance of the posterior mean, Var_x(E[z_u | x]), in units of the prior's. The unit is *active* if it is above 0.01
      (Burda et al. 2016, arXiv:1509.00519). A state without a mean is active if its information is above 0.005 nats.
    * The mutual information I(x; z_u) under q. With that of all latents together, mean KL = I(x; z) + KL(q(z) ‖ p(z)), where
      q(z) = E_x q(z | x) (Hoffman and Johnson 2016, "ELBO surgery"). The expectation over x is a mean over the data. If it
      includes the datum of z, I is too small, and at most log N; if not, too large (Poole et al. 2019, arXiv:1905.06922).
      Both are given.

    A unit with a KL or an information below 0.005 nats, ½ log 1 / (1 − 0.01), has collapsed. The cause is

    * ``"model"``: the posterior of the unit given the others is what the guide has, so the decoder ignores the unit;
    * ``"guide"``: the ELBO would gain if q(z_u | x_n) alone changed;
    * ``"optimiser"``: the decoder is linear and ignores the unit, and at its noise the likelihood has its maximum where more
      units are used (Lucas et al. 2019, arXiv:1911.02469);
    * ``"unclear"``: none of these can be shown.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with.
        draws: draws of the guide, where there is no closed form.
        seed: seed of the draws.
        rows: most data that are looked at, evenly spaced; the mixtures take time in proportion to its square.

    Returns:
        Over the dimension ``unit``: ``kl``, ``variance``, ``information_lower``, ``information_upper``, ``gain`` (what the ELBO
        gains if the unit's factor becomes the best one) and ``use`` (KL from the guide to the posterior given the other
        latents), each with its standard error over the data ``..._se``; ``entropy`` of a discrete unit; ``active``, ``prior``
        (the KL is below 0.005), ``cause`` and ``site``. All but ``variance`` and flags are in nats. For all local latents:
        ``total_kl``, ``information_lower``, ``information_upper`` with the prefix ``total_``, ``marginal_kl_lower`` and
        ``marginal_kl_upper``, per datum; ``sampled_kl``, from the draws of the mixtures, is the sum of information and
        marginal KL. For a linear decoder: ``eigenvalue`` of the covariance in units of the noise and ``signal``, what the
        decoder has in their place. Attributes: ``verdict``, ``sentences``, ``rows``, ``draws``, ``ceiling`` (log N),
        ``active``, ``collapsed`` and ``units`` (counts), and ``source`` of the KL by site; of a linear decoder ``usable`` and
        ``used`` (numbers of directions), ``log_evidence`` and ``best_log_evidence`` in nats per datum.

    Raises:
        InputError: the model has no latents of a datum, the guide is no density, or a program draws its own minibatch.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> from pyro_vi.guides.exact import Exact
        >>> spec = DataSpec("x", 3, (2,), "real", torch.float32, "made up")
        >>> model = LinearGaussian(spec, latent_dim=2, weight=[[1.0, 0.0], [1.0, 0.0]])
        >>> found = collapse(model, Exact(model, (torch.zeros(3, 2),)), torch.tensor([[1.0, 1.0], [-1.0, 0.0], [2.0, 1.0]]))
        >>> found.active.values.tolist(), found.cause.values.tolist()
        ([True, False], ['', 'model'])
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in the search for collapsed latents"):
        return collapse_of_pair(pair, args, draws=draws, seed=seed, rows=rows)


def collapse_of_pair(pair: Pair, args: Batch, *, draws: Whole = 100, seed: Whole = 0, rows: Whole = 1000) -> xr.Dataset:
    """Return `collapse` for a pair that is already bound."""
    draws, seed, rows = whole_number("draws", draws, 3), seed_from(seed), whole_number("rows", rows, 2)
    facts = facts_of(pair, args)
    _refuse(pair, args, facts)
    few = spread(pair, args, rows)
    with torch.no_grad(), evaluating(pair), isolated(seed, validation=False), kept_buffers(pair):
        found = measured(pair, few, facts, draws)
        tables = [table_of(found), summed_units(pair, few, facts, min(draws, 20))]
        table = {key: np.concatenate([t[key] for t in tables if t]) for key in next(t for t in tables if t)}
        spectrum = linear_decoder(pair, args, facts, found.first)
        _judge(table)
        table |= _causes(pair, few, facts, table, spectrum)
    dataset = _dataset(found, table, spectrum)
    dataset.attrs |= {"rows": len(found.kl), "draws": draws, "seed": seed}
    verdict, sentences = conclude(dataset)
    return dataset.assign_attrs(verdict=verdict, sentences=sentences)


def _refuse(pair: Pair, args: Batch, facts: Facts) -> None:
    layout = pair.layouts(args)[0]
    local = [name for name in layout.latents if name not in facts.shared]
    if facts.plate is None or not local:
        raise InputError(
            "the model has no latents of single data (none is in the data plate), and only these can collapse; "
            "for latents that all data share, compare their draws with the prior's"
        )
    refuse_no_density(pair, args, facts)
    if any(True for _ in tensors_in(args)):  # a program may hold its data itself
        refuse_own_minibatch(pair, args)
    if facts.plate.length < 2:
        raise InputError("collapse compares data with each other, and there is 1 row; give at least 2")


def _judge(table: Columns) -> None:
    """Add which units are active, which are at their prior, and which have collapsed."""
    kl, above = table["kl"], table["information_upper"]
    variance = table["variance"] - 3 * table["noise"]  # of draws, not by chance
    table["prior"] = kl < PRIOR
    table["active"] = np.where(np.isnan(variance), table["information_lower"] > PRIOR, variance > ACTIVE)
    table["collapsed"] = np.where(np.isnan(kl) & np.isnan(above), ~table["active"], (kl < PRIOR) | (above < PRIOR))


def _causes(pair: Pair, args: Batch, facts: Facts, table: Columns, spectrum: Spectrum | None) -> Columns:
    """The causes of the units that have collapsed, and the numbers they rest on."""
    units = len(table["unit"])
    numbers = {name: np.full(units, np.nan) for name in ("use", "use_se", "gain", "gain_se")}
    cause = np.full(units, "", dtype="<U9")
    drawn = table["collapsed"] & ~table["summed"]
    wanted: dict[str, list[int]] = {}
    for site, index in zip(table["site"][drawn], table["index"][drawn], strict=True):
        wanted.setdefault(str(site), []).append(int(index))
    found = posteriors_of(pair, spread(pair, args, LOOKED_AT), facts, wanted) if wanted else {}
    left = 0 if spectrum is None else max(0, spectrum.usable(PRIOR) - spectrum.used(PRIOR))
    for k in np.flatnonzero(table["collapsed"]):
        if table["summed"][k]:
            cause[k] = "model"  # the posterior of a site that is summed out is exact, given the other latents
            continue
        cause[k] = "unclear"
        one = found.get((str(table["site"][k]), int(table["index"][k])))
        if one is None:
            continue
        for name, column in numbers.items():
            column[k] = getattr(one, name)
        if one.gain > PRIOR and one.gain > 3 * one.gain_se:
            cause[k] = "guide"
        elif one.use < PRIOR:
            cause[k], left = ("optimiser", left - 1) if left > 0 else ("model", left)
    return {**numbers, "cause": cause}


def _dataset(found: Measured, table: Columns, spectrum: Spectrum | None) -> xr.Dataset:
    names = ("kl", "variance", "information_lower", "information_upper", "use", "gain")
    columns: dict[str, Any] = {column: ("unit", table[column]) for name in names for column in (name, f"{name}_se")}
    columns |= {name: ("unit", table[name]) for name in ("entropy", "active", "prior", "collapsed", "cause")}
    nothing = torch.full((2,), math.nan)
    mixtures, drawn = found.mixtures, bool(found.sites)
    totals = {
        "total_kl": found.kl if drawn else nothing,
        "sampled_kl": found.divergence if drawn else nothing,
        "total_information_lower": nothing if mixtures is None else mixtures.lower,
        "total_information_upper": nothing if mixtures is None else mixtures.upper,
        "marginal_kl_lower": nothing if mixtures is None else found.divergence - mixtures.upper,
        "marginal_kl_upper": nothing if mixtures is None else found.divergence - mixtures.lower,
    }
    for name, values in totals.items():
        columns[name], columns[f"{name}_se"] = (((), number) for number in over_data(values))
    of_sites = {name: over_data(value) for name, value in found.of_sites.items() if name in found.sites}
    columns["site_kl"] = ("latent", np.array([mean for mean, _ in of_sites.values()], dtype=float))
    columns["site_kl_se"] = ("latent", np.array([error for _, error in of_sites.values()], dtype=float))
    coords: dict[str, Any] = {"unit": table["unit"], "site": ("unit", table["site"]), "latent": list(of_sites)}
    attrs: dict[str, Any] = {
        "active": int(table["active"].sum()),
        "collapsed": int(table["collapsed"].sum()),
        "units": len(table["unit"]),
        "ceiling": math.log(mixtures.count) if mixtures is not None else math.nan,
        "source": {name: numbers.source for name, numbers in found.numbers.items()},
        "thresholds": {"variance": ACTIVE, "kl": PRIOR},
    }
    if spectrum is not None:
        columns["eigenvalue"] = ("direction", spectrum.eigenvalues.numpy())
        signal = np.ones(len(spectrum.eigenvalues))
        signal[: len(spectrum.signal)] = spectrum.signal.numpy()[: len(signal)]
        columns["signal"] = ("direction", signal)
        attrs |= {
            "usable": spectrum.usable(PRIOR),
            "used": spectrum.used(PRIOR),
            "noise": spectrum.noise,
            "log_evidence": spectrum.evidence,
            "best_log_evidence": spectrum.best,
        }
    return xr.Dataset(columns, coords=coords, attrs=attrs)

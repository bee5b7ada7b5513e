"""Simulation-based calibration of a guide, in one pass over data that are simulated from the model.

`calibration` draws latents and data from the model, and ranks the latents among draws of the guide for these data.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.distributions import Unit
from torch import Tensor

from pyro_vi.data import Batch, changed, fresh, length_of, tensors_in
from pyro_vi.diagnostics.log_evidence import refuse_part
from pyro_vi.diagnostics.ranking.calibrated import measured_calibration
from pyro_vi.diagnostics.ranking.ranks import Ranked, Ranker
from pyro_vi.diagnostics.simulating import Simulated, observed_entries, simulated
from pyro_vi.elbo import Facts, facts_of, one_run, own_scale, quoted, refuse_own_minibatch
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.programs import (
    Pair,
    Program,
    evaluating,
    isolated,
    kept_buffers,
    pair_and_args,
    role_of,
    takes_row_numbers,
    trace_of_guide,
)
from pyro_vi.support import Whole, seed_from
from pyro_vi.support import whole as whole_number

SIMULATIONS, SETS = 1000, 200
"""Simulations by default: of single data, and of whole data sets."""
RUNS = 10
"""Fewest draws of the shared latents at which those of single data are calibrated."""
DRAWS = 199
"""Draws for each simulation by default: 200 possible ranks, so that central intervals of 50, 80, 90 and 95 % are exact."""
REFITS = "pyro_vi.refitted_calibration fits the guide to many simulated data sets; k-hat needs no further fit"


def calibration(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    simulations: Whole | None = None,
    draws: Whole = DRAWS,
    seed: Whole = 0,
    rows: Whole = 1000,
) -> xr.Dataset:
    """Return the calibration of a guide: the ranks of z, drawn with x from the model, among draws of q(z | x).

    If q(z | x) = p(z | x), the rank of any number f(z, x) among f(z_1, x), …, f(z_K, x) is uniform on 0, …, K (Talts et al.
    2018, arXiv:1804.06788). Ranked are each number of each latent site, on its support; and log p(x | z) and log p(x, z),
    which also tell the posterior from the prior (Modrák et al. 2023, arXiv:2211.02383). Ties are broken at random, so that
    discrete latents are served. Sites that the guide leaves to enumeration are drawn from their posterior given its draws.

    Each p-value is exact: that of the distribution function of the ranks at 99 values, compared with independent uniform ones
    (Säilynoja et al. 2022, arXiv:2103.10522). ``p_adjusted`` is adjusted for the number of quantities (Holm 1979), so that
    a guide which is the posterior is rejected with a probability of at most 5 %.

    It is about data as the model makes them, with the parameters that it has now: those learned by maximum likelihood are
    taken as true. So it says whether q is the posterior of this model, and not whether the model is right about the real data.
    The batch gives the other inputs of the model, such as covariates, and the shapes.

    A guide of latents that all data share must depend on the data; one with free parameters was fitted to one data set and
    says nothing about others. Its shared latents are then drawn from the guide and held fixed, and the latents of single data
    are calibrated given them. If there are none, the verdict is ``"none"``: see `pyro_vi.refitted_calibration`.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with; all the data if latents are shared.
        simulations: number of simulated data, by default 1000; or of whole data sets, by default 200, if the model has no data
            plate or the guide of shared latents depends on the data. Where the pair takes whole batches only, it is rounded up.
        draws: K, draws of the guide for each simulation.
        seed: seed of all draws.
        rows: most data that are simulated at a time.

    Returns:
        Over ``simulation`` and ``quantity``: ``rank``, 0 to K, and ``pit``, (rank + U) / (K + 1) with U uniform, in (0, 1);
        NaN where an entry is masked. Over ``quantity`` and ``level``: ``coverage`` of the central intervals of 50,
        80, 90 and 95 %, with the binomial ``coverage_se``. Over ``quantity``: ``mean_pit`` and its standard error;
        ``ks``, the largest distance of the distribution function of the PIT from that of uniform numbers, and its
        exact ``ks_p_value``; ``p_value`` and ``p_adjusted``; ``number`` of simulations; and for continuous latents,
        as for normal ones, ``width``, the standard deviation of the guide in units of the right one, and ``bias``,
        how many right standard deviations its mean is too high, with errors. Attributes: ``verdict``: ``"fail"`` if
        a rejected quantity has a KS distance above .08 (of a log-density, .15), ``"care"`` if all have less,
        ``"pass"``, or ``"none"``; ``p_value``, the smallest adjusted; ``sentences``; ``simulations``; ``draws``.

    Raises:
        InputError: no data can be drawn from the model, as it has an improper prior, a factor or a scale, observes no entry of
            the batch, or reads data that it also observes; the guide is a point estimate, or has parameters for each row.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def narrow(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(x / 2, 0.5 * 0.5**0.5))
        >>> found = calibration(model, narrow, torch.zeros(100))
        >>> found.attrs["verdict"], round(float(found.width.sel(quantity="z")), 1)
        ('fail', 0.5)
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in the calibration"):
        return calibration_of_pair(pair, args, simulations=simulations, draws=draws, seed=seed, rows=rows)


def calibration_of_pair(
    pair: Pair,
    args: Batch,
    *,
    simulations: Whole | None = None,
    draws: Whole = DRAWS,
    seed: Whole = 0,
    rows: Whole = 1000,
) -> xr.Dataset:
    """Return `calibration` for a pair that is already bound."""
    simulations = None if simulations is None else whole_number("simulations", simulations, 1)
    draws, seed, rows = whole_number("draws", draws, 9), seed_from(seed), whole_number("rows", rows, 1)
    facts = facts_of(pair, args)
    refuse_unsimulated(pair, args, facts)
    if facts.shared:
        refuse_part(pair, args, facts)
    if (
        next(tensors_in(args), None) is not None
    ):  # a program that holds its data itself is refused with the right reason
        refuse_own_minibatch(pair, args)
    free = _free_sites(pair, args, seed)
    local = [name for name in pair.layouts(args)[0].latents if name not in facts.shared]
    if local and free.issuperset(set(local) - set(facts.summed)) and _row_parameters(pair, args):
        raise InputError(
            f"the guide has parameters for each row, which were fitted to these data and say nothing about others; {REFITS}"
        )
    given_by_guide = [name for name in facts.shared if name in free]
    whole = not local or (bool(facts.shared) and not given_by_guide)
    attrs = {"per": "data set" if whole else "datum", "rows": length_of(args), "given": given_by_guide}
    if not whole or not given_by_guide:
        count = simulations or (SETS if whole else SIMULATIONS)
        generator = np.random.default_rng([seed, 0])
        ranker = Ranker(pair, facts, draws, whole, generator)
        with evaluating(pair), isolated(seed, validation=False), kept_buffers(pair):
            found = [
                ranker(made, given, index)
                for made, given, index in _simulations(pair, args, facts, whole, count, min(rows, count))
            ]
        return measured_calibration(Ranked.joined(found), seed=seed, attrs=attrs, notes=_notes(facts, given_by_guide))
    return nothing_of(given_by_guide, attrs)


def refuse_unsimulated(pair: Pair, args: Batch, facts: Facts) -> None:
    """Raise InputError for a pair whose draws are not those of a posterior, or whose model makes no data by itself."""
    if facts.points:
        raise InputError(
            f"the guide is a point estimate of {quoted(facts.points)}, which has no intervals to calibrate; fit a guide that "
            "has a density, such as AutoNormal"
        )
    for name, node in one_run(pair, args, bool(facts.summed)).model_trace.nodes.items():
        if node["type"] != "sample":
            continue
        if isinstance(node["fn"], Unit) and bool((torch.as_tensor(node["fn"].log_factor) != 0).any()):
            raise InputError(
                f"the model has a factor '{name}', so that no data can be drawn from it; write it as a distribution"
            )
        if role_of(node) in ("latent", "observed"):
            scale = torch.as_tensor(own_scale(node))
            if not torch.allclose(scale, torch.ones_like(scale), rtol=1e-5):
                raise InputError(
                    f"site '{name}' is scaled (poutine.scale), so that its data are not drawn from what is fitted; call the "
                    "programs without the scale"
                )


def nothing_of(shared: list[str], attrs: Mapping[str, Any]) -> xr.Dataset:
    """A calibration without numbers, of a guide whose latents were fitted to one data set."""
    text = (
        f"The guide's {quoted(shared)} were fitted to one data set and do not depend on the data, so that one pass over "
        f"simulated data does not calibrate them; {REFITS}."
    )
    return xr.Dataset(attrs={"verdict": "none", "sentences": [text], "simulations": 0, "draws": 0, **attrs})


def _notes(facts: Facts, given: list[str]) -> list[str]:
    notes = []
    if given:
        notes.append(
            f"{quoted(given)} are drawn from the guide and held fixed, as the guide fitted them to one data set; for their own "
            f"calibration, {REFITS}."
        )
    return notes


def _free_sites(pair: Pair, args: Batch, seed: int) -> set[str]:
    """The sites of the guide that do not depend on the data: the same seed gives the same draws for other data."""
    drawn = []
    with evaluating(pair), torch.no_grad(), kept_buffers(pair):
        with isolated(seed + 1, validation=False):
            other = simulated(pair, args).args
        for batch in (args, other):
            with isolated(seed, validation=False):
                nodes: Any = trace_of_guide(pair.guide, fresh(batch)).nodes
            drawn.append({n: v["value"] for n, v in nodes.items() if v["type"] == "sample" and role_of(v) == "latent"})
    one, two = drawn
    return {name for name, value in one.items() if name in two and _same(value, two[name])}


def _same(one: Tensor, two: Tensor) -> bool:
    return one.shape == two.shape and torch.equal(one, two)


def _row_parameters(pair: Pair, args: Batch) -> bool:
    """True if the guide has parameters for each row of the data."""
    length, models = length_of(args), {id(p) for p in pair.model.parameters()}
    own = [p for p in pair.guide.parameters() if id(p) not in models]  # a guide may hold the model
    return takes_row_numbers(pair.guide) or any(length > 1 and length in p.shape for p in own)


def _simulations(
    pair: Pair, args: Batch, facts: Facts, whole: bool, count: int, rows: int
) -> Iterator[tuple[Simulated, dict[str, Tensor], np.ndarray]]:
    """Yield simulated batches, the latents that were given, and the rows that are simulations."""
    length = length_of(args)
    if whole:
        places = observed_entries(pair, args)
        for number in range(count):
            row = number % facts.plate.length if facts.plate is not None else 0
            yield simulated(pair, args, None, places), {}, np.array([row])
        return
    if not facts.shared and pair.separable(args, min(rows, max(1, length - 1))):
        # The rows of the batch, evenly spaced or in turn, for their other inputs.
        every = np.arange(count) * length // count if length >= count else np.arange(count) % length
        blocks = [every[start : start + rows] for start in range(0, count, rows)]
        if length >= rows or _takes(pair, _rows(args, blocks[0]), len(blocks[0])):
            for block in blocks:
                yield simulated(pair, _rows(args, block)), {}, np.arange(len(block))
            return
    runs = max(-(-count // length), RUNS if facts.shared else 1)
    kept = min(length, -(-count // runs))
    chosen, places = np.arange(kept) * length // kept, observed_entries(pair, args)
    for _ in range(runs):
        given = {}
        if facts.shared:
            with torch.no_grad():
                nodes: Any = trace_of_guide(pair.guide, fresh(args)).nodes
            given = {name: nodes[name]["value"] for name in facts.shared if name in nodes}
        yield simulated(pair, args, given, places), given, chosen


def _rows(args: Batch, index: np.ndarray) -> Batch:
    length, chosen = length_of(args), torch.as_tensor(index)
    return changed(args, lambda v: v[chosen.to(v.device)] if v.dim() and len(v) == length else v)


def _takes(pair: Pair, args: Batch, length: int) -> bool:
    """True if the pair runs on more rows than it was given."""
    try:
        plate = pair.layouts(args)[0].data_plate
    except InputError:
        return False
    return plate is not None and plate.length == length

"""Posterior means and standard deviations of each latent number: the guide's own, and with Pareto-smoothed weights.

* `moments` computes them for two programs, and `moments_of_pair` for a pair that is bound.
"""

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.diagnostics.reweighting.drawing import Asked, Draws, asked
from pyro_vi.diagnostics.reweighting.joint_tails import INNER, shared_weights
from pyro_vi.diagnostics.reweighting.smoothing import moments_with, smoothed
from pyro_vi.diagnostics.tails import threshold
from pyro_vi.errors import naming_programs
from pyro_vi.programs import Pair, Program, evaluating, isolated, pair_and_args
from pyro_vi.support import Whole, seed_from
from pyro_vi.support import whole as whole_number

MOST = 100
"""Most data with moments, evenly spaced."""
HELD = 2**24
"""Numbers of the draws of a block that are held at once."""
SHIFT, WIDTH = 0.25, 1.25
"""Shift in standard deviations of the guide, and ratio of standard deviations, from which the two differ notably."""


def moments(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    draws: Whole = 2500,
    seed: Whole = 0,
    rows: Whole = 1000,
    most: Whole | None = MOST,
    inner: Whole = INNER,
) -> xr.Dataset:
    """Return mean and standard deviation of each latent number under the guide, and under the posterior by weighted draws.

    The posterior's are Σ_k w_k z_k and the root of Σ_k w_k (z_k − mean)², with draws z_k of the guide and Pareto-smoothed,
    normalised weights w_k of p(x, z_k) / q(z_k | x) (Vehtari et al. 2024, arXiv:1507.02646; for guides Yao et al. 2018,
    arXiv:1802.02538). They can be used where k-hat of the weights is at most ``threshold``; above it they are still too near
    the guide's, by an unknown amount. All numbers are on the scale of the model's site.

    The weight of a datum is that of its own latents. Latents that all data share have one weight for the data set. If the data
    have latents too, each datum is averaged over ``inner`` draws inside it, and a datum's own latents have both weights.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with; all the data if latents are shared.
        draws: draws of the guide, K, at least 25.
        seed: seed of the draws.
        rows: most data that are drawn for at a time, unless latents are shared.
        most: most data whose latents are reported, evenly spaced; None for all.
        inner: draws of the latents of each datum inside the weight of the shared ones.

    Returns:
        Over ``datum`` (numbers of the rows) and ``number`` (names such as ``z[0]``): ``guide_mean``, ``guide_sd``,
        ``psis_mean``, ``psis_sd`` (of the posterior, by weights), ``mean_shift`` (their difference in standard deviations of
        the guide) and ``sd_ratio`` (the posterior's standard deviation by the guide's), each with a Monte Carlo standard error
        ``…_se``; ``khat`` over ``datum``, and ``trusted``, true where it is at most the threshold. For latents that all data
        share the same with the prefix ``shared_``, over ``shared_number``. Attributes: ``verdict``, ``sentences``,
        ``threshold``, ``rows``, ``draws`` and ``seed``.

    Raises:
        InputError: the weight is no ratio of densities, as for `pyro_vi.evidence`; or the guide draws nothing.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(0.0, 1.0))  # the prior
        >>> found = moments(model, guide, torch.tensor([0.0, 1.0]), draws=20_000)
        >>> found.psis_mean.values[:, 0].round(1), found.psis_sd.values[:, 0].round(1)  # x / 2 and √½
        (array([-0. ,  0.5]), array([0.7, 0.7]))
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in its moments"):
        return moments_of_pair(pair, args, draws=draws, seed=seed, rows=rows, most=most, inner=inner)


def moments_of_pair(
    pair: Pair,
    args: Batch,
    *,
    draws: Whole = 2500,
    seed: Whole = 0,
    rows: Whole = 1000,
    most: Whole | None = MOST,
    inner: Whole = INNER,
) -> xr.Dataset:
    """Return `moments` for a pair that is already bound."""
    draws, seed, rows = whole_number("draws", draws, 25), seed_from(seed), whole_number("rows", rows, 1)
    most = None if most is None else whole_number("most", most, 1)
    inner = whole_number("inner", inner, 1)
    latents = pair.layouts(args)[0].latents.values()
    each = max(1, sum(site.numel for site in latents) // max(1, length_of(args)))
    rows = max(1, min(rows, HELD // (draws * each)))
    with evaluating(pair), isolated(seed, validation=False):
        asking = asked(pair, args, most, rows)
        parts = [_block(pair, block, asking, draws, inner, places) for block, places in asking.blocks]
    return _laid_out(parts, asking, draws, seed)


Part = dict[str, tuple[list[str], dict[str, np.ndarray], np.ndarray]]
"""Of the latents of each datum (``""``) and of the shared ones (``"shared_"``): names, numbers and k-hat."""


def _block(pair: Pair, args: Batch, asking: Asked, draws: int, inner: int, places: np.ndarray) -> Part:
    maker, index = Draws(pair, args, asking.facts), torch.as_tensor(places)
    local = [name for name, inside in maker.latents.items() if inside]
    shared = [name for name in maker.latents if name not in local]
    weights: dict[str, list[Tensor]] = {"": [], "shared_": []}
    values: dict[str, list[Tensor]] = {name: [] for name in maker.latents}
    if shared:
        stream = shared_weights(maker, draws, inner if local else 0)
    else:
        stream = ((drawn, torch.zeros(len(drawn.local)), torch.zeros(())) for drawn in maker.stream(draws))
    for drawn, weight, _ in stream:
        weights["shared_"].append(weight.double())
        # A datum's own latents, drawn with the shared ones: the weight of those, and its own given those.
        weights[""].append(drawn.local[:, index] + weight.unsqueeze(-1))
        for name in maker.latents:
            found = maker.numbers(name, drawn.values[name])
            values[name].append(found[:, index] if name in local else found)
    parts: Part = {}
    for prefix, names in (("", local), ("shared_", shared)):
        if not names:
            continue
        kept = {name: torch.cat(values[name]) for name in names}
        both = torch.cat(list(kept.values()), -1)
        log_weight = torch.cat(weights[prefix])
        if prefix:
            both, log_weight = both.unsqueeze(1), log_weight.unsqueeze(-1)
        log_weight, k = smoothed(log_weight)
        labels = [f"{name}[{i}]" if v.shape[-1] > 1 else name for name, v in kept.items() for i in range(v.shape[-1])]
        numbers = {what: value.numpy() for what, value in moments_with(both, log_weight).items()}
        parts[prefix] = labels, numbers, k
    return parts


def _laid_out(parts: list[Part], asking: Asked, draws: int, seed: int) -> xr.Dataset:
    limit = threshold(draws)
    columns: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    sentences, verdicts = [], []
    for prefix in ("", "shared_"):
        if prefix not in parts[0]:
            continue
        labels = parts[0][prefix][0]
        numbers = {what: np.concatenate([part[prefix][1][what] for part in parts]) for what in parts[0][prefix][1]}
        k = np.concatenate([part[prefix][2] for part in parts])
        # Equal weights have no k-hat, and weights that are no numbers one that is infinite.
        trusted = ~(k > limit)
        dims: tuple[str, ...] = ("datum", "number")
        if prefix:
            dims, numbers = ("shared_number",), {what: value[0] for what, value in numbers.items()}
        columns |= {f"{prefix}{what}": (dims, value) for what, value in numbers.items()}
        columns |= {
            f"{prefix}khat": (dims[:-1], k[0] if prefix else k),
            f"{prefix}trusted": (dims[:-1], trusted[0] if prefix else trusted),
        }
        coords |= {dims[-1]: labels} | ({} if prefix else {"datum": asking.index})
        verdict, said = _judged(labels, numbers, k, limit, asking, shared=bool(prefix))
        verdicts.append(verdict)
        sentences += said
    order = ("fail", "none", "care", "pass")
    attrs = {
        "verdict": min(verdicts, key=order.index),
        "sentences": sentences,
        "threshold": limit,
        "rows": asking.length,
        "draws": draws,
        "seed": seed,
    }
    return xr.Dataset(columns, coords, attrs)


def _judged(
    labels: list[str], numbers: dict[str, np.ndarray], k: np.ndarray, limit: float, asking: Asked, *, shared: bool
) -> tuple[str, list[str]]:
    """Return the verdict on the guide's moments, and sentences."""
    trusted, count = ~(k > limit), len(k)
    few = int(trusted.sum())
    which = "the latents that all data share" if shared else "the latents of a datum"
    if not few:
        worst = f"k-hat is {k[0]:.2f}" if shared else f"k-hat is above {limit:.2f} for each of {count} data"
        return "fail", [
            f"Moments of {which} cannot be corrected by weights: {worst}. The weighted ones are still too near the guide's "
            "own; neither is that of the posterior."
        ]
    said = []
    table = {what: value[None] if shared else value for what, value in numbers.items()}
    table = {what: value[trusted] for what, value in table.items()}
    if not np.isfinite(table["mean_shift"]).any():
        return "none", [
            f"All draws of {which} are one and the same, so that weights cannot say if the posterior has other values; "
            "pyro_vi.calibration can."
        ]
    bad, notes = 0, []
    for what, off, text in (
        ("mean_shift", np.abs(table["mean_shift"]) > SHIFT + 2 * table["mean_shift_se"], "mean"),
        (
            "sd_ratio",
            np.abs(np.log(table["sd_ratio"])) > math.log(WIDTH) + 2 * table["sd_ratio_se"] / table["sd_ratio"],
            "sd",
        ),
    ):
        size = np.abs(table[what]) if what == "mean_shift" else np.abs(np.log(table[what]))
        size = np.where(np.isfinite(size), size, -1)
        row, column = np.unravel_index(int(size.argmax()), size.shape)
        value, error, label = table[what][row, column], table[f"{what}_se"][row, column], labels[column]
        where = f"'{label}'" if shared else f"'{label}' of row {int(asking.index[trusted][row])}"
        bad += int(off.any())
        share = f"{100 * off.mean():.0f} % of the numbers differ notably"
        if text == "mean":
            notes.append(
                f"the largest shift of a mean is {value:+.2f} ± {error:.2f} standard deviations of the guide ({where}); "
                f"{share} (by more than {SHIFT})"
            )
        else:
            notes.append(
                f"the posterior's standard deviation is most different from the guide's at {where}, {value:.2f} ± {error:.2f} "
                f"times as large; {share} (by more than {100 * (WIDTH - 1):.0f} %)"
            )
    scope = "" if shared else f", for the {few} of {count} data whose k-hat is at most {limit:.2f}"
    said.append(f"Moments of {which}, by Pareto-smoothed weights{scope}: {notes[0]}; {notes[1]}.")
    if bad:
        said.append("Use the weighted means and standard deviations (psis_mean, psis_sd) in place of the guide's own.")
    else:
        said.append("The guide's own means and standard deviations agree with them, and can be used.")
    if few < count:
        rows = asking.index[~trusted][:20]
        said.append(
            f"For {count - few} data (rows {', '.join(map(str, rows))}{' and others' if count - few > 20 else ''}) neither can "
            "be used."
        )
    return ("care" if bad or few < 0.95 * count else "pass"), said

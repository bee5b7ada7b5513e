"""Linear-response standard deviations: those of a mean-field guide, repaired by the answer of its means to a tilt.

* `linear_response` computes them for two programs, and `linear_response_of_pair` for a pair that is bound.
"""

import math
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vi.amortized.frame import Frame
from pyro_vi.data import Batch
from pyro_vi.diagnostics.log_evidence import refuse_part
from pyro_vi.diagnostics.responses.normal_guides import normals_of
from pyro_vi.diagnostics.responses.responding import Response, Surface
from pyro_vi.elbo import Facts, facts_of, quoted, refuse_no_density, refuse_own_minibatch
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.programs import Pair, Program, evaluating, isolated, kept_buffers, pair_and_args
from pyro_vi.support import Whole, seed_from
from pyro_vi.support import whole as whole_number

MOST = 300
"""Most numbers in all latent sites together: the Hessian has twice as many rows."""
REPEATS = 4
"""Sets of fixed draws; their spread is the Monte Carlo error."""
ROUGH = 128
"""Draws with which the maximum is looked for from afar."""
NARROW = 1.1
"""Ratio of standard deviations from which a mean-field guide is called too narrow."""
AWAY = 0.1
"""Nats by which the best guide of the family may be better than the fitted one before the fit is called unfinished."""


def linear_response(model: Program, guide: Program, batch: Any, *, draws: Whole = 512, seed: Whole = 0) -> xr.Dataset:
    """Return linear-response covariances for latents that all data share, Cov(θ) = (∂E_q[θ]/∂η)ᵀ (−H)⁻¹ (∂E_q[θ]/∂η).

    η are the means and log standard deviations of q on the unconstrained scale, and H is the Hessian of the ELBO in η at its
    maximum (Giordano, Broderick and Jordan 2018, arXiv:1709.02536). A mean-field guide has standard deviations that are too
    small where latents are correlated, while its means answer rightly to a small tilt of the posterior; the covariance is
    that answer. It is exact for a normal posterior.

    If the data have latents too, they are part of η, as free parameters.

    The ELBO is that over fixed draws with mean 0 and covariance 1 (Giordano, Ingram and Broderick 2024, arXiv:2304.05527), so
    that the Hessian is exact. Newton steps go from the fitted guide to the maximum, which ``deficit`` says is how far. Nothing
    is changed in the pair. The scale is that of the model's sites: θ is a function of the normal numbers of q.

    Args:
        model: generative program.
        guide: variational program: independent normals on the unconstrained scale with parameters that are free, such as
            ``diag_normal``, Pyro's AutoNormal and AutoDiagonalNormal, or one's own.
        batch: a tensor, or the tuple that the programs are called with: all the data.
        draws: fixed draws in each of four sets; there are at least four for each number.
        seed: seed of the draws.

    Returns:
        Over ``number`` (names such as ``beta[0]``): ``sd`` (linear response), ``mean_field_sd`` and ``mean_field_mean`` (of q
        at the maximum) and ``ratio`` (the first by the second), each with its Monte Carlo error ``…_se``, from the four sets of
        draws; ``covariance`` over ``number`` and ``other``. Attributes: ``verdict``, ``sentences``, ``deficit`` (nats by which
        the ELBO at the maximum is above that of the fitted guide), ``rows``, ``draws`` and ``seed``.

    Raises:
        InputError: no latents are shared by all data; the guide is not such a normal; a latent is discrete or summed; there are
            more than 300 numbers; the model does not run on many draws at once; or the ELBO has no maximum near the guide.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     a = pyro.sample("a", dist.Normal(0.0, 1.0))
        ...     b = pyro.sample("b", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)
        >>> def guide(x):
        ...     pyro.sample("a", dist.Normal(0.4, 0.5))
        ...     pyro.sample("b", dist.Normal(0.4, 0.5))
        >>> found = linear_response(model, guide, torch.ones(3))  # the precision is [[4, 3], [3, 4]]
        >>> found.mean_field_sd.values.round(4), found.sd.values.round(4)  # 1 / √4 and √(4 / 7)
        (array([0.5, 0.5]), array([0.7559, 0.7559]))
    """
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in its linear response"):
        return linear_response_of_pair(pair, args, draws=draws, seed=seed)


def linear_response_of_pair(pair: Pair, args: Batch, *, draws: Whole = 512, seed: Whole = 0) -> xr.Dataset:
    """Return `linear_response` for a pair that is already bound."""
    draws, seed = whole_number("draws", draws, 8), seed_from(seed)
    facts = facts_of(pair, args)
    _refuse(pair, args, facts)
    with evaluating(pair), kept_buffers(pair), isolated(seed, validation=False):
        try:
            frame = Frame(pair.model, args, "linear response", amortized=False)
        except InputError as error:
            raise InputError(f"there is no linear response: {error}") from error
        size = sum(site.start.numel() for site in frame.sites.values())
        if size > MOST:
            raise InputError(
                f"the latent sites have {size} numbers together, and linear response takes at most {MOST}, as its Hessian has "
                "two rows for each; use a guide with correlations ('full_normal', 'low_rank_normal') for standard deviations"
            )
        loc, scale = normals_of(pair, args, frame)
        # Far from the maximum, few draws find the way.
        near = Surface(frame, args, min(ROUGH, draws), seed).peak(loc, scale)
        found = [Surface(frame, args, draws, seed + k).response(near, loc, scale) for k in range(REPEATS)]
    return _laid_out(found, pair.rows(args)[0], draws, seed)


def _refuse(pair: Pair, args: Batch, facts: Facts) -> None:
    refuse_no_density(pair, args, facts)
    if facts.summed:
        raise InputError(
            f"there is no linear response: {quoted(facts.summed)} is summed over its states, and linear response is of "
            "continuous latents that the guide draws"
        )
    if facts.plate is not None and not facts.shared:
        raise InputError(
            "there is no linear response: it is of latents that all data share, and this model has latents of each datum only; "
            "use pyro_vi.moments for their standard deviations"
        )
    refuse_part(pair, args, facts)
    refuse_own_minibatch(pair, args)


def _laid_out(found: list[Response], rows: int, draws: int, seed: int) -> xr.Dataset:
    covariances = torch.stack([one.covariance for one in found])
    covariance = covariances.mean(0)
    sds = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
    sd, narrow = covariance.diagonal().sqrt(), torch.stack([one.sd for one in found])
    ratios = sds / narrow
    labels = [
        f"{name}[{i}]" if numbers > 1 else name for name, numbers in found[0].sizes.items() for i in range(numbers)
    ]

    def error(values: Tensor) -> np.ndarray:
        return (values.std(0) / math.sqrt(len(values))).numpy()

    ratio, deficit = ratios.mean(0), sum(one.deficit for one in found) / len(found)
    columns = {
        "sd": sd.numpy(),
        "sd_se": error(sds),
        "mean_field_sd": narrow.mean(0).numpy(),
        "mean_field_sd_se": error(narrow),
        "ratio": ratio.numpy(),
        "ratio_se": error(ratios),
        "mean_field_mean": torch.stack([one.mean for one in found]).mean(0).numpy(),
        "mean_field_mean_se": error(torch.stack([one.mean for one in found])),
    }
    verdict, sentences = _judged(labels, columns, float(deficit))
    return xr.Dataset(
        {name: ("number", value) for name, value in columns.items()}
        | {
            "covariance": (("number", "other"), covariance.numpy()),
        },
        {"number": labels, "other": labels},
        {
            "verdict": verdict,
            "sentences": sentences,
            "deficit": float(deficit),
            "rows": rows,
            "draws": draws,
            "seed": seed,
        },
    )


def _judged(labels: list[str], columns: dict[str, np.ndarray], deficit: float) -> tuple[str, list[str]]:
    ratio, error = columns["ratio"], columns["ratio_se"]
    worst = int(np.abs(np.log(ratio)).argmax())
    sentences = []
    if deficit > AWAY:
        sentences.append(
            f"The ELBO of the fitted guide is {deficit:.2f} nats below the best of independent normals: the fit has not "
            "converged, or an encoder falls short of the best; fit longer. The numbers below are those at the best."
        )
    off = max(float(error[worst] / ratio[worst]), 0.001)
    numbers = (
        f"'{labels[worst]}' has the standard deviation {columns['sd'][worst]:.3g} by linear response and "
        f"{columns['mean_field_sd'][worst]:.3g} in the guide, a factor of {ratio[worst]:.2f} (Monte Carlo error at most "
        f"{100 * off:.1g} %)"
    )
    narrow = int((ratio > NARROW + 2 * error).sum())
    wide = int((1 / ratio > NARROW + 2 * error / ratio**2).sum())
    if narrow:
        sentences.append(
            f"The mean-field guide is too narrow for {narrow} of {len(labels)} numbers, because latents are correlated in the "
            f"posterior: {numbers}. Use the linear-response standard deviations, or a guide with correlations ('full_normal')."
        )
    elif wide:
        sentences.append(
            f"The standard deviations of the mean-field guide are larger than those of linear response for {wide} of "
            f"{len(labels)} numbers: {numbers}. The posterior is not normal there; compare with k-hat."
        )
    else:
        sentences.append(
            f"Linear response agrees with the standard deviations of the mean-field guide to {100 * (NARROW - 1):.0f} % for "
            f"each of {len(labels)} numbers: the most different, {numbers}."
        )
    sentences.append(
        "Linear response is exact for a normal posterior; for others it is an approximation that k-hat does not see."
    )
    return ("care" if narrow or wide or deficit > AWAY else "pass"), sentences

"""The evidence log p(x) per datum: exact if the model has a closed form, otherwise by importance sampling."""

import math
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from pyro_vi.compiling import Compile, check_mode
from pyro_vi.data import Batch
from pyro_vi.diagnostics.weights import Weights
from pyro_vi.elbo import refuse_own_minibatch, standard_error, vectorizes
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair, Program, evaluating, isolated, pair_of, title

Method = Literal["iw", "exact"]


def evidence(
    model: Program,
    guide: Program,
    batch: Batch | Tensor,
    *,
    method: Method | None = None,
    particles: int = 5000,
    seed: int = 0,
    rows: int = 1000,
    compile: Compile = "auto",
) -> xr.Dataset:
    """Return log p(x_n) of each datum, exactly or as log (1/K) Σ_k p(x_n, z_k) / q(z_k | x_n) with z_k from the guide.

    The importance-sampling estimate is below log p(x) on average (Jensen) and rises to it with K (Burda et al. 2016,
    arXiv:1509.00519). ``ess`` says how many of the K draws carry the weight; if it is near 1, the estimate is low.

    Args:
        model: generative program with local latent sites.
        guide: variational program.
        batch: a tensor of ``n`` rows, or the tuple that the programs are called with.
        method: ``"exact"`` calls the model's ``log_evidence(x)``, ``"iw"`` samples; by default exact if the model has that.
        particles: K.
        seed: seed of the draws.
        rows: most data that are evaluated at a time.
        compile: True compiles the draws or raises an error; False never compiles; ``"auto"`` compiles if that saves time. The
            draws are the same in each case.

    Returns:
        ``log_evidence`` and ``mc_se`` (Monte Carlo standard error, by the delta method) in nats, and ``ess``, over the
        dimension ``datum``; attributes ``method``, ``value`` and ``se`` (mean and standard error over the data), and
        ``note``, which says whether the draws were compiled, and why.

    Raises:
        InputError: the model has global latent sites, so that its evidence is not a sum over data; or ``method`` is ``"exact"``
            and the model has no closed form.

    Example:
        >>> from pyro_vi import models, guides
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> from pyro_vi.guides.exact import Exact
        >>> x = torch.tensor([[1.3]])
        >>> model = LinearGaussian(DataSpec("x", 1, (1,), "real", torch.float32, "made up"), latent_dim=1, weight=[[1.0]])
        >>> round(float(evidence(model, Exact(model, (x,)), x).log_evidence[0]), 4)
        -1.688
    """
    args = batch if isinstance(batch, tuple) else (batch,)
    pair = pair_of(model, guide, tuple(a[:rows] for a in args))
    return evidence_of_pair(pair, args, method=method, particles=particles, seed=seed, rows=rows, compile=compile)


def evidence_of_pair(
    pair: Pair,
    args: Batch,
    *,
    method: Method | None = None,
    particles: int = 5000,
    seed: int = 0,
    rows: int = 1000,
    compile: Compile = "auto",
) -> xr.Dataset:
    """Return `evidence` for a pair that is already bound."""
    check_mode(compile)
    closed = getattr(pair.model, "log_evidence", None)
    if method is None:
        method = "iw" if closed is None else "exact"
    if method == "exact":
        if closed is None:
            raise InputError(f"{title(pair.model)} has no closed form log_evidence(x); use method='iw'")
        with torch.no_grad(), isolated(seed, validation=False):
            values = torch.cat([closed(*(a[i : i + rows] for a in args)) for i in range(0, len(args[0]), rows)])
        nothing = torch.zeros_like(values)
        return _dataset(values, nothing, torch.full_like(values, math.nan), method, 0, "no draws")
    if method != "iw":
        raise InputError(f"evidence method must be 'iw' or 'exact', not {method!r}")
    if particles < 2:
        raise InputError(f"particles must be at least 2, not {particles}")
    refuse_global(pair, tuple(a[:rows] for a in args))
    # Blocks have one length, because each length is compiled separately; the last block may be shorter.
    blocks = math.ceil(len(args[0]) / rows)
    size = math.ceil(len(args[0]) / blocks)
    cut = [tuple(a[start : start + size] for a in args) for start in range(0, len(args[0]), size)]
    with evaluating(pair), isolated(seed, validation=False):
        weights = Weights(pair, cut[0], particles, vectorizes(pair, cut[0]))
        weights.compile(compile, blocks)
        parts = [_importance(weights, block) for block in cut]
    values, error, ess = (torch.cat(column) for column in zip(*parts, strict=True))
    return _dataset(values, error, ess, method, particles, weights.note)


def refuse_global(pair: Pair, args: Batch) -> None:
    """Raise InputError unless every latent site is local; only then is the evidence a sum over data."""
    refuse_own_minibatch(pair, args)
    layout, _ = pair.layouts(args)
    plate = layout.data_plate
    outside = [n for n, site in layout.latents.items() if plate is None or plate.name not in site.plates]
    if outside:
        raise InputError(
            f"site {', '.join(repr(n) for n in outside)} is shared by all data, so the evidence is not a sum over data; "
            "put every latent site inside the data plate"
        )


def _importance(weights: Weights, args: Batch) -> tuple[Tensor, Tensor, Tensor]:
    first, second = weights.sums(args)
    ess = (2 * first - second).exp()
    # Var(w) / (K mean(w)²) = 1/ESS − 1/K: the squared relative error of the mean weight.
    error = (1 / ess - 1 / weights.draws).clamp(min=0).sqrt()
    return first - math.log(weights.draws), error, ess


def _dataset(values: Tensor, error: Tensor, ess: Tensor, method: str, particles: int, note: str) -> xr.Dataset:
    def column(x: Tensor) -> tuple[str, np.ndarray]:
        return "datum", x.cpu().double().numpy()

    return xr.Dataset(
        {"log_evidence": column(values), "mc_se": column(error), "ess": column(ess)},
        attrs={
            "method": method,
            "particles": particles,
            "note": note,
            "value": float(values.mean()),
            "se": standard_error(values),
        },
    )

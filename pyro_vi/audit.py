"""Estimators at fixed parameters: moments of their values and gradients, from common random draws.

Draw d of every estimator starts from the same generator state, so that differences between estimators are not differences
between draws. Draws come in chunks and are accumulated: memory does not grow with their number.

`_Record` is what is kept of one estimator; `audit` fills the records and `_dataset` lays them out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.infer import ELBO
from scipy import special
from torch import Tensor

from pyro_vi.binding import kept_buffers
from pyro_vi.costs import Cost, costs
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.estimators import kl_sources, known_biased, named, target
from pyro_vi.evaluations import Evaluator, stacked
from pyro_vi.moments import GROUPS, Difference, Moments, holm
from pyro_vi.pairs import Pair, isolated
from pyro_vi.programs import pair_and_args
from pyro_vi.terms import from_run
from pyro_vi.threads import fitting_threads
from pyro_vi.traces import draw_traces
from pyro_vi.versions import versions

PARTS = ("model", "guide")
SITE_DRAWS = 200
"""Pairs of draws for the share of each site in the variance."""


@dataclass
class _Record:
    """What is kept of one estimator."""

    evaluator: Evaluator
    target: str
    gradients: Moments
    values: Moments
    sources: dict[str, str]
    cost: Cost
    against: Difference | None = None
    site_var: dict[str, Tensor] = field(default_factory=dict)


def audit(
    model: Any,
    guide: Any,
    batch: Batch | Tensor,
    *,
    elbos: Iterable[str | ELBO] | str | ELBO = ("trace", "mean_field"),
    draws: int = 1000,
    seed: int = 0,
    vectorize: bool | None = None,
) -> xr.Dataset:
    """E and Var of each estimator's value and gradient at the pair's present parameters, over common random draws.

    Args:
        model: generative program, a module or a function.
        guide: variational program.
        batch: a tensor, or the tuple that the programs are called with; kept fixed.
        elbos: estimators, by name or as `pyro.infer.ELBO`.
        draws: evaluations of loss and gradient for each estimator, at least 20.
        seed: of the draws.
        vectorize: evaluate many draws at once; by default where the programs allow it and are small enough for it to pay. The
            numbers are the same either way, to rounding.

    Returns:
        A dataset over ``elbo``, ``parameter``, ``part`` (model, guide) and ``site``:

        * ``value_mean``, ``value_sd``, ``value_se``: of the bound, in nats per datum.
        * ``grad_mean``: norm of the mean gradient of the bound per datum; ``grad_var``: sum of its elementwise variances, with
          standard error ``grad_var_se`` and 95 % interval ``grad_var_low``, ``grad_var_high``; ``grad_snr`` = ``grad_mean`` /
          √``grad_var``; ``work_var`` = ``grad_var`` × ``seconds``: what a second of averaging leaves of it, to choose by.
          The same with ``part_`` before it sums over the parameters of an owner. Parameters with a constraint are taken on
          their unconstrained scale.
        * ``bias_z``: z-score of the mean gradient against that of the first unbiased estimator of the same bound (coordinate
          ``target``), from common draws; ``bias_p``: its p-value, adjusted for the number of tests (Holm 1979). NaN where there
          is nothing to compare with.
        * ``site_var`` over ``elbo, site, part``: gradient variance that is left when the draws of all other sites are held (the
          total effect of Jansen 1999): which site the noise comes from. NaN where draws cannot be told apart.
        * ``kl_source`` over ``elbo, site``.
        * ``seconds``: median time of one loss-and-gradient evaluation, with interquartile range ``seconds_iqr`` and standard
          error ``seconds_se``, and its ``peak_bytes``; ``method``: ``"vmap"`` where many draws were evaluated at once.

    Raises:
        InputError: too few draws, a program that fails on the batch, or a gradient that is not finite.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     m = pyro.param("m", torch.tensor(0.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Normal(m, 1.0))
        >>> result = audit(model, guide, torch.tensor([1.3]), draws=400)
        >>> bool(result.grad_var.sel(elbo="trace", parameter="m") > result.grad_var.sel(elbo="mean_field", parameter="m"))
        True
    """
    pair, args = pair_and_args(model, guide, batch)
    return audit_pair(pair, args, named(elbos), draws=draws, seed=seed, vectorize=vectorize)


def audit_pair(
    pair: Pair,
    args: Batch,
    estimators: Mapping[str, ELBO],
    *,
    draws: int = 1000,
    seed: int = 0,
    vectorize: bool | None = None,
) -> xr.Dataset:
    """`audit` of a pair that is bound already, of estimators by name; they may remember what they find out about the pair."""
    if draws < 20:
        raise InputError(f"an audit needs at least 20 draws for its standard errors, not {draws}")
    owned = pair.owned(args)
    parameters = [parameter for _, parameter in owned.values()]
    sizes = [parameter.numel() for parameter in parameters]
    groups = min(GROUPS, draws // 10)
    records: dict[str, _Record] = {}
    with isolated(seed, validation=False), kept_buffers(pair), fitting_threads(pair, args):
        threads = torch.get_num_threads()
        seeds = torch.randint(2**62, (draws,)).tolist()
        num_data = _num_data(pair, args)
        evaluators = {name: Evaluator(elbo, pair, args, parameters, vectorize) for name, elbo in estimators.items()}
        measured = costs({name: evaluator.once for name, evaluator in evaluators.items()}, seconds=0.1)
        references = _references(estimators)
        for name, elbo in estimators.items():
            sources = {site: str(source) for site, source in kl_sources(elbo, pair, args).items()}
            records[name] = _Record(
                evaluators[name],
                target(elbo),
                Moments(sum(sizes), groups, draws),
                Moments(1, 2, draws),
                sources,
                measured[name],
            )
            if name not in references.values() and parameters:
                resolution = 1e-4 if parameters[0].dtype == torch.float32 else 1e-10
                records[name].against = Difference(sizes, draws, resolution)
        chunk = max(1, min(50, 2**22 // max(1, sum(sizes))))
        for start in range(0, draws, chunk):
            some = seeds[start : start + chunk]
            seen: dict[str, Tensor] = {}
            for name in sorted(records, key=lambda name: name not in references.values()):
                record = records[name]
                losses, gradients = record.evaluator(some)
                record.values.add(-losses.unsqueeze(1) / num_data)
                record.gradients.add(gradients / num_data)
                if record.against is None:
                    seen[record.target] = gradients
                else:
                    record.against.add(gradients, seen[record.target])
        for record in records.values():
            record.site_var = _site_variances(record.evaluator, seeds, chunk, num_data)
    for name, record in records.items():
        if not bool(record.gradients.mean.isfinite().all()) or not bool(record.values.mean.isfinite().all()):
            raise InputError(
                f"the value or gradient under '{name}' is not finite at these parameters; run `check` on the pair"
            )
    return _dataset(records, sizes, list(owned), [owner for owner, _ in owned.values()]).assign_attrs(
        draws=draws,
        seed=seed,
        num_data=num_data,
        batch_size=len(args[0]),
        threads=threads,
        device=str(args[0].device),
        **{f"version_{k}": v for k, v in versions().items()},
    )


def _references(estimators: Mapping[str, ELBO]) -> dict[str, str]:
    """By bound, the estimator that the others are held against: the first that is not biased by its making."""
    references: dict[str, str] = {}
    for name in sorted(estimators, key=lambda name: known_biased(estimators[name])):
        references.setdefault(target(estimators[name]), name)
    return references


def _num_data(pair: Pair, args: Batch) -> int:
    with torch.no_grad():
        run = draw_traces(pair.model, pair.guide, args)
    return from_run(run, len(args[0])).num_data


def _site_variances(evaluator: Evaluator, seeds: list[int], chunk: int, num_data: int) -> dict[str, Tensor]:
    """½ E|g(z) − g(z')|² by element, where z' has other draws at one site only."""
    captured = evaluator.captured
    if captured is None:
        return {}
    half = min(SITE_DRAWS, len(seeds) // 2)
    sites = dict.fromkeys(draw.site for draw in captured.draws if draw.site is not None)
    result = {site: torch.zeros(evaluator.size, dtype=torch.float64) for site in sites}
    for start in range(0, half, chunk):
        stop = min(start + chunk, half)
        parts = (seeds[start:stop], seeds[half + start : half + stop])
        base, other = (stacked(captured, part, evaluator.args) for part in parts)
        _, gradients = evaluator.at(base)
        for site in sites:
            mixed = [o if draw.site == site else b for draw, b, o in zip(captured.draws, base, other, strict=True)]
            result[site] += 0.5 * ((evaluator.at(mixed)[1] - gradients) / num_data).square().sum(0) / half
    return result


def _dataset(records: dict[str, _Record], sizes: list[int], names: list[str], owners: list[str]) -> xr.Dataset:
    belongs = np.array([[owner == part for owner in owners] for part in PARTS], dtype=float).reshape(len(PARTS), -1)

    def per_parameter(vector: Tensor) -> np.ndarray:
        return np.array([float(piece.sum()) for piece in vector.split(sizes)]) if sizes else np.zeros(0)

    rows: dict[str, list[np.ndarray]] = {}
    for record in records.values():
        moments = record.gradients
        square, variance = per_parameter(moments.mean.square()), per_parameter(moments.variance)
        grouped = np.stack([per_parameter(v) for v in moments.group_variances])
        for prefix, weights in (("", np.eye(len(sizes))), ("part_", belongs)):
            for key, value in _columns(weights, square, variance, grouped).items():
                rows.setdefault(prefix + key, []).append(value)
            rows.setdefault(prefix + "work_var", []).append(weights @ variance * record.cost.seconds)
    variables: dict[str, Any] = {
        key: (("elbo", "part" if key.startswith("part_") else "parameter"), np.stack(value))
        for key, value in rows.items()
    }
    every = list(records.values())
    sd = np.array([float(r.values.variance.sqrt()) for r in every])
    nan = np.full(len(sizes), np.nan)
    z = np.stack([nan if r.against is None else r.against.z.numpy() for r in every])
    p = np.stack([nan if r.against is None else r.against.p for r in every])
    sites = list(dict.fromkeys(site for r in every for site in r.sources))
    nothing = torch.full((sum(sizes),), math.nan, dtype=torch.float64)
    site_var = [[belongs @ per_parameter(r.site_var.get(site, nothing)) for site in sites] for r in every]
    return xr.Dataset(
        {
            "value_mean": ("elbo", np.array([float(r.values.mean) for r in every])),
            "value_sd": ("elbo", sd),
            "value_se": ("elbo", sd / np.sqrt([r.values.count for r in every])),
            **variables,
            "bias_z": (("elbo", "parameter"), z),
            "bias_p": (("elbo", "parameter"), holm(p)),
            "site_var": (("elbo", "site", "part"), np.array(site_var).reshape(len(every), len(sites), len(PARTS))),
            "kl_source": (
                ("elbo", "site"),
                np.array([[r.sources.get(s, "") for s in sites] for r in every], dtype=str),
            ),
            "seconds": ("elbo", np.array([r.cost.seconds for r in every])),
            "seconds_iqr": ("elbo", np.array([r.cost.spread for r in every])),
            "seconds_se": ("elbo", np.array([r.cost.error for r in every])),
            "peak_bytes": ("elbo", np.array([r.cost.peak_bytes for r in every])),
            "method": ("elbo", np.array(["loop" if r.evaluator.captured is None else "vmap" for r in every])),
        },
        coords={
            "elbo": list(records),
            "target": ("elbo", np.array([r.target for r in every])),
            "parameter": np.array(names, dtype=str),
            "owner": ("parameter", np.array(owners, dtype=str)),
            "part": list(PARTS),
            "site": np.array(sites, dtype=str),
        },
    )


def _columns(
    weights: np.ndarray, square: np.ndarray, variance: np.ndarray, grouped: np.ndarray
) -> dict[str, np.ndarray]:
    mean, spread = np.sqrt(weights @ square), weights @ variance
    error = (grouped @ weights.T).std(0, ddof=1) / np.sqrt(len(grouped))
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = mean / np.sqrt(spread)
        # On the log scale, where the error of a variance is nearly normal and no bound falls below 0.
        width = np.exp(special.stdtrit(len(grouped) - 1, 0.975) * np.where(spread > 0, error / spread, 0))
    return {
        "grad_mean": mean,
        "grad_var": spread,
        "grad_var_se": error,
        "grad_var_low": spread / width,
        "grad_var_high": spread * width,
        "grad_snr": snr,
    }

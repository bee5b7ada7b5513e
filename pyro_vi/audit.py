"""Estimators at fixed parameters: moments of their values and gradients, from common random draws.

Draw d of every estimator starts from the same generator state, so that differences between estimators are not differences
between draws. Moments are accumulated draw by draw: memory does not grow with their number.

* `_Moments` accumulates; `audit` runs the draws and lays the result out as a Dataset.
"""

import statistics
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
import xarray as xr
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.binding import kept_buffers
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.estimators import differentiable_loss, kl_sources, named
from pyro_vi.pairs import Pair, isolated, prototype
from pyro_vi.programs import pair_of
from pyro_vi.terms import data_plate, from_traces
from pyro_vi.threads import fitting_threads
from pyro_vi.versions import versions

PARTS = ("model", "guide")
CHUNKS = 40
"""Groups into which the draws fall for the standard errors of variances: their spread is known to about 1 in 9."""


class _Moments:
    """Mean and centred second moment of a vector, draw by draw (Welford), and of groups of draws."""

    def __init__(self, size: int, groups: int, draws: int) -> None:
        self.bounds = np.linspace(0, draws, groups + 1).astype(int)[1:]
        self.mean, self.m2 = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        self.count = 0
        self._group = (torch.zeros_like(self.mean), torch.zeros_like(self.m2), 0)
        self.group_variances: list[Tensor] = []

    def add(self, value: Tensor) -> None:
        mean, m2, count = self._group
        count += 1
        delta = value - mean
        mean += delta / count
        m2 += delta * (value - mean)
        self._group = mean, m2, count
        if self.count + count == self.bounds[len(self.group_variances)]:
            self._merge()

    def _merge(self) -> None:
        mean, m2, count = self._group
        total = self.count + count
        delta = mean - self.mean
        self.m2 += m2 + delta.square() * (self.count * count / total)
        self.mean += delta * (count / total)
        self.count = total
        self.group_variances.append(m2 / (count - 1))
        self._group = torch.zeros_like(mean), torch.zeros_like(m2), 0

    @property
    def variance(self) -> Tensor:
        return self.m2 / (self.count - 1)


def audit(
    model: Any,
    guide: Any,
    batch: Batch | Tensor,
    *,
    elbos: Iterable[str | ELBO] | str | ELBO = ("trace", "mean_field"),
    draws: int = 1000,
    seed: int = 0,
) -> xr.Dataset:
    """E and Var of each estimator's value and gradient at the pair's present parameters, over common random draws.

    Args:
        model: generative program, a module or a function.
        guide: variational program.
        batch: a tensor, or the tuple that the programs are called with; kept fixed.
        elbos: estimators, by name or as `pyro.infer.ELBO`.
        draws: evaluations of loss and gradient for each estimator, at least 20.
        seed: of the draws.

    Returns:
        A dataset over ``elbo``, ``parameter``, ``part`` (model, guide) and ``site``. ``value_mean``, ``value_sd`` and
        ``value_se`` are of the ELBO in nats per datum. ``grad_mean`` is the norm of the mean gradient of the ELBO per datum
        and ``grad_var`` the sum of its elementwise variances, with standard error ``grad_var_se``; ``grad_snr`` =
        ``grad_mean`` / √``grad_var``. The same with ``part_`` before it sums over the parameters of an owner. Parameters
        with a constraint are taken on their unconstrained scale. ``kl_source`` says where each site's KL comes from;
        ``seconds`` is the median time of one loss-and-gradient evaluation.

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
    args = batch if isinstance(batch, tuple) else (batch,)
    if draws < 20:
        raise InputError(f"an audit needs at least 20 draws for its standard errors, not {draws}")
    pair, estimators = pair_of(model, guide, args), named(elbos)
    layout = prototype(pair.model, args)
    plate = data_plate(layout, args)
    owned = pair.owned(args)
    parameters = [parameter for _, parameter in owned.values()]
    sizes = [parameter.numel() for parameter in parameters]
    groups = min(CHUNKS, draws // 10)
    gradients = {name: _Moments(sum(sizes), groups, draws) for name in estimators}
    values = {name: _Moments(1, 2, draws) for name in estimators}
    seconds: dict[str, list[float]] = {name: [] for name in estimators}
    with isolated(seed, validation=False), kept_buffers(pair), fitting_threads(pair, args):
        threads = torch.get_num_threads()
        seeds = torch.randint(2**62, (draws,)).tolist()
        with torch.no_grad():
            traces = pair.draw(args)
        num_data = from_traces(*traces, plate, len(args[0])).num_data
        for elbo in estimators.values():
            _evaluate(elbo, pair, args, parameters)  # the first call sets things up, and is not timed
        for draw_seed in seeds:
            for name, elbo in estimators.items():
                _seed(draw_seed, args[0].device)
                start = time.perf_counter()
                loss, gradient = _evaluate(elbo, pair, args, parameters)
                seconds[name].append(time.perf_counter() - start)
                gradients[name].add(gradient / num_data)
                values[name].add(-loss / num_data)
    for name, moments in gradients.items():
        if not bool(moments.mean.isfinite().all()) or not bool(values[name].mean.isfinite().all()):
            raise InputError(
                f"the value or gradient under '{name}' is not finite at these parameters; run `check` on the pair"
            )
    sources = {}
    for name, elbo in estimators.items():
        found = kl_sources(elbo, pair, args)
        sources[name] = [str(found[site]) for site in found]
    owners = [owner for owner, _ in owned.values()]
    return _dataset(gradients, values, sizes, list(owned), owners, seconds, (list(found), sources)).assign_attrs(
        draws=draws,
        seed=seed,
        num_data=num_data,
        batch_size=len(args[0]),
        threads=threads,
        device=str(args[0].device),
        **{f"version_{k}": v for k, v in versions().items()},
    )


def _seed(seed: int, device: torch.device) -> None:
    if device.type == "cpu":
        # torch.manual_seed costs as much as a small model: it formats a stack.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def _evaluate(elbo: ELBO, pair: Pair, args: Batch, parameters: list[Any]) -> tuple[Tensor, Tensor]:
    loss = differentiable_loss(elbo, pair, args)
    if not parameters or not loss.requires_grad:
        nothing = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
        return torch.as_tensor(loss).detach().double().reshape(1), nothing
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return loss.detach().double().reshape(1).cpu(), torch.cat([g.reshape(-1) for g in flat]).double().cpu()


def _dataset(
    gradients: dict[str, _Moments],
    values: dict[str, _Moments],
    sizes: list[int],
    names: list[str],
    owners: list[str],
    seconds: dict[str, list[float]],
    sources: tuple[list[str], dict[str, list[str]]],
) -> xr.Dataset:
    belongs = np.array([[owner == part for owner in owners] for part in PARTS], dtype=float).reshape(len(PARTS), -1)

    def per_parameter(vector: Tensor) -> np.ndarray:
        return np.array([float(piece.sum()) for piece in vector.split(sizes)]) if sizes else np.zeros(0)

    rows: dict[str, list[np.ndarray]] = {}
    for moments in gradients.values():
        square, variance = per_parameter(moments.mean.square()), per_parameter(moments.variance)
        grouped = np.stack([per_parameter(v) for v in moments.group_variances])
        for prefix, weights in (("", np.eye(len(sizes))), ("part_", belongs)):
            mean, spread = np.sqrt(weights @ square), weights @ variance
            with np.errstate(divide="ignore", invalid="ignore"):
                snr = mean / np.sqrt(spread)
            error = (grouped @ weights.T).std(0, ddof=1) / np.sqrt(len(grouped))
            for key, value in (("grad_mean", mean), ("grad_var", spread), ("grad_var_se", error), ("grad_snr", snr)):
                rows.setdefault(prefix + key, []).append(value)
    value_mean = np.array([float(m.mean) for m in values.values()])
    value_sd = np.array([float(m.variance.sqrt()) for m in values.values()])
    variables: dict[str, Any] = {
        key: (("elbo", "part" if key.startswith("part_") else "parameter"), np.stack(value))
        for key, value in rows.items()
    }
    sites, by_name = sources
    return xr.Dataset(
        {
            "value_mean": ("elbo", value_mean),
            "value_sd": ("elbo", value_sd),
            "value_se": ("elbo", value_sd / np.sqrt([m.count for m in values.values()])),
            **variables,
            "kl_source": (("elbo", "site"), np.array([by_name[name] for name in gradients], dtype=object).astype(str)),
            "seconds": ("elbo", np.array([statistics.median(times) for times in seconds.values()])),
        },
        coords={
            "elbo": list(gradients),
            "parameter": np.array(names, dtype=str),
            "owner": ("parameter", np.array(owners, dtype=str)),
            "part": list(PARTS),
            "site": sites,
        },
    )

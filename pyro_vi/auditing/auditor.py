"""Estimators at fixed parameters: moments of their values and gradients, from common random draws.

Draw d of every estimator starts from the same generator state, so that differences between estimators are not differences
between draws. Draws come in chunks and are accumulated: memory does not grow with their number.

`Record` holds the measurements of one estimator; `audit` fills the records and `dataset_of` lays them out.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import xarray as xr
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.auditing.accumulating import GROUPS, Difference, Moments
from pyro_vi.auditing.evaluator import Evaluator
from pyro_vi.auditing.result import Record, dataset_of
from pyro_vi.auditing.sites import SiteVariances
from pyro_vi.auditing.timing import costs
from pyro_vi.data import Batch, device_of, length_of
from pyro_vi.errors import InputError, naming_programs
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of, traits_of
from pyro_vi.programs import Pair, Program, isolated, kept_buffers, pair_and_args
from pyro_vi.support import Whole, fitting_threads, seed_from, versions, whole


def audit(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    elbos: Iterable[str | ELBO] | str | ELBO = ("trace", "mean_field"),
    draws: Whole = 1000,
    seed: Whole = 0,
    vectorize: bool | None = None,
) -> xr.Dataset:
    """E and Var of each estimator's value and gradient at the pair's present parameters, over common random draws.

    Args:
        model: generative program, a module or a function.
        guide: variational program.
        batch: a tensor, or the tuple that the programs are called with; kept fixed.
        elbos: estimators, by name or as `pyro.infer.ELBO`.
        draws: evaluations of loss and gradient for each estimator, at least 20.
        seed: seed of the draws.
        vectorize: evaluate many draws at once; by default if the programs allow it and are so small that it saves time. The
            numbers are the same either way, up to rounding.

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
        InputError: too few draws, an estimator that cannot serve the pair, a program that fails on the batch, or a gradient
            that is not finite.

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
    with torch.enable_grad():  # the caller may have turned gradients off
        pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in the audit"):
        return audit_pair(pair, args, named(elbos), draws=draws, seed=seed, vectorize=vectorize)


@torch.enable_grad()
def audit_pair(
    pair: Pair,
    args: Batch,
    estimators: Mapping[str, ELBO],
    *,
    draws: Whole = 1000,
    seed: Whole = 0,
    vectorize: bool | None = None,
) -> xr.Dataset:
    """Return `audit` for a pair that is already bound; the estimators, given by name, may store facts about the pair."""
    draws, seed = whole("draws", draws), seed_from(seed)
    if draws < 20:
        raise InputError(f"an audit needs at least 20 draws for its standard errors, not {draws}")
    with isolated(validation=False):
        sources = {name: estimator_of(elbo).sources_of_pair(pair, args) for name, elbo in estimators.items()}
    owned = pair.owned(args)
    num_data = pair.rows(args)[1]
    parameters = [parameter for _, parameter in owned.values()]
    sizes = [parameter.numel() for parameter in parameters]
    groups = min(GROUPS, draws // 10)
    records: dict[str, Record] = {}
    with isolated(seed, validation=False), kept_buffers(pair), fitting_threads(pair, args):
        threads = torch.get_num_threads()
        seeds = torch.randint(2**62, (draws,)).tolist()
        evaluators = {
            name: Evaluator(elbo, pair, args, parameters, vectorize, draws) for name, elbo in estimators.items()
        }
        measured = costs({name: evaluator.once for name, evaluator in evaluators.items()}, seconds=0.1)
        references = _references(estimators)
        for name, elbo in estimators.items():
            records[name] = Record(
                evaluators[name],
                traits_of(elbo).target,
                Moments(sum(sizes), groups, draws),
                Moments(1, 2, draws),
                {site: str(source) for site, source in sources[name].items()},
                measured[name],
            )
            if name not in references.values() and parameters:
                resolution = 1e-4 if parameters[0].dtype == torch.float32 else 1e-10
                records[name].against = Difference(sizes, draws, resolution)
        shares = {name: SiteVariances(evaluator, seeds, num_data) for name, evaluator in evaluators.items()}
        chunk = max((evaluator.chunk for evaluator in evaluators.values()), default=draws)
        for start in range(0, draws, chunk):
            some = seeds[start : start + chunk]
            seen: dict[str, Tensor] = {}
            for name in sorted(records, key=lambda name: name not in references.values()):
                record = records[name]
                losses, gradients = record.evaluator(some)
                gradients /= num_data
                record.values.add(-losses.unsqueeze(1) / num_data)
                if record.against is None:
                    seen[record.target] = gradients
                else:
                    record.against.add(gradients, seen[record.target])
                record.gradients.add(gradients)
                shares[name].add(start, gradients)
        for name, record in records.items():
            record.site_var = shares[name].result
    for name, record in records.items():
        if not bool(record.gradients.mean.isfinite().all()) or not bool(record.values.mean.isfinite().all()):
            raise InputError(
                f"the value or gradient under '{name}' is not finite at these parameters; run `check` on the pair"
            )
    return dataset_of(records, sizes, list(owned), [owner for owner, _ in owned.values()]).assign_attrs(
        draws=draws,
        seed=seed,
        num_data=num_data,
        batch_size=length_of(args),
        threads=threads,
        device=str(device_of(args)),
        **{f"version_{k}": v for k, v in versions().items()},
    )


def _references(estimators: Mapping[str, ELBO]) -> dict[str, str]:
    """Return, for each bound, the estimator to compare the others with: the first whose traits say that it is unbiased."""
    references: dict[str, str] = {}
    traits = {name: traits_of(elbo) for name, elbo in estimators.items()}
    for name in sorted(traits, key=lambda name: traits[name].biased):
        references.setdefault(traits[name].target, name)
    return references

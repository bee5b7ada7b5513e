"""Calibration of guides that belong to one data set, by fits of the guide to many data sets from the model.

`refitted_calibration` draws data sets from the model, fits the guide to each, in parallel processes, and ranks the latents that
made each of them among draws of its guide.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import joblib
import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.progress import track
from torch import nn

from pyro_vi.data import Batch, length_of
from pyro_vi.diagnostics import (
    Ranked,
    Ranker,
    Simulated,
    measured_calibration,
    observed_entries,
    refuse_unsimulated,
    simulated,
)
from pyro_vi.elbo import facts_of, refuse_own_minibatch
from pyro_vi.errors import InputError, first_line, naming_programs
from pyro_vi.fitting import Options, fit, plan_of
from pyro_vi.programs import Program, Source, evaluating, isolated, kept_buffers, pair_of, takes_row_numbers
from pyro_vi.support import Whole, check_options, seed_from
from pyro_vi.support import whole as whole_number

NEVER = ("seed", "out", "resume", "heldout", "progress", "callbacks", "allow")
"""Options of a fit that a refit has no use for."""
MANY_FAILED = 0.1
"""Share of failed refits above which nothing is said: those that fail may be the data sets that the guide is worst for."""


def refitted_calibration(
    model: Source,
    guide: Source,
    data: Any,
    *,
    refits: Whole = 100,
    draws: Whole = 199,
    refit: Callable[[Batch, int], Program] | None = None,
    workers: Whole | None = None,
    seed: Whole = 0,
    progress: bool = True,
    **options: Any,
) -> xr.Dataset:
    """Return the calibration of a guide that is fitted anew to each of M data sets (z, x_1..N) from the model.

    If each fitted guide is the posterior of its data set, the rank of each number of z among K of its draws is uniform on
    0, …, K (Talts et al. 2018, arXiv:1804.06788; of variational guides: Yao et al. 2018, arXiv:1802.02538). See
    `pyro_vi.calibration` for the quantities, the test and what the result has. Latents of single data are ranked at one
    datum of each data set, in turn, and the log-densities are those of the whole data set.

    The parameters of the model, if it has some, are held where they are, in the data and in the refits: pass the model of a
    fitted run, ``run.model``, for data as the fitted model makes them. Latents are drawn from the prior, so that a wide prior
    gives data that are unlike the real ones, for which the guide may be better or worse.

    A refit costs a whole fit. k-hat of the fitted guide (`pyro_vi.evidence`) costs none, and is about the real data; it does
    not see what the guide misses.

    Args:
        model: a name, class, module or function, as for `pyro_vi.fit`.
        guide: the same; one by name or class is built from each data set, as `pyro_vi.fit` builds it.
        data: as for `pyro_vi.fit`; it gives the shapes and the other inputs of the model, such as covariates.
        refits: M.
        draws: K, draws of each guide.
        refit: instead of a fit by `pyro_vi.fit`, a function that gets the arguments of the programs for one data set, and a
            seed, and returns a guide for it.
        workers: number of processes, with one thread each; by default one for each processor. With 1, all is
            done in this process.
        seed: seed of the data sets, the fits and the draws; the result does not depend on ``workers``.
        progress: show the number of refits that are done on stderr.
        options: those of `pyro_vi.fit`, such as ``steps``, ``elbo`` and ``lr``; steps are compiled only with ``compile=True``.

    Returns:
        See `pyro_vi.calibration`. Attributes: also ``failed``, the number of refits that raised an error, which are left out.
        If more than a tenth did, the verdict is ``"none"``.

    Raises:
        UsageError: an option that a refit does not have.
        InputError: no data can be drawn from the model, the guide is a point estimate, or every refit failed.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     w = pyro.sample("w", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(w, 1.0), obs=x)
        >>> def exact(args, seed):
        ...     (x,) = args
        ...     return lambda x: pyro.sample("w", dist.Normal(x.sum() / (1 + len(x)), (1 + len(x)) ** -0.5))
        >>> found = refitted_calibration(
        ...     model, "diag_normal", torch.zeros(5), refit=exact, refits=20, workers=1, progress=False
        ... )
        >>> found.attrs["verdict"]
        'pass'
    """
    refits, draws = whole_number("refits", refits, 1), whole_number("draws", draws, 9)
    seed, processors = seed_from(seed), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    workers = min(refits, whole_number("workers", processors if workers is None else workers, 1))
    settings = [name.name for name in fields(Options) if name.name not in NEVER]
    check_options("a refit", options, [*settings, "elbo"])
    planned = plan_of(model, guide, data, Options(**{**_of_plan(options), "heldout": 0.0, "seed": seed}))
    pair, args = planned.pair, planned.data.example(planned.data.spec.num_data)
    with naming_programs("the pair fails in the calibration"):
        facts = facts_of(pair, args)
        refuse_unsimulated(pair, args, facts)
        refuse_own_minibatch(pair, args)
        places = observed_entries(pair, args)
        # The refits find the guide alone.
        own = [parameter.requires_grad_(False) for parameter in pair.model.parameters()]
        numbers = takes_row_numbers(guide)
        one = _Refit(pair.model, guide, refit, {"compile": False, **options}, draws, numbers, _lengths(facts))
        seeds = np.random.SeedSequence(seed).generate_state(refits)
        with evaluating(pair), isolated(seed, validation=False), kept_buffers(pair):
            made = [simulated(pair, args, None, places) for _ in range(refits)]
    tasks = zip(made, range(refits), map(int, seeds), strict=True)
    found = list(track(_all(one, tasks, workers), "refits", refits, console=_console(), disable=not progress))
    ranked = [result for result in found if isinstance(result, Ranked)]
    failures = [result for result in found if isinstance(result, str)]
    if not ranked:
        raise InputError(f"all {refits} refits failed, the first as follows: {failures[0]}")
    attrs = {"per": "data set", "rows": length_of(args), "given": [], "refits": refits, "failed": len(failures)}
    result = measured_calibration(
        Ranked.joined(ranked), seed=seed, attrs=attrs, notes=_notes(failures, refits, bool(own))
    )
    if len(failures) > MANY_FAILED * refits:
        result.attrs["verdict"] = "none"
    return result


@dataclass
class _Refit:
    """Fits a guide to one data set, and ranks its latents; what it raises becomes a line of text.

    Attributes:
        model: the model, whose parameters are not fitted.
        guide: the guide, as `pyro_vi.fit` takes it.
        function: makes the guide of a data set instead.
        options: options of the fit.
        draws: K.
        numbers: the last argument of the data are the numbers of the rows, which a fit makes itself.
        rows: number of rows with latents of their own.
    """

    model: nn.Module
    guide: Any
    function: Callable[[Batch, int], Program] | None
    options: dict[str, Any]
    draws: int
    numbers: bool
    rows: int

    def __call__(self, made: Simulated, number: int, seed: int) -> Ranked | str:
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(1)
            if self.function is not None:
                with isolated(seed):
                    pair = pair_of(self.model, self.function(made.args, seed), made.args)
            else:
                data = made.args[:-1] if self.numbers else made.args
                run = fit(self.model, self.guide, data, heldout=0.0, seed=seed, progress=False, **self.options)
                pair = run.pair
            generator = np.random.default_rng([seed, 0])
            with evaluating(pair), isolated(seed, validation=False):
                ranker = Ranker(pair, facts_of(pair, made.args), self.draws, True, generator)
                return ranker(made, {}, np.array([number % self.rows]))
        except Exception as error:
            return f"{type(error).__name__}: {first_line(error)}"
        finally:
            torch.set_num_threads(threads)


def _all(one: _Refit, tasks: Any, workers: int) -> Iterator[Ranked | str]:
    """Yield the results in order; each process has one thread."""
    if workers == 1:
        for task in tasks:
            yield one(*task)
        return
    # loky pickles programs by value, so that functions of a notebook or a script come along, and starts clean processes.
    with joblib.parallel_config("loky", inner_max_num_threads=1):
        calls = (joblib.delayed(one)(*task) for task in tasks)
        yield from joblib.Parallel(n_jobs=workers, return_as="generator")(calls)


def _of_plan(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "elbo"}


def _lengths(facts: Any) -> int:
    return 1 if facts.plate is None else max(1, facts.plate.length)


def _console() -> Console:
    return Console(stderr=True)


def _notes(failures: list[str], refits: int, learned: bool) -> list[str]:
    notes = []
    if failures:
        notes.append(f"{len(failures)} of {refits} refits failed and are left out; the first: {failures[0]}.")
        if len(failures) > MANY_FAILED * refits:
            notes.append(
                "So many failed that nothing can be concluded: the guide may be worst for the data sets that are left out."
            )
    if learned:
        notes.append("The parameters of the model were held where they are, in the simulated data and in the refits.")
    return notes

"""Check of a pair for silent errors, on one batch before a fit; each finding has a remedy.

* `check` runs a pair and returns a list of `Finding`; `refuse` raises on errors among them.
* The rules are in `pyro_vi.checking.rules`. A pair is run once under Pyro's validation, as the caller has set it, and once
  without, for the terms. Neither run changes the pair.
"""

import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import is_validation_enabled, prune_subsample_sites
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vi.checking.encoders import saturated
from pyro_vi.checking.findings import Finding, Planned, View, merged
from pyro_vi.checking.options import stale
from pyro_vi.checking.rules import DECLARED, PROBES, RULES, STRUCTURE, Rule
from pyro_vi.checking.sites import guide_of_densities
from pyro_vi.data import Batch, fresh, length_of
from pyro_vi.elbo import Reasons, Terms, dependence_of, draw_traces, from_run
from pyro_vi.errors import InputError, of_program
from pyro_vi.estimators.contract import Traits
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of, traits_of
from pyro_vi.programs import Pair, Program, bare, called, isolated, kept_buffers, pair_of, shapes_of
from pyro_vi.support import Whole, leaves_of, whole
from pyro_vi.support.torch_internals import validates

__all__ = ["Finding", "check", "check_pair", "refuse"]

TOLERATED: tuple[type[Exception], ...] = (Exception,)
"""Errors that end a probe without a finding, as a probe may run a program on rows that no fit gives it."""
UNPLANNED = Planned()
"""Nothing is known of the fit."""
WORDS = {
    "mixed-dtypes": ("dtype|scalar type", "give data and networks one dtype: network.to(x.dtype)"),
    "mixed-devices": ("device", "move data and networks to one device: network.to(x.device), or fit(device=...)"),
}
"""Words of torch's errors for tensors of two dtypes or devices, and the remedy, by code."""


def check(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    elbo: str | ELBO | None = None,
    num_data: Whole | None = None,
    steps: Whole | None = None,
    warmup: Whole = 0,
    optimizer: Any = None,
    shuffle: bool | None = None,
) -> list[Finding]:
    """Run a pair on one batch and look for errors that would make a fit wrong without a message.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor, a tuple of positional arguments, a dictionary of keyword arguments, or None for no arguments.
        elbo: the estimator that the fit will use; some errors exist under some estimators only.
        num_data: number of training data, if the batch is a part of them.
        steps: number of steps of the fit.
        warmup: steps over which the weight of the KL will rise.
        optimizer: the optimizer of the fit, as `pyro_vi.fit` takes it.
        shuffle: whether the fit will shuffle its minibatches; by default it does.

    Returns:
        The findings, errors first; an empty list for a correct pair.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Poisson(rate), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("rate", dist.Normal(0.0, 1.0))
        >>> [finding.code for finding in check(model, guide, torch.ones(9))]
        ['guide-support']
    """
    model, guide, args = called(model, guide, batch)
    num_data = None if num_data is None else whole("num_data", num_data, 1)
    planned = Planned(
        None if steps is None else whole("steps", steps, 1), whole("warmup", warmup, 0), optimizer, shuffle
    )
    estimator = next(iter(named(elbo).values())) if elbo is not None else None
    try:
        pair = pair_of(model, guide, args)
    except InputError as error:
        return [_not_finite(args) or _failing(error)]
    return check_pair(pair, args, elbo=estimator, num_data=num_data, planned=planned)


def check_pair(
    pair: Pair,
    args: Batch,
    *,
    elbo: ELBO | None,
    num_data: int | None,
    smallest: int | None = None,
    planned: Planned = UNPLANNED,
) -> list[Finding]:
    """`check` for a pair that is bound already; ``smallest`` is the number of rows of the fit's smallest batch."""
    traits, bad = Traits() if elbo is None else traits_of(elbo), _not_finite(args)
    if smallest is None and num_data is not None:
        smallest = num_data % max(1, length_of(args)) or None
    try:
        with kept_buffers(pair):
            found = _check(View(pair, args, elbo, traits, num_data, smallest, planned), bad)
    except InputError as error:
        if traits.sums_marked and elbo is not None and _runs(pair, args, elbo):
            return []  # a program that needs the shapes of the sites that are summed out
        # Without validation an encoder at its bound may run.
        view = View(pair, args, elbo, traits, num_data, smallest, planned)
        return [bad] if bad else _tried(saturated, view) or [_failing(error)]
    return merged([*found, *stale(pair)])


def _check(view: View, bad: Finding | None) -> list[Finding]:
    with torch.no_grad(), isolated(seed=0), _quiet(), _flat(view.pair) as flat:
        guide_trace = _trace("guide", view.pair.guide, view.args)
        # One of Pyro's guides that are messengers runs the model, and observes what it observes.
        if not isinstance(poutine.unwrap(view.pair.guide), Messenger):
            found = merged(guide_of_densities(guide_trace))
            if found:
                return found
        replayed = poutine.replay(view.pair.model, trace=guide_trace)
        failed, validated = None, is_validation_enabled()
        try:
            model_trace = _trace("model", replayed, view.args)
        except InputError as error:
            # Without validation the rules may say why: a rate below 0 by a guide that draws all real numbers.
            failed, validated = error, False
            with pyro.validation_enabled(False):
                try:
                    model_trace = _trace("model", replayed, view.args)
                except InputError:
                    found = _apart(view, guide_trace)
                    if found:
                        return found
                    raise
    view = replace(
        view,
        model_trace=prune_subsample_sites(model_trace),
        guide_trace=prune_subsample_sites(guide_trace),
        meant=frozenset(_meant(model_trace) if validated else ()),
        flat=bool(flat),
    )
    found = [finding for rule in STRUCTURE for finding in rule(view)] or _densities(view, bad, failed is None)
    if failed is not None and not any(finding.severity == "error" for finding in found):
        raise failed
    return found


def _apart(view: View, guide_trace: Any) -> list[Finding]:
    """Findings on the sites of both programs, for a model that fails on the guide's draws and runs on its own."""
    try:
        alone = _trace("model", view.pair.model, view.args)
    except InputError:
        return []
    view = replace(view, model_trace=prune_subsample_sites(alone), guide_trace=prune_subsample_sites(guide_trace))
    return [finding for rule in STRUCTURE for finding in rule(view)]


def _densities(view: View, bad: Finding | None, runs: bool) -> list[Finding]:
    length = length_of(view.args)
    with isolated(seed=0, validation=False):
        try:
            run = draw_traces(view.pair.model, view.pair.guide, view.args)
            declared = replace(view, model_trace=run.model_trace, guide_trace=run.guide_trace, run=run)
            found = _by_groups(DECLARED, declared)
            if found:
                return found
            terms = from_run(run, length, kl=view.traits.kl, dependence=_dependence(declared))
        except InputError:
            raise
        except Exception as error:
            shapes = shapes_of(view.args)
            raise InputError(f"log p and log q fail on {shapes}: {of_program(error).rstrip(':')}") from error
    if bad is not None and not _finite(terms):
        return [bad]
    view = replace(declared, terms=terms)
    found = [finding for rule in RULES for finding in rule(view)]
    return found + _by_groups(PROBES, view) if runs and not _errors(found) else found


def _by_groups(groups: Iterable[tuple[Rule, ...]], view: View) -> list[Finding]:
    """Findings of each group's first rule that finds something, up to the first error."""
    found: list[Finding] = []
    for group in groups:
        found += next(filter(None, (_tried(rule, view) for rule in group)), [])
        if _errors(found):
            break
    return found


def _tried(rule: Rule, view: View) -> list[Finding]:
    try:
        return list(rule(view))
    except TOLERATED:
        return []


def _errors(findings: Iterable[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def _dependence(view: View) -> Reasons:
    """Why a KL is sampled under an estimator that looks at the order of dependence."""
    if view.traits.kl != "analytic" or view.traits.trusts_order or view.run is None:
        return {}
    return dependence_of(view.pair, view.args, view.run)


def _meant(trace: Any) -> Iterator[str]:
    """Sites whose distribution was made with ``validate_args=False``, in a trace under validation."""
    for name, node in trace.nodes.items():
        fn = bare(node["fn"]) if node["type"] == "sample" else None
        if isinstance(fn, Distribution) and not validates(fn):
            yield name


def _trace(what: str, program: Any, args: Batch) -> Any:
    try:
        return poutine.trace(program).get_trace(*fresh(args))
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"the {what} fails on {shapes_of(args)}: {of_program(error).rstrip(':')}") from error


def _runs(pair: Pair, args: Batch, elbo: ELBO) -> bool:
    try:
        with isolated(seed=0, validation=False), kept_buffers(pair), _quiet():
            return bool(torch.isfinite(estimator_of(elbo).loss_of_pair(pair, args)))
    except Exception:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _flat(pair: Pair) -> Iterator[list[nn.Module]]:
    """Collect the batch norms in training mode that get one number per row and feature: these cannot take a single row."""
    found: list[nn.Module] = []

    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if module.training and inputs and inputs[0].dim() == 2:
            found.append(module)

    hooks = [m.register_forward_pre_hook(look) for m in pair.modules() if isinstance(m, nn.BatchNorm1d)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _finite(terms: Terms) -> bool:
    """True if the loss and its gradient are finite: a mask hides a NaN from log p, but not from the gradient."""
    loss = terms.loss
    if not bool(loss.isfinite().all()):
        return False
    leaves = list(leaves_of(loss))
    gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True) if leaves else ()
    return all(g is None or bool(g.isfinite().all()) for g in gradients)


def refuse(findings: Iterable[Finding]) -> None:
    """Raise InputError on the first error among findings, which come errors first, and warn of the warnings.

    Raises:
        InputError: a finding is an error.
    """
    for finding in findings:
        if finding.severity == "error":
            raise InputError(str(finding))
        if finding.severity == "warning":
            warnings.warn(str(finding), stacklevel=3)


def _not_finite(args: Batch) -> Finding | None:
    for i, column in enumerate(args):
        if isinstance(column, Tensor) and column.is_floating_point() and not bool(column.isfinite().all()):
            count = int((~column.isfinite()).sum())
            text = f"column {i} of the batch has {count} values that are NaN or infinite"
            remedy = "drop those rows, or fill them with numbers and mask them in the model"
            return Finding("data-not-finite", "error", None, text, remedy)
    return None


def _failing(error: InputError) -> Finding:
    for code, (words, remedy) in WORDS.items():
        if re.search(words, str(error)):
            return Finding(code, "error", None, str(error), remedy)
    return Finding("program-fails", "error", None, str(error), "correct the program, or give it data that fit")

"""`Run`, the result of a fit, and how it is shown.

* `described` gives its lines as text, `table_of` its numbers at a few steps, `said_of_best` a sentence about its best record,
  and `spread` one about several starts.
* `parent_of` names the run that another one starts from.
"""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vi.compiling import Choice
from pyro_vi.data import Data
from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting.best import HELDOUT, Best
from pyro_vi.fitting.nonfinite import FACTOR
from pyro_vi.fitting.reading import config_of, newest, read_best
from pyro_vi.programs import Pair, name_of
from pyro_vi.support import Whole, html_block, pictures_in, whole

NUMBERS = ("elbo", "reconstruction", "kl", "log_joint", "heldout_elbo", "heldout_lpd", "loss", "lr")
"""Numbers of a record that are shown, in this order."""


@dataclass(frozen=True)
class Run:
    """A finished fit.

    Attributes:
        pair: the fitted model and guide; those passed to `fit` are unchanged.
        elbo: name of the estimator.
        data: the data that the pair was fitted to.
        history: records with ``step``, ``epoch``, ``loss`` (the objective, averaged since the previous record), the
            unannealed ``elbo`` = ``reconstruction`` − ``kl`` of the first 1000 training data (one draw each), ``beta``,
            ``lr``, ``grad_norm``, ``heldout_elbo`` and ``seconds``; losses and ELBOs are in nats per datum. Where latents are
            shared by all data, ``heldout_lpd`` is the log predictive density of held-out data, and there is no held-out
            ELBO. Where sites are summed out, the two parts are NaN. Where the guide is a point estimate, the ELBO is NaN, and
            ``log_joint`` is log p(x, z). Elsewhere ``term_<site>`` is E_q log p of an observed site and ``kl_<site>`` the KL
            of a latent one, at most 20 of each: see `pyro_vi.fitting.sites`. Their difference is the ELBO. In a fit that
            averages, they are those of the average, and the last record also has those of the last iterate: ``last_elbo``,
            ``last_heldout_elbo`` and so on.
        snapshots: parameters by step, for the requested steps.
        steps: number of steps taken.
        seconds: time of the steps, without records and checkpoints.
        kl_source: how the KL of each latent site is computed, for example ``"analytic"``.
        choice: the decision on compiling, its reason, and the time it took; None if the fit was complete already.
        out: the run folder, if there is one.
        config: everything that is needed to repeat the fit, as in ``config.json``.
        state: the state from which the fit could continue; None if it is in the folder.
        converged: whether the loss had converged at the end of the fit: see `pyro_vi.fitting.convergence`. None if that
            cannot be told. Each record has it, too.
        evidence: why, in one sentence.
        skipped: number of steps that were left out, because their loss or gradient was not finite; records have it, too.
        restored: number of times that the fit went back to its last record, and halved the learning rate.
        best: the record with the highest held-out number: its step, that number, and its key in the record. None if there is
            none. With ``stop="heldout"``, ``pair`` has its parameters, and ``state`` or the folder those of the last step.
        chosen: the step whose parameters ``pair`` has, if it is not the last one.
        starts: of a fit with several starts, one entry for each: ``seed`` of the initial parameters, ``elbo`` and its standard
            ``error`` in nats per datum, and ``measure``, which says what ``elbo`` is; ``failed`` is why a start failed.
        last_state: parameters and buffers of the last iterate, if the result is an average or the best record; `last` is the
            pair with them.
    """

    pair: Pair
    elbo: str
    data: Data
    history: list[dict[str, Any]]
    snapshots: dict[int, dict[str, Tensor]]
    steps: int
    seconds: float
    kl_source: dict[str, str]
    choice: Choice | None = None
    out: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, Any] | None = None
    converged: bool | None = None
    evidence: str = ""
    skipped: int = 0
    restored: int = 0
    best: Best | None = None
    chosen: int | None = None
    last_state: Mapping[str, Tensor] | None = None
    starts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def model(self) -> torch.nn.Module:
        return self.pair.model

    @property
    def guide(self) -> torch.nn.Module:
        return self.pair.guide

    @property
    def params(self) -> dict[str, Tensor]:
        """Fitted values of the parameters by their names in Pyro, constrained as the programs see them."""
        return self.pair.values()

    @property
    def compiled(self) -> bool:
        """True if the last steps were compiled."""
        return self.choice is not None and bool(self.choice.lengths)

    @property
    def record(self) -> dict[str, Any]:
        """The record of the parameters in ``pair``: the last one, or the best one; empty if there are no records."""
        step = self.steps if self.chosen is None else self.chosen
        last = self.history[-1] if self.history else {}
        return next((record for record in self.history if record["step"] == step), last)

    def at(self, step: Whole | Best) -> Pair:
        """Return a copy of the pair with the parameters of a step in ``snapshots``, or of the record ``best``.

        Those of the best record are in the pair (``stop="heldout"``) or in the run folder.

        Raises:
            UsageError: they are not kept, or their file is damaged.
        """
        if isinstance(step, Best):
            return self._at_best(step.step)
        if whole("step", step) not in self.snapshots:
            there = ", ".join(map(str, self.snapshots)) or "none; ask for some with snapshots=(0, 0.5, 1)"
            raise UsageError(f"there is no snapshot of step {step}; there are: {there}")
        pair = copy.deepcopy(self.pair)
        pair.load_state_dict(self.snapshots[whole("step", step)])
        return pair

    def _at_best(self, step: int) -> Pair:
        pair = copy.deepcopy(self.pair)
        if step == (self.steps if self.chosen is None else self.chosen):
            return pair
        found, why = None, "the run has no folder"
        if step in self.snapshots:
            found = {"pair": self.snapshots[step]}
        elif self.out is not None:
            found, why = read_best(self.out, self.config.get("run"), step)
        if found is None:
            raise UsageError(
                f"the parameters of the best record (step {step}) are not kept: {why}; fit with stop='heldout' or out=FOLDER"
            )
        pair.load_state_dict(found["pair"])
        return pair

    @property
    def last(self) -> Pair:
        """A copy of the pair with the parameters of the last iterate: the fitted ones, unless these are an average or those of
        the best record."""
        pair = copy.deepcopy(self.pair)
        if self.last_state is not None:
            pair.load_state_dict(dict(self.last_state))
        return pair

    def __repr__(self) -> str:
        return "\n".join(described(self))

    def _repr_html_(self) -> str:
        lines = described(self)
        return html_block(lines[0], table_of(self), lines[1:], pictures_in(self.out))


def described(run: Run) -> list[str]:
    """Return a run as lines of text: what was fitted to what, how long, and its last numbers."""
    data, last = run.data, run.record
    model, guide = (run.config.get(kind) or name_of(getattr(run, kind)) for kind in ("model", "guide"))
    held = f"{data.num_heldout} held out" if data.num_heldout else "none held out"
    count = sum(parameter.numel() for _, parameter in run.pair.owned().values())
    lines = [
        f"Run: {model} with guide {guide}",
        f"  data       {run.config.get('data') or data.spec.name}: {data.spec.num_data} rows, {held}",
        f"  estimator  {run.elbo}",
        f"  steps      {run.steps} in {run.seconds:.1f} s, {len(run.history)} records",
        f"  numbers    {count:,} parameters",
    ]
    shown = [f"{name} {last[name]:.3f}" for name in NUMBERS[:6] if _number(last.get(name))]
    which = "last     " if run.chosen is None else "result   "
    lines += [f"  {which}  {', '.join(shown)} (nats per datum)"] if shown else []
    beside = [f"{name} {last[f'last_{name}']:.3f}" for name in NUMBERS[:6] if _number(last.get(f"last_{name}"))]
    lines += [f"  iterate    {', '.join(beside)}: the last one, beside the average"] if beside else []
    lines += [f"  best       {said_of_best(run)}"[:118]] if run.best else []
    lines += [f"  loss       {run.evidence}"[:118]] if run.evidence else []
    lines += [f"  left out   {left_out(run)}"] if run.skipped or run.restored else []
    lines += [f"  KL         {', '.join(f'{site} {source}' for site, source in run.kl_source.items())}"[:118]]
    lines += [f"  starts     {spread(run.starts)}"[:118]] if run.starts else []
    parent = run.config.get("parent")
    lines += [f"  parent     {parent.get('folder') or parent.get('run')}"] if parent else []
    lines += [f"  folder     {run.out}"] if run.out is not None else []
    return lines


def left_out(run: Run) -> str:
    """Return how many steps a fit left out, and how often it went back; empty if it did neither."""
    said = f"{run.skipped} of {run.steps} steps, whose loss or gradient was not finite" if run.skipped else ""
    back = f"went back {run.restored} times, to {FACTOR**run.restored:g} of the learning rate" if run.restored else ""
    return "; ".join(filter(None, (said, back)))


def table_of(run: Run, rows: int = 6) -> list[list[str]]:
    """Return the numbers of a few records as text, with the names of the columns as the first row."""
    history, last = run.history, len(run.history) - 1
    names = [name for name in NUMBERS if any(_number(record.get(name)) for record in history)]
    some = sorted({round(i * last / max(1, rows - 1)) for i in range(rows)}) if history else []
    return [
        ["step", *names],
        *([str(history[i]["step"]), *(_text(history[i].get(name)) for name in names)] for i in some),
    ]


def said_of_best(run: Run) -> str:
    """Return a sentence about the best record of a run, and about the last one beside it; empty if there is none."""
    if run.best is None or not run.history:
        return ""
    step, value, quantity = run.best
    said, last = f"highest {HELDOUT[quantity]}: {value:.2f} at step {step}", run.history[-1]
    said += " (the result)" if run.chosen == step else ""
    if step == last["step"]:
        return f"{said}, the last one"
    return f"{said}; {value - last[quantity]:.2g} lower at the last step" if _number(last.get(quantity)) else said


def spread(starts: Sequence[Mapping[str, Any]]) -> str:
    """Return the result of several starts in one line.

    Example:
        >>> one = {"seed": 0, "elbo": -3.0, "error": 0.1, "measure": "training ELBO"}
        >>> spread([one, {**one, "seed": 1, "elbo": -2.0}, {**one, "seed": 2, "elbo": -2.1}])
        'best of 3 starts: seed 1, training ELBO -2.000 ± 0.100 per datum; others -3.000 to -2.100 (seed 2 within the error)'
        >>> spread([one, {**one, "seed": 1, "elbo": -2.0}])
        'best of 2 starts: seed 1, training ELBO -2.000 ± 0.100 per datum; other -3.000'
    """
    done = [one for one in starts if "failed" not in one]
    best = max(done, key=lambda one: one["elbo"])
    others = [one for one in done if one is not best]
    value = f"{best['measure']} {best['elbo']:.3f} ± {best['error']:.3f} per datum"
    text = f"best of {len(starts)} starts: seed {best['seed']}, {value}"
    low, high = (f"{end(one['elbo'] for one in others):.3f}" if others else "" for end in (min, max))
    if others:
        text += f"; other {high}" if len(others) == 1 else f"; others {low} to {high}"
    near = [one for one in others if best["elbo"] - one["elbo"] <= 2 * math.hypot(best["error"], one["error"])]
    text += f" (seed {', '.join(str(one['seed']) for one in near)} within the error)" if near else ""
    failed = [str(one["seed"]) for one in starts if "failed" in one]
    return text + (f"; seed {', '.join(failed)} failed" if failed else "")


def parent_of(path: Path) -> dict[str, Any]:
    """Return how a run's configuration names the run in a folder as its parent: by name, folder and number of steps.

    Raises:
        InputError: the folder holds no run.
    """
    run = config_of(path).get("run")
    state = newest(path, run)[0]
    if state is None:
        raise InputError(f"'{path}' holds no checkpoint to start from; give the folder of a fit")
    return {"run": run, "folder": str(path), "steps": state["position"]["step"]}


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _text(value: Any) -> str:
    return f"{value:.4g}" if _number(value) else ""

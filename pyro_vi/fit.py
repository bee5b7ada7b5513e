"""The SVI loop: minibatches, one torch optimizer for all parameters, and a record of the unannealed ELBO.

* `Schedule` is what the user chooses of the optimisation; `_Loop` is the state that moves; `Run` is what comes out.
* The objective is the loss divided by the number of data, so that learning rates and gradient norms mean the same for
  every data set.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from pyro_vi.check import check as run_check
from pyro_vi.check import refuse
from pyro_vi.data import Batch, Data, load
from pyro_vi.draws import evaluate
from pyro_vi.errors import FitError, UsageError
from pyro_vi.estimators import kl_treatment, named
from pyro_vi.pairs import Pair, isolated, prototype
from pyro_vi.programs import build_pair, name_of
from pyro_vi.progress import Progress
from pyro_vi.runs import RunFolder, deferred_interrupt, generators, set_generators
from pyro_vi.terms import data_plate, from_traces
from pyro_vi.terms import terms as draw_terms
from pyro_vi.versions import versions

Optimizer = torch.optim.Optimizer
SCHEDULES = ("constant", "linear", "cosine")
LOGGED, HELDOUT = 100, 1000
"""Records that a fit makes, and the held-out rows that are looked at for each."""


@dataclass(frozen=True)
class Run:
    """One finished fit.

    Attributes:
        pair: the fitted model and guide; what was passed to `fit` is unchanged.
        elbo: name of the estimator.
        data: what it was fitted to.
        history: records with ``step``, ``epoch``, ``loss`` (the objective, averaged since the record before), the unannealed
            ``elbo`` = ``reconstruction`` − ``kl`` of the batch, ``beta``, ``lr``, ``grad_norm``, ``heldout_elbo``,
            ``seconds``; in nats per datum.
        snapshots: parameters at the steps that were asked for.
        steps: steps taken.
        seconds: time of the loop, without records and checkpoints.
        kl_source: where each latent site's KL comes from.
        out: the run folder, if there is one.
    """

    pair: Pair
    elbo: str
    data: Data
    history: list[dict[str, Any]]
    snapshots: dict[int, dict[str, Tensor]]
    steps: int
    seconds: float
    kl_source: dict[str, str]
    out: Path | None = None

    @property
    def model(self) -> torch.nn.Module:
        return self.pair.model

    @property
    def guide(self) -> torch.nn.Module:
        return self.pair.guide

    def at(self, step: int) -> Pair:
        """The pair as it was at a step of ``snapshots``."""
        pair = copy.deepcopy(self.pair)
        pair.load_state_dict(self.snapshots[step])
        return pair


class _Anneal(Messenger):
    """Multiply the KL by β: the log-densities of latent sites, in the model and the guide alike."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta


@dataclass
class _Loop:
    step: int = 0
    epoch: int = 0
    position: int = 0  # batches of this epoch that are done
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)


def fit(
    model: Any,
    guide: Any,
    data: Any,
    *,
    elbo: str | ELBO = "mean_field",
    steps: int | None = None,
    epochs: int | None = None,
    batch_size: int = 128,
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer] | None = None,
    lr: float = 1e-3,
    schedule: str = "constant",
    clip_norm: float | None = None,
    beta: float = 1.0,
    warmup: int = 0,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    device: str | torch.device | None = None,
    progress: bool = True,
    check: bool = True,
    snapshots: Iterable[float] = (),
) -> Run:
    """Fit a pair by SVI: ascend an estimate of (1/N) [E_q log p(x | z) − β KL(q(z | x) ‖ p(z))] over minibatches.

    Args:
        model: a name (``"vae(latent_dim=4)"``, ``"file.py:Name"``), class, module or function: see `pyro_vi.programs`.
        guide: the same.
        data: a data set's name, a file, an array or tensor, or a `Data`.
        elbo: estimator, by name or a `pyro.infer.ELBO`.
        steps: optimisation steps; or ``epochs`` passes over the data; 100 epochs by default.
        epochs: see ``steps``.
        batch_size: data in a step; the last batch of an epoch may have fewer.
        optimizer: makes the optimizer from the parameters; Adam with ``lr`` by default. One optimizer holds them all.
        lr: learning rate of the default optimizer.
        schedule: ``"constant"``, ``"linear"`` or ``"cosine"``: how the learning rate falls to 0 over the steps.
        clip_norm: limit on the joint norm of all gradients, in nats per datum; none by default.
        beta: weight of the KL (β-VAE: Higgins et al. 2017). Records always have the unannealed ELBO beside the objective.
        warmup: steps over which the weight of the KL rises from 0 to ``beta``.
        seed: of initial parameters, data order and draws: equal seeds give equal bits.
        out: run folder; without it nothing is written.
        resume: go on with the run in ``out``, to the same bits as without the interruption.
        device: where to compute; by default where torch does.
        progress: show rate and time left on stderr.
        check: look for silent errors of the pair first, and refuse to start on one.
        snapshots: fractions of the run, 0 to 1, at which the parameters are kept: ``(0, 0.5, 1)``.

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: data or a pair that cannot be fitted.
        FitError: a loss that is not finite; the message names step, batch and site.

    Example:
        >>> run = fit("vae", "diag_normal", "digits", steps=20, progress=False)
        >>> run.history[-1]["elbo"] > run.history[0]["elbo"]
        True
    """
    data = load(data, seed=seed).to(device=device)
    (name, estimator), *rest = named(elbo).items()
    if rest:
        raise UsageError("fit takes one estimator; `compare` takes several")
    per_epoch = math.ceil(data.spec.num_data / max(1, batch_size))
    total = _total(steps, epochs, per_epoch)
    _validate(batch_size, lr, schedule, clip_norm, beta, warmup)
    kept = sorted({round(fraction * total) for fraction in snapshots})
    config = {
        "model": name_of(model),
        "guide": name_of(guide),
        "data": data.spec.name,
        "elbo": name,
        "steps": total,
        "batch_size": batch_size,
        "optimizer": "adam" if optimizer is None else name_of(optimizer),
        "lr": lr,
        "schedule": schedule,
        "clip_norm": clip_norm,
        "beta": beta,
        "warmup": warmup,
        "seed": seed,
        "snapshots": kept,
        "versions": versions(),
    }
    if resume and out is None:
        raise UsageError("to resume a run, say which: give its folder as out")
    pair = build_pair(model, guide, data, seed=seed).to(device)
    if check:
        refuse(
            run_check(
                pair.model,
                pair.guide,
                data.example(min(batch_size, data.spec.num_data)),
                elbo=estimator,
                num_data=data.spec.num_data,
            )
        )
    folder = RunFolder(out, config, resume=resume) if out is not None else None
    fitting = _Fit(
        pair, name, estimator, data, total, batch_size, schedule, clip_norm, beta, warmup, seed, folder, kept
    )
    return fitting.run(optimizer or _adam(lr), resume, progress)


def _total(steps: int | None, epochs: int | None, per_epoch: int) -> int:
    if steps is not None and epochs is not None:
        raise UsageError("give steps or epochs, not both")
    count, what = (steps, "steps") if steps is not None else (100 if epochs is None else epochs, "epochs")
    if count < 1:
        raise UsageError(f"{what} must be at least 1, not {count}")
    return count if steps is not None else count * per_epoch


def _validate(batch_size: int, lr: float, schedule: str, clip_norm: float | None, beta: float, warmup: int) -> None:
    for what, bad, wanted in (
        (f"batch_size {batch_size}", batch_size < 1, "at least 1"),
        (f"lr {lr}", not (0 < lr < math.inf), "positive"),
        (f"clip_norm {clip_norm}", clip_norm is not None and not clip_norm > 0, "positive"),
        (f"beta {beta}", not (0 <= beta < math.inf), "0 or more"),
        (f"warmup {warmup}", warmup < 0, "0 or more"),
        (f"schedule '{schedule}'", schedule not in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
    ):
        if bad:
            raise UsageError(f"{what} is out of range; it must be {wanted}")


def _adam(lr: float) -> Callable[[Iterable[torch.nn.Parameter]], Optimizer]:
    def make(parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, lr, fused=True)

    return make


@dataclass
class _Fit:
    """The loop with all that it needs."""

    pair: Pair
    name: str
    elbo: ELBO
    data: Data
    total: int
    batch_size: int
    schedule: str
    clip_norm: float | None
    beta: float
    warmup: int
    seed: int
    folder: RunFolder | None
    kept: list[int]

    def run(self, make: Callable[[Iterable[torch.nn.Parameter]], Optimizer], resume: bool, progress: bool) -> Run:
        parameters = [p for _, p in self.pair.owned().values()]
        if not parameters:
            raise UsageError("the pair has no parameters to fit; evaluate it with `audit` or `evidence`")
        self.parameters, self.optimizer = parameters, make(parameters)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.loop, self.history, self.snapshots = _Loop(), [], {}
        self.num_data = self.data.spec.num_data
        self.every = max(1, self.total // LOGGED)
        self.pair.train()
        with (
            isolated(self.seed, validation=False),
            Progress(self.name, self.total, progress) as bar,
            deferred_interrupt() as interrupted,
        ):
            if resume:
                self._restore()
            self._keep()
            while self.loop.step < self.total and not interrupted:
                self._epoch(bar, interrupted)
            self._checkpoint()
        out = self.folder.path if self.folder else None
        state = self.loop
        return Run(
            self.pair,
            self.name,
            self.data,
            self.history,
            self.snapshots,
            state.step,
            state.seconds,
            self._sources(),
            out,
        )

    def _sources(self) -> dict[str, str]:
        drawn = draw_terms(self.pair.model, self.pair.guide, self.data.example(2), kl=kl_treatment(self.elbo), seed=0)
        return {site: str(source) for site, source in drawn.sources.items()}

    def _epoch(self, bar: Progress, interrupted: list[int]) -> None:
        loop = self.loop
        batches = self.data.batches(loop.epoch, self.batch_size)
        for rows, batch in islice(batches, loop.position, None):
            self._step(rows, batch)
            loop.position += 1
            self._keep()
            if loop.step % self.every == 0 or loop.step in (1, self.total):
                self._record(batch)
                bar.update(loop.step, self.history[-1]["elbo"])
            if loop.step % max(1, self.total // 10) == 0:
                self._checkpoint()
            if loop.step == self.total or interrupted:
                return
        loop.epoch, loop.position = loop.epoch + 1, 0

    def _step(self, rows: Tensor, batch: Batch) -> None:
        start, generator = time.perf_counter(), torch.get_rng_state()
        weight = self._weight()
        with contextlib.nullcontext() if weight == 1 else _Anneal(weight):
            loss = self.elbo.differentiable_loss(self.pair.model, self.pair.guide, *batch) / self.num_data
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FitError(self._blame(value, rows, batch, generator))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.clip_norm is not None:
            clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.loop.step += 1
        self.loop.losses.append(value)
        self.loop.seconds += time.perf_counter() - start

    def _weight(self) -> float:
        return self.beta * min(1.0, self.loop.step / self.warmup) if self.warmup else self.beta

    def _rate(self, step: int) -> float:
        done = min(1.0, step / self.total)
        return {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[self.schedule]

    def _blame(self, value: float, rows: Tensor, batch: Batch, generator: Tensor) -> str:
        loop = self.loop
        where = f"the loss is {value} at step {loop.step + 1} (epoch {loop.epoch}, batch {loop.position})"
        for name, (_, parameter) in self.pair.owned().items():
            if not bool(parameter.isfinite().all()):
                return (
                    f"{where}: the step before made parameter '{name}' not finite, so its gradient overflowed; "
                    "lower lr, or set clip_norm"
                )
        torch.set_rng_state(generator)  # the same draw again
        layout = prototype(self.pair.model, batch)
        with torch.no_grad():
            traces = self.pair.draw(batch)
        terms = from_traces(*traces, data_plate(layout, batch), len(batch[0]), kl=kl_treatment(self.elbo))
        for name, site in terms.sites.items():
            for what, part in (("log p", site.log_p), ("log q", site.log_q), ("KL", site.kl)):
                if part is not None and not bool(part.isfinite().all()):
                    bad = rows[(~part.isfinite()).nonzero()[:, -1].cpu()].tolist() if site.local else []
                    data = f" for data {', '.join(map(str, bad[:5]))}{' …' if len(bad) > 5 else ''}" if bad else ""
                    return f"{where}: {what} of site '{name}' is not finite{data}; check those values, or lower lr"
        return f"{where}: the sum of the sites' terms overflows; standardise the data, or lower lr"

    def _record(self, batch: Batch) -> None:
        # Generators are set apart, so that how often a fit is looked at does not change it.
        loop = self.loop
        kl = kl_treatment(self.elbo)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        now = evaluate(self.pair, batch, draws=1, kl=kl, seed=loop.step)
        heldout = tuple(column[:HELDOUT] for column in self.data.heldout)
        record: dict[str, Any] = {
            "step": loop.step,
            "epoch": loop.epoch,
            "loss": sum(loop.losses) / len(loop.losses),
            "elbo": float(now.elbo.mean()),
            "reconstruction": float(now.reconstruction.mean()),
            "kl": float(now.kl.mean()),
            "beta": self._weight(),
            "lr": self.scheduler.get_last_lr()[0],
            "grad_norm": float(get_total_norm(gradients)),
            "seconds": loop.seconds,
        }
        if len(heldout[0]):
            record["heldout_elbo"] = float(evaluate(self.pair, heldout, draws=1, kl=kl, seed=loop.step).elbo.mean())
        loop.losses.clear()
        self.history.append(record)
        if self.folder:
            self.folder.log(record)

    def _keep(self) -> None:
        step = self.loop.step
        if step in self.kept and step not in self.snapshots:
            self.snapshots[step] = {name: value.detach().clone() for name, value in self.pair.state_dict().items()}
            if self.folder:
                self.folder.save(self.snapshots[step], f"snapshot-{step}.pt")

    def _checkpoint(self) -> None:
        if self.folder is None or not all(bool(p.isfinite().all()) for p in self.parameters):
            return
        self.folder.save(
            {
                "pair": self.pair.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": {k: v for k, v in self.scheduler.state_dict().items() if k != "lr_lambdas"},
                "generators": generators(),
                "loop": vars(self.loop),
            }
        )

    def _restore(self) -> None:
        assert self.folder is not None
        state = self.folder.load()
        if state is None:
            return
        self.pair.load_state_dict(state["pair"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        set_generators(state["generators"])
        self.loop = _Loop(**state["loop"])
        self.history = self.folder.history(self.loop.step)
        for step in self.kept:
            snapshot = self.folder.load(f"snapshot-{step}.pt")
            if snapshot is not None and step <= self.loop.step:
                self.snapshots[step] = snapshot

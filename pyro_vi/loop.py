"""The loop of a fit: steps, records, snapshots and checkpoints.

* `Settings` is what a fit was asked to do; `_Position` is where it stands; `Loop` moves from one to the other.
* The objective is the loss divided by the number of data, so that learning rates and gradient norms mean the same for
  every data set.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, get_total_norm

from pyro_vi.data import Batch, Data
from pyro_vi.draws import evaluate, evaluating
from pyro_vi.errors import FitError, UsageError
from pyro_vi.estimators import differentiable_loss, kl_treatment
from pyro_vi.pairs import Pair, isolated, prototype
from pyro_vi.progress import Progress
from pyro_vi.runs import RunFolder, deferred_interrupt, generators, set_generators
from pyro_vi.terms import from_traces
from pyro_vi.threads import fitting_threads

Optimizer = torch.optim.Optimizer
SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
}
"""Learning rate, as a fraction of the first, against the fraction of steps that are done."""
LOGGED, ROWS = 100, 1000
"""Records that a fit makes, and the training and held-out rows that are looked at for each."""


class _Anneal(Messenger):
    """Multiply the KL by β: the log-densities of latent sites, in the model and the guide alike."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            msg["scale"] = msg["scale"] * self.beta


@dataclass(frozen=True)
class Settings:
    """What a fit was asked to do; see `pyro_vi.fit.fit`. ``kept`` are the steps whose parameters are kept.

    Raises:
        UsageError: a setting out of range.
    """

    steps: int
    batch_size: int
    schedule: str
    clip_norm: float | None
    beta: float
    warmup: int
    seed: int
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        for what, bad, wanted in (
            (f"steps {self.steps}", self.steps < 1, "at least 1"),
            (f"batch_size {self.batch_size}", self.batch_size < 1, "at least 1"),
            (f"clip_norm {self.clip_norm}", self.clip_norm is not None and not self.clip_norm > 0, "positive"),
            (f"beta {self.beta}", not (0 <= self.beta < math.inf), "0 or more"),
            (f"warmup {self.warmup}", self.warmup < 0, "0 or more"),
            (f"seed {self.seed}", self.seed < 0, "0 or more"),
            (f"schedule '{self.schedule}'", self.schedule not in SCHEDULES, f"one of {', '.join(SCHEDULES)}"),
        ):
            if bad:
                raise UsageError(f"{what} is out of range; it must be {wanted}")
        if self.warmup > self.steps:
            raise UsageError(
                f"a warmup of {self.warmup} steps is longer than the fit ({self.steps} steps), "
                "which would never see the whole KL; shorten it, or set beta"
            )


@dataclass
class Position:
    """Where a fit stands: what a checkpoint holds beside parameters, optimizer and generators."""

    step: int = 0
    epoch: int = 0
    batch: int = 0  # batches of this epoch that are done
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)  # since the last record


class Loop:
    """One fit.

    Attributes:
        history: the records made so far.
        snapshots: parameters at the steps that are to be kept.
        position: where it stands.
    """

    def __init__(
        self,
        pair: Pair,
        elbo: ELBO,
        data: Data,
        settings: Settings,
        make_optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer],
    ) -> None:
        self.pair, self.elbo, self.data, self.settings = pair, elbo, data, settings
        self.folder: RunFolder | None = None
        self.parameters = [parameter for _, parameter in pair.owned().values()]
        if not self.parameters:
            raise UsageError("the pair has no parameters to fit; look at it with `audit` or `evidence`")
        self.optimizer = make_optimizer(self.parameters)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        layout, guide_layout = (prototype(program, data.example(2)) for program in (pair.model, pair.guide))
        plate = layout.data_plate(len(data.example(2)[0]))
        self.summed = not set(layout.latents) <= set(guide_layout.sites)
        self.num_data = plate.size if plate is not None else None
        self.position = Position()
        self.used = (0.0, 0.0)  # weight of the KL and learning rate of the last step
        self.history: list[dict[str, Any]] = []
        self.snapshots: dict[int, dict[str, Tensor]] = {}
        self.every = max(1, settings.steps // LOGGED)
        self.seen = data.example(min(ROWS, data.spec.num_data))  # the same rows for every record

    def run(self, title: str, folder: RunFolder | None = None, *, resume: bool, progress: bool) -> None:
        """Go on to the last step; Ctrl-C ends it between two steps, with a checkpoint.

        Raises:
            FitError: a loss or a parameter that is not finite, or a program that fails at a step.
        """
        self.folder = folder
        self.pair.train()
        with (
            isolated(self.settings.seed, validation=False),
            Progress(title, self.settings.steps, progress) as bar,
            deferred_interrupt() as interrupted,
            fitting_threads(self.pair, self.data.example(self.settings.batch_size)),
            warnings.catch_warnings(),
        ):
            # Pyro's, of a loss for which the fit is ended with more to say.
            warnings.filterwarnings("ignore", message=r"Encountered (NaN|\+inf|-inf)")
            if resume:
                self._restore()
            self._keep()
            while self.position.step < self.settings.steps and not interrupted:
                self._epoch(bar, interrupted)
            self._checkpoint()

    def _epoch(self, bar: Progress, interrupted: list[int]) -> None:
        now = self.position
        batches = self.data.batches(now.epoch, self.settings.batch_size)
        for rows, batch in islice(batches, now.batch, None):
            self._step(rows, batch)
            now.batch += 1
            self._keep()
            if now.step % self.every == 0 or now.step in (1, self.settings.steps):
                self._record()
                bar.update(now.step, self.history[-1]["elbo"])
            if now.step % max(1, self.settings.steps // 10) == 0:
                self._checkpoint()
            if now.step == self.settings.steps or interrupted:
                return
        now.epoch, now.batch = now.epoch + 1, 0

    def _step(self, rows: Tensor, batch: Batch) -> None:
        start, generator = time.perf_counter(), torch.get_rng_state()
        weight = self._weight()
        with self._failing(self._where()), contextlib.nullcontext() if weight == 1 else _Anneal(weight):
            loss = differentiable_loss(self.elbo, self.pair, batch) / (self.num_data or len(batch[0]))
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FitError(self._blame(value, rows, batch, generator))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.settings.clip_norm is not None:
            clip_grad_norm_(self.parameters, self.settings.clip_norm)
        self.optimizer.step()
        self.used = weight, float(self.scheduler.get_last_lr()[0])
        self.scheduler.step()
        self.position.step += 1
        self.position.losses.append(value)
        self.position.seconds += time.perf_counter() - start

    def _weight(self) -> float:
        beta, warmup = self.settings.beta, self.settings.warmup
        return beta * min(1.0, self.position.step / warmup) if warmup else beta

    def _rate(self, step: int) -> float:
        done = min(1.0, step / self.settings.steps)
        return SCHEDULES[self.settings.schedule](done)

    def _blame(self, value: float, rows: Tensor, batch: Batch, generator: Tensor) -> str:
        where = f"the loss is {value} {self._where()}"
        overflow = self._overflow()
        if overflow:
            return f"{where}: {overflow}"
        torch.set_rng_state(generator)  # the same draw again
        with torch.no_grad():
            traces = self.pair.draw(batch)
        terms = from_traces(*traces, len(batch[0]), kl=kl_treatment(self.elbo))
        for name, site in terms.sites.items():
            for what, part in (("log p", site.log_p), ("log q", site.log_q), ("KL", site.kl)):
                if part is not None and not bool(part.isfinite().all()):
                    bad = rows[(~part.isfinite()).nonzero()[:, -1].cpu()].tolist() if site.local else []
                    data = f" for data {', '.join(map(str, bad[:5]))}{' …' if len(bad) > 5 else ''}" if bad else ""
                    return f"{where}: {what} of site '{name}' is not finite{data}; check those values, or lower lr"
        return f"{where}: the sum of the sites' terms overflows; standardise the data, or lower lr"

    def _where(self) -> str:
        now = self.position
        return f"at step {now.step + 1} (epoch {now.epoch}, batch {now.batch})"

    @contextlib.contextmanager
    def _failing(self, where: str) -> Iterator[None]:
        # A program may raise on parameters that it cannot take (a Cholesky factor of NaN, say): here the step is known.
        try:
            yield
        except Exception as error:
            text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            raise FitError(f"the pair fails {where}: {self._overflow() or text}") from error

    def _overflow(self) -> str:
        for name, (_, parameter) in self.pair.owned().items():
            if not bool(parameter.isfinite().all()):
                return (
                    f"the step before made parameter '{name}' not finite, so its gradient overflowed; "
                    "lower lr, or set clip_norm"
                )
        return ""

    def _record(self) -> None:
        # Generators are set apart, so that how often a fit is looked at does not change it.
        now = self.position
        overflow = self._overflow()  # the last step has no next one to find it
        if overflow:
            raise FitError(f"the fit ends after step {now.step}: {overflow}")
        weight, rate = self.used
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        heldout = tuple(column[:ROWS] for column in self.data.heldout)
        with self._failing(f"after step {now.step}"):
            seen = self._look(self.seen)
            held = self._look(heldout) if len(heldout[0]) else None
        record: dict[str, Any] = {
            "step": now.step,
            "epoch": now.epoch,
            "loss": sum(now.losses) / len(now.losses),
            **seen,
            "beta": weight,
            "lr": rate,
            "grad_norm": float(get_total_norm(gradients)),
            "seconds": now.seconds,
        }
        if held is not None:
            record["heldout_elbo"] = held["elbo"]
        now.losses.clear()
        self.history.append(record)
        if self.folder:
            self.folder.log(record)

    def _look(self, rows: Batch) -> dict[str, float]:
        """The unannealed ELBO of some data and its two parts, which do not exist where a site is summed out."""
        seed = self.position.step
        if not self.summed:
            found = evaluate(self.pair, rows, draws=1, kl=kl_treatment(self.elbo), seed=seed)
            parts = {"elbo": found.elbo, "reconstruction": found.reconstruction, "kl": found.kl}
            return {name: float(part.mean()) for name, part in parts.items()}
        with evaluating(self.pair), isolated(seed, validation=False):
            estimator: Any = self.elbo
            loss = float(estimator.loss(self.pair.model, self.pair.guide, *rows))
        return {"elbo": -loss / (self.num_data or len(rows[0])), "reconstruction": math.nan, "kl": math.nan}

    def _keep(self) -> None:
        step = self.position.step
        if step in self.settings.kept and step not in self.snapshots:
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
                "position": vars(self.position),
            }
        )

    def _restore(self) -> None:
        assert self.folder is not None
        state = self.folder.load()
        if state is None:
            self.folder.history(0)  # what an attempt that came to no checkpoint has logged
            return
        self.pair.load_state_dict(state["pair"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict({**state["scheduler"], "lr_lambdas": [None]})
        set_generators(state["generators"])
        self.position = Position(**state["position"])
        self.history = self.folder.history(self.position.step)
        for step in self.settings.kept:
            snapshot = self.folder.load(f"snapshot-{step}.pt")
            if snapshot is not None and step <= self.position.step:
                self.snapshots[step] = snapshot

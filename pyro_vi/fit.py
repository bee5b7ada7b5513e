"""Fit one pair by SVI: `fit` puts a fit together from its parts, and `Run` is what comes out."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.check import check as run_check
from pyro_vi.check import refuse
from pyro_vi.choice import Choice, Compile
from pyro_vi.data import Data, load
from pyro_vi.errors import UsageError
from pyro_vi.estimators import kl_sources, named, refuse_without_loss
from pyro_vi.loop import Loop
from pyro_vi.pairs import Pair, isolated
from pyro_vi.programs import build_pair, name_of
from pyro_vi.runs import RunFolder, checksum
from pyro_vi.settings import Settings
from pyro_vi.step import Optimizer
from pyro_vi.versions import versions


@dataclass(frozen=True)
class Run:
    """One finished fit.

    Attributes:
        pair: the fitted model and guide; what was passed to `fit` is unchanged.
        elbo: name of the estimator.
        data: what it was fitted to.
        history: records with ``step``, ``epoch``, ``loss`` (the objective, averaged since the record before), the unannealed
            ``elbo`` = ``reconstruction`` − ``kl`` of the first 1000 training data (one draw each), ``beta``, ``lr``,
            ``grad_norm``, ``heldout_elbo``, ``seconds``; in nats per datum.
        snapshots: parameters at the steps that were asked for.
        steps: steps taken.
        seconds: time of the loop, without records and checkpoints.
        kl_source: where each latent site's KL comes from.
        choice: whether steps were compiled, why, and how long that took; None for a fit that was over already.
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
    choice: Choice | None = None
    out: Path | None = None

    @property
    def model(self) -> torch.nn.Module:
        return self.pair.model

    @property
    def guide(self) -> torch.nn.Module:
        return self.pair.guide

    @property
    def compiled(self) -> bool:
        """Whether steps of it were compiled."""
        return self.choice is not None and bool(self.choice.lengths)

    def at(self, step: int) -> Pair:
        """The pair as it was at a step of ``snapshots``."""
        pair = copy.deepcopy(self.pair)
        pair.load_state_dict(self.snapshots[step])
        return pair


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
    compile: Compile = "auto",
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
        compile: whether the whole step (loss, gradients, clipping, schedule, optimizer) becomes one piece of machine code after
            the first step: True, or an error; False; or ``"auto"``: where that saves more time than it takes, and is possible.
            Compiled steps make the draws of eager ones, and differ from them by rounding. See ``choice`` of the run.
        device: where to compute; by default where torch does.
        progress: show rate and time left on stderr.
        check: look for silent errors of the pair first, and refuse to start on one.
        snapshots: fractions of the run, 0 to 1, at which the parameters are kept: ``(0, 0.5, 1)``.

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: data or a pair that cannot be fitted.
        FitError: a loss or a parameter that is not finite; the message names step, batch and site.

    Example:
        >>> run = fit("vae", "diag_normal", "digits", steps=20, progress=False)
        >>> run.history[-1]["elbo"] > run.history[0]["elbo"]
        True
    """
    source, data = data, load(data, seed=seed)
    (name, estimator), *rest = named(elbo).items()
    if rest:
        raise UsageError("fit takes one estimator; `compare` takes several")
    refuse_without_loss(estimator)
    if not 0 < lr < math.inf:
        raise UsageError(f"lr {lr} is out of range; it must be positive")
    total = _total(steps, epochs, math.ceil(data.spec.num_data / max(1, batch_size)))
    kept = tuple(sorted({round(fraction * total) for fraction in snapshots}))
    settings = Settings(total, batch_size, schedule, clip_norm, beta, warmup, seed, kept)
    if resume and out is None:
        raise UsageError("to resume a run, say which: give its folder as out")
    config = {
        "model": name_of(model),
        "guide": name_of(guide),
        "data": str(source) if isinstance(source, (str, Path)) else data.spec.name,
        "data_checksum": checksum(data.columns),
        "elbo": name,
        "optimizer": "adam" if optimizer is None else name_of(optimizer),
        "lr": lr,
        **dataclasses.asdict(settings),
        "compile": compile,
        "versions": versions(),
    }
    pair = build_pair(model, guide, data, seed=seed)
    example = data.example(min(batch_size, data.spec.num_data))
    if check:
        refuse(run_check(pair.model, pair.guide, example, elbo=estimator, num_data=data.spec.num_data))
    with isolated(validation=False):
        sources = kl_sources(estimator, pair, example)
    pair, data = pair.to(device), data.to(device=device)
    loop = Loop(pair, estimator, data, settings, optimizer or _adam(lr), compile)
    # The folder comes last, so that what cannot be fitted leaves none.
    folder = RunFolder(out, config, resume=resume) if out is not None else None
    loop.run(name, folder, resume=resume, progress=progress)
    return Run(
        pair=pair,
        elbo=name,
        data=data,
        history=loop.history,
        snapshots=loop.snapshots,
        steps=loop.position.step,
        seconds=loop.position.seconds,
        kl_source={site: str(source) for site, source in sources.items()},
        choice=loop.choice,
        out=folder.path if folder else None,
    )


def _total(steps: int | None, epochs: int | None, per_epoch: int) -> int:
    if steps is not None and epochs is not None:
        raise UsageError("give steps or epochs, not both")
    count, what = (steps, "steps") if steps is not None else (100 if epochs is None else epochs, "epochs")
    if count < 1:
        raise UsageError(f"{what} must be at least 1, not {count}")
    return count if steps is not None else count * per_epoch


def _adam(lr: float) -> Callable[[Iterable[torch.nn.Parameter]], Optimizer]:
    def make(parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, lr, fused=True)

    return make

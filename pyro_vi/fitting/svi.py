"""Fitting of one pair by SVI: `fit` assembles and runs a fit, and `Run` is its result."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.compiling import Choice, Compile, Optimizer
from pyro_vi.data import Data, load
from pyro_vi.errors import UsageError
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting.checks import check_pair, refuse
from pyro_vi.fitting.folder import RunFolder, checksum
from pyro_vi.fitting.loop import Loop
from pyro_vi.fitting.settings import EPOCHS, Options, Settings
from pyro_vi.programs import Pair, Source, build_pair, isolated, name_of
from pyro_vi.support import versions


@dataclass(frozen=True)
class Run:
    """A finished fit.

    Attributes:
        pair: the fitted model and guide; those passed to `fit` are unchanged.
        elbo: name of the estimator.
        data: the data that the pair was fitted to.
        history: records with ``step``, ``epoch``, ``loss`` (the objective, averaged since the previous record), the
            unannealed ``elbo`` = ``reconstruction`` − ``kl`` of the first 1000 training data (one draw each), ``beta``,
            ``lr``, ``grad_norm``, ``heldout_elbo`` and ``seconds``; losses and ELBOs are in nats per datum.
        snapshots: parameters by step, for the requested steps.
        steps: number of steps taken.
        seconds: time of the steps, without records and checkpoints.
        kl_source: how the KL of each latent site is computed, for example ``"analytic"``.
        choice: the decision on compiling, its reason, and the time it took; None if the fit was complete already.
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
        """True if the last steps were compiled."""
        return self.choice is not None and bool(self.choice.lengths)

    def at(self, step: int) -> Pair:
        """Return a copy of the pair with the parameters of a step in ``snapshots``."""
        pair = copy.deepcopy(self.pair)
        pair.load_state_dict(self.snapshots[step])
        return pair


def fit(
    model: Source,
    guide: Source,
    data: Any,
    *,
    elbo: str | ELBO = "mean_field",
    steps: int | None = Options.steps,
    epochs: int | None = Options.epochs,
    batch_size: int = Options.batch_size,
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer] | None = Options.optimizer,
    lr: float = Options.lr,
    schedule: str = Options.schedule,
    clip_norm: float | None = Options.clip_norm,
    beta: float = Options.beta,
    warmup: int = Options.warmup,
    seed: int = Options.seed,
    out: str | Path | None = Options.out,
    resume: bool = Options.resume,
    compile: Compile = Options.compile,
    device: str | torch.device | None = Options.device,
    progress: bool = Options.progress,
    check: bool = Options.check,
    snapshots: Iterable[float] = (),
) -> Run:
    """Fit a pair by SVI: ascend an estimate of (1/N) [E_q log p(x | z) − β KL(q(z | x) ‖ p(z))] over minibatches.

    Args:
        model: a name (``"vae(latent_dim=4)"``, ``"file.py:Name"``), class, module or function: see `pyro_vi.programs.lookup`.
        guide: the same.
        data: name of a data set, a file, an array or tensor, a tuple of columns, or a `Data`.
        elbo: estimator, by name or a `pyro.infer.ELBO`.
        steps: number of optimisation steps, instead of ``epochs``.
        epochs: number of passes over the data; 100 by default.
        batch_size: number of data per step; the last batch of an epoch may have fewer.
        optimizer: makes the optimizer of all parameters; by default Adam with learning rate ``lr``.
        lr: learning rate of the default optimizer.
        schedule: learning rate over the steps: ``"constant"``, or a ``"linear"`` or ``"cosine"`` decay to 0.
        clip_norm: limit on the joint norm of all gradients, in nats per datum; by default none.
        beta: weight of the KL (β-VAE: Higgins et al. 2017). Records always include the unannealed ELBO.
        warmup: steps over which the weight of the KL rises from 0 to ``beta``.
        seed: seed of the initial parameters, the order of the data and the draws; equal seeds give equal bits.
        out: run folder; without it nothing is written.
        resume: continue the run in ``out``, with the same bits as a run without the interruption.
        compile: True compiles the whole step (loss, gradients, clipping, schedule, optimizer) into one piece of machine code
            after the first step, or raises an error; False never compiles; ``"auto"`` compiles if that is possible and saves
            more time than it takes. Compiled steps use the same draws as eager ones and differ from them by rounding only;
            see ``choice`` of the run.
        device: device of parameters and data; by default they stay where they are.
        progress: show rate and time left on stderr.
        check: check the pair for silent errors first, and refuse to start if there is one.
        snapshots: fractions of the run, from 0 to 1, at which the parameters are kept, such as ``(0, 0.5, 1)``.

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: data or a pair that cannot be fitted.
        FitError: a loss or a parameter that is not finite; the message names the step, the batch and the site.

    Example:
        >>> run = fit("vae", "diag_normal", "digits", steps=20, progress=False)
        >>> run.history[-1]["elbo"] > run.history[0]["elbo"]
        True
    """
    loaded = load(data, seed=seed)
    options = Options(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        optimizer=optimizer,
        lr=lr,
        schedule=schedule,
        clip_norm=clip_norm,
        beta=beta,
        warmup=warmup,
        seed=seed,
        out=out,
        resume=resume,
        compile=compile,
        device=device,
        progress=progress,
        check=check,
    )
    (name, estimator), *rest = named(elbo).items()
    if rest:
        raise UsageError("fit takes one estimator; `compare` takes several")
    pair = build_pair(model, guide, loaded, seed=seed)
    return fit_pair(pair, loaded, name, estimator, names_of(model, guide, data, loaded), options, snapshots)


def names_of(model: Source, guide: Source, given: object, data: Data) -> dict[str, str]:
    """Return the names of model, guide and data in a run's configuration: as they were ``given``, or their own."""
    source = str(given) if isinstance(given, (str, Path)) else data.spec.name
    return {"model": name_of(model), "guide": name_of(guide), "data": source}


def fit_pair(
    pair: Pair,
    data: Data,
    name: str,
    estimator: ELBO,
    names: Mapping[str, str],
    options: Options,
    snapshots: Iterable[float] = (),
) -> Run:
    """`fit` for a pair that is bound already; the fit may change the pair.

    Args:
        pair: model and guide.
        data: data to fit the pair to.
        name: name of the estimator.
        estimator: the estimator; it may store what it learns about the pair.
        names: see `names_of`.
        options: the options of `fit`.
        snapshots: fractions of the run at which parameters are kept.
    """
    adapted = estimator_of(estimator)
    if not 0 < options.lr < math.inf:
        raise UsageError(f"lr {options.lr} is out of range; it must be positive")
    batch_size, num_data = options.batch_size, data.spec.num_data
    total = _total(options.steps, options.epochs, math.ceil(num_data / max(1, batch_size)))
    kept = tuple(sorted({round(fraction * total) for fraction in snapshots}))
    settings = Settings(
        total, batch_size, options.schedule, options.clip_norm, options.beta, options.warmup, options.seed, kept
    )
    if options.resume and options.out is None:
        raise UsageError("resume needs the folder of a run; give it as out")
    config = {
        **names,
        "data_checksum": checksum(data.columns),
        "elbo": name,
        "optimizer": "adam" if options.optimizer is None else name_of(options.optimizer),
        "lr": options.lr,
        **dataclasses.asdict(settings),
        "compile": options.compile,
        "versions": versions(),
    }
    example = data.example(min(batch_size, num_data))
    if options.check:
        refuse(check_pair(pair, example, elbo=estimator, num_data=num_data))
    with isolated(validation=False):
        sources = adapted.sources_of_pair(pair, example)
    pair, data = pair.to(options.device), data.to(device=options.device)
    loop = Loop(pair, estimator, data, settings, options.optimizer or _adam(options.lr), options.compile)
    # The folder is made last, so that a pair that cannot be fitted leaves none.
    folder = RunFolder(options.out, config, resume=options.resume) if options.out is not None else None
    loop.run(name, folder, resume=options.resume, progress=options.progress)
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
    count, what = (steps, "steps") if steps is not None else (EPOCHS if epochs is None else epochs, "epochs")
    if count < 1:
        raise UsageError(f"{what} must be at least 1, not {count}")
    return count if steps is not None else count * per_epoch


def _adam(lr: float) -> Callable[[Iterable[torch.nn.Parameter]], Optimizer]:
    def make(parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, lr, fused=True)

    return make

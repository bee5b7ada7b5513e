"""Fit one pair by SVI: `fit` puts a fit together from its parts, and `Run` is what comes out."""

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
from pyro_vi.estimators.traits import kl_sources, refuse_without_loss
from pyro_vi.fitting.checks import check_pair, refuse
from pyro_vi.fitting.folder import RunFolder, checksum
from pyro_vi.fitting.loop import Loop
from pyro_vi.fitting.settings import EPOCHS, Options, Settings
from pyro_vi.programs import Pair, build_pair, isolated, name_of
from pyro_vi.support import versions


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
        """Whether its last steps were compiled."""
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


def names_of(model: Any, guide: Any, given: Any, data: Data) -> dict[str, str]:
    """Model, guide and data as a run's configuration calls them: by the names that they were ``given`` by, or their own."""
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
    """`fit` of a pair that is bound already, and that the fit may change.

    Args:
        pair: model and guide.
        data: what to fit it to.
        name: the estimator's name.
        estimator: the estimator; it may remember what it finds out about the pair.
        names: see `names_of`.
        options: what was asked for.
        snapshots: fractions of the run at which parameters are kept.
    """
    refuse_without_loss(estimator)
    if not 0 < options.lr < math.inf:
        raise UsageError(f"lr {options.lr} is out of range; it must be positive")
    batch_size, num_data = options.batch_size, data.spec.num_data
    total = _total(options.steps, options.epochs, math.ceil(num_data / max(1, batch_size)))
    kept = tuple(sorted({round(fraction * total) for fraction in snapshots}))
    settings = Settings(
        total, batch_size, options.schedule, options.clip_norm, options.beta, options.warmup, options.seed, kept
    )
    if options.resume and options.out is None:
        raise UsageError("to resume a run, say which: give its folder as out")
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
        sources = kl_sources(estimator, pair, example)
    pair, data = pair.to(options.device), data.to(device=options.device)
    loop = Loop(pair, estimator, data, settings, options.optimizer or _adam(options.lr), options.compile)
    # The folder comes last, so that what cannot be fitted leaves none.
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

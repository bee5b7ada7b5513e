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
from pyro_vi.data import Data
from pyro_vi.errors import UsageError
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting.checks import check_pair, refuse
from pyro_vi.fitting.folder import RunFolder, checksum
from pyro_vi.fitting.loop import Loop
from pyro_vi.fitting.plan import Plan, plan
from pyro_vi.fitting.settings import EPOCHS, STEPS, Options, Settings
from pyro_vi.programs import Pair, Source, isolated, name_of
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
            ``lr``, ``grad_norm``, ``heldout_elbo`` and ``seconds``; losses and ELBOs are in nats per datum. Where latents are
            shared by all data, ``heldout_lpd`` is the log predictive density of held-out data, and there is no held-out
            ELBO. Where sites are summed out, the two parts are NaN. Where the guide is a point estimate, the ELBO is NaN, and
            ``log_joint`` is log p(x, z).
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
    def params(self) -> dict[str, Tensor]:
        """Fitted values of the parameters by their names in Pyro, constrained as the programs see them."""
        return self.pair.values()

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
    batch_size: int | None = Options.batch_size,
    shuffle: bool | None = Options.shuffle,
    drop_last: bool = Options.drop_last,
    heldout: float | None = Options.heldout,
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
        data: name of a data set, a file, an array or tensor, a tuple of positional arguments, a dictionary of keyword
            arguments, None for programs that hold their data themselves, or a `Data`: see `pyro_vi.load`.
        elbo: estimator, by name or a `pyro.infer.ELBO`.
        steps: number of optimisation steps, instead of ``epochs``.
        epochs: number of passes over the data; by default 100, or 2000 if each step sees all data.
        batch_size: number of data per step; the last batch of an epoch may have fewer. By default 128 if all latent sites
            belong to data; otherwise each step sees all data, in the given order: see `pyro_vi.fitting.plan`.
        shuffle: whether minibatches are drawn in a new order in each epoch; by default they are.
        drop_last: leave out a last batch of an epoch with fewer rows.
        heldout: fraction of the rows to hold out; by default 1/10 if all latent sites belong to data, else nothing.
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
    options = Options(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        heldout=heldout,
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
    planned = plan_of(model, guide, data, options)
    return fit_pair(planned, name, estimator, names_of(model, guide, data, planned.data), options, snapshots)


def plan_of(model: Source, guide: Source, data: Any, options: Options) -> Plan:
    """Return the plan of a fit under its options."""
    names = ("batch_size", "heldout", "shuffle", "drop_last", "seed")
    return plan(model, guide, data, **{name: getattr(options, name) for name in names})


def names_of(model: Source, guide: Source, given: object, data: Data) -> dict[str, str]:
    """Return the names of model, guide and data in a run's configuration: as they were ``given``, or their own."""
    source = str(given) if isinstance(given, (str, Path)) else data.spec.name
    return {"model": name_of(model), "guide": name_of(guide), "data": source}


def fit_pair(
    planned: Plan,
    name: str,
    estimator: ELBO,
    names: Mapping[str, str],
    options: Options,
    snapshots: Iterable[float] = (),
) -> Run:
    """`fit` for a pair that is bound already; the fit may change the pair.

    Args:
        planned: the pair, its data and the size of a batch.
        name: name of the estimator.
        estimator: the estimator; it may store what it learns about the pair.
        names: see `names_of`.
        options: the options of `fit`.
        snapshots: fractions of the run at which parameters are kept.
    """
    adapted, pair, data, batch_size = estimator_of(estimator), planned.pair, planned.data, planned.batch_size
    if not 0 < options.lr < math.inf:
        raise UsageError(f"lr {options.lr} is out of range; it must be positive")
    num_data, whole = data.spec.num_data, batch_size == data.spec.num_data
    total = _total(options.steps, options.epochs, math.ceil(data.per_epoch(batch_size) / batch_size), whole)
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
        "heldout": options.heldout,
        "shuffle": data.shuffle,
        "drop_last": data.drop_last,
        "compile": options.compile,
        "versions": versions(),
    }
    example = data.example(batch_size)
    if options.check:
        smallest = (data.per_epoch(batch_size) % batch_size) or batch_size
        refuse(check_pair(pair, example, elbo=estimator, num_data=num_data, smallest=smallest))
    with isolated(validation=False):
        sources = adapted.sources_of_pair(pair, example)
    pair, data = pair.to(options.device), data.to(device=options.device)
    loop = Loop(pair, estimator, data, settings, options.optimizer or _adam(options.lr), options.compile)
    # The folder is made last, so that a pair that cannot be fitted leaves none.
    folder = RunFolder(options.out, config, resume=options.resume) if options.out is not None else None
    loop.run(name, folder, resume=options.resume, progress=options.progress, note=planned.note)
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


def _total(steps: int | None, epochs: int | None, per_epoch: int, whole: bool) -> int:
    if steps is not None and epochs is not None:
        raise UsageError("give steps or epochs, not both")
    default = STEPS if whole else EPOCHS
    count, what = (steps, "steps") if steps is not None else (default if epochs is None else epochs, "epochs")
    if count < 1:
        raise UsageError(f"{what} must be at least 1, not {count}")
    return count if steps is not None else count * per_epoch


def _adam(lr: float) -> Callable[[Iterable[torch.nn.Parameter]], Optimizer]:
    def make(parameters: Iterable[torch.nn.Parameter]) -> Optimizer:
        return torch.optim.Adam(parameters, lr, fused=True)

    return make

"""What can be asked on the command line: one frozen dataclass a command, every option with its default and a help line."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import tyro

from pyro_vi.fitting import Options

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
Guide = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="GUIDE")]


@dataclass(frozen=True)
class PairCommand:
    """What every command about a pair takes."""

    model: Model = "vae"
    """Model: a name, path/file.py:Name or package.module:Name, options in parentheses: 'vae(latent_dim=2)'."""
    guide: Guide = "diag_normal"
    """Guide: named in the same ways."""
    data: str = "digits"
    """Data set's name, or a .npy, .npz, .csv or .parquet file."""
    seed: int = Options.seed
    """Seed of everything."""
    json: bool = False
    """Print one JSON document and nothing else on stdout."""
    debug: bool = False
    """Show the traceback of a problem."""


@dataclass(frozen=True)
class FittingCommand(PairCommand):
    """What every command that fits takes."""

    epochs: int | None = Options.epochs
    """Passes over the data; 100 by default."""
    steps: int | None = Options.steps
    """Optimisation steps, instead of epochs."""
    batch_size: int = Options.batch_size
    """Data in a step."""
    lr: float = Options.lr
    """Learning rate of Adam."""
    schedule: str = Options.schedule
    """How the learning rate falls to 0: constant, linear or cosine."""
    clip_norm: float | None = Options.clip_norm
    """Limit on the joint norm of all gradients (nats per datum)."""
    beta: float = Options.beta
    """Weight of the KL; the unannealed ELBO is reported beside."""
    warmup: int = Options.warmup
    """Steps over which the weight of the KL rises from 0."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the steps: where that saves more time than it takes, always (or say why not), or never."""
    out: str | None = None
    """Folder to write to; by default a new one below runs/."""
    resume: bool = Options.resume
    """Go on with the interrupted run in --out."""

    def options(self) -> dict[str, Any]:
        names = ("epochs", "steps", "batch_size", "lr", "schedule", "clip_norm", "beta", "warmup", "seed", "resume")
        compiling = {"auto": "auto", "yes": True, "no": False}[self.compile]
        return {**{name: getattr(self, name) for name in names}, "compile": compiling}


@dataclass(frozen=True)
class Compare(FittingCommand):
    """Fit one pair under several ELBO estimators and compare them: the main job."""

    elbos: tuple[str, ...] = ("trace", "mean_field")
    """Estimators; the audits follow the fit of the first."""
    audit_draws: int = 1000
    """Draws of each audit; 0 for no audits."""
    particles: int = 1000
    """Draws for each held-out datum's evidence, where it is not exact."""


@dataclass(frozen=True)
class Fit(FittingCommand):
    """Fit one pair by SVI."""

    elbo: str = "mean_field"
    """Estimator."""


@dataclass(frozen=True)
class Audit(PairCommand):
    """Measure value and gradient of estimators at fixed parameters, from common random draws."""

    elbos: tuple[str, ...] = ("trace", "mean_field")
    """Estimators."""
    draws: int = 1000
    """Evaluations of each estimator."""
    batch_size: int = 128
    """Data in the batch."""
    run: str | None = None
    """Folder of a fit of this pair, to audit at its parameters; by default at the initial ones."""


@dataclass(frozen=True)
class Check(PairCommand):
    """Look for silent errors of a pair before a fit."""

    elbo: str | None = None
    """Estimator that is to be used."""
    batch_size: int = 128
    """Data in the batch."""


@dataclass(frozen=True)
class Evidence(PairCommand):
    """Evidence log p(x) of the held-out data under a fitted pair."""

    run: str | None = None
    """Folder of a fit of this pair; by default the initial parameters."""
    method: Literal["iw", "exact"] | None = None
    """By importance sampling or exactly; by default exactly where the model has a closed form."""
    particles: int = 5000
    """Draws for each datum."""


@dataclass(frozen=True)
class List:
    """List the models, guides, data sets and estimators that there are."""

    json: bool = False
    """Print one JSON document and nothing else on stdout."""
    debug: bool = False
    """Show the traceback of a problem."""

"""The commands of the command line: one frozen dataclass per command, with a default and a help line for every option.

The defaults of a fit are those of `pyro_vi.fitting.Options`. They are written again here, and compared by a test, because help
would otherwise take the seconds that importing torch takes.
"""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

import tyro

from pyro_vi.errors import UsageError

Model = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
Guide = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="GUIDE")]


class Default(str):
    """A default that can be told from the same text given by a person: a run in ``--run`` takes its place."""


MODEL, GUIDE, DATA = Default("vae"), Default("diag_normal"), Default("digits")


@dataclass(frozen=True)
class PairCommand:
    """Options of every command about a pair."""

    model: Model = MODEL
    """Model: a name, path/file.py:Name or package.module:Name, with options in parentheses: 'vae(latent_dim=2)'."""
    guide: Guide = GUIDE
    """Guide, in the same form."""
    data: str = DATA
    """Name of a data set, a .npy, .npz, .csv or .parquet file, with options in parentheses: 'digits(labels=100)'; or none."""
    columns: str | None = None
    """Columns of a table that a row consists of, with commas between them; by default all without another role."""
    label: str | None = None
    """Column of a table that holds classes, for the colours of pictures."""
    labels: str | None = None
    """Give the classes to the model too: 'all', or the number of rows of each class whose label it is given."""
    target: str | None = None
    """Column of a table that depends on the others: the second argument of the model."""
    group: str | None = None
    """Column of a table that says to which group a row belongs: the third argument of the model."""
    standardize: bool = False
    """Give each column of the training rows mean 0 and standard deviation 1."""
    seed: int = 0
    """Seed of all random numbers."""
    json: bool = False
    """Print one JSON document, and nothing else, on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

    @property
    def source(self) -> str:
        """The data with their options, as a run's configuration has them."""
        from pyro_vi.data.loading import with_data_options

        given = {name: getattr(self, name) for name in ("columns", "label", "target", "group", "standardize")}
        if self.labels is not None:
            if self.labels != "all" and not (self.labels.isdecimal() and int(self.labels)):
                raise UsageError(f"--labels {self.labels} is not allowed; give 'all', or how many of each class")
            given["labels"] = self.labels == "all" or int(self.labels)
        return with_data_options(self.data, {name: value for name, value in given.items() if value})


@dataclass(frozen=True)
class FittingCommand(PairCommand):
    """Options of every command that fits."""

    epochs: int | None = None
    """Passes over the data; by default 100, or 2000 if each step sees all data."""
    steps: int | None = None
    """Optimisation steps, instead of epochs."""
    batch_size: int | None = None
    """Data per step; by default 128 if all latent sites belong to data, else all of them in the given order."""
    accumulate: int = 1
    """Batches whose gradients a step averages, with the memory of one batch."""
    shuffle: bool | None = None
    """Order of minibatches: new in each epoch (the default), or that of the data."""
    drop_last: bool = False
    """Leave out a last batch of an epoch with fewer rows."""
    heldout: float | None = None
    """Fraction of the rows to hold out; by default 1/10 if all latent sites belong to data, else 0."""
    optimizer: str | None = None
    """Optimizer of torch or Pyro by name, with options in parentheses ('sgd(momentum=0.9)'); by default adam."""
    average: str | None = None
    """Average over the steps as the result: 'polynomial', or 'none'; by default only the optimizers dog and dowg average."""
    lr: float = 3e-3
    """Learning rate, for optimizers that take one."""
    schedule: str | None = None
    """Learning rate over the steps: constant, linear, cosine or plateau; by default cosine, or constant with --stop."""
    clip_norm: float | None = None
    """Limit on the joint norm of all gradients (nats per datum)."""
    nonfinite: Literal["stop", "skip", "restore"] = "stop"
    """At a loss or gradient that is not finite: stop, leave the step out, or go back to the last record and halve the rate."""
    beta: float = 1.0
    """Weight of the KL; records show the ELBO without it."""
    warmup: int = 0
    """Steps over which the weight of the KL rises from 0 to beta."""
    cycles: int | None = None
    """Equal parts of the fit; in the first half of each, the weight of the KL rises from 0 to beta."""
    free_bits: float | None = None
    """Nats per datum below which the KL of a latent dimension costs nothing more."""
    stop: Literal["converged", "heldout"] | None = None
    """End the fit when its loss has converged, or when no record is better (heldout); the best record is then the result."""
    patience: int = 20
    """Records without a higher held-out ELBO after which --stop heldout ends the fit."""
    records: int = 100
    """Records, evenly spread over the fit; each takes as long as a few steps."""
    compile: Literal["auto", "yes", "captured", "no"] = "auto"
    """Steps: captured and compiled where that saves time, compiled or captured (an error if impossible), or eager."""
    out: str | None = None
    """Folder to write to; by default a new one in runs/."""
    format: Literal["png", "svg", "pdf"] = "png"
    """Format of the pictures."""
    resume: bool = False
    """Continue the interrupted run in --out; 'resume FOLDER' does so without the other options."""
    allow: tuple[str, ...] = ()
    """Settings that may differ from those of the run that --resume continues; its error gives their names."""

    def options(self) -> dict[str, Any]:
        from pyro_vi.fitting import Options

        apart = ("compile", "out")
        names = [option.name for option in fields(Options) if hasattr(self, option.name) and option.name not in apart]
        compiling = {"yes": True, "no": False}.get(self.compile, self.compile)
        return {**{name: getattr(self, name) for name in names}, "compile": compiling}


@dataclass(frozen=True)
class Compare(FittingCommand):
    """Fit one pair under several ELBO estimators, or one model with several guides, and compare the fits (the main command)."""

    more: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="GUIDE ...")] = ()
    """More guides, to compare with the first under one estimator."""
    elbos: tuple[str, ...] | None = None
    """ELBO estimators, by default trace and mean_field; all are audited at parameters from the fit of the first. One for
    several guides, by default mean_field, or another that serves them."""
    seeds: int = 1
    """Number of seeds, from --seed on; the comparison is repeated under each, and gives ± over seeds."""
    audit_draws: int = 1000
    """Draws per audit of estimators; 0 for no audits."""
    particles: int = 1000
    """Importance draws for the evidence of each held-out datum, unless the evidence is exact."""
    report: bool = False
    """Write report.html too, which says whether the posterior of the best fit can be used."""


@dataclass(frozen=True)
class Fit(FittingCommand):
    """Fit one pair by SVI."""

    elbo: str = "mean_field"
    """ELBO estimator."""
    starts: int = 1
    """Number of fits, whose initial parameters have the seeds from --seed on; the one with the highest ELBO is the result."""


@dataclass(frozen=True)
class Resume:
    """Continue an interrupted fit or comparison from its folder alone."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the fit or the comparison."""
    lr: float | None = None
    """Another learning rate from here on."""
    nonfinite: Literal["stop", "skip", "restore"] | None = None
    """Something else to do about a loss or gradient that is not finite, from here on."""
    allow: tuple[str, ...] = ()
    """Settings that may have changed since the run was made; the error gives their names."""
    trust: bool = False
    """Run the code of programs that the folder names, though you did not make the run."""
    format: Literal["png", "svg", "pdf"] = "png"
    """Format of the pictures."""
    json: bool = False
    """Print one JSON document, and nothing else, on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Audit(PairCommand):
    """Measure value and gradient of ELBO estimators at fixed parameters, with common random draws."""

    elbos: tuple[str, ...] = ("trace", "mean_field")
    """ELBO estimators."""
    draws: int = 1000
    """Evaluations of each estimator."""
    batch_size: int | None = None
    """Data in the batch; by default as many as a fit takes."""
    run: str | None = None
    """Folder of a fit, which tells model, guide and data; --data NEW takes all rows of new data. By default the initial
    parameters are used."""
    trust: bool = False
    """Run the code of programs that the folder of --run names, though you did not make the run."""


@dataclass(frozen=True)
class Check(PairCommand):
    """Check a pair for silent errors before a fit."""

    elbo: str | None = None
    """ELBO estimator that the fit will use."""
    epochs: int | None = None
    """Passes over the data of the fit."""
    steps: int | None = None
    """Steps of the fit, instead of epochs."""
    batch_size: int | None = None
    """Data in the batch; by default as many as a fit takes."""
    shuffle: bool | None = None
    """Order of the fit's minibatches: new in each epoch (the default), or that of the data."""
    drop_last: bool = False
    """The fit will leave out a last batch of an epoch with fewer rows."""
    warmup: int = 0
    """Steps over which the weight of the KL will rise."""
    run: str | None = None
    """Folder of a fit, which tells model, guide and data, and whose parameters are used."""
    trust: bool = False
    """Run the code of programs that the folder of --run names, though you did not make the run."""


@dataclass(frozen=True)
class Evidence(PairCommand):
    """Estimate the evidence log p(x) of the held-out data under a fitted pair, or of all data if none are held out."""

    run: str | None = None
    """Folder of a fit, which tells model, guide and data; --data NEW takes all rows of new data. By default the initial
    parameters are used."""
    trust: bool = False
    """Run the code of programs that the folder of --run names, though you did not make the run."""
    method: Literal["iw", "prior", "ais", "sandwich", "enum", "exact"] | None = None
    """Importance sampling from the guide (iw) or the prior, annealed importance sampling (ais), bounds from both sides on data
    drawn from the model (sandwich), sums over discrete sites (enum), or the closed form; by default the most exact of iw, enum
    and exact that the pair has."""
    particles: int = 5000
    """Importance draws per datum."""
    start: Literal["guide", "prior"] = "guide"
    """Where annealing starts. From the prior it takes more steps, and finds what the guide has missed."""
    chains: int = 32
    """Draws that are annealed, per datum."""
    steps: int = 50
    """Temperatures of annealing."""
    drawn: int = 100
    """Most data that the sandwich draws from the model."""


@dataclass(frozen=True)
class Gaps(PairCommand):
    """Split log p(x) - ELBO of a fitted pair into what the guide's family and what its encoder loses, for each datum."""

    run: str | None = None
    """Folder of a fit, which tells model, guide and data; --data NEW takes rows of new data. By default the initial
    parameters are used."""
    trust: bool = False
    """Run the code of programs that the folder of --run names, though you did not make the run."""
    rows: int = 100
    """Most training data, and most held-out data, that are searched for their own best guide; evenly spaced."""
    out: str | None = None
    """Folder for the picture gaps.png; by default none is drawn."""


@dataclass(frozen=True)
class Diagnose(PairCommand):
    """Ask of a fitted pair if its posterior can be used: k-hat, calibration, collapse, and the moments of the posterior."""

    run: str | None = None
    """Folder of a fit, which tells model, guide and data; --data NEW takes rows of new data. By default the initial
    parameters are used."""
    trust: bool = False
    """Run the code of programs that the folder of --run names, though you did not make the run."""
    only: tuple[str, ...] = ()
    """Parts of the diagnosis, such as khat or calibration; by default all that apply."""
    rows: int = 1000
    """Most data that are looked at, evenly spaced."""


@dataclass(frozen=True)
class Report:
    """Write one HTML page about a fit: whether its posterior can be used, and why."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """Folder of a fit; or of a comparison, whose fit with the highest ELBO is judged."""
    trust: bool = False
    """Run the code of programs that the folder names, though you did not make the run."""
    out: str | None = None
    """File to write; by default report.html in the folder of the fit."""
    rows: int = 500
    """Most data that each diagnostic looks at, evenly spaced."""
    seed: int = 0
    """Seed of all draws."""
    json: bool = False
    """Print one JSON document, and nothing else, on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class Show(PairCommand):
    """Show what pyro_vi takes a pair for: rows, plates, sites, parameters, and where each KL comes from."""

    elbo: str | None = None
    """ELBO estimator whose KL is shown; by default that of --run, else mean_field."""
    batch_size: int | None = None
    """Data per step; by default as many as a fit takes."""
    run: str | None = None
    """Folder of a fit, which tells model, guide and data, and whose rows, seed and estimator are used."""
    trust: bool = False
    """Run the code of programs that the folder of --run names, though you did not make the run."""
    out: str | None = None
    """Folder for layout.json, and for pictures of model and guide where graphviz is installed."""


@dataclass(frozen=True)
class Plot:
    """Draw the pictures of a fit from its folder alone."""

    folder: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the fit."""
    trust: bool = False
    """Run the code of programs that the folder names, though you did not make the run."""
    only: tuple[str, ...] = ()
    """Names of the pictures to draw; by default all that apply."""
    out: str | None = None
    """Folder to write to; by default that of the fit."""
    format: Literal["png", "svg", "pdf"] = "png"
    """Format of the pictures."""
    json: bool = False
    """Print one JSON document, and nothing else, on stdout."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class List:
    """List models, guides, data sets and estimators; or show the options of one, and what it goes with."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    """Model, guide, data set or estimator, whose options are shown."""
    pairs: bool = False
    """Try each model with each guide too, and show which go together; this takes a minute or so."""
    json: bool = False
    """Print one JSON document, and nothing else, on stdout."""
    debug: bool = False
    """Show the traceback of an error."""

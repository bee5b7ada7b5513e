"""Results of a comparison: `Result` of one fit, and `Comparison` of all of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xarray as xr
from torch import Tensor

from pyro_vi.comparing.showing import cells_of, frame_of, lines_of
from pyro_vi.data import Batch, Data
from pyro_vi.elbo import Evaluation
from pyro_vi.fitting import Run
from pyro_vi.support import html_block, pictures_in, slug

ROWS = 1000
"""Most data that are evaluated at a time, and most training data on which fits are compared where rows can be left out."""

On = Literal["held-out", "training"]


@dataclass(frozen=True)
class Result:
    """One fit, and its numbers on the data of `Comparison.on`.

    Attributes:
        run: the fit; of a pair without parameters, the pair as it is.
        cls: name of the class of what is compared: of the estimator, or of the guide.
        target: the bound that the estimator estimates, such as ``"elbo"`` or ``"iwae(5)"``.
        kl_source: for each latent site, how its KL is computed: analytic, or sampled and why.
        evaluation: ELBO, reconstruction and KL of each datum.
        evidence: see `pyro_vi.evidence`; None if there is none.
        note: the reason why there is no evidence.
        lpd: log predictive density of each held-out datum, where latents are shared by all data; else None.
        objective: what the fit maximises: ``"ELBO"``, or ``"log p(x, z)"`` where the guide is a point estimate.
        parameters: number of parameters, by owner: of the ``"guide"`` and of the ``"model"``.
        shared: all data share latents, or there is no data plate: the ELBO is one number for the data set.
    """

    run: Run
    cls: str
    target: str
    kl_source: dict[str, str]
    evaluation: Evaluation
    evidence: xr.Dataset | None
    note: str = ""
    lpd: Tensor | None = None
    objective: str = "ELBO"
    parameters: Mapping[str, int] = field(default_factory=dict)
    shared: bool = False

    @property
    def elbo_mean(self) -> float:
        """Mean ELBO, in nats per datum; NaN for a point estimate."""
        return self.evaluation.elbo_mean

    @property
    def gap(self) -> float | None:
        """Evidence − ELBO, in nats per datum."""
        return None if self.evidence is None else float(self.evidence.attrs["value"]) - self.elbo_mean

    def __repr__(self) -> str:
        return f"Result({self.cls}, ELBO {self.elbo_mean:.3f})\n{self.run!r}"


@dataclass(frozen=True)
class Comparison:
    """Fits and audits of one pair under several estimators, or fits of one model with several guides under one estimator.

    Attributes:
        guide: name of the guide; the names of several, with commas.
        results: by estimator, or by guide.
        audits: the audits by step of the first fit; none of several guides.
        on: the data that the results are of: ``"held-out"`` or ``"training"``.
        across: what is compared: ``"estimators"`` or ``"guides"``.
        estimator: name of the one estimator under which guides are compared; else empty.
        refused: guides without a result, each with the reason.
        note: the reason why all guides see all rows in each step, or why none are held out, if one of them needs that.
        repeats: the same comparison under further seeds.
    """

    model: str
    guide: str
    data: Data
    seed: int
    results: Mapping[str, Result]
    audits: Mapping[int, xr.Dataset]
    out: Path | None = None
    on: On = "held-out"
    across: Literal["estimators", "guides"] = "estimators"
    estimator: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    repeats: tuple["Comparison", ...] = ()

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of the comparison and of its repeats."""
        return self.seed, *(repeat.seed for repeat in self.repeats)

    @property
    def every(self) -> "tuple[Comparison, ...]":
        """The comparison under each seed."""
        return self, *self.repeats

    @property
    def names(self) -> list[str]:
        """Names of the estimators or guides with a result under some seed, in the order given."""
        return list(dict.fromkeys(name for one in self.every for name in one.results))

    def folder_of(self, name: str) -> Path | None:
        """The folder of a fit, if the comparison has a folder; of several seeds, of the fit under the first."""
        if self.out is None:
            return None
        base = self.out / f"seed{self.seed}" if self.repeats else self.out
        return base / folders([*self.results, *self.refused])[name]

    def pictured(self) -> tuple[str, Batch]:
        """The data that pictures show, and their name: held-out data, or training data if there are none."""
        if self.data.num_heldout:
            return "held-out", self.data.heldout
        return "training", self.data.example(min(ROWS, self.data.spec.num_data))

    def table(self) -> Any:
        """Return the numbers of all fits as a pandas frame: a row for each, in nats per datum of the data of ``on``."""
        return frame_of(self)

    def __repr__(self) -> str:
        return "\n".join(lines_of(self))

    def _repr_html_(self) -> str:
        first, *lines = lines_of(self)
        return html_block(first, cells_of(self), [line for line in lines if "folder" in line], pictures_in(self.out))

    def audit_dataset(self) -> xr.Dataset:
        """Return all audits in one dataset, with ``step`` as the first dimension."""
        steps = xr.Variable("step", list(self.audits))
        return xr.concat(list(self.audits.values()), steps, combine_attrs="override")


def folders(names: list[str]) -> dict[str, str]:
    """Return a folder's name for each name; two names that give one folder have their number added.

    The numbers follow the alphabet, so that a name has the same folder in each order.

    Example:
        >>> folders(["f(a=1)", "f[a=1]"])
        {'f(a=1)': 'f_a=1', 'f[a=1]': 'f_a=1-2'}
    """
    taken: dict[str, str] = {}
    for name in sorted(names):
        base = slug(name) or "fit"
        number = 1 + sum(slug(other) == base for other in taken)
        taken[name] = base if number == 1 else f"{base}-{number}"
    return {name: taken[name] for name in names}

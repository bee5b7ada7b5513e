"""The settings of a comparison, checked: what `pyro_vi.compare` was asked for besides programs, data and estimators."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyro_vi.comparing.results import folders
from pyro_vi.errors import UsageError
from pyro_vi.fitting import Options, holds_run, recipe_of
from pyro_vi.support import Whole, whole


@dataclass(frozen=True)
class Asked:
    """The settings of a comparison under one seed.

    Attributes:
        options: the options of each fit; their seed is that of all draws too.
        draws: draws for the ELBO of each datum.
        particles: draws for the evidence of each datum.
        audit_draws: draws of an audit, 0 for none.
        audit_batch: number of data in the batch of an audit.
        folder: the folder of the comparison.
        given: how the comparison was called, for the configuration of each of its fits.
    """

    options: Options
    draws: Whole
    particles: Whole
    audit_draws: Whole
    audit_batch: Whole
    folder: Path | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def checked(self) -> "Asked":
        """Return the settings with plain numbers.

        Raises:
            UsageError: a setting is out of range.
        """
        options = self.options
        if options.starts > 1:
            raise UsageError(
                "the fits of a comparison begin at the same parameters; leave starts out, or repeat the comparison: seeds=5"
            )
        recipe_of(options.optimizer, options.lr, options.schedule)  # refuses before anything is read
        draws, particles = whole("draws", self.draws, 1), whole("particles", self.particles, 2)
        batch, audit_draws = whole("audit_batch", self.audit_batch, 1), whole("audit_draws", self.audit_draws, 0)
        if audit_draws and audit_draws < 20:
            raise UsageError(f"audit_draws must be at least 20, or 0 for no audits, not {audit_draws}")
        return Asked(options, draws, particles, audit_draws, batch, self.folder, self.given)

    def seeded(self, count: int) -> "list[Asked]":
        """Return the settings for ``count`` seeds, from the first on; of several seeds, each has a folder of its own."""
        if count == 1:
            return [self]
        seeds = [self.options.seed + i for i in range(count)]
        return [
            dataclasses.replace(
                self,
                options=dataclasses.replace(self.options, seed=seed),
                folder=None if self.folder is None else self.folder / f"seed{seed}",
            )
            for seed in seeds
        ]

    def names(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return the names in the configuration of a fit, with how the comparison was called."""
        return {**names, "given": self.given} if self.given else {**names}

    def folders(self, names: Iterable[str]) -> dict[str, Path | None]:
        """Return the folder of each fit."""
        return {n: None if self.folder is None else self.folder / folder for n, folder in folders(list(names)).items()}


def into(options: Options, folder: Path | None) -> Options:
    """Return the options of a fit in a folder; of a comparison that was interrupted, only the first fits have one."""
    resume = options.resume and folder is not None and holds_run(folder)
    return dataclasses.replace(options, out=folder, resume=resume)

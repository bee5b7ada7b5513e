"""The pair and the data of a command: a new pair, or that of a run, with the data of its fit or with new ones."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pyro_vi.cli.commands import Default, PairCommand
from pyro_vi.errors import UsageError


@dataclass(frozen=True)
class Asked:
    """A pair, and the rows that a command takes.

    Attributes:
        plan: the pair, its data and the rows of a batch.
        names: of model, guide and data.
        on: what the rows are: ``"held-out"``, ``"training"`` or ``"new"``.
        rows: all rows that are scored.
        elbo: name of the estimator of the run; empty without a run.
    """

    plan: Any
    names: tuple[str, str, str]
    on: str
    rows: Any
    elbo: str = ""

    @property
    def new(self) -> bool:
        """True for data that the run was not fitted to."""
        return self.on == "new"

    @property
    def title(self) -> str:
        """The pair and its data in words."""
        model, guide, data = self.names
        return f"{model} with guide {guide} on {data}"

    def batch(self, size: int | None) -> Any:
        """Return the first batch of a fit; or one of another size, if the pair takes part of the data. Of new data, the
        first rows of them."""
        from pyro_vi.data import length_of, part

        plan = self.plan
        whole = plan.data.spec.num_data
        if self.new:
            return self.rows if plan.reason else part(self.rows, 0, min(size or plan.batch_size, length_of(self.rows)))
        return plan.data.example(plan.batch_size if plan.reason or size is None else min(size, whole))


def asked_of(command: PairCommand, run: str | None, **rows: Any) -> Asked:
    """Return what a command is about. Of a run, model, guide and data are its own where the command does not name others.

    Raises:
        InputError: the folder holds no run, or does not tell what the command leaves out.
    """
    if run is None:
        return _anew(command, rows)
    from pyro_vi.afterwards import open
    from pyro_vi.afterwards.finding import same_data

    trust = bool(getattr(command, "trust", False))

    given = {kind: value for kind in ("model", "guide") if not isinstance(value := getattr(command, kind), Default)}
    named = not isinstance(command.data, Default)
    if not named and command.source != command.data:
        raise UsageError(
            "the run in --run knows its data and their columns; leave the options of data out, or give --data"
        )
    new = command.source if named and not same_data(run, command.source) else None
    opened = open(run, **given, data=command.source if named and new is None else None, trust=trust)
    config = opened.config
    model, guide = (given.get(kind) or config.get(kind, "") for kind in ("model", "guide"))
    names = model, guide, command.source if named else str(config.get("data"))
    plan = opened.plan
    if rows.get("batch_size") is not None:
        size = plan.data.spec.num_data if plan.reason else min(rows["batch_size"], plan.data.spec.num_data)
        shuffled = size < plan.data.spec.num_data and (plan.data.shuffle or size != plan.batch_size)
        plan = dataclasses.replace(plan, batch_size=size, data=dataclasses.replace(plan.data, shuffle=shuffled))
    args = opened.rows(new)
    on = "new" if new is not None else "held-out" if args is opened.data.heldout else "training"
    return Asked(plan, names, on, args, opened.run.elbo)


def _anew(command: PairCommand, rows: dict[str, Any]) -> Asked:
    from pyro_vi.fitting import Options, plan_of

    plan = plan_of(command.model, command.guide, command.source, Options(seed=command.seed, **rows))
    data = plan.data
    # The evidence of latents that all data share is that of the data that they were fitted to.
    on, args = ("held-out", data.heldout) if data.num_heldout else ("training", data.example(data.spec.num_data))
    return Asked(plan, (command.model, command.guide, command.source), on, args)

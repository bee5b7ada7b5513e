"""Plans of the fits of several guides: the same model start, and the same batches.

* `joint_plans` builds a pair for each guide. If one guide needs all rows in each step, all guides get them.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting import Options, Plan, plan_of
from pyro_vi.programs import Pair, Source, build_pair, takes_row_numbers


@dataclass(frozen=True)
class Joint:
    """Plans of fits that can be compared.

    Attributes:
        plans: by guide; all have the same data, the same batches and the same start of the model.
        refused: the errors of the guides that cannot be built.
        heldout: the fraction to hold out by which a fit of each guide alone has these data.
        note: the reason why all guides see all rows, if some of them do not need them, and why none are held out; else empty.
    """

    plans: Mapping[str, Plan]
    refused: Mapping[str, InputError]
    heldout: Mapping[str, Any]
    note: str


def joint_plans(model: Source, guides: Mapping[str, Source], data: Any, options: Options) -> Joint:
    """Plan the fits of several guides with one model, as one comparison.

    Args:
        model: the model.
        guides: by name.
        data: what `pyro_vi.fit` takes.
        options: the options of the fits.

    Raises:
        UsageError: an unknown name or option.
    """
    plans: dict[str, Plan] = {}
    refused: dict[str, InputError] = {}
    heldout: dict[str, Any] = dict.fromkeys(guides, options.heldout)
    said = ""

    def planned(name: str, given: Any, settings: Options) -> Plan | None:
        try:
            return plan_of(model, guides[name], given, settings)
        except UsageError:
            raise
        except InputError as error:
            refused[name] = error
        return None

    given, settings = data, options
    # A guide with parameters for each row decides on the rows of all: none are held out, and none are redrawn.
    for name in sorted(guides, key=lambda name: not takes_row_numbers(guides[name])):
        found = planned(name, given, settings)
        if found is not None:
            plans[name] = found
            given, settings = found.data, dataclasses.replace(options, heldout=None)  # the data are read once
            if takes_row_numbers(guides[name]) and not said:
                data, options = given, settings
                said = f"No rows are held out, as guide '{name}' has parameters for each row."
                heldout = dict.fromkeys(guides, None if found.left_out else 0.0)
    plans = {name: plans[name] for name in guides if name in plans}
    needy = next((name for name, found in plans.items() if found.reason), None)
    if needy is None or all(found.reason for found in plans.values()):
        return Joint(_from_one_start(plans, model, options), refused, heldout, said)
    # The guide that needs all rows decides on the data, too: nothing is held out if it alone would hold out nothing.
    base = planned(needy, data, options)
    if base is None:
        return Joint(plans, refused, heldout, said)
    settings = dataclasses.replace(options, heldout=None, batch_size=base.batch_size)
    for name, found in list(plans.items()):
        again = base if name == needy else planned(name, base.data, settings)
        if again is None:
            del plans[name]
            continue
        plans[name] = again
        if not found.reason and found.data.num_heldout and not base.data.num_heldout:
            heldout[name] = 0.0
    rows = base.data.spec.num_data
    note = f"Each fit sees all {rows} rows in each step, as guide '{needy}' needs them ({base.reason})."
    notes = [said, note if base.batch_size == rows else ""]
    return Joint(_from_one_start(plans, model, options), refused, heldout, " ".join(filter(None, notes)))


def _from_one_start(plans: Mapping[str, Plan], model: Source, options: Options) -> Mapping[str, Plan]:
    """Give all models the same parameters, bit by bit, which do not depend on the guides or their order.

    The parameters of a function are made in its first run, after the guide was made: by then, guides have drawn different
    numbers. Such models start as the model does with a guide that draws nothing.
    """
    if not plans:
        return plans
    states = {name: found.pair.model.state_dict() for name, found in plans.items()}
    first, *others = states.values()
    if all(_same(first, other) for other in others):
        return plans
    some = next(iter(plans.values()))
    try:
        start = build_pair(model, _nothing, some.data, seed=options.seed, rows=some.batch_size).model.state_dict()
    except InputError:  # the model does not run from its prior
        start = states[min(states)]
    for found in plans.values():
        _set(found.pair, start)
    return plans


def _nothing(*args: Any) -> None:
    """A guide without sites."""


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _set(pair: Pair, start: Mapping[str, Any]) -> None:
    now = pair.model.state_dict()
    fitting = {k: v for k, v in start.items() if k in now and now[k].shape == v.shape}
    pair.model.load_state_dict({**now, **fitting})

"""The planned fit before its first step: its number of steps, the options that it cannot have, and what `check` finds in it.

* `total_steps` counts the steps; `refuse_options` refuses options that do not go with the pair or its rows; `findings_of`
  checks the pair on the batches that the fit will use.
"""

import copy
import math

from pyro.infer import ELBO

from pyro_vi.checking import Finding, Planned, check_pair
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators import FreeBits
from pyro_vi.fitting.plan import ROW_EACH, Plan
from pyro_vi.fitting.settings import EPOCHS, STEPS, Options


def refuse_options(planned: Plan, estimator: ELBO, options: Options) -> None:
    """Refuse options that a planned fit under an estimator cannot have; it is unchanged.

    Raises:
        UsageError: nothing to accumulate, or free bits under an estimator for which they are not defined.
        InputError: free bits for a pair for which they are not defined, or held-out rows for which it has no parameters.
    """
    data, size = planned.data, planned.batch_size
    if options.accumulate > 1 and data.per_epoch(size) <= size:
        raise UsageError(
            f"accumulate={options.accumulate} averages batches of one epoch, and each step sees all rows; give a batch_size of "
            "fewer rows, or leave accumulate out"
        )
    if data.num_heldout and ROW_EACH in planned.reason:
        raise InputError(
            f"the guide {ROW_EACH} that it is fitted to, and none for the {data.num_heldout} held-out rows, so they have no "
            "ELBO; give heldout=0, or use guide 'per_datum'"
        )
    if options.free_bits is not None:
        FreeBits(copy.deepcopy(estimator), options.free_bits).refuse(planned.pair, data.example(size))


def findings_of(planned: Plan, estimator: ELBO | None, options: Options) -> list[Finding]:
    """Return the findings of `pyro_vi.check` on a planned fit; the estimator may store what it learns about the pair."""
    data, size = planned.data, planned.batch_size
    smallest = (data.per_epoch(size) % size) or size
    known = Planned(total_steps(planned, options), int(options.warmup), options.optimizer, data.shuffle)
    example, rows = data.example(size), data.spec.num_data
    return check_pair(planned.pair, example, elbo=estimator, num_data=rows, smallest=smallest, planned=known)


def total_steps(planned: Plan, options: Options) -> int:
    """Return the number of steps of a planned fit."""
    size, data = planned.batch_size, planned.data
    default = STEPS if size == data.spec.num_data else EPOCHS
    per_epoch = math.ceil(data.per_epoch(size) / (size * int(options.accumulate)))
    epochs = default if options.epochs is None else int(options.epochs)
    return int(options.steps) if options.steps is not None else epochs * per_epoch

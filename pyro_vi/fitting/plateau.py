"""A learning rate that falls when the ELBO of the records no longer rises: ``schedule="plateau"``.

* `named_schedule` reads the name of a schedule, and makes the scheduler of a plateau, torch's `ReduceLROnPlateau`.
* `height_of` is the number that it follows.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pyro_vi.fitting.best import HELDOUT, number_of
from pyro_vi.fitting.settings import PLATEAU, SCHEDULES
from pyro_vi.support import check_options, parse, real, whole, word


def named_schedule(text: str) -> tuple[str, Callable[[Optimizer], ReduceLROnPlateau] | None]:
    """Return the name of a schedule, and the maker of its scheduler if it is a plateau.

    Raises:
        UsageError: an unknown name or option, or an option out of range.

    Example:
        >>> named_schedule("cosine"), named_schedule("plateau(patience=3)")[0]
        (('cosine', None), 'plateau')
    """
    target, options = parse(text)
    name = word("schedule", target, SCHEDULES)
    check_options(f"schedule '{name}'", options, PLATEAU if name == "plateau" else ())
    if name != "plateau":
        return name, None
    values = {**PLATEAU, **options}
    factor = real("factor of schedule 'plateau'", values["factor"], above=0, below=1)
    patience = whole("patience of schedule 'plateau'", values["patience"], least=1)
    threshold = real("threshold of schedule 'plateau'", values["threshold"], least=0)

    def make(optimizer: Optimizer) -> ReduceLROnPlateau:
        # torch lowers the rate at the first record after ``patience`` ones without a rise.
        return ReduceLROnPlateau(
            optimizer, "max", factor, patience - 1, threshold, threshold_mode="abs", min_lr=0.0, eps=0.0
        )

    return name, make


def height_of(record: Mapping[str, Any], warmup: int, units: tuple[int, int]) -> float | None:
    """Return the number of a record that a plateau follows: of held-out data if there are some, else of training data.

    It is the ELBO, or the log predictive density or log p(x, z) in its place.

    Args:
        record: the record.
        warmup: steps of the warm-up. During it, the objective changes, and the result is None.
        units: factors of training and held-out numbers: see `Records.units`.
    """
    if record["step"] <= warmup:
        return None
    held = any(name in record for name in HELDOUT)
    found = number_of(record, HELDOUT if held else ("elbo", "log_joint"))
    return math.nan if found is None else found[1] * units[held]

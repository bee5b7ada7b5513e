"""Numbers among the options of an estimator, as Python numbers, whatever made them: NumPy's scalars count."""

import numbers
import operator
from typing import Any

from pyro_vi.errors import UsageError


def whole(name: str, value: Any) -> int:
    """The value of an option that counts something, from 1.

    Example:
        >>> whole("num_particles", 1.5)
        Traceback (most recent call last):
            ...
        pyro_vi.errors.UsageError: num_particles must be a whole number, not 1.5; say, 5
    """
    try:
        found = operator.index(value)
    except TypeError:
        found = None
    if found is None or isinstance(value, bool):
        raise UsageError(f"{name} must be a whole number, not {value!r}; say, 5")
    if found < 1:
        raise UsageError(f"{name} must be at least 1, not {found}")
    return found


def number(name: str, value: Any) -> float:
    """The value of an option that is a real number."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise UsageError(f"{name} must be a number, not {value!r}; say, 0.5")
    return float(value)

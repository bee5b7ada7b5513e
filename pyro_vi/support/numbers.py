"""Checks of arguments: a number, a word or a flag that a caller gave, as a plain Python value, or an error of one line.

* `whole` and `real` take what counts as a number in Python, NumPy and torch: 3, ``np.int64(3)``, ``np.float32(0.1)``, arrays
  and tensors without dimensions, and 1e4 as a whole number.
* `word` takes one of some words; `flag` takes True or False.

Every error names the argument and says what it must be.
"""

import difflib
import math
import operator
from collections.abc import Iterable
from typing import Any

from pyro_vi.errors import UsageError

Whole = Any
"""The type of a whole number: an int, or one of NumPy or torch. `whole` checks it, and its error names the argument."""
Real = Any
"""The type of a number, which `real` checks in the same way."""
LARGEST_SEED = 2**63 - 1
"""torch takes no larger one."""


def whole(name: str, value: Any, least: int | None = None, most: int | None = None) -> int:
    """Return a whole number as an int.

    Args:
        name: name of the argument, for the message.
        value: what the caller gave.
        least, most: the smallest and the largest number that is allowed.

    Raises:
        UsageError: the value is no whole number, or is out of range.

    Example:
        >>> whole("steps", 1e4)
        10000
        >>> whole("steps", 1.5, 1)
        Traceback (most recent call last):
        pyro_vi.errors.UsageError: steps must be a whole number of at least 1, not 1.5
    """
    number = _number(value)
    good = number is not None and math.isfinite(number) and number == int(number)
    found = int(number) if number is not None and good else 0
    if good and not ((least is not None and found < least) or (most is not None and found > most)):
        return found
    if least is not None and most is not None:
        raise UsageError(f"{name} must be a whole number from {least} to {most}, not {shown(value)}")
    bound = f" of at least {least}" if least is not None else f" of at most {most}" if most is not None else ""
    raise UsageError(f"{name} must be a whole number{bound}, not {shown(value)}")


def real(
    name: str, value: Any, *, least: float | None = None, above: float | None = None, below: float | None = None
) -> float:
    """Return a finite number as a float.

    Args:
        name: name of the argument, for the message.
        value: what the caller gave.
        least: the smallest number that is allowed.
        above, below: limits that are not allowed themselves.

    Raises:
        UsageError: the value is no finite number, or is out of range.

    Example:
        >>> real("lr", 0.5, above=0)
        0.5
        >>> real("lr", "fast", above=0)
        Traceback (most recent call last):
        pyro_vi.errors.UsageError: lr must be a number above 0, not 'fast'
    """
    number = _number(value)
    outside = (
        number is None
        or not math.isfinite(number)
        or (least is not None and number < least)
        or (above is not None and number <= above)
        or (below is not None and number >= below)
    )
    if number is not None and not outside:
        return float(number)
    limits = ((f"of at least {least}", least), (f"above {above}", above), (f"below {below}", below))
    wanted = " and ".join(text for text, limit in limits if limit is not None) or "that is finite"
    raise UsageError(f"{name} must be a number {wanted}, not {shown(value)}")


def seed_from(value: Any, name: str = "seed") -> int:
    """Return a seed as an int.

    Raises:
        UsageError: the value is no whole number, is negative, or is too large for torch.
    """
    return whole(name, value, 0, LARGEST_SEED)


def word(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return a word that is one of the choices.

    Raises:
        UsageError: it is none of them; the message names the nearest one, and all of them.

    Example:
        >>> word("method", "iv", ("iw", "exact"))
        Traceback (most recent call last):
        pyro_vi.errors.UsageError: method must be one of iw, exact, not 'iv'; did you mean 'iw'?
    """
    known = list(choices)
    if isinstance(value, str) and value in known:
        return value
    near = difflib.get_close_matches(value, known, n=1, cutoff=0.4) if isinstance(value, str) else []
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{name} must be one of {', '.join(known)}, not {shown(value)}{hint}")


def flag(name: str, value: Any) -> bool:
    """Return True or False.

    Raises:
        UsageError: the value is something else, such as a text.
    """
    if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
        return bool(value)
    raise UsageError(f"{name} must be True or False, not {shown(value)}")


def shown(value: Any) -> str:
    """Return a value in a message: its text if that is short and has one line, else its type."""
    try:
        text = repr(value)
    except Exception:  # the caller's own class may fail
        text = ""
    return text if text and len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def _number(value: Any) -> int | float | None:
    """Return a value as a Python number, or None if it does not count as one."""
    if isinstance(value, bool | str | bytes) or value is None:
        return None
    if getattr(value, "ndim", 0) != 0 or "bool" in str(getattr(value, "dtype", "")):
        return None
    try:
        return operator.index(value)
    except Exception:  # a float, or not a number
        pass
    if isinstance(value, complex) or not hasattr(type(value), "__float__"):
        return None
    try:
        return float(value)
    except Exception:
        return None

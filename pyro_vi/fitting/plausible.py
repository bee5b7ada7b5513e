"""Bounds on the values in the files of a run. A checksum shows damage only: anyone can write a file with a right checksum.

* `too_much` looks for what would take far more time or memory than the file is long.
* `wrong_config`, `wrong_records` and `wrong_state` look for entries that no fit writes.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch

DEPTH, VALUES = 50, 10**6
"""Most containers in each other, and most values that any file may hold; a longer file may hold one for each byte."""
LONGEST_NAME = 10_000
"""Most characters of the name of a program or of data, with its options."""

PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.layout)


def too_much(value: Any, size: int) -> str:
    """Return what is wrong with nested values from a file of ``size`` bytes, or an empty text.

    A container that is named many times counts each time, because whatever goes through the values meets it as often.

    Example:
        >>> ten = [0] * 10
        >>> for _ in range(6): ten = [ten] * 10
        >>> too_much(ten, 100)
        'it holds too many values'
    """
    waiting, seen = [(value, 0)], 0
    while waiting:
        item, depth = waiting.pop()
        if isinstance(item, torch.Tensor) or type(item) in PLAIN:
            continue
        if depth > DEPTH:
            return "its values are nested too deeply"
        inside = [*item, *item.values()] if isinstance(item, Mapping) else item
        if not isinstance(inside, (list, tuple, set)):
            return f"it holds a {type(item).__name__}"
        seen += len(inside)
        if seen > max(VALUES, size):
            return "it holds too many values"
        waiting += [(one, depth + 1) for one in inside]
    return ""


def wrong_config(config: Mapping[str, Any]) -> str:
    """Return what is wrong with a configuration, or an empty text.

    Example:
        >>> wrong_config({"run": "0" * 16, "seed": 0}), wrong_config({"run": "0" * 16, "seed": [0]})
        ('', "its 'seed' is none")
    """
    deep = too_much(config, 0)
    if deep:
        return deep
    for name, fits in CONFIG.items():
        if name in config and not fits(config[name]):
            return f"its '{name}' is none"
    given = config.get("given", {})
    arguments = given.get("arguments", {})
    if not isinstance(arguments, dict) or not all(isinstance(name, str) for name in arguments):
        return "its arguments are none"
    if not all(_texts(given.get(name, "")) for name in ("command", "folder", "objects")):
        return "it does not say how it was called"
    if not all(_texts(arguments.get(name) or "") for name in ("model", "guide", "data", "elbo", "elbos", "parent")):
        return "its names are none"
    return ""


def wrong_records(records: Any) -> bool:
    """True if records are none: each is a dictionary of numbers."""
    return not isinstance(records, list) or not all(
        isinstance(record, dict)
        and all(_text(key) and (value is None or _number(value)) for key, value in record.items())
        and _whole(record.get("step", 0))
        for record in records
    )


def wrong_state(state: Mapping[str, Any]) -> bool:
    """True if a checkpoint has no parameters, or does not say at which step it was written, or a record when it was made."""
    position, pair, seen = (state.get(name) for name in ("position", "pair", "convergence"))
    fits = isinstance(position, dict) and _whole(position.get("step")) and _number(position.get("seconds"))
    fits = fits and isinstance(pair, dict)
    fits = fits and all(_text(name) and isinstance(value, torch.Tensor) for name, value in dict(pair or {}).items())
    fits = fits and (seen is None or (isinstance(seen, dict) and _text(seen.get("evidence", ""))))
    best = state.get("best")
    where = best.get("best") if isinstance(best, dict) else best
    fits = fits and (where is None or (isinstance(where, list) and bool(where) and _whole(where[0])))
    return not fits or any("step" not in record for record in state["history"])


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def _texts(value: Any) -> bool:
    """True for a text, several, or some by name; numbers among them are options of a call."""
    several = [*value, *value.values()] if isinstance(value, dict) else value
    return _text(value) or (isinstance(several, list) and all(isinstance(v, int | float) or _text(v) for v in several))


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (bool, float) or (type(value) is int and abs(value) < 2**63)


def _optional(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or fits(value)


def _flag(value: Any) -> bool:
    return value is None or type(value) is bool


def _mapping(value: Any) -> bool:
    return isinstance(value, dict)


CONFIG: Mapping[str, Callable[[Any], bool]] = {
    "run": lambda value: isinstance(value, str) and len(value) == 16 and value.isalnum() and value.isascii(),
    **dict.fromkeys(("model", "guide", "data", "elbo"), _text),
    **dict.fromkeys(("optimizer", "schedule"), lambda value: value is None or _text(value)),
    **dict.fromkeys(("seed", "steps", "batch_size", "warmup"), _whole),
    **dict.fromkeys(("cycles", "accumulate", "records"), _optional(_whole)),
    "free_bits": _optional(_number),
    **dict.fromkeys(("shuffle", "drop_last"), _flag),
    **dict.fromkeys(("code", "versions", "elbo_options"), _optional(_mapping)),
    "given": _mapping,
    "parent": _optional(_mapping),
    "data_checksum": _optional(_whole),
    "heldout": _optional(lambda value: _number(value) and 0 <= value < 1),
    "kept": lambda value: isinstance(value, list) and all(map(_whole, value)),
    "changes": lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
}
"""Entries of a configuration, and what each may be."""

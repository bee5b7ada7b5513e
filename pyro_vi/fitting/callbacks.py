"""Functions of the user that see each record of a fit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pyro_vi.errors import FitError, UsageError, of_program
from pyro_vi.support import kept_generators, shown

Callback = Callable[[dict[str, Any]], Any]


class CallbackFailed(FitError):
    """A function of the user fails; the fit itself does not."""


def callbacks_of(given: Any) -> tuple[Callback, ...]:
    """Return functions as a tuple; a single one may be given by itself.

    Raises:
        UsageError: they are no functions.

    Example:
        >>> callbacks_of([print]) == callbacks_of(print)
        True
    """
    found = (given,) if callable(given) else tuple(given) if isinstance(given, (list, tuple)) else None
    wrong = given if found is None else next((one for one in found if not callable(one)), None)
    if found is None or wrong is not None:
        raise UsageError(f"callbacks must be functions that take a record, such as [print], not {shown(wrong)}")
    return found


def tell(callbacks: Sequence[Callback], record: Mapping[str, Any], keep: Callable[[], Any]) -> None:
    """Call each function with a copy of a record; what it draws does not change the fit.

    Args:
        callbacks: the functions.
        record: the record.
        keep: is called before the fit ends because a function fails: writes a checkpoint.

    Raises:
        CallbackFailed: one of them fails.
    """
    for callback in callbacks:
        try:
            with kept_generators():
                callback(dict(record))
        except Exception as error:
            keep()
            name = getattr(callback, "__qualname__", None) or type(callback).__name__
            raise CallbackFailed(
                f"callback {name} fails at step {record['step']}: {of_program(error)}; mend it, and continue the fit with "
                "resume=True if it has a folder"
            ) from error

"""The weight of the KL over the steps of a fit: a number, a warm-up, cycles, or a function.

* `weight_at` gives the weight of one step; it depends on the number of the step only.
* `beta_of` checks what a caller gave as ``beta``; `refuse_together` refuses options that exclude each other.
* `settled` is the step from which the weight stays the same until the last one.

Sources: warm-up, Bowman et al. (2016, arXiv:1511.06349); cycles, Fu et al. (2019, arXiv:1903.10145); a weight other than 1,
Higgins et al. (2017).
"""

from collections.abc import Callable
from typing import Any

from pyro_vi.errors import UsageError, kind_and_line
from pyro_vi.support import real

Beta = float | Callable[[float], Any]
"""The weight of the KL: a number, or a function of the fraction of steps that are done."""


def weight_at(step: int, steps: int, beta: Beta, warmup: int = 0, cycles: int | None = None) -> float:
    """Return the weight of the KL in the step that follows ``step`` of ``steps`` steps.

    A warm-up rises linearly from 0 to ``beta``, and stays there. With M cycles the fit is cut into M equal parts. In each, the
    weight rises linearly from 0 to ``beta`` in the first half, and stays there in the second.

    Raises:
        UsageError: ``beta`` is a function that fails, or gives no number of at least 0.

    Example:
        >>> [weight_at(step, 8, 2.0, cycles=2) for step in range(8)]
        [0.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0, 2.0]
        >>> [weight_at(step, 4, lambda done: 1 - done) for step in range(4)]
        [1.0, 0.75, 0.5, 0.25]
    """
    if callable(beta):
        return _called(beta, min(1.0, step / steps))
    if cycles:
        return beta * min(1.0, 2 * (step * cycles % steps) / steps)
    return beta * min(1.0, step / warmup) if warmup else beta


def settled(steps: int, beta: Beta, cycles: int | None) -> int:
    """Return the number of steps after which the weight of a function or of cycles no longer changes; 0 for a number.

    Example:
        >>> settled(100, 1.0, cycles=2), settled(100, lambda done: min(1.0, 4 * done), None)
        (75, 25)
    """
    if not callable(beta) and not cycles:
        return 0
    step, last = steps - 1, weight_at(steps - 1, steps, beta, 0, cycles)
    while step > 0 and weight_at(step - 1, steps, beta, 0, cycles) == last:
        step -= 1
    return step


def beta_of(name: str, value: Any) -> Beta:
    """Return a weight of the KL as a float, or as the function that it is.

    Raises:
        UsageError: it is no number of at least 0, nor a function that gives one at 0, 1/2 and 1.
    """
    if not callable(value):
        return real(name, value, least=0)
    for done in (0.0, 0.5, 1.0):
        _called(value, done)
    return value


def refuse_together(beta: Beta, warmup: int, cycles: int | None) -> None:
    """Raise UsageError for two of: a function as ``beta``, a warm-up, cycles."""
    given = [
        name
        for name, there in (("a function as beta", callable(beta)), ("warmup", warmup), ("cycles", cycles))
        if there
    ]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given[:2])} both change the weight of the KL over the steps; give one of them")


def _called(beta: Callable[[float], Any], done: float) -> float:
    try:
        value = beta(done)
    except Exception as error:
        raise UsageError(
            f"beta({done:g}) fails ({kind_and_line(error)}); give a function of the fraction of steps done, from 0 to 1"
        ) from error
    return real(f"beta({done:g})", value, least=0)

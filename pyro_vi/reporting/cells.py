"""Numbers as text, as all tables and sentences show them.

* `figure` writes a number with its error; `mean`, `evidence` and `spread` write those of results; `listed` joins names.
"""

import math
from collections.abc import Sequence

from torch import Tensor

from pyro_vi.comparing import Result, Spread
from pyro_vi.elbo import standard_error


def decimals(error: float) -> int:
    """Return the number of decimals that shows two digits of an error: from 2 to 5.

    Example:
        >>> decimals(0.3), decimals(0.0123), decimals(math.nan)
        (2, 3, 2)
    """
    known = error > 0 and math.isfinite(error)
    return min(5, max(2, 1 - math.floor(math.log10(error)))) if known else 2


def figure(value: float, error: float) -> str:
    """Write a number with its error, or without one if there is none.

    Example:
        >>> figure(-1.23456, 0.0123)
        '-1.235 ± 0.012'
    """
    places = decimals(error)
    return f"{value:.{places}f}" if math.isnan(error) else f"{value:.{places}f} ± {error:.{places}f}"


def mean(values: Tensor | None, *, error: bool = True) -> str:
    """Write the mean of values, with its standard error."""
    if values is None or bool(values.isnan().all()):
        return "-"
    number, spread = float(values.mean()), standard_error(values)
    return f"{number:.2f} ± {spread:.2f}" if error and not math.isnan(spread) else f"{number:.2f}"


def evidence(result: Result) -> str:
    """Write the evidence of a fit."""
    if result.evidence is None:
        return "-"
    value, error = (float(result.evidence.attrs[key]) for key in ("value", "se"))
    return f"{value:.2f}" if math.isnan(error) else f"{value:.2f} ± {error:.2f}"


def over_seeds(spread: Spread | None) -> str:
    """Write a mean over seeds with its standard error."""
    return "-" if spread is None else figure(spread.mean, spread.se)


def listed(names: Sequence[str]) -> str:
    """Join names in a sentence.

    Example:
        >>> listed(["a", "b", "c"])
        'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)

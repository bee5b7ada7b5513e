"""Two estimates of one number, side by side: how a finding shows that a trap is a numerical fact.

* `two_estimates` averages two losses over draws of a pair; `Estimates` holds the means, their errors and the z-score.
* `apart` is the block in which a pair runs again without a trace.
* `of_closed_forms` compares the sampled ELBO with the one that takes closed forms of the KL.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO

from pyro_vi.checking.findings import View
from pyro_vi.estimators import estimator_of
from pyro_vi.programs import isolated, kept_buffers

DRAWS = 100
"""Draws of each estimate."""
APART = 4.0
"""z-score from which two estimates are said to differ."""

Loss = Callable[[], float]


@dataclass(frozen=True)
class Estimates:
    """Two means in nats per datum, with their standard errors."""

    first: float
    first_error: float
    second: float
    second_error: float

    @property
    def z(self) -> float:
        """The difference in standard errors; infinite if it has none.

        Example:
            >>> Estimates(1.0, 0.3, 2.0, 0.4).z
            -2.0
        """
        difference, error = self.first - self.second, math.hypot(self.first_error, self.second_error)
        return difference / error if error else math.copysign(math.inf, difference) if difference else 0.0

    @property
    def differ(self) -> bool:
        """True if chance does not explain the difference."""
        return abs(self.z) > APART and not math.isclose(self.first, self.second, rel_tol=1e-5, abs_tol=1e-6)

    def words(self, first: str, second: str) -> str:
        """The numbers in a message.

        Example:
            >>> Estimates(1.0, 0.3, 2.0, 0.4).words("by draws", "in closed form")
            '1.000 ± 0.300 by draws, 2.000 ± 0.400 in closed form, z = 2.0'
        """
        one, two = (f"{value:.3f} ± {error:.3f}" for value, error in self._pairs)
        z = f"{abs(self.z):.1f}" if math.isfinite(self.z) else "∞"
        return f"{one} {first}, {two} {second}, z = {z}"

    @property
    def _pairs(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return (self.first, self.first_error), (self.second, self.second_error)


def two_estimates(view: View, first: Loss, second: Loss, draws: int = DRAWS) -> Estimates | None:
    """Average two losses of the whole data over draws; None if one of them fails or is not finite. The signs are of a bound."""
    found: list[float] = []
    for seed, loss in enumerate((first, second)):
        try:
            with apart(view, seed):
                values = torch.tensor([loss() for _ in range(draws)], dtype=torch.float64)
        except Exception:  # the finding stands without its numbers
            return None
        values = -values / (1 if view.terms is None else view.terms.num_data)
        found += [float(values.mean()), float(values.std() / math.sqrt(draws))]
    return Estimates(*found) if all(map(math.isfinite, found)) else None


def loss_of(view: View, elbo: ELBO) -> Loss:
    """The loss of an estimator, as the fit takes it."""
    estimator = estimator_of(elbo)
    return lambda: float(estimator.loss_of_pair(view.pair, view.args))


def of_closed_forms(view: View) -> str:
    """In brackets the ELBO by draws and with closed forms of the KL, which ought to be equal; empty if they do not differ."""
    both = two_estimates(view, loss_of(view, Trace_ELBO()), loss_of(view, TraceMeanField_ELBO()))
    words = f" (ELBO per datum: {both.words('by draws', 'with closed forms of the KL')})" if both is not None else ""
    return words if both is not None and both.differ else ""


@contextmanager
def apart(view: View, seed: int = 0, *, gradients: bool = False) -> Iterator[None]:
    """Run a pair again within the block: nothing that it draws, changes or warns of remains."""
    with (
        torch.set_grad_enabled(gradients),
        isolated(seed=seed, validation=False),
        kept_buffers(view.pair),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield

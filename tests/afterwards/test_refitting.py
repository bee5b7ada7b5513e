"""Calibration of shared latents by refits, on a conjugate normal model: w ~ N(0, 1), x_n | w ~ N(w, 1)."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
from catalogue import number, scalars
from torch import Tensor, nn

from pyro_vi.afterwards.refitting import refitted_calibration
from pyro_vi.data import Batch
from pyro_vi.errors import InputError, UsageError

ROWS = 9


def model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def refit(ratio: float) -> Callable[[Batch, int], Callable[[Tensor], None]]:
    """The posterior N(Σ x / (N + 1), 1 / (N + 1)), with ``ratio`` times its standard deviation."""

    def of(args: Batch, seed: int) -> Callable[[Tensor], None]:
        loc, sd = args[0].sum() / (ROWS + 1), ratio * (ROWS + 1) ** -0.5

        def guide(x: Tensor) -> None:
            pyro.sample("w", dist.Normal(loc, sd))

        return guide

    return of


def calibrated(guide: Any = "diag_normal", **options: Any) -> Any:
    return refitted_calibration(model, guide, scalars(ROWS), **{"workers": 1, "progress": False, **options})


@pytest.mark.slow
def test_exact_posteriors_pass_and_those_of_half_the_width_fail() -> None:
    found = calibrated(refit=refit(1.0), refits=100)
    assert found.attrs["verdict"] == "pass"
    assert (found.attrs["simulations"], found.attrs["failed"], found.attrs["per"]) == (100, 0, "data set")
    narrow = calibrated(refit=refit(0.5), refits=100)
    assert narrow.attrs["verdict"] == "fail"
    assert narrow.attrs["p_value"] < 1e-6
    w = narrow.sel(quantity="w")
    assert (abs(w.coverage - (0.2641, 0.4783, 0.5892, 0.6729)) < 4 * w.coverage_se).all()
    assert abs(float(w.width) - 0.5) < 4 * float(w.width_se)


class Halved(nn.Module):
    """A normal whose scale is half of what its parameter says in evaluation: fitted right, then halved."""

    def __init__(self, ratio: float) -> None:
        super().__init__()
        self.ratio = ratio
        self.loc, self.log_scale = nn.Parameter(number(0.0)), nn.Parameter(number(0.0))

    def forward(self, x: Tensor) -> None:
        scale = self.log_scale.exp() * (1.0 if self.training else self.ratio)
        pyro.sample("w", dist.Normal(self.loc, scale))


@pytest.mark.slow
def test_fitted_guides_pass_and_fitted_guides_of_half_the_width_fail() -> None:
    """Fits by gradients."""
    options = {"refits": 30, "steps": 80, "lr": 0.2}
    assert calibrated(Halved(1.0), **options).attrs["verdict"] == "pass"
    narrow = calibrated(Halved(0.5), **options)
    assert narrow.attrs["verdict"] == "fail"
    w = narrow.sel(quantity="w")
    assert abs(float(w.width) - 0.5) < 4 * float(w.width_se)


@pytest.mark.slow
def test_the_number_of_processes_changes_nothing() -> None:
    one, two = (calibrated(refits=4, steps=20, workers=workers) for workers in (1, 2))
    np.testing.assert_array_equal(one["rank"], two["rank"])


@pytest.mark.slow
def test_failures_are_counted_and_many_leave_no_verdict() -> None:
    def failing(every: int) -> Callable[[Batch, int], Any]:
        count = iter(range(1000))

        def of(args: Batch, seed: int) -> Any:
            if next(count) % every == 0:
                raise ArithmeticError("no such fit")
            return refit(1.0)(args, seed)

        return of

    few = calibrated(refit=failing(20), refits=40)
    assert (few.attrs["failed"], few.attrs["simulations"], few.attrs["verdict"]) == (2, 38, "pass")
    assert "2 of 40 refits failed and are left out; the first: ArithmeticError: no such fit." in few.attrs["sentences"]
    many = calibrated(refit=failing(2), refits=40)
    assert (many.attrs["failed"], many.attrs["verdict"]) == (20, "none")
    with pytest.raises(InputError, match="all 3 refits failed, the first as follows: ArithmeticError: no such fit"):
        calibrated(refit=failing(1), refits=3)


@pytest.mark.slow
def test_the_parameters_of_the_model_are_held() -> None:
    seen = []

    class Learned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(number(2.0))

        def forward(self, x: Tensor) -> None:
            w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(w, self.scale), obs=x)
            seen.append(float(self.scale.detach()))

    found = refitted_calibration(
        Learned(), "diag_normal", scalars(ROWS), refits=2, steps=3, lr=0.5, workers=1, progress=False
    )
    assert set(seen) == {2.0}
    assert found.attrs["sentences"][-1].startswith("The parameters of the model were held where they are")


@pytest.mark.parametrize("options", [{"out": "x"}, {"stepz": 3}, {"heldout": 0.5}])
def test_options_that_a_refit_does_not_have_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a refit has no option"):
        calibrated(**options)


def test_a_point_estimate_is_refused() -> None:
    with pytest.raises(InputError, match="a point estimate of 'w', which has no intervals"):
        calibrated("point")

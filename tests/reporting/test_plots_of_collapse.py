"""The figure of collapse shows the numbers of its dataset."""

import numpy as np
import pytest
import xarray as xr

from pyro_vi.reporting.plots_of_collapse import COLOURS, MOST, plot_collapse


def made(units: int, linear: bool = False) -> xr.Dataset:
    """Units in rising order of KL, the first half of which the decoder ignores."""
    kl = np.linspace(0, 1, units)
    low = kl < 0.5
    columns = {name: ("unit", kl) for name in ("kl", "information_lower", "information_upper")}
    columns |= {f"{name}_se": ("unit", 0.01 * kl) for name in ("kl", "information_lower", "information_upper")}
    columns |= {"active": ("unit", ~low), "cause": ("unit", np.where(low, "model", ""))}
    attrs = {"active": int((~low).sum()), "units": units, "thresholds": {"kl": 0.005}}
    if linear:
        columns |= {"eigenvalue": ("direction", [3.0, 2.0, 0.5]), "signal": ("direction", [3.0, 1.0, 1.0])}
        attrs |= {"usable": 2, "noise": 0.3}
    return xr.Dataset(columns, coords={"unit": [f"z[{i}]" for i in range(units)]}, attrs=attrs)


def test_bars_are_the_kl_in_falling_order_in_the_colour_of_the_cause():
    axes = plot_collapse(made(6)).axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], np.linspace(1, 0, 6))
    assert [text.get_text() for text in axes.get_xticklabels()] == [f"z[{i}]" for i in (5, 4, 3, 2, 1, 0)]
    found = [bar.get_facecolor()[:3] for bar in axes.patches]
    assert found[:3] == [found[0]] * 3 and found[3:] == [found[3]] * 3 and found[0] != found[3]
    assert set(COLOURS) == {"", "model", "guide", "optimiser", "unclear"}


@pytest.mark.parametrize(("units", "shown"), [(3, 3), (100, MOST)])
def test_most_units_are_those_with_the_largest_kl(units, shown):
    figure = plot_collapse(made(units, linear=True))
    assert len(figure.axes[0].patches) == shown and len(figure.axes) == 2
    assert ("not shown" in figure.get_suptitle()) == (units > MOST)
    assert figure.axes[1].get_title() == "2 eigenvalues exceed the noise"

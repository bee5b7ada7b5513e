"""The figure of a calibration shows its numbers."""

import numpy as np
import pytest
import xarray as xr

from pyro_vi.diagnostics import Ranked, band, edges, measured_calibration
from pyro_vi.diagnostics.ranking.ranks import Quantity
from pyro_vi.errors import InputError
from pyro_vi.reporting.plots_of_calibration import plot_calibration

KINDS = ("latent", "latent", "latent", "latent", "discrete", "density", "density")
NAMES = ("z[0]", "z[1]", "$z$[2]", "w", "k", "log p(x | z)", "log p(x, z)")


def made() -> xr.Dataset:
    ranks = np.random.default_rng(0).integers(0, 100, (300, len(NAMES))).astype(float)
    ranks[:, 3] = ranks[:, 3] ** 2 // 100  # too low: the worst
    ranks[50:, 0] = np.nan  # masked
    quantities = tuple(Quantity(name, name[0], kind) for name, kind in zip(NAMES, KINDS, strict=True))
    return measured_calibration(
        Ranked(quantities, ranks, 99), seed=0, attrs={"per": "datum", "rows": 10, "given": []}, notes=[]
    )


def test_the_lines_are_the_distribution_functions_and_the_band_is_exact() -> None:
    found = made()
    figure = plot_calibration(found)
    left, right = figure.axes
    lines = {line.get_label(): line for line in left.lines if not str(line.get_label()).startswith("_")}
    assert len(lines) == 5
    assert next(iter(lines)) == "w"
    ranks = found["rank"].sel(quantity="w").values
    expected = [(ranks < edge).mean() - edge / 100 for edge in edges(99)]
    np.testing.assert_allclose(lines["w"].get_ydata()[1:-1], expected, rtol=1e-12)
    fewest = int(found.number.sel(quantity=list(lines)).min())
    path = left.collections[0].get_paths()[0].vertices
    assert path[:, 1].max() == pytest.approx((band(fewest, 99)[1] - edges(99) / 100).max(), rel=1e-12)
    drawn = {tuple(np.round(container.lines[0].get_ydata(), 9)) for container in right.containers}
    assert tuple(np.round(100 * found.coverage.sel(quantity="w").values, 9)) in drawn
    assert "(the 3 worst of 5 latent numbers)" in figure.get_suptitle()


def test_without_numbers_there_is_no_figure() -> None:
    nothing = xr.Dataset(attrs={"verdict": "none", "sentences": ["Nothing was simulated."]})
    with pytest.raises(InputError, match="there is no calibration to draw: Nothing was simulated"):
        plot_calibration(nothing)

"""Estimators keep their look over all plots."""

from made_comparisons import NAMES, comparison
from matplotlib.colors import to_hex

from pyro_vi.comparing import Comparison
from pyro_vi.reporting.look import looks
from pyro_vi.reporting.plots_of_fits import value_against_gradient


def test_estimators_differ_in_colour_and_marker_and_keep_them() -> None:
    found = looks(NAMES)
    assert len({look.colour for look in found.values()}) == len({look.marker for look in found.values()}) == 6
    assert looks(NAMES[:3])["stl"].colour == found["stl"].colour
    # An audit may name the estimators in another order than the fits; the colours are the fits'.
    made = comparison(NAMES[:2])
    swapped = {step: one.sel(elbo=["mean_field", "trace"]) for step, one in made.audits.items()}
    figure = value_against_gradient(
        Comparison(made.model, made.guide, made.data, 0, made.results, swapped),
    )
    assert [to_hex(line.get_color()) for line in figure.axes[0].lines] == [
        look.colour.lower() for look in looks(NAMES[:2]).values()
    ]

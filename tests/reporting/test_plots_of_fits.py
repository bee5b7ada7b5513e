"""Plots: what is drawn are the records and the audits, with their units, and nothing global is changed."""

from typing import Any

import matplotlib
import numpy as np
import pytest
from made_comparisons import NAMES, comparison
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from pyro_vi.comparing import Comparison
from pyro_vi.reporting.look import looks
from pyro_vi.reporting.plots_of_fits import (
    gradient_variance,
    has_several_sites,
    terms_by_site,
    training_curves,
    value_against_gradient,
)

PLOTS = (training_curves, terms_by_site, gradient_variance, value_against_gradient)


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_training_curves_draw_the_records() -> None:
    made = comparison()
    figure = training_curves(made)
    elbo, reconstruction, kl = figure.axes
    for axes in figure.axes:
        assert axes.get_xlabel() == "step" and axes.get_ylabel() == "nats per datum"
    assert [axes.get_title() for axes in figure.axes] == ["ELBO", "reconstruction", "KL"]
    drawn = {line.get_label(): line for axes in figure.axes for line in axes.lines}
    assert len(elbo.lines) == 4 and len(reconstruction.lines) == len(kl.lines) == 2
    for name, result in made.results.items():
        for key in ("elbo", "reconstruction", "kl"):
            line = drawn[f"{name}, {key}"]
            np.testing.assert_array_equal(line.get_ydata(), [r[key] for r in result.run.history])
            assert line.get_linestyle() == "-" and line.get_color() == looks(made.results)[name].colour
        held = [r for r in result.run.history if r.get("heldout_elbo") is not None]
        line = drawn[f"{name}, heldout_elbo"]
        np.testing.assert_array_equal(line.get_xdata(), [r["step"] for r in held])
        np.testing.assert_array_equal(line.get_ydata(), [r["heldout_elbo"] for r in held])
        assert line.get_linestyle() == "--" and line.get_color() == looks(made.results)[name].colour
    assert legend_of(figure) == ["trace", "mean_field", "training", "held out"]
    assert "model a model, guide a guide, data array" in figure.get_suptitle()


def test_the_start_of_a_fit_does_not_set_the_scale() -> None:
    figure = training_curves(comparison())
    low, high = figure.axes[0].get_ylim()
    assert -25 < low < -22 and -21 < high < -19  # where the curves of the last three quarters are
    assert "first quarter" in figure.get_suptitle()


def test_a_fit_without_records_leaves_empty_panels() -> None:
    made = comparison(("trace",))
    made.results["trace"].run.history.clear()
    assert all(not line.get_ydata().size for axes in training_curves(made).axes for line in axes.lines)


def test_terms_by_site_draw_a_line_for_each_site() -> None:
    made = comparison()
    assert not has_several_sites(made)
    history = made.results["trace"].run.history
    for record in history:
        record["kl_w$"] = 2.0
    for record in made.results["mean_field"].run.history:
        del record["term_x"], record["kl_z"]
    assert has_several_sites(made)
    observed, latent = terms_by_site(made).axes
    assert (observed.get_title(), latent.get_title()) == ("trace: E log p of observed sites", "trace: KL")
    (line,) = observed.lines
    np.testing.assert_array_equal(line.get_ydata(), [r["reconstruction"] for r in history])
    assert [line.get_label() for line in latent.lines] == ["kl_z", "kl_w$"]
    said = " ".join(terms_by_site(made).get_suptitle().split())  # it is broken where the figure ends
    assert "not applicable to mean_field" in said
    assert "vertical ranges: 1 to 99 % of the values after the first quarter of the steps" in said


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[:2], NAMES], ids=len)
@pytest.mark.parametrize("steps", [(0,), (0, 1, 10, 1000, 1001)], ids=len)
def test_gradient_variance_draws_the_audits(names: tuple[str, ...], steps: tuple[int, ...]) -> None:
    made = comparison(names, steps)
    figure = gradient_variance(made)
    assert [axes.get_title() for axes in figure.axes] == ["model parameters", "guide parameters"]
    assert "nats per datum" in figure.axes[0].get_ylabel() and "2 standard errors" in figure.get_suptitle()
    assert legend_of(figure) == list(names)
    for axes, part in zip(figure.axes, ("model", "guide"), strict=True):
        assert axes.get_yscale() == "log"
        assert [text.get_text() for text in axes.get_xticklabels()] == [str(step) for step in steps]
        places = []
        for name, container in zip(names, axes.containers, strict=True):
            assert isinstance(container, ErrorbarContainer)
            expected = [made.audits[step].sel(elbo=name, part=part) for step in steps]
            line, _, (bars,) = container
            np.testing.assert_allclose(line.get_ydata(), [float(one.part_grad_var) for one in expected])
            heights = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
            np.testing.assert_allclose(heights, [4 * float(one.part_grad_var_se) for one in expected])
            assert line.get_color() == looks(names)[name].colour
            places.append(np.asarray(line.get_xdata()))
        # The model's variances are equal for all, and yet no point hides another; each is nearest to its own step.
        assert all(abs(np.asarray(place) - range(len(steps))).max() < 0.5 for place in places)
        assert len({place[0] for place in places}) == len(names)


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[:2], NAMES], ids=len)
@pytest.mark.parametrize("steps", [(0,), (0, 1, 10, 1000, 1001)], ids=len)
def test_value_against_gradient_draws_the_audits(names: tuple[str, ...], steps: tuple[int, ...]) -> None:
    made = comparison(names, steps)
    figure = value_against_gradient(made)
    assert legend_of(figure) == list(names)
    for axes, part in zip(figure.axes, ("model", "guide"), strict=True):
        assert axes.get_xscale() == axes.get_yscale() == "log"
        assert axes.get_xlabel() == "sd of the value (nats per datum)"
        for name, line in zip(names, axes.lines, strict=True):
            audits = [made.audits[step].sel(elbo=name, part=part) for step in steps]
            np.testing.assert_allclose(line.get_xdata(), [float(one.value_sd) for one in audits])
            np.testing.assert_allclose(line.get_ydata(), [float(one.part_grad_var) ** 0.5 for one in audits])
        told = {text.get_text() for text in axes.texts}
        assert told == ({str(step) for step in steps} if len(names) <= 3 else {str(steps[0]), str(steps[-1])})


@pytest.mark.parametrize("plot", [gradient_variance, value_against_gradient])
def test_a_variance_of_zero_is_told_not_drawn(plot: Any) -> None:
    made = comparison()
    made.audits[50].part_grad_var.loc[{"elbo": "trace", "part": "guide"}] = 0.0
    for one in made.audits.values():
        one.part_grad_var.loc[{"part": "model"}] = 0.0
    model, guide = plot(made).axes
    assert [text.get_text() for text in model.texts] == ["0 for all estimators"]
    assert "0 at a step, not shown: trace" in [text.get_text() for text in guide.texts]
    first = guide.containers[0][0] if guide.containers else guide.lines[0]
    np.testing.assert_array_equal(np.isfinite(first.get_ydata()), [True, False, True])


def test_labels_read_as_numbers_within_a_decade() -> None:
    made = comparison()
    for k, one in enumerate(made.audits.values()):
        one.part_grad_var[:] = 2.0 + k
    axes = gradient_variance(made).axes[0]
    low, high = axes.get_ylim()
    ticks = [tick for tick in axes.yaxis.get_major_locator()() if low <= tick <= high]
    assert len(ticks) >= 2
    assert [float(axes.yaxis.get_major_formatter()(tick)) for tick in ticks] == pytest.approx(ticks)


@pytest.mark.slow
@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("names", [NAMES[:1], tuple(f"{name}(num_particles=4)" for name in NAMES)], ids=len)
def test_no_text_is_cut_off(plot: Any, names: tuple[str, ...]) -> None:
    figure = plot(comparison(names))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())
    assert box.x0 >= -0.01 and box.y0 >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01 and box.y1 <= figure.get_figheight() + 0.01


@pytest.mark.parametrize("plot", PLOTS)
def test_a_name_with_dollar_signs_is_no_mathematics(plot: Any) -> None:
    made = comparison(("$\\wrong$",))
    FigureCanvasAgg(plot(Comparison("$\\model$", "g", made.data, 0, made.results, made.audits))).draw()


@pytest.mark.parametrize("plot", PLOTS)
def test_nothing_global_is_changed(plot: Any) -> None:
    before = dict(matplotlib.rcParams)
    plot(comparison())
    assert dict(matplotlib.rcParams) == before
    assert not Gcf.get_all_fig_managers()

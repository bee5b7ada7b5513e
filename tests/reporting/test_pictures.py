"""Pictures of model and data: what they show is what was computed."""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.figure import Figure
from picture_toys import (
    LENGTHS,
    TARGET,
    Plane,
    Topics,
    by_class,
    comparison,
    copy,
    copying,
    keys,
    line,
    mostly_second,
    narrow,
    nothing,
    of_class,
    parent,
    pressed,
    sequences,
    slopes,
    table,
    two,
    vectors,
    walk,
    walked,
)

from pyro_vi.data import ColumnSpec, load
from pyro_vi.errors import InputError
from pyro_vi.reporting.pictures import globals as of_globals
from pyro_vi.reporting.pictures.classes import samples_by_class
from pyro_vi.reporting.pictures.components import components
from pyro_vi.reporting.pictures.densities import density
from pyro_vi.reporting.pictures.globals import coefficients, marginals
from pyro_vi.reporting.pictures.latents import CLASSES, in_the_plane, latent_means
from pyro_vi.reporting.pictures.predictions import predictions
from pyro_vi.reporting.pictures.sequences import piano_roll
from pyro_vi.reporting.pictures.series import bands, paths
from pyro_vi.reporting.pictures.words import top_words


def points_of(axes: object) -> list[np.ndarray]:
    return [np.asarray(one.get_offsets()) for one in axes.collections if len(one.get_offsets())]  # type: ignore[attr-defined]


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for axes in figure.findobj(lambda a: hasattr(a, "texts")) for text in axes.texts]


# Latent means.


def test_two_dimensions_are_shown_as_they_are_each_class_in_its_colour() -> None:
    x, y = vectors(60, 2), torch.arange(60) % 3
    made = comparison(copying, copy, x, classes=("a", "b", "c"))
    index = made.data.num_heldout
    labels = y[:index]
    made = comparison(copying, copy, x, heldout_labels=labels, classes=("a", "b", "c"))
    (axes,) = latent_means(made).axes
    heldout = made.data.heldout[0].numpy()
    found = points_of(axes)
    assert len(found) == 3
    for k, points in enumerate(found):
        np.testing.assert_allclose(points, 2 * heldout[labels.numpy() == k], rtol=1e-5)
    names = [text.get_text() for text in axes.texts]
    assert names == ["a", "b", "c"]
    np.testing.assert_allclose(axes.texts[1].get_position(), np.median(found[1], 0))
    assert axes.get_xlabel() == "$z_1$" and axes.get_aspect() == 1


def test_more_dimensions_are_shown_by_their_principal_components() -> None:
    x = vectors(200, 3) * np.array([1, 5, 0.1], dtype="float32")
    figure = latent_means(comparison(copying, copy, x))
    (axes,) = figure.axes
    means = 2 * comparison(copying, copy, x).data.heldout[0].double().numpy()
    values, vectors_ = np.linalg.eigh(np.cov(means.T))
    shares = 100 * values[::-1] / values.sum()
    assert (
        axes.get_xlabel() == f"PC 1 ({shares[0]:.0f} % of the variance)"
        and axes.get_ylabel() == f"PC 2 ({shares[1]:.0f} %)"
    )
    (points,) = points_of(axes)
    first = (means - means.mean(0)) @ vectors_[:, -1]
    np.testing.assert_allclose(np.abs(points[:, 0]), np.abs(first), rtol=1e-4, atol=1e-6)


def test_components_have_the_sign_that_makes_their_largest_weight_positive() -> None:
    values = vectors(50, 4).astype(float)
    points, _ = in_the_plane(values)
    again, _ = in_the_plane(values[::-1])
    np.testing.assert_allclose(again[::-1], points, atol=1e-12)
    weights = np.linalg.lstsq(values - values.mean(0), points, rcond=None)[0]
    assert all(column[np.abs(column).argmax()] > 0 for column in weights.T)


def test_rows_without_a_label_and_classes_beyond_ten_are_grey() -> None:
    labels = torch.tensor([-1, *range(12), *range(10)])
    made = comparison(copying, copy, vectors(230, 2), heldout_labels=labels, classes=tuple(map(str, range(12))))
    figure = latent_means(made)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [*map(str, range(10)), "2 other classes"]
    sizes = [len(points) for points in points_of(figure.axes[0])]
    assert sizes == [3, *[2] * 10]
    assert len(set(CLASSES)) == 10


# Classes.


def test_a_row_of_samples_for_each_class() -> None:
    x, y = vectors(30, 64), np.arange(30) % 3
    made = comparison(
        by_class,
        of_class,
        (x, y),
        image_shape=(8, 8),
        others=(ColumnSpec("label", (), "class", ("no", "yes", "both")),),
    )
    (axes,) = samples_by_class(made, columns=4).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["no", "yes", "both"]
    image = axes.images[0].get_array().filled(np.nan)
    assert image.shape == (3 * 9 - 1, 4 * 9 - 1)
    for k in range(3):
        np.testing.assert_allclose(image[9 * k : 9 * k + 8, :8], k / 10, atol=1e-6)


# Components.


def test_each_datum_has_the_colour_of_its_component() -> None:
    x = np.concatenate([vectors(60, 2) - 10, vectors(60, 2) + 10])
    made = comparison(two, nothing, x)
    figure = components(made)
    heldout = made.data.heldout[0].numpy()
    found = points_of(figure.axes[0])
    np.testing.assert_allclose(found[0], heldout[heldout[:, 0] < 0])
    np.testing.assert_allclose(found[1], heldout[heldout[:, 0] > 0])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["k 0", "k 1"]


def test_components_that_are_the_classes_of_the_labels_have_their_names() -> None:
    label = (ColumnSpec("label", (), "class", ("hare", "fox")),)

    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(k.float().unsqueeze(-1).expand(x.shape), 1.0).to_event(1), obs=x)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.nn.functional.one_hot((x[:, 0] > 0).long(), 2).float()))

    figure = components(comparison(model, guide, (vectors(30, 2), np.arange(30) % 2), others=label))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["hare", "fox"]


@pytest.mark.slow
def test_a_latent_around_its_component_keeps_the_guides_draw() -> None:
    """infer_discrete takes event dimensions for batch dimensions, unless the guide's draws count as observed."""
    x = np.concatenate([vectors(60, 3) - 10, vectors(60, 3) + 10])
    made = comparison(parent, copy, x)
    figure = components(made)
    assert [len(points) for points in points_of(figure.axes[0])] == np.bincount(made.data.heldout[0][:, 0] > 0).tolist()


# Shared latents.


def test_coefficients_have_the_names_of_the_columns_and_the_quantiles_of_the_guide() -> None:
    made = comparison(line, slopes, table(), ("one", "two"), features=("age", "sex", "bmi"), others=TARGET)
    (axes,) = coefficients(made).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["age", "sex", "bmi"]
    medians = [one.get_xdata() for one in axes.lines[1:]]
    thin, thick = (np.array(axes.collections[k].get_segments())[:, :, 0] for k in (0, 1))
    for median in medians:
        np.testing.assert_allclose(median, [1, 2, 3], atol=4 * 0.5 * 1.2533 / 2000**0.5)
    # The standard error of a quantile of 2000 normal draws: sqrt(p (1 - p) / 2000) / density, times the sd of 1/2.
    np.testing.assert_allclose(thin - np.array([[1], [2], [3]]), [[-0.8224, 0.8224]] * 3, atol=4 * 0.0236)
    np.testing.assert_allclose(thick - np.array([[1], [2], [3]]), [[-0.3372, 0.3372]] * 3, atol=4 * 0.0153)


@pytest.mark.parametrize("names", [("age",), ("age", "bmi")])
def test_an_intercept_and_a_bias_are_no_coefficients_though_they_are_as_many_as_the_columns(names) -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        bias = pyro.sample("bias", dist.Normal(torch.zeros(x.shape[1]), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(intercept + (x + bias).tanh().sum(-1), 0.1), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.sample("intercept", dist.Normal(9.0, 1e-3))
        pyro.sample("bias", dist.Normal(torch.zeros(x.shape[1]), 1e-3).to_event(1))

    made = comparison(model, guide, table(40, len(names)), others=TARGET, features=names)
    with pytest.raises(InputError, match="multiplies the named columns"):
        coefficients(made)


@pytest.mark.slow
def test_of_a_single_column_the_coefficient_is_not_the_intercept() -> None:
    made = comparison("regression", "diag_normal", table(40, 1), features=("age",))
    (axes,) = coefficients(made).axes
    assert axes.get_xlabel().startswith("weights")


@pytest.mark.slow
def test_marginals_say_how_wide_the_guide_is_beside_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = {f"slopes[{k}]": np.random.default_rng(k).normal(k, 1.0, 4000) for k in (1, 2)}
    monkeypatch.setattr(of_globals, "reference_of", lambda facts: draws)
    figure = marginals(comparison(line, slopes, table(40, 2), others=TARGET))
    assert [axes.get_xlabel() for axes in figure.axes] == ["slopes[1]", "slopes[2]"]
    for axes in figure.axes:
        np.testing.assert_allclose(float(axes.texts[0].get_text()), 0.5, atol=0.5 * 4 * 0.02)
        curve = axes.lines[0].get_xydata()
        area = np.trapezoid(curve[:, 1], curve[:, 0])
        np.testing.assert_allclose(area, 1, atol=0.02)
    bars = figure.axes[0].patches
    np.testing.assert_allclose(sum(bar.get_height() * bar.get_width() for bar in bars), 1, rtol=1e-6)


def test_a_reference_finds_the_coefficients_of_a_regression() -> None:
    every = {"intercept": np.zeros(1), "weights[1]": np.ones(1), "weights[2]": 2 * np.ones(1), "scale": 3 * np.ones(1)}
    reference = dict.fromkeys(("beta[1]", "beta[2]", "beta[3]", "sigma", "theta[1]"), np.zeros(1))
    found = {name: of_globals._by_reference(name, every, reference) for name in reference}
    assert [None if one is None else float(one[0]) for one in found.values()] == [0, 1, 2, 3, None]


def test_predictions_are_those_of_the_guides_draws() -> None:
    made = comparison(line, slopes, table(60, 1), others=TARGET)
    figure = predictions(made)
    (axes,) = figure.axes
    order = np.argsort(made.data.heldout[0][:, 0].numpy()) if made.data.num_heldout else slice(None)
    x, y = (column.numpy() for column in made.pictured()[1])
    order = np.argsort(x[:, 0], kind="stable")
    median, observed = axes.lines
    np.testing.assert_allclose(median.get_xdata(), x[order, 0])
    np.testing.assert_allclose(median.get_ydata(), x[order, 0], atol=4 * 0.55 * 1.2533 / 400**0.5 * 2)
    np.testing.assert_array_equal(observed.get_ydata(), y)
    assert axes.get_title().endswith("% of the data inside 90 %")


def test_the_band_of_a_truth_value_is_that_of_its_probability() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=slope * x[..., 0]), obs=y.float())

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.sample("slope", dist.Normal(2.0, 1e-4))

    x = vectors(40, 1)
    label = (ColumnSpec("label", (), "class", ("no", "yes")),)
    (axes,) = predictions(comparison(model, guide, (x, (x[:, 0] > 0).astype(int)), others=label)).axes
    at, probability = axes.lines[0].get_data()
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-2 * at)), atol=1e-3)


@pytest.mark.slow
def test_of_classes_the_shares_of_the_predictions_are_stacked() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> None:
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            sure = torch.nn.functional.one_hot((x[:, 0] > 0).long() + 1, 3)
            pyro.sample("y", dist.Categorical(logits=40.0 * sure + shift), obs=y)

    def guide(x: torch.Tensor, y: torch.Tensor) -> None:
        pyro.sample("shift", dist.Normal(0.0, 1e-4))

    x = vectors(400, 2)
    y = (x[:, 0] > 0).astype(int) + 1
    y[::4] = 0  # the model is wrong about these
    label = (ColumnSpec("label", (), "class", ("no", "yes", "maybe")),)
    made = comparison(model, guide, (x, y), others=label)
    figure = predictions(made)
    (axes,) = figure.axes
    x, y = (column.numpy() for column in made.pictured()[1])
    assert axes.get_title() == f"{100 * (y > 0).mean():.0f} % have the class with the largest probability"
    shares = np.array([bar.get_height() for bar in axes.patches]).reshape(4, len(y))[:3]
    np.testing.assert_array_equal(shares[0], 0)
    np.testing.assert_array_equal(shares[1] + shares[2], 1)
    wrong = (y == 0).sum()
    assert shares[2][:wrong].sum() == (x[y == 0][:, 0] > 0).sum()
    np.testing.assert_array_equal(shares[2][wrong:], np.sort(y[y > 0]) == 2)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["no", "yes", "maybe"]


def test_marginals_of_coefficients_have_the_names_of_their_columns() -> None:
    figure = marginals(comparison(line, slopes, table(40, 2), others=TARGET, features=("age", "bmi")))
    assert [axes.get_xlabel() for axes in figure.axes] == ["slopes[age]", "slopes[bmi]"]


@pytest.mark.slow
def test_marginals_of_groups_have_the_names_of_the_groups() -> None:
    frame = pd.DataFrame({"age": vectors(40, 1)[:, 0], "y": vectors(40, 2)[:, 1], "school": [7, 101] * 20})
    figure = marginals(comparison("regression", "diag_normal", load(frame, target="y", group="school")))
    names = ["intercept", "weights", "group_scale", "group[7]", "group[101]", "scale"]
    assert [axes.get_xlabel() for axes in figure.axes] == names


# The plane.


def test_contours_hold_their_probability_and_draws_are_counted_in_them() -> None:
    figure = density(comparison(Plane(), narrow, None))
    true, drawn = figure.axes
    radii = sorted(np.hypot(*path.vertices.T).mean() for path in true.collections[-1].get_paths() if len(path.vertices))
    # A standard normal in the plane has the share 1 - exp(-r² / 2) within r.
    np.testing.assert_allclose(radii, np.sqrt(-2 * np.log(1 - np.array([0.5, 0.9, 0.99]))), rtol=0.02)
    shares = [float(one) for one in drawn.get_title().split("\n")[1].removesuffix(" % inside").split(",")]
    # Half of the standard deviation: within r are 1 - exp(-2 r²) = 1 - (1 - p)^4.
    exact = 100 * (1 - (1 - np.array([0.5, 0.9, 0.99])) ** 4)
    np.testing.assert_allclose(shares, exact, atol=0.5 + 4 * 100 * 0.0054)
    points = next(one for one in points_of(drawn) if len(one) == 2000)
    np.testing.assert_allclose(points.std(0), 0.5, atol=0.5 * 4 / 4000**0.5)


def test_of_more_latents_the_density_is_that_of_the_first_two_numbers() -> None:
    class Space(Plane):
        def forward(self) -> None:
            pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def guide() -> None:
        pyro.sample("u", dist.Normal(2.0, 0.1))
        pyro.sample("w", dist.Normal(torch.tensor([-1.0, 5.0, 5.0]), 0.1).to_event(1))

    _, drawn = density(comparison(Space(), guide, None)).axes
    points = next(one for one in points_of(drawn) if len(one) == 2000)
    np.testing.assert_allclose(points.mean(0), [2, -1], atol=4 * 0.1 / 2000**0.5)
    assert drawn.get_xlabel() == "u"


# Series.


def test_bands_are_around_the_observations_up_to_the_length() -> None:
    made = comparison(walk, walked, sequences(), others=LENGTHS, features=("hand x", "hand y"))
    x, lengths = (column.numpy() for column in made.data.heldout)
    figure = bands(made)
    panels = np.array(figure.axes).reshape(len(x[:3]), 2)
    assert [axes.get_title() for axes in panels[0]] == ["hand x", "hand y"]
    for row, line_ in enumerate(panels):
        for d, axes in enumerate(line_):
            steps = lengths[row]
            median, low, high, observed = axes.lines
            for one in (median, observed):
                np.testing.assert_array_equal(one.get_xdata(), 1 + np.arange(steps))
                np.testing.assert_allclose(one.get_ydata(), x[row, :steps, d], atol=1e-4)
            np.testing.assert_allclose(high.get_ydata() - low.get_ydata(), 2 * 1.645 * 0.1, atol=4 * 2 * 0.1 * 0.15)


@pytest.mark.parametrize("shape", [(40,), (40, 1), (1, 40, 1)])
def test_data_in_no_plate_with_a_latent_for_each_step_are_one_series(shape: tuple[int, ...]) -> None:
    def model(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(39), 1.0).to_event(1))  # the first value starts the series
        pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=x.reshape(-1)[1:])

    def guide(x: torch.Tensor) -> None:
        pyro.sample("z", dist.Normal(x.reshape(-1)[1:], 1e-4).to_event(1))

    made = comparison(model, guide, load(vectors(40, 1).reshape(shape), heldout=0.0))
    (axes,) = bands(made).axes
    x = made.pictured()[1][0].reshape(-1).numpy()
    median, *_, observed = axes.lines
    np.testing.assert_array_equal(median.get_xdata(), np.arange(2, 41))
    np.testing.assert_allclose(median.get_ydata(), x[1:], atol=1e-4)
    np.testing.assert_array_equal(observed.get_ydata(), x)


def test_paths_are_in_the_plane_of_x_and_y() -> None:
    made = comparison(walk, walked, sequences(columns=3), others=LENGTHS, features=("angle", "hand x", "hand y"))
    x, lengths = (column.numpy() for column in made.data.heldout)
    figure = paths(made)
    for k, axes in enumerate(figure.axes):
        *draws, observed, start = axes.lines
        assert len(draws) == 10
        for one in (*draws, observed):
            np.testing.assert_allclose(one.get_xydata(), x[k, : lengths[k], 1:], atol=1e-3)
        np.testing.assert_array_equal(start.get_xydata(), x[k, :1, 1:])
    assert figure.axes[0].get_ylabel() == "hand y"


def test_a_piano_roll_has_what_was_played_low_notes_below() -> None:
    x, lengths = sequences(20, 12, 88)
    rolls = (x > 2).float()
    made = comparison(keys, pressed, (rolls, lengths), others=LENGTHS, support="boolean")
    figure = piano_roll(made)
    panels = np.array(figure.axes).reshape(3, 2)
    heldout, steps = (column.numpy() for column in made.data.heldout)
    for k, number in enumerate([int(axes.get_title().split()[-1]) - 1 for axes in panels[0]]):
        expected = heldout[number, : steps[number]].T
        for axes in panels[:2, k]:
            (image,) = axes.images
            np.testing.assert_allclose(image.get_array(), expected, atol=1e-6)
            assert image.origin == "lower" and image.get_clim() == (0, 1)
    assert set(np.unique(panels[2, 0].images[0].get_array())) <= {0.0, 1.0}
    ticks = dict(zip(panels[0, 0].get_yticks(), [t.get_text() for t in panels[0, 0].get_yticklabels()], strict=True))
    assert ticks[39] == "C4"  # the 40th key of a piano is middle C


# Words.


def test_there_are_no_more_words_than_the_vocabulary_has() -> None:
    figure = top_words(comparison(Topics(), mostly_second, np.ones((30, 4), dtype=int)))
    assert texts_of(figure)[1:5] == ["3", "2", "1", "0"]


def test_topics_are_in_the_order_of_their_shares_with_their_words() -> None:
    counts = np.random.default_rng(0).poisson(3, (40, 4))
    made = comparison(Topics(), mostly_second, counts, features=("cat", "dog", "bird", "fish"))
    texts = texts_of(top_words(made, n=2))
    shown = [text for text in texts if text]
    assert shown[:6] == ["80.0 %", "fish", "bird", "20.0 %", "cat", "dog"]


# Refusals.


@pytest.mark.parametrize(
    "picture",
    [samples_by_class, components, coefficients, predictions, density, bands, paths, piano_roll, top_words, marginals],
)
def test_a_picture_says_what_it_lacks(picture) -> None:
    with pytest.raises(InputError, match="no "):
        picture(comparison(copying, copy, vectors(30, 2)))

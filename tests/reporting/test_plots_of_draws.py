"""Pictures: the images and lines are the data, E[x | z] and nothing else, for any program; what does not fit is left out."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib._pylab_helpers import Gcf
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pyro import poutine
from torch import Tensor

from pyro_vi.comparing import Comparison, Result
from pyro_vi.data.loading import load
from pyro_vi.elbo.heldout import Evaluation
from pyro_vi.errors import InputError
from pyro_vi.fitting.runs import Run
from pyro_vi.programs.build import build_pair
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.pair import Pair
from pyro_vi.reporting.look import looks
from pyro_vi.reporting.plots_of_draws import latent_traversal, prior_samples, reconstructions
from pyro_vi.reporting.saving import save

PICTURES = (reconstructions, prior_samples, latent_traversal)
VAE = "vae(latent_dim=3)"


def comparison(model: Any, guide: Any, data: Any, names: tuple[str, ...] = ("trace", "mean_field")) -> Comparison:
    """A comparison of pairs that were not fitted, each with initial parameters of its own."""
    made, results = load(data), {}
    for seed, name in enumerate(names):
        pair = build_pair(model, guide, made, seed=seed)
        run = Run(pair, name, made, [{"step": 1, "elbo": -1.0, "reconstruction": -1.0, "kl": 0.0}], {}, 1, 1.0, {})
        results[name] = Result(run, "ELBO", "elbo", {}, Evaluation(torch.zeros(3), torch.zeros(3)), None)
    title = [program if isinstance(program, str) else "own" for program in (model, guide)]
    return Comparison(*title, made, 0, results, {})


def vectors(features: int, rows: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(2.0, 1.0, (rows, features)).astype("float32")


def pairs_of(made: Comparison) -> dict[str, Any]:
    return {name: result.run.pair for name, result in made.results.items()}


def reconstructed(pair: Pair, x: Tensor) -> np.ndarray:
    """E[x | z] by the model's own method, at the draw that the picture takes."""
    with isolated(0), torch.no_grad():
        z = poutine.trace(pair.guide).get_trace(x).nodes["z"]["value"]
        return pair.model.decode(z).numpy()  # type: ignore[operator]


def mosaic(values: np.ndarray, rows: int, gap: int = 1) -> np.ndarray:
    """Images of shape (n, height, width) in so many rows, with gaps of NaN."""
    columns = []
    for image in values:
        columns.append(np.pad(image, ((0, gap), (0, gap)), constant_values=np.nan))
    across = len(values) // rows
    lines = [np.concatenate(columns[r * across : (r + 1) * across], 1) for r in range(rows)]
    return np.concatenate(lines)[:-gap, :-gap]


def images_of(figure: Figure) -> list[Any]:
    return [image for axes in figure.axes for image in axes.images]


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("names", [("trace",), ("trace", "mean_field", "a", "b", "c", "d")], ids=len)
def test_reconstructions_are_the_data_and_the_decoded_draws(names: tuple[str, ...]) -> None:
    made = comparison(VAE, "diag_normal", "digits", names)
    figure = reconstructions(made)
    x = made.data.heldout[0][:10]
    data, *shown = images_of(figure)
    np.testing.assert_array_equal(data.get_array().filled(np.nan), mosaic(x.reshape(10, 8, 8).numpy(), 1))
    assert len(shown) == len(names)
    for image, pair in zip(shown, pairs_of(made).values(), strict=True):
        expected = mosaic(reconstructed(pair, x).reshape(10, 8, 8), 1)
        np.testing.assert_allclose(image.get_array().filled(np.nan), expected, rtol=1e-6)
    assert [axes.get_ylabel() for axes in figure.axes] == ["data", *names]
    assert [axes.yaxis.label.get_color() for axes in figure.axes[1:]] == [look.colour for look in looks(names).values()]
    assert f"model {VAE}, guide diag_normal, data digits" in figure.get_suptitle()


@pytest.mark.parametrize("picture", PICTURES)
def test_all_images_have_one_grey_scale_and_no_interpolation(picture: Any) -> None:
    figure = picture(comparison(VAE, "diag_normal", "digits"))
    for image in images_of(figure):
        assert (
            image.get_clim() == (0.0, 1.0) and image.get_interpolation() == "none" and image.get_cmap().name == "gray"
        )
    for axes in figure.axes:
        assert not any(tick.tick1line.get_markersize() for tick in [*axes.xaxis.get_major_ticks()])


def test_the_grey_scale_of_real_data_is_that_of_all_of_them() -> None:
    made = comparison(VAE, "diag_normal", "digits(binarize=False)")
    x = made.data.heldout[0]
    wanted = (0.0, 1.0) if made.data.spec.support == "unit_interval" else (float(x.min()), float(x.max()))
    assert {image.get_clim() for image in images_of(reconstructions(made))} == {wanted}


def test_data_that_are_no_images_are_points_with_a_line_for_each_estimator() -> None:
    made = comparison("linear_gaussian(latent_dim=2)", "diag_normal", vectors(5))
    figure = reconstructions(made, n=7)
    x = made.data.heldout[0][:7]
    expected = {name: reconstructed(pair, x) for name, pair in pairs_of(made).items()}
    assert len(figure.axes) == 7 and not images_of(figure)
    for k, axes in enumerate(figure.axes):
        data, *lines = axes.lines
        np.testing.assert_array_equal(data.get_ydata(), x[k])
        np.testing.assert_array_equal(data.get_xdata(), [1, 2, 3, 4, 5])
        assert data.get_linestyle() == "None" and data.get_marker() == "."
        for name, line in zip(expected, lines, strict=True):
            np.testing.assert_allclose(line.get_ydata(), expected[name][k], rtol=1e-5)
            assert line.get_linestyle() == "-" and line.get_color() == looks(expected)[name].colour
    assert legend_of(figure) == ["data", "trace", "mean_field"]
    assert figure.axes[-1].get_xlabel() == "feature" and figure.axes[0].get_ylabel() == "x"


def test_single_numbers_share_one_panel() -> None:
    made = comparison("linear_gaussian(latent_dim=1)", "diag_normal", vectors(1))
    figure = reconstructions(made)
    (axes,) = figure.axes
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), made.data.heldout[0][:10, 0])
    assert axes.get_xlabel() == "held-out datum" and all(line.get_marker() not in ("", "None") for line in axes.lines)
    walk = latent_traversal(made)
    for axes, pair in zip(walk.axes, pairs_of(made).values(), strict=True):
        z = np.linspace(-3, 3, 9)
        expected = pair.model.decode(torch.tensor(z, dtype=torch.float32)[:, None]).detach().numpy()
        np.testing.assert_allclose(axes.lines[0].get_xdata(), z)
        np.testing.assert_allclose(axes.lines[0].get_ydata(), expected[:, 0], rtol=1e-5)
    assert walk.axes[-1].get_xlabel() == "prior sd"


@pytest.mark.slow
def test_prior_samples_are_decoded_draws_from_the_prior() -> None:
    made = comparison(VAE, "diag_normal", "digits", ("trace", "mean_field", "stl", "iwae"))
    figure = prior_samples(made)
    with isolated(0):
        z = torch.randn(32, 3)
    for image, pair in zip(images_of(figure), pairs_of(made).values(), strict=True):
        expected = mosaic(pair.model.decode(z).detach().numpy().reshape(32, 8, 8), 4)
        np.testing.assert_allclose(image.get_array().filled(np.nan), expected, rtol=1e-6)
    assert [axes.get_title() for axes in figure.axes] == list(made.results)  # the empty panels are gone


def test_prior_samples_do_not_need_as_many_held_out_data() -> None:
    made = comparison("linear_gaussian(latent_dim=2)", "diag_normal", vectors(3, rows=40))
    assert len(made.data.heldout[0]) < 32
    for axes in prior_samples(made).axes:
        assert len(axes.lines) == 64  # 32 data, 32 draws
        np.testing.assert_array_equal(axes.lines[0].get_ydata(), made.data.heldout[0][0])


def test_a_walk_changes_one_latent_dimension_at_a_time() -> None:
    made = comparison("linear_gaussian(latent_dim=3)", "diag_normal", vectors(5))
    figure = latent_traversal(made, datum=4)
    panels = np.array(figure.axes).reshape(2, 3)
    for row, pair in zip(panels, pairs_of(made).values(), strict=True):
        with torch.no_grad():
            means = pair.guide.parameters_of(*made.data.heldout)["z"][0]
            order = means.var(0).argsort(descending=True).tolist()
            for axes, d in zip(row, order, strict=True):
                assert axes.get_title() == f"$z_{{{d + 1}}}$"
                for t, line in zip(np.linspace(-3, 3, 9), axes.lines, strict=True):
                    z = means[4].clone()
                    z[d] = t  # the prior is standard normal
                    np.testing.assert_allclose(line.get_ydata(), pair.model.decode(z), rtol=1e-4, atol=1e-5)
    assert legend_of(figure)[0] == "-3 sd" and len(legend_of(figure)) == 9


def test_a_walk_shows_at_most_eight_dimensions_and_where_it_starts() -> None:
    made = comparison("vae(latent_dim=10)", "diag_normal", "digits", ("trace",))
    datum, axes = latent_traversal(made).axes
    np.testing.assert_array_equal(datum.images[0].get_array(), made.data.heldout[0][0].reshape(8, 8))
    assert axes.images[0].get_array().shape == (8 * 9 - 1, 9 * 9 - 1)  # 8 by 9 images of 8 by 8, with gaps of 1
    with torch.no_grad():
        means = pairs_of(made)["trace"].guide.parameters_of(*made.data.heldout)["z"][0]
    order = means.var(0).argsort(descending=True)[:8]
    assert [text.get_text() for text in axes.get_yticklabels()] == [f"$z_{{{d + 1}}}$" for d in order]
    # 0 standard deviations is in the middle of the fifth image, 3 in that of the ninth.
    places = [segment[0, 0] for segment in axes.collections[0].get_segments()]
    middle, last = 4.5 * 9 - 0.5, 8.5 * 9 - 0.5
    np.testing.assert_allclose(places, middle + means[0][order] / 3 * (last - middle), rtol=1e-5)
    assert list(axes.get_xticks()) == [0.5 * 9 - 0.5, middle, last]


def test_walks_are_in_units_of_the_prior() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor([5.0]), 0.1).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    (axes,) = latent_traversal(comparison(model, guide, vectors(1), ("trace",))).axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 5 + 0.1 * np.linspace(-3, 3, 9), rtol=1e-5)


def scalar(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand([len(x), 2]).to_event(1), obs=x)


def positive(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.LogNormal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def shared(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def two(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z + w, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("model", [scalar, positive, shared, two])
def test_a_walk_is_refused_where_there_is_no_vector_to_walk_in(model: Any) -> None:
    with pytest.raises(InputError, match="one latent site"):
        latent_traversal(comparison(model, "diag_normal", vectors(2), ("trace",)))


@pytest.mark.slow
def test_save_leaves_out_what_does_not_apply(tmp_path: Path) -> None:
    made = comparison(two, "diag_normal", vectors(2), ("trace",))
    written = ["training_curves", "reconstructions", "prior_samples", "latent_means"]
    assert [path.stem for path in save(made, tmp_path)] == written


def test_a_distribution_without_a_mean_gives_a_draw() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Cauchy(z, 1e-4).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1e-4).to_event(1))

    made = comparison(model, guide, vectors(3), ("trace",))
    for k, axes in enumerate(reconstructions(made).axes):
        np.testing.assert_allclose(axes.lines[1].get_ydata(), made.data.heldout[0][k], atol=0.1)


def test_a_guide_without_a_mean_is_averaged_over_draws() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        shift = dist.transforms.AffineTransform(0.0, 2.0)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(x, 0.5), [shift]).to_event(1))

    made = comparison(model, guide, vectors(3), ("trace",))
    datum = made.data.heldout[0][0]
    for axes in latent_traversal(made).axes:
        # E[x | z] = z, and but for the varied dimension z is E[z | x] = 2 x, within 5 standard errors of 200 draws.
        d = int(axes.get_title()[4]) - 1
        others = [k for k in range(3) if k != d]
        np.testing.assert_allclose(axes.lines[0].get_ydata()[others], 2 * datum[others], atol=5 / 200**0.5)


def test_rows_are_found_where_the_data_plate_is() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            with pyro.plate("feature", 3, dim=-2):
                pyro.sample("x", dist.Normal(z + torch.arange(3.0).unsqueeze(-1), 1.0), obs=x.mT)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(x.sum(-1)))

    made = comparison(model, guide, vectors(3), ("trace",))
    for k, axes in enumerate(reconstructions(made).axes):
        x = made.data.heldout[0][k].numpy()
        data, line = axes.lines
        np.testing.assert_array_equal(data.get_ydata(), x)
        np.testing.assert_allclose(line.get_ydata(), x.sum() + np.arange(3), rtol=1e-5)


def test_what_is_observed_is_drawn_not_what_is_given() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(torch.zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x[:, 0], 1.0), obs=y)

    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("slope", dist.Delta(torch.tensor(3.0)))

    x = vectors(2)
    made = comparison(model, guide, (x, x[:, 0] * 7), ("trace",))
    (axes,) = reconstructions(made).axes
    inputs, outputs = made.data.heldout
    np.testing.assert_array_equal(axes.lines[0].get_ydata(), outputs[:10])
    np.testing.assert_allclose(axes.lines[1].get_ydata(), 3 * inputs[:10, 0], rtol=1e-6)


@pytest.mark.parametrize("picture", PICTURES)
def test_nothing_is_changed(picture: Any) -> None:
    made = comparison(VAE, "diag_normal", "digits", ("trace",))
    pair = made.results["trace"].run.pair
    pair.train()
    pair.guide.eval()
    modes = [module.training for module in pair.modules()]
    settings, state, numbers = dict(matplotlib.rcParams), torch.get_rng_state(), np.random.get_state()[1].copy()
    picture(made)
    assert dict(matplotlib.rcParams) == settings and not Gcf.get_all_fig_managers()
    assert torch.equal(torch.get_rng_state(), state) and np.array_equal(np.random.get_state()[1], numbers)
    assert [module.training for module in pair.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in pair.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize("data", ["digits", "vectors"])
@pytest.mark.parametrize("count", [1, 6])
def test_no_text_is_cut_off(picture: Any, data: str, count: int) -> None:
    names = tuple(f"mean_field(num_particles={k})" for k in range(count))
    model, rows = (VAE, "digits") if data == "digits" else ("linear_gaussian(latent_dim=2)", vectors(2))
    figure = picture(comparison(model, "diag_normal", rows, names))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    box = figure.get_tightbbox(canvas.get_renderer())
    assert box.x0 >= -0.01 and box.y0 >= -0.01
    assert box.x1 <= figure.get_figwidth() + 0.01 and box.y1 <= figure.get_figheight() + 0.01


def test_images_of_three_channels_are_in_colour() -> None:
    x = np.random.default_rng(0).uniform(size=(40, 3, 9, 8)).astype("float32")
    made = comparison("conv_vae(latent_dim=2)", "diag_normal", x, ("trace",))
    data, _ = images_of(reconstructions(made, n=4))
    found = np.asarray(data.get_array())
    assert found.shape == (9, 4 * 9 - 1, 3)
    held = made.data.heldout[0].double().numpy()
    scaled = (held[0].transpose(1, 2, 0) - held.min()) / (held.max() - held.min())
    np.testing.assert_allclose(found[:, :8], scaled, rtol=1e-6)
    np.testing.assert_array_equal(found[:, 8], 1)


def test_columns_of_a_table_have_their_names_below_them() -> None:
    import pandas as pd

    frame = pd.DataFrame(vectors(3), columns=["a", "b$", "a column with a long name"])
    made = comparison(VAE, "diag_normal", frame, ("trace",))
    for picture in PICTURES:
        axes = picture(made).axes[-1]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["a", "b$", "a column with …"]
        assert axes.get_xlabel() == ""

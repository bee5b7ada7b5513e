"""Predictive checks with known answers, and ArviZ's own functions on our DataTrees as they are."""

import math

import arviz_plots
import arviz_stats
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns
from differential import regressions

from pyro_vi.data.loading import load
from pyro_vi.errors import InputError
from pyro_vi.programs import build_pair, pair_and_args
from pyro_vi.reporting.plots_of_predictions import plot_predictive
from pyro_vi.reporting.predicting import predictive, predictive_tree


def normal_mean(rows: int = 30, scale: float = 1.0) -> tuple:
    """w ~ N(0, 1), x_n | w ~ N(w, 1) with its exact posterior N(Σx / (n + 1), 1 / (n + 1)) as the guide."""
    x = columns(rows, 1)[:, 0] + 0.5

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(x.sum() / (len(x) + 1), scale * (len(x) + 1) ** -0.5))

    return model, guide, x


def exact_loo(x: torch.Tensor) -> float:
    """Σ log p(x_n | x_−n), with w | x_−n ~ N(Σ_−n x / n, 1 / n) for n data in all."""
    n = len(x)
    mean = (x.sum() - x) / n
    return float(dist.Normal(mean, (1 + 1 / n) ** 0.5).log_prob(x).sum())


@pytest.mark.parametrize("scale", [1.0, 1.4])
def test_loo_is_that_of_the_posterior_and_not_of_the_guide(scale):
    """A guide that is too wide is corrected by log p − log q of each draw."""
    model, guide, x = normal_mean(scale=scale)
    found = predictive(model, guide, x, draws=4000)
    assert float(found.elpd_loo[0]) == pytest.approx(exact_loo(x), abs=0.05)
    assert float(found.share_khat[0]) == 0
    assert found.attrs["loo"].startswith("PSIS-LOO")
    assert found.attrs["verdict"] == "pass"


def test_densities_of_draws_are_those_of_model_and_guide():
    model, guide, x = normal_mean()
    tree = predictive_tree(*pair_and_args(model, guide, x), draws=50)
    w = torch.as_tensor(tree.posterior.w.values[0])
    log_p = dist.Normal(0.0, 1.0).log_prob(w) + dist.Normal(w[:, None], 1.0).log_prob(x).sum(1)
    log_q = dist.Normal(x.sum() / 31, 31**-0.5).log_prob(w)
    np.testing.assert_allclose(tree.sample_stats.log_p.values[0], log_p, rtol=1e-10)
    np.testing.assert_allclose(tree.sample_stats.log_q.values[0], log_q, rtol=1e-10)
    # The exact posterior has weights that are all log p(x).
    np.testing.assert_allclose((tree.sample_stats.log_p - tree.sample_stats.log_q).std(), 0, atol=1e-10)


def test_p_values_are_those_of_the_predictive_distribution():
    """The mean of x_rep has mean E[w] and variance 1/(n + 1) + 1/n."""
    model, guide, x = normal_mean()
    found = predictive(model, guide, x, draws=4000).sel(replication="same")
    mean, sd = float(x.sum() / 31), (1 / 31 + 1 / 30) ** 0.5
    row = found.sel(quantity="x: mean")
    p = float(1 - dist.Normal(mean, sd).cdf(x.mean()))
    assert abs(float(row.p) - p) < 4 * float(row.p_se)
    assert float(row.replicated) == pytest.approx(mean, abs=4 * sd / 4000**0.5)
    assert float(row.spread) == pytest.approx(sd, rel=4 / 8000**0.5)
    assert "new" not in found.replication


def test_a_model_that_cannot_make_the_data_is_refused():
    """Data of twice the model's standard deviation, and with zeros that the model does not have."""
    model, guide, x = normal_mean(100)
    wide = 2 * (x - x.mean())
    wide[:20] = 0
    found = predictive(model, guide, wide, draws=400)
    low = found["quantity"].values[(found.p_adjusted.values < 0.05)[:, 0]]
    assert {"x: sd", "x: share of zeros"} <= set(low)
    assert found.attrs["verdict"] == "fail"
    assert any("x: sd is" in text for text in found.attrs["sentences"])


def local_normal(rows: int) -> tuple:
    """z_n ~ N(0, 1), x_n | z_n ~ N(z_n, 1): x ~ N(0, 2); the guide is the exact posterior."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    return model, guide, 2**0.5 * columns(rows, 1)[:, 0]


@pytest.mark.slow
def test_pit_values_of_new_data_are_those_of_the_marginal():
    """P(x_rep < x) = Φ(x / √2) for new data, and Φ((x − x/2) / √1.5) with the latents that have seen x."""
    model, guide, x = local_normal(40)
    tree = predictive_tree(*pair_and_args(model, guide, x), draws=1000)
    for group, values in (("new_data_pit", x / 2**0.5), ("pit", x / 2 / 1.5**0.5)):
        exact = dist.Normal(0.0, 1.0).cdf(values)
        error = (exact * (1 - exact) / 1000).sqrt().numpy()
        assert (np.abs(tree[group].x.values - exact.numpy()) < 4.5 * error + 1e-3).all()


def test_loo_of_local_latents_is_refused_with_a_reason():
    model, guide, x = local_normal(40)
    found = predictive(model, guide, x, draws=200)
    assert found.elpd_loo.isnull().all()
    assert found.attrs["loo"].startswith("none: each datum has its own latents")
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).mean()
    assert float(found.log_evidence) == pytest.approx(float(exact), abs=1e-6)
    assert set(found.replication.values) == {"same", "new"}


def test_what_observes_nothing_says_so():
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match="the model observes nothing"):
        predictive(model, model, ())


def trees() -> dict:
    made = regressions.eight_schools()
    schools = pair_and_args(made.model, made.guide, ())
    digits = load("digits")
    vae = build_pair("vae(latent_dim=2, hidden=(8,))", "diag_normal", digits)
    return {
        "regression": predictive_tree(*pair_and_args(*normal_mean()), draws=100),
        "eight schools": predictive_tree(*schools, draws=100),
        "vae": predictive_tree(vae, digits.example(20), draws=60),
    }


# ArviZ warns of few draws of guides that are not fitted, and that data are binary.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto", "ignore:The observed data looks")
@pytest.mark.filterwarnings("ignore:The predictive data looks", "ignore:Detected at least one discrete")
def test_arviz_reads_the_groups_as_they_are():
    for name, tree in trees().items():
        stats = tree.sample_stats
        arviz_plots.plot_ppc_dist(tree, backend="none", num_samples=5, kind="ecdf")
        arviz_plots.plot_ecdf_pit(tree, group="pit", sample_dims=list(tree.pit.dims), backend="none")
        loo = arviz_stats.loo(tree)
        corrected = arviz_stats.loo_approximate_posterior(tree, log_p=stats.log_p, log_q=stats.log_q)
        assert math.isfinite(loo.elpd) and math.isfinite(corrected.elpd), name
        if name != "regression":
            arviz_plots.plot_ppc_dist(tree, group="new_data", backend="none", num_samples=5, kind="ecdf")
        if name != "vae":  # ArviZ's LOO-PIT needs a log-likelihood for each number
            arviz_plots.plot_loo_pit(tree, backend="none")


@pytest.mark.slow
def test_figures_have_a_panel_for_each_site_and_leave_nothing_open():
    before, state = plt.get_fignums(), np.random.get_state()[1].copy()
    for name, tree in trees().items():
        made = plot_predictive(tree)
        new = [] if name == "regression" else ["predictive_new", "pit_new"]
        assert set(made) == {"predictive", "pit", *new}
        for figure in made.values():
            assert len(figure.axes) == 1 and figure.axes[0].lines
    assert plt.get_fignums() == before
    assert (np.random.get_state()[1] == state).all()


@pytest.mark.slow
def test_padding_that_is_masked_inside_an_event_is_no_data():
    """Zeros of the padding are no misfit of the exact pair, z | x ~ N(Σ x / (n + 1), 1 / (n + 1)) with n unmasked entries."""
    draw = torch.Generator().manual_seed(0)
    mask = torch.arange(4) < torch.randint(1, 5, (40, 1), generator=draw)
    z = torch.randn(40, 1, generator=draw)
    x = torch.where(mask, z + torch.randn(40, 4, generator=draw), torch.zeros(()))

    def model(x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            law = dist.Normal(z.unsqueeze(-1).expand(*z.shape, 4), 1.0).mask(mask)
            pyro.sample("x", law.to_event(1), obs=x)

    def guide(x, mask):
        n = mask.sum(1) + 1.0
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x * mask).sum(1) / n, n**-0.5))

    found = predictive(model, guide, (x, mask))
    assert "x: share of zeros" not in found.quantity.values
    assert found.attrs["verdict"] == "pass"

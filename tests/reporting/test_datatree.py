"""What is written for ArviZ: groups, dimensions named after plates, densities and draws that are the pair's."""

import json
import math

import arviz as az
import arviz_base
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from catalogue import BATCH, CATALOGUE, columns, every_name, exact_pair, global_pair, nested_pair, scalars
from pyro import poutine

from pyro_vi import audit, fit, to_datatree
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError
from pyro_vi.reporting.datatree import history_dataset, write

DRAWS = 4000
GROUPS = ("posterior", "posterior_predictive", "prior", "log_likelihood", "observed_data")


@pytest.fixture(scope="module")
def exact() -> tuple:
    model, guide = exact_pair()
    return model, to_datatree(model, guide, columns(), draws=DRAWS, seed=2)


def test_groups_and_dimensions(exact):
    _, tree = exact
    assert set(tree.children) == {*GROUPS, "sample_stats"}
    assert dict(tree.posterior.z.sizes) == {"chain": 1, "draw": DRAWS, "data": BATCH, "z_dim_0": 2}
    assert dict(tree.posterior_predictive.x.sizes) == {"chain": 1, "draw": DRAWS, "data": BATCH, "x_dim_0": 3}
    assert dict(tree.log_likelihood.x.sizes) == {"chain": 1, "draw": DRAWS, "data": BATCH}
    assert dict(tree.prior.z.sizes) == {"chain": 1, "draw": 100, "data": BATCH, "z_dim_0": 2}
    assert dict(tree.observed_data.x.sizes) == {"data": BATCH, "x_dim_0": 3}
    assert tree.attrs["draws"] == DRAWS and tree.attrs["seed"] == 2 and "version_torch" in tree.attrs


def test_observed_data_are_those_given(exact):
    np.testing.assert_array_equal(exact[1].observed_data.x.values, columns().numpy())


def test_log_likelihood_is_that_of_the_model_at_the_draws(exact):
    model, tree = exact
    z = torch.as_tensor(tree.posterior.z.values[0])
    expected = model.observation(z).log_prob(columns()).detach().numpy()
    np.testing.assert_allclose(tree.log_likelihood.x.values[0], expected, rtol=1e-10, atol=1e-10)


def test_draws_have_the_moments_of_the_exact_posterior(exact):
    """Mean within 4 standard errors; a variance of n normal draws has the relative standard error √(2 / n)."""
    model, tree = exact
    posterior = model.posterior(columns())["z"]
    z = tree.posterior.z.values[0]
    mean, variance = posterior.mean.detach().numpy(), posterior.variance.detach().numpy()
    assert (np.abs(z.mean(0) - mean) < 4 * np.sqrt(variance / DRAWS)).all()
    assert (np.abs(z.var(0, ddof=1) / variance - 1) < 4 * math.sqrt(2 / (DRAWS - 1))).all()


def test_predictions_have_the_moments_of_the_model(exact):
    """x | z has mean A z + b and the noise's sd: their means over draws differ by at most 4 standard errors."""
    model, tree = exact
    z = torch.as_tensor(tree.posterior.z.values[0])
    noise = model.log_scale.exp().detach().numpy()
    left = tree.posterior_predictive.x.values[0] - model.decode(z).detach().numpy()
    assert (np.abs(left.mean(0)) < 4 * noise / math.sqrt(DRAWS)).all()
    assert (np.abs(left.var(0) / noise**2 - 1) < 4 * math.sqrt(2 / DRAWS)).all()


def test_prior_draws_are_of_the_prior_and_not_of_the_guide(exact):
    z = exact[1].prior.z.values.reshape(-1)
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / z.size)


def test_it_is_read_again_from_a_file(exact, tmp_path):
    _, tree = exact
    path = write(tree, tmp_path / "result.nc")
    assert [file.name for file in tmp_path.iterdir()] == ["result.nc"]
    with xr.open_datatree(path, engine="h5netcdf") as again:
        xr.testing.assert_identical(again.load(), tree)


def test_arviz_reads_it(exact, tmp_path):
    _, tree = exact
    assert arviz_base.extract(tree, var_names=["z"]).sizes["sample"] == DRAWS
    with xr.open_datatree(write(tree, tmp_path / "result.nc"), engine="h5netcdf") as again:
        densities = arviz_base.extract(again, group="log_likelihood", var_names=["x"])
        assert dict(densities.sizes) == {"sample": DRAWS, "data": BATCH}
        assert arviz_base.convert_to_datatree(again).posterior.sizes["draw"] == DRAWS


def test_arviz_gives_the_evidence_from_a_result_file(tmp_path):
    """LOO of a datum with a latent of its own is log p(x): 1 / E[1 / p(x | z)] under the exact posterior.

    z ~ N(0, 1), x | z ~ N(z / 3, 1): the weights 1 / p(x | z) are light-tailed, so that ArviZ has nothing to warn of.
    """
    slope, x = 1 / 3, scalars()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(slope * z, 1.0), obs=x)

    def guide(x):
        variance = 1 / (1 + slope**2)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(variance * slope * x, variance**0.5))

    tree = to_datatree(model, guide, x, draws=DRAWS)
    found = az.from_netcdf(write(tree, tmp_path / "result.nc"))

    means = az.summary(found, kind="stats", round_to="none")["mean"].to_numpy()
    np.testing.assert_allclose(means, tree.posterior.z.values[0].mean(0), rtol=1e-12)

    loo = az.loo(found)
    weights = np.exp(-tree.log_likelihood.x.values[0])
    error = np.sqrt((weights.var(0) / weights.mean(0) ** 2).sum() / DRAWS)
    evidence = float(dist.Normal(0.0, math.sqrt(1 + slope**2)).log_prob(x).sum())
    elpd = loo.elpd if hasattr(loo, "elpd") else loo.elpd_loo  # as arviz 1 and arviz 0.23 name it
    assert abs(elpd - evidence) < 4 * error


@pytest.mark.slow
def test_groups_of_a_fit_are_written_too(tmp_path):
    data = load(columns(50))
    run = fit("linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))", data, steps=3, progress=False)
    groups = {"fit": history_dataset(run.history), "audit": audit(run.model, run.guide, data.example(8), draws=20)}
    path = write(to_datatree(run.model, run.guide, data.heldout, draws=5, groups=groups), tmp_path / "result.nc")
    with xr.open_datatree(path, engine="h5netcdf") as tree:
        assert {"fit", "audit", "posterior"} <= set(tree.children)
        np.testing.assert_array_equal(tree.fit.step.values, [1, 2, 3])
        np.testing.assert_array_equal(tree.fit.loss.values, [record["loss"] for record in run.history])
        assert tree.audit.grad_var.sel(elbo="trace").sizes == {"parameter": len(list(run.pair.parameters()))}


def test_a_record_that_lacks_a_number_has_a_gap():
    found = history_dataset([{"step": 1, "loss": 2.0, "elbo": None}, {"step": 5, "loss": 1.0}])
    np.testing.assert_array_equal(found.elbo.values, [math.nan, math.nan])
    np.testing.assert_array_equal(found.loss.values, [2.0, 1.0])


@every_name
def test_any_pair_of_the_catalogue_can_be_written(name, tmp_path):
    entry = CATALOGUE[name]
    if name == "inner_subsample":
        with pytest.raises(InputError, match="plate 'data' draws 8 rows of its own in each run"):
            to_datatree(*entry.build(), entry.batch, draws=3)
        return
    tree = to_datatree(*entry.build(), entry.batch, draws=3)
    latents = {site for site in entry.local if site != "u" or name != "auxiliary"}
    assert set(tree.posterior.data_vars) == latents == set(tree.prior.data_vars)
    assert set(tree.log_likelihood.data_vars) == set(tree.observed_data.data_vars)
    assert all(
        variable.sizes["chain"] == 1 and variable.sizes["draw"] == 3 for variable in tree.posterior.data_vars.values()
    )
    write(tree, tmp_path / "result.nc")


def test_a_global_site_has_no_data_dimension():
    tree = to_datatree(*global_pair(), scalars(), draws=6)
    assert dict(tree.posterior.w.sizes) == {"chain": 1, "draw": 6}
    assert dict(tree.posterior.z.sizes) == {"chain": 1, "draw": 6, "data": BATCH}
    assert len(set(tree.posterior.w.values.ravel().tolist())) == 6
    assert dict(tree.log_likelihood.x.sizes) == {"chain": 1, "draw": 6, "data": BATCH}


@pytest.mark.parametrize(("data_dim", "order"), [(-1, ("features", "data")), (-2, ("data", "features"))])
def test_nested_plates_name_their_dimensions(data_dim, order):
    tree = to_datatree(*nested_pair(data_dim)(), columns(), draws=4)
    sizes = {"features": 3, "data": BATCH}
    assert tree.posterior.z.dims == ("chain", "draw", *order)
    assert all(tree.posterior.z.sizes[name] == size for name, size in sizes.items())
    assert tree.posterior.w.sizes["features"] == 3 and tree.posterior.u.sizes["data"] == BATCH
    z = torch.as_tensor(tree.posterior.z.values[0])
    x = columns() if data_dim == -2 else columns().mT
    expected = torch.distributions.Normal(z, 0.5).log_prob(x)
    np.testing.assert_allclose(tree.log_likelihood.x.values[0], expected.numpy(), rtol=1e-10)


def test_draws_are_the_same_one_by_one_and_all_at_once(monkeypatch):
    """A pair that cannot make draws at once has the same densities at its draws."""
    monkeypatch.setattr("pyro_vi.reporting.datatree.at_once", lambda *_: False)
    model, guide = exact_pair()
    tree = to_datatree(model, guide, columns(), draws=4)
    z = torch.as_tensor(tree.posterior.z.values[0])
    expected = model.observation(z).log_prob(columns()).detach().numpy()
    np.testing.assert_allclose(tree.log_likelihood.x.values[0], expected, rtol=1e-10)
    assert tree.posterior.z.sizes["draw"] == 4


def test_columns_of_the_batch_are_constant_data():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    x, y = scalars(), scalars(seed=8)

    def guide(x, y):
        with poutine.block(hide=["y"]):
            model(x, y)

    tree = to_datatree(model, guide, (x, y), draws=3)
    np.testing.assert_array_equal(tree.constant_data.column_0.values, x.numpy())
    np.testing.assert_array_equal(tree.observed_data.y.values, y.numpy())


def test_binary_values_are_written_as_bytes():
    entry = CATALOGUE["vae"]
    tree = to_datatree(*entry.build(), entry.batch, draws=3)
    assert tree.posterior_predictive.x.dtype == tree.observed_data.x.dtype == np.int8
    np.testing.assert_array_equal(tree.observed_data.x.values, entry.batch[0].numpy())
    assert set(np.unique(tree.posterior_predictive.x.values)) == {0, 1}


def test_attributes_are_plain(exact):
    json.dumps(exact[1].attrs)

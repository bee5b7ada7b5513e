"""What is exported of programs with deterministic sites, masks, scales, summed sites, point estimates, and unusual names."""

import arviz_stats
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import scalars
from pyro import poutine
from torch.distributions import constraints

from pyro_vi import to_datatree
from pyro_vi.errors import InputError
from pyro_vi.reporting.datatree import write

MARKED = {"enumerate": "parallel"}


def nothing(x):
    pass


def draw_w(*args):
    pyro.sample("w", dist.Normal(0.4, 0.1))


def test_a_deterministic_site_is_in_the_posterior_and_a_factor_nowhere():
    """b sums over all of its dimensions, and v over those of the plate: neither may sum over draws."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        pyro.deterministic("b", (2 * w).sum())
        pyro.factor("f", -(w**2))
        with pyro.plate("data", len(x)):
            v = pyro.deterministic("v", w * torch.ones(len(x)))
            pyro.sample("x", dist.Normal(v, 1.0), obs=x)

    tree = to_datatree(model, draw_w, torch.zeros(7), draws=20)
    assert {group: set(node.data_vars) for group, node in tree.children.items()} == {
        "posterior": {"w", "b", "v"},
        "prior": {"w", "b", "v"},
        **{group: {"x"} for group in ("posterior_predictive", "log_likelihood", "observed_data")},
        "sample_stats": {"log_p", "log_q"},
    }
    np.testing.assert_allclose(tree.posterior.b, 2 * tree.posterior.w, rtol=1e-6)
    np.testing.assert_allclose(tree.posterior.v.isel(data=6), tree.posterior.w, rtol=1e-6)
    assert tree.posterior.v.dims == ("chain", "draw", "data")


def test_masked_entries_are_no_data_and_loo_does_not_count_them(tmp_path):
    """LOO of the data without the masked ones is that of the masked data."""
    x, seen = torch.tensor([0.1, 999.0, -0.2, 0.3]), torch.tensor([True, False, True, True])

    def model(x, seen):
        w = pyro.sample("w", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)), poutine.mask(mask=seen), poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    masked = to_datatree(model, draw_w, (x, seen), draws=200)
    whole = to_datatree(model, draw_w, (x[seen], seen[seen]), draws=200)
    np.testing.assert_array_equal(masked.observed_data.x, [np.float32(0.1), np.nan, np.float32(-0.2), np.float32(0.3)])
    assert masked.log_likelihood.x.dims == ("chain", "draw", "x_seen")
    np.testing.assert_array_equal(masked.log_likelihood.x_data, [0, 2, 3])
    np.testing.assert_allclose(masked.log_likelihood.x.values, whole.log_likelihood.x.values, rtol=1e-6)
    assert abs(arviz_stats.loo(masked).elpd - arviz_stats.loo(whole).elpd) < 1e-5
    assert masked.attrs["masked"].startswith("1 of 4 entries of 'x'")
    assert masked.attrs["scaled"].startswith("the model scales 'x' by 2 ")
    assert set(masked.constant_data.data_vars) == {"column_0", "column_1"}
    write(masked, tmp_path / "result.nc")


def test_missing_data_by_obs_mask_are_observed_in_part_and_imputed_in_part():
    x, seen = torch.tensor([0.1, 5.0, -0.2]), torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x, obs_mask=seen)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=~seen):
            pyro.sample("x_unobserved", dist.Normal(7.0, 0.1))

    tree = to_datatree(model, guide, x, draws=50)
    assert set(tree.observed_data.data_vars) == {"x_observed"} == set(tree.log_likelihood.data_vars)
    np.testing.assert_array_equal(np.isnan(tree.observed_data.x_observed), ~seen)
    np.testing.assert_array_equal(np.isnan(tree.posterior.x_unobserved.isel(chain=0, draw=3)), seen)
    np.testing.assert_allclose(tree.posterior.x.mean(("chain", "draw")), [0.1, 7.0, -0.2], atol=0.1)


@pytest.mark.parametrize("shared", [False, True])
def test_a_summed_site_has_its_posterior_and_not_its_prior(shared):
    """k ~ Bernoulli(.5), x | k ~ N(m k, 1) at x = 0 and 10, m = 10: P(k = 1 | x) is 0 and 1."""

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 10.0)) if shared else 10.0
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer=MARKED)
            pyro.sample("x", dist.Normal(m * k, 1.0), obs=x)

    def guide(x):
        if shared:
            pyro.sample("m", dist.Normal(10.0, 0.1))

    tree = to_datatree(model, guide, torch.tensor([0.0, 10.0]), draws=100)
    np.testing.assert_array_equal(tree.posterior.k.mean(("chain", "draw")), [0.0, 1.0])
    assert abs(float(tree.prior.k.mean()) - 0.5) < 4 * 0.5 / 200**0.5
    assert tree.attrs["summed"].startswith("'k': drawn from the posterior")
    np.testing.assert_allclose(tree.log_likelihood.x[0, :, 0], -0.9189385, rtol=1e-5)


def test_the_posterior_of_a_summed_site_between_0_and_1():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.3), infer=MARKED)
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    x, draws = scalars(3).float(), 2000
    one, zero = 0.3 * (-((x - 1) ** 2) / 2).exp(), 0.7 * (-(x**2) / 2).exp()
    exact = (one / (one + zero)).numpy()
    found = to_datatree(model, nothing, x, draws=draws).posterior.k.mean(("chain", "draw")).values
    assert (abs(found - exact) < 4 * np.sqrt(exact * (1 - exact) / draws)).all()


def test_a_latent_that_the_guide_lacks_is_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(InputError, match="the guide has no site 'z' and the model does not sum over it"):
        to_datatree(model, nothing, torch.tensor(1.0), draws=2)


@pytest.mark.parametrize("vectorized", [True, False])
def test_a_minibatch_of_the_programs_own_is_refused(vectorized):
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        plate = pyro.plate("rows", len(x), subsample_size=3)
        if vectorized:
            with plate as i:
                pyro.sample("x", dist.Normal(w, 1.0), obs=x[i])
        else:
            for i in plate:
                pyro.sample(f"x_{i}", dist.Normal(w, 1.0), obs=x[i])

    with pytest.raises(InputError, match="plate 'rows' draws 3 rows of its own in each run"):
        to_datatree(model, draw_w, torch.zeros(30), draws=2)


def test_names_with_slashes_and_plates_called_as_something_else(tmp_path):
    def model(x):
        with pyro.plate("chain", 2):
            pyro.sample("layer/w", dist.Normal(0.0, 1.0))
        with pyro.plate("draw", len(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        with pyro.plate("chain", 2):
            pyro.sample("layer/w", dist.Normal(0.0, 1.0))

    tree = to_datatree(model, guide, torch.zeros(3), draws=4)
    assert dict(tree.posterior["layer.w"].sizes) == {"chain": 1, "draw": 4, "chain_plate": 2}
    assert dict(tree.log_likelihood.x.sizes) == {"chain": 1, "draw": 4, "draw_plate": 3}
    assert tree.attrs["renamed"] == "'layer/w' is 'layer.w'"
    write(tree, tmp_path / "result.nc")


def test_a_point_estimate_is_exported_and_named():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Delta(torch.tensor(0.4)))

    tree = to_datatree(model, guide, torch.zeros(3), draws=4)
    assert float(tree.posterior.w.std()) == 0
    assert tree.attrs["objective"].startswith("MAP: no ELBO, no evidence")


def test_a_model_that_does_not_run_from_its_prior_has_no_prior():
    def model(x):
        w = pyro.sample("w", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    tree = to_datatree(model, draw_w, torch.zeros(3), draws=4)
    assert "prior" not in tree.children and "ImproperUniform" in tree.attrs["prior"]
    assert tree.posterior.w.sizes["draw"] == 4


def test_arguments_that_are_no_tensors_are_not_data():
    def model(x, scale, extra):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    inputs = {"years": torch.arange(3), "name": "a"}
    tree = to_datatree(model, lambda *_: None, (torch.zeros(3), 2, inputs), draws=2)
    assert set(tree.constant_data.data_vars) == {"column_0", "years"}

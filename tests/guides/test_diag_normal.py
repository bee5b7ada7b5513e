"""The diagonal normal guide: it goes with any continuous model, amortized inside the data plate and free outside."""

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from catalogue import BATCH, BITS, CATALOGUE, NUM_DATA, columns, linear_gaussian, number, scalars, spec
from torch import nn

from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.vae import VAE
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.layout import prototype

SUPPORTS = {
    "real": lambda x: dist.Normal(x.new_zeros(()), 1.0),
    "positive": lambda x: dist.Gamma(x.new_tensor(2.0), 1.0),
    "unit interval": lambda x: dist.Beta(x.new_tensor(2.0), 1.0),
    "interval": lambda x: dist.Uniform(x.new_tensor(-1.0), 2.0),
    "vector": lambda x: dist.Normal(x.new_zeros(3), 1.0).to_event(1),
    "matrix": lambda x: dist.Normal(x.new_zeros(2, 3), 1.0).to_event(2),
    "positive vector": lambda x: dist.LogNormal(x.new_zeros(3), 1.0).to_event(1),
    "simplex": lambda x: dist.Dirichlet(x.new_ones(4)),
    "cholesky factor": lambda x: dist.LKJCholesky(3, x.new_tensor(2.0)),
}


def guide_for(model, batch, **options) -> DiagNormal:
    """A guide of any program: a function is bound first, as by `build_pair`."""
    return DiagNormal(bind_one(model, batch), batch, **options)


def model_of(function, local: bool):
    """A model with one latent of that distribution, local or global, and a normal observation."""

    def model(x):
        plate = pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x)))
        if not local:
            z = pyro.sample("z", function(x)).sum()
        with plate:
            if local:
                distribution = function(x)
                z = pyro.sample("z", distribution)
                z = z.sum(list(range(-len(distribution.event_shape), 0))) if distribution.event_shape else z
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("support", SUPPORTS)
def test_draws_are_in_the_support_and_have_the_density_of_the_bijection(support, local):
    """log q(z) = log N(u; m, s²) - log |dz/du| of the unconstrained u, summed by hand."""
    x = scalars()
    model = model_of(SUPPORTS[support], local)
    torch.manual_seed(0)
    guide = guide_for(model, (x,), hidden=(4,), init_scale=0.7)
    with isolated(1):
        node = pyro.poutine.trace(guide).get_trace(x).nodes["z"]
    target, value = SUPPORTS[support](x), node["value"]
    assert value.shape == ((BATCH,) if local else ()) + target.event_shape
    assert value.dtype == torch.float64
    assert bool(target.support.check(value).all())
    bijection = torch.distributions.biject_to(target.support)
    u = bijection.inv(value)
    loc, scale = guide.parameters_of(x)["z"]
    density = dist.Normal(loc, scale).log_prob(u)
    jacobian = bijection.log_abs_det_jacobian(u, value)
    rows = BATCH if local else 1
    expected = density.reshape(rows, -1).sum(-1) - jacobian.reshape(rows, -1).sum(-1)
    torch.testing.assert_close(node["fn"].log_prob(value).reshape(rows), expected, rtol=1e-7, atol=1e-7)
    found = terms(model, guide, x, kl="sampled", seed=1)
    torch.testing.assert_close(found.sites["z"].log_q.reshape(rows), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("support", ["real", "vector", "matrix"])
def test_a_real_site_has_a_closed_form_kl(support):
    model = model_of(SUPPORTS[support], True)
    guide = guide_for(model, (scalars(),))
    assert terms(model, guide, scalars(), seed=1).sources["z"].kind == "analytic"


def test_a_real_site_keeps_its_closed_form_in_a_copy():
    model = linear_gaussian()
    guide = copy.deepcopy(guide_for(model, (columns(),)))
    assert terms(model, guide, columns(), seed=1).sources["z"].kind == "analytic"


def test_it_starts_at_the_given_scale_on_the_unconstrained_scale():
    guide = guide_for(model_of(SUPPORTS["positive"], False), (scalars(),), init_scale=0.3)
    loc, scale = guide.parameters_of(scalars())["z"]
    torch.testing.assert_close(scale.detach(), number(0.3), rtol=1e-6, atol=0)
    assert float(loc.detach()) == 0


@pytest.mark.parametrize("name", ["conjugate", "global", "nested_inside", "nested_outside", "masked", "scaled", "vae"])
def test_it_goes_with_the_models_of_the_catalogue(name):
    entry = CATALOGUE[name]
    model, _ = entry.build()
    torch.manual_seed(0)
    guide = guide_for(model, entry.batch, hidden=(4,))
    pair = pair_of(model, guide, entry.batch)
    found = terms(pair.model, pair.guide, entry.batch, seed=1)
    assert {n: site.local for n, site in found.sites.items() if site.latent} == entry.local
    assert found.num_data == entry.num_data
    found.loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in guide.parameters())
    # Model and guide have the same plates and shapes for every site.
    ours, theirs = prototype(guide, entry.batch), prototype(pair.model, entry.batch)
    assert ours.plates == {plate: theirs.plates[plate] for plate in ours.plates}
    for name, site in ours.sites.items():
        other = theirs.sites[name]
        assert (site.batch_shape, site.event_shape, site.plates) == (other.batch_shape, other.event_shape, other.plates)


@pytest.mark.parametrize("name", ["nested_inside", "nested_outside"])
def test_nested_sites_have_a_row_of_the_encoder_where_the_data_plate_is(name):
    """Changing one datum changes q of that datum only, whatever the plate's dimension."""
    entry = CATALOGUE[name]
    (x,) = entry.batch
    guide = guide_for(entry.build()[0], entry.batch, hidden=(4,))
    other = x.clone()
    other[2] += 1.0
    dim = prototype(guide, (x,)).plates["data"].dim
    for site in ("u", "z"):
        before, after = (guide.parameters_of(batch)[site][0] for batch in (x, other))
        changed = (before != after).movedim(dim, 0).reshape(BATCH, -1).any(1)
        assert changed.tolist() == [row == 2 for row in range(BATCH)]
    before, after = (guide.parameters_of(batch)["w"][0] for batch in (x, other))
    assert torch.equal(before, after)


def test_it_takes_batches_of_any_length():
    model = linear_gaussian()
    guide = guide_for(model, (columns(),))
    for rows in (1, 3, 8, 200):
        assert guide(columns(rows))["z"].shape == (rows, 2)
        assert terms(model, guide, columns(rows), seed=1).elbo.shape == (rows,)


def test_a_minibatch_is_scaled_as_in_the_model():
    guide = guide_for(linear_gaussian(), (columns(),))
    assert pyro.poutine.trace(guide).get_trace(columns()).nodes["z"]["scale"] == NUM_DATA / BATCH


def test_a_model_without_local_latents_needs_no_encoder():
    guide = guide_for(model_of(SUPPORTS["vector"], False), (scalars(),))
    assert sorted(name for name, _ in guide.named_parameters()) == ["loc.z", "log_scale.z"]


@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("name", ["a.b", "type", "keys", "values", "double", "forward", "training", "pop", "a b"])
def test_any_name_of_a_site_will_do(name, local):
    def model(x):
        if not local:
            z = pyro.sample(name, dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            if local:
                z = pyro.sample(name, dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = guide_for(model, (scalars(),))
    assert list(guide(scalars())) == [name]
    assert copy.deepcopy(guide)(scalars())[name].shape == ((BATCH,) if local else ())
    fresh = guide_for(model, (scalars(),))
    fresh.load_state_dict(guide.state_dict())


def test_names_that_differ_by_a_dot_only_stay_apart():
    def model(x):
        a = pyro.sample("a.b", dist.Normal(x.new_zeros(()), 1.0))
        b = pyro.sample("a__b", dist.Normal(x.new_zeros(2), 1.0).to_event(1)).sum()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    found = guide_for(model, (scalars(),))(scalars())
    assert found["a.b"].shape == ()
    assert found["a__b"].shape == (2,)


def test_a_batch_of_several_columns_is_encoded_whole():
    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("y", dist.Normal(z * x.sum(-1), 1.0), obs=y)

    guide = guide_for(model, (columns(), scalars()))
    assert next(layer for layer in guide.body if isinstance(layer, nn.Linear)).in_features == 4
    before, after = (guide.parameters_of(columns(), y)["z"][0] for y in (scalars(), scalars() + 1))
    assert not (before == after).any()


def test_pictures_are_flattened():
    data = spec(support="boolean", features=20)
    x = torch.ones(4, 4, 5, dtype=torch.float64)
    data = type(data)(data.name, 50, (4, 5), "boolean", torch.float64, data.source)
    assert guide_for(VAE(data, latent_dim=2), (x,))(x)["z"].shape == (4, 2)


def test_a_discrete_site_is_refused():
    entry = CATALOGUE["discrete"]
    with pytest.raises(InputError, match=r"site 'z' is discrete \(Bernoulli\)"):
        guide_for(entry.build()[0], entry.batch)


def test_a_model_without_latents_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x)

    with pytest.raises(InputError, match="no latent site"):
        guide_for(model, (scalars(),))


def test_a_model_that_draws_its_own_minibatch_is_refused():
    """The guide could not know which rows those are."""
    entry = CATALOGUE["inner_subsample"]
    with pytest.raises(InputError, match="minibatch of its own"):
        guide_for(entry.build()[0], entry.batch)


def test_a_scale_that_is_none_is_refused():
    with pytest.raises(InputError, match="must be positive"):
        guide_for(VAE(spec(support="boolean")), (BITS,), init_scale=0.0)

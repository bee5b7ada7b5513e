"""The diagonal normal guide: it goes with any continuous model, amortized inside the data plate and free outside."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from catalogue import BATCH, BITS, CATALOGUE, NUM_DATA, columns, linear_gaussian, number, scalars, spec
from pyro import poutine
from torch import nn
from torch.distributions import constraints
from torch.distributions import transforms as T

from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.vae import VAE
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.layout import prototype
from pyro_vi.programs.supports import support_of

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
    "above": lambda x: dist.Pareto(x.new_tensor(1.5), 3.0),
    "bounds of a vector": lambda x: dist.Uniform(x.new_zeros(3), x.new_tensor([1.0, 2.0, 3.0])).to_event(1),
    "scaled beta": lambda x: moved(dist.Beta(x.new_tensor(2.0), 1.0), T.AffineTransform(-1.0, 2.0)),
    "turned beta": lambda x: moved(dist.Beta(x.new_tensor(2.0), 1.0), T.AffineTransform(1.0, -3.0)),
    "below": lambda x: moved(dist.Gamma(x.new_tensor(2.0), 1.0), T.AffineTransform(3.0, -1.0)),
    "ordered": lambda x: moved(dist.Normal(x.new_zeros(3), 1.0).to_event(1), dist.transforms.OrderedTransform()),
    "half-open": lambda x: _HalfOpen(x.new_tensor(-1.0), 2.0),
}


class _HalfOpen(dist.Uniform):
    @property
    def support(self):
        return constraints.half_open_interval(self.low, self.high)


def moved(base, *transforms):
    return dist.TransformedDistribution(base, list(transforms))


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
    assert bool(support_of(target).check(value).all()) and bool(target.log_prob(value).isfinite().all())
    bijection = torch.distributions.biject_to(support_of(target))
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
    median = 1.6783  # of Gamma(2, 1), here of 100 draws, whose standard error is .08 on the scale of the logarithm
    assert float(loc.detach()) == pytest.approx(math.log(median), abs=0.3)


@pytest.mark.parametrize(
    ("prior", "loc", "scale"),
    [
        (lambda x: dist.Normal(x.new_tensor(7.0), 0.01), 7.0, 0.001),
        (lambda x: dist.Normal(x.new_tensor(7.0), 100.0), 7.0, 0.1),
    ],
)
def test_a_global_site_starts_where_the_prior_is_and_narrower(prior, loc, scale):
    """At the mean of a real prior, and at a tenth of its standard deviation (of 100 draws) or 0.1."""
    now_loc, now_scale = guide_for(model_of(prior, False), (scalars(),), start="prior").parameters_of(scalars())["z"]
    assert float(now_loc.detach()) == pytest.approx(loc)
    assert float(now_scale.detach()) == pytest.approx(scale, rel=0.3)


def test_a_prior_that_cannot_be_drawn_from_is_served():
    class Improper(nn.Module):
        def forward(self, x):
            z = pyro.sample("z", dist.ImproperUniform(constraints.positive, (), ()))
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = DiagNormal(Improper(), (scalars(),), start="prior")
    loc, scale = guide.parameters_of(scalars())["z"]
    assert (float(loc.detach()), float(scale.detach())) == (0.0, pytest.approx(0.1))
    assert float(guide(scalars())["z"].detach()) > 0


@pytest.mark.parametrize(
    "name",
    ["conjugate", "global", "nested_inside", "nested_outside", "masked", "masked_rows", "scaled", "vae"],
)
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
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in pair.guide.parameters())
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
    assert sorted(name for name, _ in guide.named_parameters()) == ["q.z.loc", "q.z.log_scale"]


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
    assert next(layer for layer in guide.encoder.modules() if isinstance(layer, nn.Linear)).in_features == 4
    before, after = (guide.parameters_of(columns(), y)["z"][0] for y in (scalars(), scalars() + 1))
    assert not (before == after).any()


def test_pictures_are_flattened():
    data = spec(support="boolean", features=20)
    x = torch.ones(4, 4, 5, dtype=torch.float64)
    data = type(data)(data.name, 50, (4, 5), "boolean", torch.float64, data.source)
    assert guide_for(VAE(data, latent_dim=2), (x,))(x)["z"].shape == (4, 2)


DISCRETE = {
    "bernoulli": lambda: dist.Bernoulli(number(0.3)),
    "bernoulli vector": lambda: dist.Bernoulli(number(0.3).expand(2)).to_event(1),
    "categorical": lambda: dist.Categorical(number(1.0).expand(4)),
    "one-hot": lambda: dist.OneHotCategorical(number(1.0).expand(4)),
    "binomial": lambda: dist.Binomial(3, number(0.3)),
}


@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
@pytest.mark.parametrize("states", DISCRETE)
def test_a_discrete_site_gets_a_distribution_of_its_states(states, local):
    """log q of all states sums to 1, and the encoder's features move it."""
    guide = guide_for(model_of(lambda x: DISCRETE[states](), local), (scalars(),))
    with isolated(1):
        node = poutine.trace(guide).get_trace(scalars()).nodes["z"]
    prior = DISCRETE[states]()
    assert node["value"].shape == ((BATCH,) if local else ()) + prior.event_shape
    assert bool(support_of(prior).check(node["value"]).all())
    if states != "bernoulli vector":
        values = prior.enumerate_support(expand=False)
        values = values.reshape(len(values), *(1 for _ in node["fn"].batch_shape), *prior.event_shape)
        total = node["fn"].log_prob(values.expand(-1, *node["value"].shape)).logsumexp(0)
        torch.testing.assert_close(total, torch.zeros_like(total))
    assert node["infer"] == ({} if "vector" in states else {"enumerate": "parallel"})


def test_a_discrete_site_with_infinitely_many_values_is_refused():
    with pytest.raises(InputError, match=r"site 'z': Poisson is discrete with infinitely many values"):
        guide_for(model_of(lambda x: dist.Poisson(number(2.0)), True), (scalars(),))


def test_a_model_without_latents_is_refused():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x)

    with pytest.raises(InputError, match="no latent site"):
        guide_for(model, (scalars(),))


def test_a_model_that_draws_its_own_minibatch_gets_the_rows_of_that():
    """The guide draws them, and the model is replayed on them: row n of z has the loc of datum n."""
    entry = CATALOGUE["inner_subsample"]
    guide = guide_for(entry.build()[0], entry.batch, hidden=(4,))
    with isolated(3):
        trace = poutine.trace(guide).get_trace(*entry.batch)
    rows = trace.nodes["data"]["value"]
    torch.testing.assert_close(trace.nodes["z"]["fn"].loc, guide.parameters_of(*entry.batch)["z"][0][rows])
    assert trace.nodes["z"]["scale"] == NUM_DATA / BATCH


def test_a_model_without_rows_of_data_gets_a_parameter_for_each():
    """Data in a closure, and a minibatch that the model draws of them."""
    data = scalars(NUM_DATA)

    def model(subsample_size=None):
        with pyro.plate("data", NUM_DATA, subsample_size) as rows:
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=data[rows])

    for args in ((), (BATCH,)):
        guide = guide_for(model, args, start="prior")
        assert guide.parameters_of(*args)["z"][0].shape == (NUM_DATA,)
        with torch.no_grad():
            guide.q["z"].loc.view(-1).copy_(data)
        with isolated(3):
            trace = poutine.trace(guide).get_trace(*args)
        rows = trace.nodes["data"]["value"]
        assert len(rows) == (BATCH if args else NUM_DATA)
        assert torch.equal(trace.nodes["z"]["fn"].loc, data[rows])


def test_arguments_may_be_none_numbers_masks_and_dictionaries():
    def model(x, scale=None, options=None, mask=None):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0 if scale is None else scale), obs=x)

    x = scalars()
    for args in ((x, None), (x, 3), (x, 2.0, {"k": 1}), (x, None, None, x > 0)):
        assert guide_for(model, args)(*args)["z"].shape == (BATCH,)
    for missing in (x.clone().fill_(torch.nan),):  # missing values are read as 0
        assert bool(guide_for(model, (x,)).parameters_of(missing)["z"][0].isfinite().all())


@pytest.mark.parametrize("local", [True, False], ids=["local", "global"])
def test_entries_that_a_mask_leaves_out_have_no_density(local):
    """``obs_mask`` splits a site; the guide's part has its mask on any batch: log q is that of the missing values alone."""

    def model(x, seen):
        b = pyro.sample("b", dist.Normal(number(0.0), 1.0))
        plate = pyro.plate("data" if local else "rows", len(x))
        with plate:
            pyro.sample("x", dist.Normal(b, 1.0), obs=x, obs_mask=seen.bool())
        if not local:
            pyro.sample("y", dist.Normal(b, 1.0), obs=number(1.0))

    def columns_of(rows):
        return scalars(rows), (torch.arange(rows) % 3 > 0).double()

    guide = guide_for(model, columns_of(BATCH))
    x, seen = columns_of(11 if local else BATCH)
    with isolated(1):
        trace = poutine.trace(guide).get_trace(x, seen)
    trace.compute_log_prob()
    node = trace.nodes["x_unobserved"]
    expected = torch.where(seen.bool(), 0, node["fn"].log_prob(node["value"]))
    torch.testing.assert_close(node["log_prob"], expected)
    assert float(expected.detach().abs().sum()) > 0


def test_bounds_that_differ_from_row_to_row_are_those_of_the_batch():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(x, x + 1))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    guide = guide_for(model, (scalars(),))
    x = 10 + scalars(11)
    z = guide(x)["z"]
    assert bool(((x < z) & (z < x + 1)).all())


def test_a_support_that_depends_on_another_latent_is_refused():
    def model(x):
        top = pyro.sample("top", dist.Gamma(number(2.0), 1.0))
        z = pyro.sample("z", dist.Uniform(number(0.0), top))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(InputError, match=r"support of site 'z' \(Uniform\) depends on other latent sites"):
        guide_for(model, (scalars(),))


def test_a_support_without_a_bijection_is_refused():
    def model(x):
        pyro.sample("z", dist.ProjectedNormal(x.new_ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x)

    with pytest.raises(InputError, match=r"no bijection to the support of site 'z' \(ProjectedNormal\)"):
        guide_for(model, (scalars(),))


def test_a_site_that_is_marked_for_enumeration_is_left_to_the_estimator():
    def model(x):
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(number(0.3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(w + k, 1.0), obs=x)

    guide = guide_for(model, (scalars(),))
    assert list(guide(scalars())) == ["w"]
    assert list(dict(guide.named_parameters())) == ["q.w.loc", "q.w.log_scale"]


def test_free_parameters_for_each_row_if_asked_for():
    guide = guide_for(linear_gaussian(num_data=BATCH), (columns(),), amortized=False)
    assert {name: tuple(p.shape) for name, p in guide.named_parameters()} == {
        "q.z.loc": (2 * BATCH,),
        "q.z.log_scale": (2 * BATCH,),
    }
    assert guide(columns())["z"].shape == (BATCH, 2)
    with pytest.raises(InputError, match=r"which 8 of the 50 rows of plate 'data' site 'z' belongs to"):
        guide_for(linear_gaussian(), (columns(),), amortized=False)


def test_the_size_of_the_plate_is_that_of_the_model_on_any_batch():
    """Made on all data, it is called with minibatches: of a plate of fixed size, or of one as long as each batch."""
    for fixed, factor in ((True, 2.0), (False, 1.0)):

        def model(x, fixed=fixed):
            with pyro.plate("data", BATCH if fixed else len(x), subsample=torch.arange(len(x))):
                z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        guide = guide_for(model, (scalars(),))
        assert poutine.trace(guide).get_trace(scalars(BATCH // 2)).nodes["z"]["scale"] == factor


def test_a_scale_that_is_none_is_refused():
    with pytest.raises(InputError, match="must be positive"):
        guide_for(VAE(spec(support="boolean")), (BITS,), init_scale=0.0)

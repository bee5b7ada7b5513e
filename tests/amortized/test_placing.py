"""From vectors to a site: the density by hand, at any plates, particles and supports, and from the cache or afresh."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, number
from torch.distributions import biject_to

from pyro_vi.amortized.placing import OfVectors, placed
from pyro_vi.amortized.shapes import Shape
from pyro_vi.programs import Reading


def latent(prior, *plates):
    """The latent site of a prior within plates, each (name, size, dim)."""
    with Reading() as read:
        _nested(prior, list(plates))
    return read.latents["z"]


def _nested(prior, plates):
    if not plates:
        return pyro.sample("z", prior)
    name, size, dim = plates[0]
    with pyro.plate(name, size, dim=dim):
        return _nested(prior, plates[1:])


def normal(rows, size):
    """A multivariate normal of vectors for each row, and units of a prior."""
    loc = columns(rows, size, seed=1) if rows else columns(1, size, seed=1)[0]
    tril = 0.3 * columns(size, size, seed=2).tril(-1) + columns(1, size, seed=3)[0].exp().diag()
    return dist.MultivariateNormal(loc, scale_tril=tril), columns(1, size, seed=4)[0], columns(1, size, seed=5)[0].exp()


SITES = {
    "simplex of each row": (
        latent(dist.Dirichlet(torch.ones(3).double()), ("data", 5, -1)),
        Shape(1, (-1,), (5,), (2,)),
        5,
    ),
    "simplex, rows outside": (
        latent(dist.Dirichlet(torch.ones(3).double()), ("data", 5, -2), ("k", 4, -1)),
        Shape(2, (-2,), (5, 4), (2,)),
        5,
    ),
    "positive, rows inside": (
        latent(dist.Gamma(number(2.0), 1.0), ("k", 4, -2), ("data", 5, -1)),
        Shape(2, (-1,), (4, 5), ()),
        5,
    ),
    "row within two other plates": (latent(dist.Beta(number(2.0), 2.0), ("data", 5, -1)), Shape(3, (-1,), (5,), ()), 5),
    "shared within two other plates": (latent(dist.Dirichlet(torch.ones(3).double())), Shape(2, (), (), (2,)), 0),
    "shared, without plates": (latent(dist.LogNormal(number(0.0), 1.0)), Shape(0, (), (), ()), 0),
}


@pytest.mark.parametrize("name", SITES)
def test_the_density_is_that_of_vectors_with_units_and_jacobian(name):
    """log q = log N(v) − Σ log spread − log |∂ value / ∂ u|, summed over the plates; each element has an equal share."""
    site, shape, rows = SITES[name]
    vectors, start, spread = normal(rows, shape.numel)
    made = OfVectors(vectors, shape, start, spread, site)
    assert (made.batch_shape, made.event_shape) == (site.batch_shape, site.event_shape)
    bijection = biject_to(site.support)
    for particles in ((), (3,), (3, 2)):
        padding = (1,) * (shape.nesting - len(shape.batch)) if particles else ()
        wide = made.expand((*particles, *padding, *site.batch_shape))
        value = wide.rsample()
        assert value.shape == (*particles, *padding, *site.batch_shape, *site.event_shape)
        assert bool(site.support.check(value).all())
        u = bijection.inv(value)
        expected = vectors.log_prob((shape.to_vector(u) - start) / spread) - spread.log().sum()
        jacobian = bijection.log_abs_det_jacobian(u, value)
        whole = (*particles, -1) if particles else (-1,)
        total = expected.reshape(whole).sum(-1) - jacobian.reshape(whole).sum(-1)
        kept, fresh = wide.log_prob(value), wide.log_prob(value.clone())
        for density in (kept, fresh):
            assert density.shape == wide.batch_shape
            torch.testing.assert_close(density.reshape(whole).sum(-1), total, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(kept, fresh, rtol=1e-10, atol=1e-10)
        shares = kept + jacobian.reshape(kept.shape)
        for dim in range(-len(site.batch_shape), 0):
            if dim not in shape.rows:
                torch.testing.assert_close(shares, shares.narrow(dim, 0, 1).expand(shares.shape))


@pytest.mark.parametrize("name", SITES)
def test_several_draws_have_a_density_each(name):
    site, shape, rows = SITES[name]
    vectors, start, spread = normal(rows, shape.numel)
    made = OfVectors(vectors, shape, start, spread, site)
    value = made.sample((4,))
    assert value.shape == (4, *site.batch_shape, *site.event_shape)
    each = torch.stack([made.log_prob(part) for part in value])
    for density in (made.log_prob(value), made.log_prob(value.clone())):
        torch.testing.assert_close(density, each, rtol=1e-10, atol=1e-10)


def test_draws_have_the_moments_of_the_vectors():
    """u = start + spread v: mean start + spread μ and covariance spread Σ spread, within 4 standard errors of 20,000 draws."""
    site, shape, rows = SITES["simplex, rows outside"]
    vectors, start, spread = normal(rows, shape.numel)
    made = OfVectors(vectors, shape, start, spread, site)
    u = shape.to_vector(biject_to(site.support).inv(made.sample((20_000,))))
    mean, covariance = start + spread * vectors.mean, spread.outer(spread) * vectors.covariance_matrix
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    assert bool(((u.mean(0) - mean).abs() < 4 * (variance / len(u)).sqrt()).all())
    found = torch.cov(u[:, 0].mT)
    error = ((variance[0].outer(variance[0]) + covariance[0].square()) / len(u)).sqrt()
    assert bool(((found - covariance[0]).abs() < 4 * error).all())


@pytest.mark.parametrize("rank", [0, 1], ids=["full", "low rank"])
def test_normals_of_vectors_keep_the_family_of_the_site(rank):
    """Real vectors stay multivariate normals, real numbers normals, positive numbers log-normals, for KL in closed form."""

    def vectors(size):
        vectors, start, spread = normal(5, size)
        if rank:
            vectors = dist.LowRankMultivariateNormal(vectors.loc, columns(size, 1), columns(1, size).squeeze(0).exp())
        return vectors, start, spread

    family = dist.LowRankMultivariateNormal if rank else dist.MultivariateNormal
    for prior, size, event, kind in (
        (dist.Normal(torch.zeros(3).double(), 1.0).to_event(1), 3, (3,), family),
        (dist.Normal(number(0.0), 1.0), 1, (), dist.Normal),
        (dist.Gamma(number(2.0), 1.0), 1, (), dist.LogNormal),
    ):
        site, shape = latent(prior, ("data", 5, -1)), Shape(2, (-1,), (5,), event)
        given, start, spread = vectors(size)
        made = placed(given, site, shape, start, spread)
        assert type(made) is kind
        value = made.sample()
        afresh = OfVectors(given, shape, start, spread, site).log_prob(value)
        torch.testing.assert_close(made.log_prob(value), afresh, rtol=1e-8, atol=1e-8)

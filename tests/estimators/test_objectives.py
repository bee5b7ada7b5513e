"""Gradients are those of the objective: under a weighted KL, poutine.scale, Deltas and factors in the guide."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO
from torch import nn

import pyro_vi
from pyro_vi.errors import InputError
from pyro_vi.estimators import get
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.programs import Pair, isolated

ROWS, X, V, L = 20_000, 1.3, 0.4, -0.3


class Model(nn.Module):
    """c ~ N(0, 1), z ~ N(c / 2, 1), x ~ N(z + c, 1), all scaled."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale):
            c = pyro.sample("c", dist.Normal(torch.zeros_like(x), 1.0))
            z = pyro.sample("z", dist.Normal(0.5 * c, 1.0))
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=x)


class Guide(nn.Module):
    """c = v, z ~ N(.8 c, sd²), and the factor .4 v z, with a v and an sd for each row."""

    def __init__(self, scale=1.0, factor=0.0, marked=True):
        super().__init__()
        self.v, self.log_sd = (nn.Parameter(torch.full((ROWS,), number, dtype=torch.float64)) for number in (V, L))
        self.scale, self.factor, self.marked = scale, factor, marked

    def forward(self, x):
        with pyro.plate("data", len(x)), poutine.scale(scale=self.scale):
            c = pyro.sample("c", dist.Delta(self.v))
            z = pyro.sample("z", dist.Normal(0.8 * c, self.log_sd.exp()))
            if self.factor:
                pyro.factor("f", self.factor * self.v * z, has_rsample=self.marked)


def exact(many, beta, scale, factor):
    """The gradient in (v, log sd) of scale times the bound of a row, by quadrature: of one draw, or of two."""
    nodes, mass = (torch.as_tensor(a) for a in np.polynomial.hermite_e.hermegauss(40))
    mass = mass / mass.sum()
    v, log_sd, x = (torch.tensor(number, dtype=torch.float64, requires_grad=True) for number in (V, L, X))
    z = 0.8 * v + log_sd.exp() * nodes
    one = torch.ones((), dtype=torch.float64)
    kl = (
        dist.Normal(0.8 * v, log_sd.exp()).log_prob(z)
        - dist.Normal(0.5 * v, one).log_prob(z)
        - dist.Normal(0 * one, one).log_prob(v)
    )
    log_w = dist.Normal(z + v, one).log_prob(x) - beta * kl - factor * v * z
    bound = mass @ log_w
    if many:
        both = torch.logaddexp(log_w.unsqueeze(0), log_w.unsqueeze(1)) - math.log(2)
        bound = mass @ both @ mass
    return torch.stack(torch.autograd.grad(scale * bound, [v, log_sd]))


ELBOS = ("trace", "analytic", "stl", "score(num_particles=2)", "mixed(num_particles=2)")
MANY = ("iwae(num_particles=2)", "dreg(num_particles=2)", "vimco(num_particles=2)")


@pytest.mark.parametrize(("beta", "scale", "factor"), [(1.0, 1.0, 0.4), (0.5, 1.0, 0.0), (0.5, 2.0, 0.4)])
@pytest.mark.parametrize("name", ELBOS + MANY)
def test_the_gradient_is_that_of_the_objective(name, beta, scale, factor):
    pair = Pair(Model(scale), Guide(scale, factor))
    objective = Objective(pair, get(name))
    x = torch.full((ROWS,), X, dtype=torch.float64)
    with isolated(5, validation=False):
        found = torch.autograd.grad(-objective((x,), beta) * ROWS, [pair.guide.v, pair.guide.log_sd])
    expected = exact(name in MANY, beta, scale, factor)
    for rows, value in zip(found, expected, strict=True):
        error = float(rows.std()) / ROWS**0.5
        assert abs(float(rows.mean() - value)) <= max(4 * error, 1e-10)
        assert error < 0.03


def test_sites_that_are_scaled_apart_have_the_doubly_reparameterised_gradient_of_the_same_bound():
    """A third of z's KL alone: the score of the difference stays, and the mean gradient is that of 'iwae'."""

    def scaled(program):
        class Program(nn.Module):
            def __init__(self):
                super().__init__()
                self.m = nn.Parameter(torch.full((ROWS,), 0.4, dtype=torch.float64))

            def forward(self, x):
                program(x, self.m)

        return Program()

    def model(x, _):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(torch.zeros_like(x), 1.0))
            with poutine.scale(scale=1 / 3):
                z = pyro.sample("z", dist.Normal(y, 1.0))
            pyro.sample("x", dist.Normal(y + z, 1.0), obs=x)

    def guide(x, m):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Normal(m, 0.8))
            with poutine.scale(scale=1 / 3):
                pyro.sample("z", dist.Normal(m + 0.3 * y, 0.7))

    found = []
    for name in ("iwae(num_particles=3)", "dreg(num_particles=3)"):
        pair = Pair(scaled(model), scaled(guide))
        with isolated(6, validation=False):
            loss = Objective(pair, get(name))((torch.full((ROWS,), X, dtype=torch.float64),))
            found.append(torch.autograd.grad(loss * ROWS, pair.guide.m)[0])
    error = math.hypot(*(float(rows.std()) for rows in found)) / ROWS**0.5
    assert abs(float(found[0].mean() - found[1].mean())) < 4 * error < 0.06


def test_a_scale_of_all_sites_stands_outside_of_the_logarithm():
    """At the posterior every draw is s log p(x)."""
    x = torch.tensor([1.3, 0.2], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=2.0):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(sd):
        def program(x):
            with pyro.plate("data", len(x)), poutine.scale(scale=2.0):
                pyro.sample("z", dist.Normal(x / 2, sd * torch.ones_like(x)))

        return program

    truth = -2 * float(dist.Normal(0.0, 2**0.5).log_prob(x).sum())
    assert get("iwae(num_particles=3)").loss(model, guide(0.5**0.5), x) == pytest.approx(truth, rel=1e-6)
    torch.manual_seed(0)
    wide = [get("iwae(num_particles=500)").loss(model, guide(2.0), x) for _ in range(5)]
    assert min(wide) > truth - 0.4  # with the scale inside it would be 1.4 below


def test_a_scale_that_a_shared_latent_lacks_is_refused():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)), poutine.scale(scale=5.0):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    with pytest.raises(InputError, match=r"poutine.scale would stand inside the logarithm.*site 'w'.*use the ELBO"):
        get("iwae").loss(model, guide, torch.ones(4))


def test_a_factor_whose_gradient_is_not_known_is_refused():
    with pytest.raises(InputError, match=r"factor 'f' is not marked.*has_rsample=True"):
        get("score").loss(Model(), Guide(factor=0.4, marked=False), torch.full((ROWS,), X, dtype=torch.float64))


def test_a_delta_trains_under_a_score_function():
    """The mode of a normal mean: sum x / (n + 1 / 100)."""
    x = torch.linspace(1, 5, 30, dtype=torch.float64)

    def model(x):
        w = pyro.sample("w", dist.Normal(torch.zeros_like(x[0]), 10.0))
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.5 * torch.ones_like(x)))
            pyro.sample("x", dist.Normal(w + 0 * k, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Delta(pyro.param("mode", torch.zeros_like(x[0]))))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=pyro.param("l", torch.zeros_like(x[0])) * x))

    for name in ("score(num_particles=2)", "vimco(num_particles=2)"):
        with isolated(0):
            loss = get(name).differentiable_loss(model, guide, x)
            (slope,) = torch.autograd.grad(loss, pyro.get_param_store()._params["mode"])
        assert float(slope) == pytest.approx(-float(x.sum()), rel=1e-10)


def test_a_mask_on_one_side_is_refused_by_score_functions():
    def model(x):
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.4 * torch.ones_like(x)))
            pyro.sample("x", dist.Normal(k, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=x > 1):
            pyro.sample("k", dist.Bernoulli(0.4 * torch.ones_like(x)))

    for name in ("score", "mixed", "vimco"):
        with pytest.raises(InputError, match=r"mask site 'k' differently.*mask it alike in both"):
            get(name).sources(model, guide, (torch.tensor([1.3, 0.2]),))


# Refusals before the first evaluation, and where gradients are off.


def row_pair():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(0), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("m", torch.tensor(0.3)) * x, 1.0))

    return model, guide


def test_particles_in_one_run_are_refused_where_they_change_the_numbers():
    x = torch.linspace(-1, 1, 12)
    for name in ("trace", "iwae", "mean_field", "graph"):
        with pytest.raises(InputError, match="leave vectorize_particles out"):
            pyro_vi.audit(*row_pair(), x, elbos=f"{name}(num_particles=3, vectorize_particles=True)", draws=20)


def test_pyros_renyi_is_ours_with_its_draws():
    """Same value and gradient under one seed, where nothing is subsampled."""
    x = torch.linspace(-1, 1, 12, dtype=torch.float64)
    model, guide = row_pair()
    elbo = RenyiELBO(alpha=0.3, num_particles=4)
    with isolated(0):
        theirs = elbo.loss_and_grads(model, guide, x)
        slope = pyro.get_param_store()._params["m"].grad.clone()
    with isolated(0):
        ours = estimator_of(elbo)
        assert ours.traits.target == "renyi(4, alpha=0.3)"
        loss = ours.differentiable_loss(model, guide, x)
        (found,) = torch.autograd.grad(loss, pyro.get_param_store()._params["m"])
    assert float(loss.detach()) == pytest.approx(theirs, rel=1e-6)
    torch.testing.assert_close(found, slope, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_fit_and_an_audit_work_where_gradients_are_off():
    x = torch.linspace(-1, 1, 12)

    def variance():
        return float(pyro_vi.audit(*row_pair(), x, elbos="trace", draws=20).grad_var.sum())

    def fitted():
        run = pyro_vi.fit(*row_pair(), x, elbo="trace", steps=3, progress=False, compile=False)
        return [p.tolist() for p in run.pair.parameters()]

    expected = variance(), fitted()
    assert expected[0] > 0
    with torch.no_grad():
        assert (variance(), fitted()) == expected

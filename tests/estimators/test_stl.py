"""The path derivative: nothing at the posterior, right away from it, also through chains and cached densities.

See test_gradients.py for its variance.
"""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, exact_pair
from estimator_catalogue import DATA, assert_near, mean_gradient, row_gradients
from pyro.distributions import transforms as T
from torch import nn

from pyro_vi import estimators
from pyro_vi.errors import InputError

# Importing zuko turns torch's validation of distributions off for the whole process.
_FLAG = torch.distributions.Distribution._validate_args
import zuko  # noqa: E402
from pyro.contrib.zuko import ZukoToPyro  # noqa: E402

torch.distributions.Distribution.set_default_validate_args(_FLAG)

PATHS = ["stl", "stl(num_particles=3)", "dreg(num_particles=3)"]
both_ways = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "loop"])


@pytest.mark.parametrize("x", [1.3, -0.4])
@pytest.mark.parametrize("name", PATHS)
def test_the_gradient_is_zero_at_the_posterior_in_every_draw(name, x):
    for gradient in row_gradients(estimators.get(name), x, x / 2, 0.5**0.5, 100):
        assert gradient.norm() < 1e-10


def test_the_total_derivative_is_not_zero_there():
    for gradient in row_gradients(estimators.get("trace"), 1.3, 0.65, 0.5**0.5, 100):
        assert gradient.norm() > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PATHS)
def test_with_an_exact_guide_the_models_mean_gradient_is_that_of_the_evidence(name):
    """The guide reads the model's parameters; what it gets through them is 0 where it is the posterior."""
    model, guide = exact_pair()
    x = columns()
    expected = torch.autograd.grad(-50 * model.log_evidence(x).mean(), list(model.parameters()))
    elbo = estimators.get(name)
    torch.manual_seed(0)
    found = []
    for _ in range(300):
        loss = elbo.differentiable_loss(model, guide, x)
        found.append(torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]))
    stacked = torch.stack(found)
    error = stacked.std(0) / math.sqrt(300)
    assert_near(stacked.mean(0), torch.cat([g.reshape(-1) for g in expected]), error, largest_error=5.0)


# A chain: z1 ~ N(0, 1), z2 | z1 ~ N(z1, 1), x | z2 ~ N(z2, 1); q(z1) = N(a + g x, e^r²), q(z2 | z1) = N(c z1 + h x, e^t²).


class ChainModel(nn.Module):
    def forward(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(()), 1.0))
            z2 = pyro.sample("z2", dist.Normal(z1, 1.0))
            pyro.sample("x", dist.Normal(z2, 1.0), obs=x)


CHAIN = ("a", "g", "r", "c", "h", "t")


class ChainGuide(nn.Module):
    def __init__(self, *values):
        super().__init__()
        for name, value in zip(CHAIN, values, strict=True):
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.a + self.g * x, self.r.exp()))
            pyro.sample("z2", dist.Normal(self.c * z1 + self.h * x, self.t.exp()))

    def log_weight(self, x, e1, e2):
        z1 = self.a + self.g * x + self.r.exp() * e1
        z2 = self.c * z1 + self.h * x + self.t.exp() * e2
        log_p = -0.5 * (z1**2 + (z2 - z1) ** 2 + (x - z2) ** 2) - 1.5 * math.log(2 * math.pi)
        log_q = -0.5 * (e1**2 + e2**2) - self.r - self.t - math.log(2 * math.pi)
        return log_p - log_q


EXACT_CHAIN = (0.0, 1 / 3, 0.5 * math.log(2 / 3), 0.5, 0.5, 0.5 * math.log(0.5))
WRONG_CHAIN = (0.3, 0.1, -0.5, 0.8, 0.2, -0.2)


@pytest.mark.parametrize("name", PATHS)
def test_a_chain_has_no_gradient_at_its_posterior(name):
    guide = ChainGuide(*EXACT_CHAIN)
    loss = estimators.get(name).differentiable_loss(ChainModel(), guide, DATA)
    evidence = dist.Normal(DATA.new_zeros(()), DATA.new_tensor(3.0).sqrt()).log_prob(DATA).sum()
    assert float(loss.detach()) == pytest.approx(-float(evidence), rel=1e-10)
    assert torch.stack(torch.autograd.grad(loss, list(guide.parameters()))).norm() < 1e-10


def chain_gradient(count):
    """Of −bound by quadrature over the noise of every draw: two numbers a draw."""
    points, mass = np.polynomial.hermite_e.hermegauss(40 if count == 1 else 14)
    nodes, log_mass = torch.as_tensor(points), torch.as_tensor(np.log(mass / mass.sum()))
    guide = ChainGuide(*WRONG_CHAIN)
    e1, e2 = (e.reshape(-1) for e in torch.meshgrid(nodes, nodes, indexing="ij"))
    weight_of_node = (log_mass.unsqueeze(0) + log_mass.unsqueeze(1)).reshape(-1)
    total = torch.zeros((), dtype=torch.float64)
    for x in DATA:
        log_weight = guide.log_weight(x, e1, e2)
        if count == 1:
            total = total - (weight_of_node.exp() * log_weight).sum()
        else:
            both = torch.logaddexp(log_weight.unsqueeze(0), log_weight.unsqueeze(1)) - math.log(2)
            total = total - ((weight_of_node.unsqueeze(0) + weight_of_node.unsqueeze(1)).exp() * both).sum()
    return torch.stack(torch.autograd.grad(total, list(guide.parameters())))


@pytest.mark.slow
@both_ways
@pytest.mark.parametrize(
    ("name", "count"), [("stl", 1), ("analytic", 1), ("score", 1), ("iwae", 2), ("dreg", 2), ("vimco", 2)]
)
def test_a_chain_has_the_gradient_of_its_bound(name, count, vectorize):
    elbo = estimators.get(name, num_particles=2, vectorize_particles=vectorize)
    found, error = mean_gradient(elbo, ChainModel(), ChainGuide(*WRONG_CHAIN), DATA.repeat(500), 30)
    assert_near(found / 500, chain_gradient(count), error / 500, largest_error=0.15)


# Guides whose log-density is cached with the draw.


class PlaneModel(nn.Module):
    """z ~ N(0, 2 I), x | z ~ N(z, 2 I) in the plane: at x = 0 the posterior is N(0, I)."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), math.sqrt(2)).to_event(1))
            pyro.sample("x", dist.Normal(z, math.sqrt(2)).to_event(1), obs=x)


class ZukoGuide(nn.Module):
    def __init__(self, zero):
        super().__init__()
        torch.manual_seed(5)
        self.flow = zuko.flows.MAF(features=2, context=2, transforms=1, hidden_features=(4,)).double()
        for p in self.flow.parameters():
            p.data.mul_(0.0 if zero else 1.0)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", ZukoToPyro(self.flow(x)))


class CouplingGuide(nn.Module):
    """A transformed normal, which keeps its last draw's inverse; with zero weights it is the identity."""

    def __init__(self, zero):
        super().__init__()
        torch.manual_seed(5)
        self.flow = T.affine_coupling(2, hidden_dims=[4]).double()
        self.loc = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        for p in self.flow.parameters():
            p.data.mul_(0.0 if zero else 1.0)

    def forward(self, x):
        base = dist.Normal(self.loc.expand(len(x), 2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


class MixtureGuide(nn.Module):
    """A mixture with a reparameterised draw (Pyro's own, of diagonal normals)."""

    def __init__(self, zero=False):
        super().__init__()
        self.locs = nn.Parameter(torch.tensor([[0.5, -0.3], [-0.9, 0.4]], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
        self.logits = nn.Parameter(torch.tensor([0.2, -0.3], dtype=torch.float64))

    def forward(self, x):
        with pyro.plate("data", len(x)):
            shape = (len(x), 2, 2)
            pyro.sample(
                "z",
                dist.MixtureOfDiagNormals(
                    self.locs.expand(shape), self.log_scale.exp().expand(shape), self.logits.expand(len(x), 2)
                ),
            )


FLOWS = {"zuko": ZukoGuide, "coupling": CouplingGuide, "mixture": MixtureGuide}
every_flow = pytest.mark.parametrize("kind", FLOWS)


@pytest.mark.parametrize("kind", ["zuko", "coupling"])
@pytest.mark.parametrize("name", PATHS)
def test_a_flow_has_no_gradient_at_the_posterior(kind, name):
    """A density that is kept with its draw must be seen at fixed values with fixed parameters."""
    guide = FLOWS[kind](zero=True)
    x = torch.zeros(5, 2, dtype=torch.float64)
    torch.manual_seed(0)
    loss = estimators.get(name).differentiable_loss(PlaneModel(), guide, x)
    evidence = dist.Normal(x.new_zeros(()), 2.0).log_prob(x).sum()
    assert float(loss.detach()) == pytest.approx(-float(evidence), rel=1e-9)
    found = torch.autograd.grad(loss, list(guide.parameters()), allow_unused=True)
    assert all(g is None or g.norm() < 1e-10 for g in found)
    torch.manual_seed(0)
    total = torch.autograd.grad(
        estimators.get("trace").differentiable_loss(PlaneModel(), guide, x), list(guide.parameters()), allow_unused=True
    )
    assert any(g is not None and g.norm() > 0.1 for g in total)


@pytest.mark.slow
@every_flow
@pytest.mark.parametrize(("name", "right"), [("stl", "trace"), ("dreg", "iwae"), ("score", "trace"), ("vimco", "iwae")])
def test_the_mean_gradient_of_a_flow_is_the_total_derivatives(kind, name, right):
    """Of every parameter, by Monte Carlo on both sides."""
    guide = FLOWS[kind](zero=False)
    x = columns(features=2, rows=4).repeat(100, 1)
    count = {} if right == "trace" else {"num_particles": 3}
    mine = {"num_particles": 3} if name in ("score", "vimco", "dreg") else {}
    first, first_error = mean_gradient(estimators.get(name, **mine), PlaneModel(), guide, x, 40)
    second, second_error = mean_gradient(estimators.get(right, **count), PlaneModel(), guide, x, 40, seed=1)
    error = torch.hypot(first_error, second_error)
    assert_near(first / 100, second / 100, error / 100, largest_error=0.2)
    assert (second.abs() > 8 * second_error).any()


@every_flow
def test_an_analytic_kl_of_a_flow_is_sampled_and_is_trace(kind):
    guide = FLOWS[kind](zero=False)
    x = columns(features=2, rows=4)
    source = estimators.get("analytic").sources(PlaneModel(), guide, (x,))["z"]
    assert source.kind == "sampled"
    assert "no closed form" in source.reason
    losses = []
    for name in ("trace", "analytic"):
        torch.manual_seed(2)
        losses.append(estimators.get(name).loss(PlaneModel(), guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-10)


@pytest.mark.parametrize("name", ["stl", "dreg", "iwae", "renyi", "analytic"])
def test_a_mixture_that_cannot_be_reparameterised_is_refused_with_the_remedy(name):
    def guide(x):
        mixture = dist.Categorical(torch.ones(len(x), 2))
        parts = dist.Normal(torch.zeros(len(x), 2, 2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MixtureSameFamily(mixture, parts))

    with pytest.raises(InputError, match=r"site 'z' cannot be reparameterised.*use 'score', 'mixed' or 'vimco'"):
        estimators.get(name).differentiable_loss(PlaneModel(), guide, torch.zeros(3, 2))

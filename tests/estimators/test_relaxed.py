"""The straight-through gradient: its own expectation by quadrature, which nears that of the ELBO as the temperature falls."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from discrete_catalogue import CENTRES, PAIRS
from estimator_catalogue import (
    DATA,
    NAMES,
    PRIOR_LOGIT,
    SMALL,
    START,
    assert_near,
    exact_loss,
    mean_gradient,
    modules,
    parameters,
    straight_through_gradient,
)
from torch import nn

from pyro_vi import estimators
from pyro_vi.errors import InputError

TEMPERATURES = (4.0, 1.0, 0.3)
both_ways = pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "loop"])
at_each_temperature = pytest.mark.parametrize("temperature", TEMPERATURES)


def exact_gradient():
    p = parameters()
    return torch.stack(torch.autograd.grad(exact_loss(SMALL["discrete"], DATA, p, "elbo"), [p[n] for n in NAMES]))


@both_ways
@at_each_temperature
def test_the_mean_gradient_is_the_straight_through_one(temperature, vectorize):
    elbo = estimators.get("relaxed", temperature=temperature, num_particles=2, vectorize_particles=vectorize)
    found, error = mean_gradient(elbo, *modules(SMALL["discrete"]), DATA.repeat(400), 40)
    assert_near(found / 400, straight_through_gradient(DATA, temperature), error / 400, largest_error=0.05)


def test_the_bias_is_there_and_shrinks_with_the_temperature():
    """By quadrature and enumeration: no draws. The model's gradient (b) has none."""
    biases = [straight_through_gradient(DATA, t) - exact_gradient() for t in (*TEMPERATURES, 0.1, 0.05)]
    sizes = [float(bias[1:].norm()) for bias in biases]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 0.5 * float(exact_gradient()[1:].norm())
    assert sizes[-1] < 0.02 * float(exact_gradient()[1:].norm())
    assert all(abs(float(bias[0])) < 1e-6 for bias in biases)


def test_the_bias_is_measured_at_a_high_temperature():
    elbo = estimators.get("relaxed", temperature=4.0)
    found, error = mean_gradient(elbo, *modules(SMALL["discrete"]), DATA.repeat(400), 40)
    assert ((found / 400 - exact_gradient()).abs() > 8 * error / 400)[1:].all()


def one_hot_gradient(temperature):
    """E of the straight-through gradient on the one-hot pair, by quadrature over two differences of Gumbel draws."""
    step = torch.linspace(-18, 18, 601, dtype=torch.float64)
    u, v = torch.meshgrid(step, step, indexing="ij")
    noise = torch.stack([u, v, torch.zeros_like(u)], -1)
    # Density of (g1 − g3, g2 − g3) for independent standard Gumbel draws.
    density = 2 * (-u - v - 3 * torch.logsumexp(-noise, -1)).exp()
    mass = (density / density.sum()).unsqueeze(-1)
    centres, prior = DATA.new_tensor(CENTRES), DATA.new_tensor([0.5, 0.3, 0.2]).log()
    start = PAIRS["one_hot"].start
    in_m, in_l = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for x in DATA:
        log_q = (DATA.new_tensor(start["m"]) + DATA.new_tensor(start["l"]) * x).log_softmax(-1)
        hard = nn.functional.one_hot((log_q + noise).argmax(-1), 3).double()
        soft = ((log_q + noise) / temperature).softmax(-1)
        slope = prior - log_q + (x - (hard * centres).sum(-1, keepdim=True)) * centres
        in_logits = soft * (slope - (soft * slope).sum(-1, keepdim=True)) / temperature
        total = -(mass * in_logits).sum((0, 1))
        in_m, in_l = in_m + total, in_l + total * x
    return torch.cat([in_m, in_l])


@pytest.mark.parametrize("kl", ["sampled", "analytic"])
@pytest.mark.parametrize("temperature", [2.0, 0.5])
def test_one_hot_sites_pass_gradients_through_their_densities_too(temperature, kl):
    """torch's log_prob of a one-hot value looks the state up: the KL's gradient would be lost, at any temperature."""
    entry = PAIRS["one_hot"]
    elbo = estimators.get("relaxed", temperature=temperature, kl=kl)
    found, error = mean_gradient(elbo, *entry.build(None), DATA.repeat(400), 40)
    if kl == "sampled":
        assert_near(found / 400, one_hot_gradient(temperature), error / 400, largest_error=0.05)
    else:
        # The KL is exact there, so that only the likelihood's part is biased: less than the bias of the whole, here.
        exact = entry.gradient("elbo", 1)
        assert float((found / 400 - exact).norm()) < float((one_hot_gradient(2.0) - exact).norm()) + 4 * float(
            (error / 400).norm()
        )


def test_the_bias_of_one_hot_sites_shrinks_with_the_temperature():
    exact = PAIRS["one_hot"].gradient("elbo", 1)
    sizes = [float((one_hot_gradient(t) - exact).norm()) for t in (4.0, 1.0, 0.3)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.2 * sizes[0]


def test_several_bits_in_one_site_are_as_many_data():
    class Model(nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Bernoulli(logits=x.new_tensor(PRIOR_LOGIT)).expand([2]).to_event(1))
                pyro.sample("x", dist.Normal(2 * z - 1 + START["b"], 1.0).to_event(1), obs=x)

    class Guide(nn.Module):
        def __init__(self):
            super().__init__()
            self.m, self.l = (nn.Parameter(torch.tensor(START[n], dtype=torch.float64)) for n in ("m", "l"))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=self.m + self.l * x).to_event(1))

    found, error = mean_gradient(estimators.get("relaxed"), Model(), Guide(), DATA.reshape(2, 2).repeat(400, 1), 40)
    assert_near(found / 400, straight_through_gradient(DATA, 0.5)[1:], error / 400, largest_error=0.05)


@pytest.mark.parametrize(
    "fn", [dist.Categorical(torch.ones(3)), dist.Poisson(2.0), dist.Bernoulli(0.4).mask(torch.tensor(True))]
)
def test_what_has_no_relaxation_is_refused_with_the_remedy(fn):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", fn)
            pyro.sample("x", dist.Normal(z.to(x.dtype), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", fn)

    with pytest.raises(InputError, match=f"site 'z'.*{type(fn).__name__}.*no relaxation.*use the estimator 'score'"):
        estimators.get("relaxed").loss(model, guide, DATA.float())


def test_the_value_is_that_of_true_discrete_draws():
    """On every draw: −log w of one of the two states."""
    model, guide = modules(SMALL["discrete"])
    x = DATA[:1]
    p = {n: torch.tensor(v, dtype=torch.float64) for n, v in START.items()}
    values = [-float(SMALL["discrete"].log_weight(torch.tensor(z, dtype=torch.float64), x, p)) for z in (0.0, 1.0)]
    elbo = estimators.get("relaxed", temperature=2.0)
    torch.manual_seed(0)
    found = {round(elbo.loss(model, guide, x), 9) for _ in range(40)}
    assert found == {round(value, 9) for value in values}

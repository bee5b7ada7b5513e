"""The start of free parameters: exact where the posterior is normal, absent where it cannot be found, and without traces."""

import math
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from pyro import poutine
from torch import nn

from pyro_vi.amortized import points
from pyro_vi.amortized.density import log_joint
from pyro_vi.amortized.starts import minimise
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.guides.full_normal import FullNormal
from pyro_vi.programs.build import pair_of
from pyro_vi.support import generators
from pyro_vi.tracing import record

NOISE, PRIOR = 0.5, torch.tensor([10.0, 1000.0, 0.01], dtype=torch.float64)
ROWS = 20


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Two columns of sizes 1e3 and 1e-1 that are correlated, and what a regression on them observes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 2, generator=generator, dtype=torch.float64)
    x = torch.stack([1000 + 300 * x[:, 0], 0.1 * x[:, 0] + 0.02 * x[:, 1]], 1)
    return x, 1 + 0.003 * x[:, 0] + NOISE * torch.randn(ROWS, generator=generator, dtype=torch.float64)


def regression(x, y):
    """y = a + x b + noise of known size, of an intercept and two weights with priors of very different sizes."""
    a = pyro.sample("a", dist.Normal(PRIOR.new_zeros(()), PRIOR[0]))
    b = pyro.sample("b", dist.Normal(PRIOR.new_zeros(2), PRIOR[1:]).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + (x * b).sum(-1), NOISE), obs=y)


def posterior(x, y):
    """Mean and precision of (a, b) given y, and log p(y)."""
    design = torch.cat([torch.ones(len(x), 1, dtype=x.dtype), x], 1)
    precision = design.mT @ design / NOISE**2 + PRIOR.square().reciprocal().diag()
    mean = torch.linalg.solve(precision, design.mT @ y / NOISE**2)
    # By the matrix determinant lemma, as the covariance of y is nearly singular.
    log_det = 2 * len(x) * math.log(NOISE) + 2 * PRIOR.log().sum() + precision.logdet()
    square = y @ y / NOISE**2 - mean @ precision @ mean
    return mean, precision, -(len(x) * math.log(2 * math.pi) + log_det + square) / 2


def numbers_of(guide: DiagNormal, *args) -> tuple[torch.Tensor, torch.Tensor]:
    """Locs and scales of all sites of a diagonal normal, in the order of the model."""
    found = guide.parameters_of(*args).values()
    return tuple(torch.cat([value.detach().reshape(-1) for value in values]) for values in zip(*found, strict=True))


def test_the_start_of_independent_normals_is_the_best_of_them():
    """For a normal posterior with precision P, the mean, and standard deviations P_ii^(-1/2)."""
    args = rows()
    mean, precision, _ = posterior(*args)
    loc, scale = numbers_of(DiagNormal(bind_one(regression, args), args), *args)
    torch.testing.assert_close((loc - mean) * precision.diagonal().sqrt(), torch.zeros_like(mean), rtol=0, atol=5e-3)
    torch.testing.assert_close(scale * precision.diagonal().sqrt(), torch.ones_like(scale), rtol=0, atol=1e-6)


def test_the_start_with_correlations_is_the_posterior():
    """log p(y, z) - log q(z) is log p(y) at each draw."""
    args = rows()
    pair = pair_of(regression, FullNormal(bind_one(regression, args), args), args)
    for _ in range(5):
        guide = poutine.trace(pair.guide).get_trace(*args)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*args)
        difference = model.log_prob_sum() - guide.log_prob_sum()
        torch.testing.assert_close(difference.detach(), posterior(*args)[2], rtol=0, atol=1e-6)


def test_correlations_are_kept_with_the_parameters():
    args = rows()
    one = FullNormal(bind_one(regression, args), args)
    other = FullNormal(bind_one(regression, args), (args[0], 2 * args[1]))
    other.load_state_dict(one.state_dict())
    draws = []
    for guide in (one, other):
        torch.manual_seed(0)
        draws.append(guide(*args)["b"])
    assert torch.equal(*draws)


def with_parameter(x, y):
    return regression(x, y * pyro.param("p", torch.tensor(1.0, dtype=torch.float64)))


def with_noise(x, y):
    return regression(x, y + torch.randn(()))


def with_branch(x, y):
    a = pyro.sample("a", dist.Normal(PRIOR.new_zeros(()), 1.0))
    pyro.sample("y", dist.Normal(a if a > 0 else 2 * a, 1.0).expand([ROWS]).to_event(1), obs=y)


def with_minibatch(x, y):
    a = pyro.sample("a", dist.Normal(PRIOR.new_zeros(()), 1.0))
    with pyro.plate("data", ROWS, subsample_size=5) as index:
        pyro.sample("y", dist.Normal(a, 1.0), obs=y[index])


def with_mask(x, y):
    with poutine.mask(mask=torch.tensor(False)):
        a = pyro.sample("a", dist.Normal(PRIOR.new_zeros(()), 1.0))
    pyro.sample("y", dist.Normal(a, 1.0).expand([ROWS]).to_event(1), obs=y)


def without_density_at_the_start(x, y):
    a = pyro.sample("a", dist.Normal(PRIOR.new_zeros(()), 1.0))
    pyro.sample("y", dist.Uniform(a, a + 1e-9, validate_args=False).expand([ROWS]).to_event(1), obs=y)


@pytest.mark.parametrize(
    "model", [with_parameter, with_noise, with_branch, with_minibatch, with_mask, without_density_at_the_start]
)
def test_other_models_start_at_the_prior(model):
    args = rows()
    program = bind_one(model, args)
    one, other = (DiagNormal(program, args, start=start).state_dict() for start in ("fit", "prior"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_initial_scales_are_kept():
    args = rows()
    _, scale = numbers_of(DiagNormal(bind_one(regression, args), args, init_scale=0.3), *args)
    torch.testing.assert_close(scale, torch.full_like(scale, 0.3))
    with pytest.raises(InputError, match="start must be 'fit' or 'prior'"):
        DiagNormal(bind_one(regression, args), args, start="mode")


class Counting(nn.Module):
    """A regression that counts its runs, in a buffer and in Python, and keeps its last draw."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))
        self.fixed = nn.Parameter(torch.zeros(()), requires_grad=False)
        self.calls, self.last = 0, torch.zeros(())

    def forward(self, x, y):
        self.runs += 1
        self.calls += 1
        self.last = pyro.sample("a", dist.Normal(PRIOR.new_zeros(()), 1.0))
        pyro.sample("y", dist.Normal(self.last + self.fixed, 1.0).expand([ROWS]).to_event(1), obs=y)


def test_nothing_is_left_behind():
    """Neither in the model, beyond what reading it leaves there, nor in generators, the store and the data."""
    args = rows()
    found = []
    for start in ("prior", "fit"):
        model, data = Counting(), tuple(value.clone() for value in args)
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        guide = DiagNormal(model, data, start=start)
        assert all(torch.equal(*both) for both in zip(args, data, strict=True))
        assert not pyro.get_param_store().keys()
        assert model.fixed.grad is None
        state = generators()
        found.append((float(model.runs), model.calls, float(model.last), state["torch"].sum(), state["python"]))
    assert found[0] == found[1]
    assert numbers_of(guide, *args)[1] == pytest.approx(1 / np.sqrt(1 + ROWS))  # it is the second that has a start


def test_a_constrained_site_starts_at_the_best_log_normal():
    """For a Gamma(3, 2) posterior, E[z] = 3 / 2 and Var[log z] = 1 / 3: there the gradient of the ELBO is 0."""

    def model(x):
        z = pyro.sample("z", dist.Gamma(x.new_tensor(2.0), 1.0))
        pyro.sample("x", dist.Poisson(z), obs=x)

    args = (torch.tensor(1.0, dtype=torch.float64),)
    loc, scale = numbers_of(DiagNormal(bind_one(model, args), args), *args)
    assert float((loc + scale.square() / 2).exp()) == pytest.approx(1.5, rel=1e-2)
    assert float(scale.square()) == pytest.approx(1 / 3, rel=1e-2)


def test_minimise_finds_the_minimum_of_rosenbrocks_valley():
    def valley(x):
        x = x.detach().requires_grad_()
        value = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
        return value.detach(), torch.autograd.grad(value, x)[0]

    x, value, used = minimise(valley, torch.tensor([-1.2, 1.0], dtype=torch.float64), 200, tolerance=1e-12)
    torch.testing.assert_close(x, torch.ones_like(x), rtol=0, atol=1e-5)
    assert value < 1e-10
    assert used < 100
    assert minimise(valley, torch.tensor([-1.2, 1.0], dtype=torch.float64), 5)[2] == 5


def test_minimise_steps_back_from_values_that_are_not_finite():
    """x - log x is not a number below 0, and has its minimum 1 at x = 1."""
    x, value, _ = minimise(
        lambda x: ((x - x.log()).sum(), 1 - 1 / x), torch.tensor([8.0], dtype=torch.float64), 100, tolerance=1e-10
    )
    assert (float(x), value) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-8))


def test_the_guide_says_where_it_starts():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.zeros(3, dtype=torch.float64)
    assert DiagNormal(bind_one(model, (x,)), (x,)).describe() == {
        "z": "free parameters, from the best normal for fixed draws"
    }
    plain = DiagNormal(bind_one(model, (x,)), (x,), start="prior")
    assert plain.describe() == {"z": "free parameters, from the prior's centre"}


@pytest.mark.parametrize("guide", [DiagNormal, FullNormal])
def test_a_recorded_density_gives_the_same_bits_in_few_runs_of_the_model(guide, monkeypatch):
    args, runs, found = rows(), [], []

    def counted(*given):
        runs[-1] += 1
        return log_joint(*given)

    monkeypatch.setattr(points, "log_joint", counted)
    for unrecorded in (10**9, points.UNRECORDED):
        monkeypatch.setattr(points, "UNRECORDED", unrecorded)
        runs.append(0)
        made = guide(bind_one(regression, args), args)
        found.append([value for value in made.state_dict().values() if value.dim()])
    assert any(value.any() for value in found[0])  # parameters are 0 there, in units that the search finds
    assert all(map(torch.equal, *found))
    assert runs[1] < 30 < runs[0]


def test_a_graph_that_gives_other_bits_is_not_used(monkeypatch):
    args, asked = rows(), []
    expected = numbers_of(DiagNormal(bind_one(regression, args), args), *args)

    def wrong(function, *inputs):
        asked.append(None)
        return record(lambda u: [2 * part for part in function(u)], *inputs)

    monkeypatch.setattr(points, "record", wrong)
    found = numbers_of(DiagNormal(bind_one(regression, args), args), *args)
    assert asked
    assert all(map(torch.equal, found, expected))


@pytest.mark.slow
def test_a_start_has_the_same_bits_wherever_its_memory_lies():
    """Least squares by `torch.linalg.lstsq`, for one, has other bits at other addresses."""
    args, found, held = rows(), [], []
    for number in range(8):
        held.append(bytearray(16 * (2 * number + 1)))
        found.append(numbers_of(DiagNormal(bind_one(regression, args), args), *args))
    assert all(torch.equal(*pair) for other in found[1:] for pair in zip(found[0], other, strict=True))

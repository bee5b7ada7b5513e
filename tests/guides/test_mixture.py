"""The mixture guide: gradients of its draws, and its start at several modes."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import number

from pyro_vi.elbo import facts_of, measure
from pyro_vi.fitting.svi import fit
from pyro_vi.guides.mixture import DiagonalNormals


def test_the_gradient_of_a_mixture_of_single_numbers_is_that_of_its_mean_square():
    """E z² = Σ w (μ² + σ²): pathwise gradients, also in the weights, agree with it at 4 standard errors."""
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64).expand(20000, 2).clone().requires_grad_()
    loc = torch.tensor([[-1.0], [2.0]], dtype=torch.float64).expand(20000, 2, 1).clone().requires_grad_()
    scale = torch.tensor([[0.5], [1.5]], dtype=torch.float64).expand(20000, 2, 1).clone().requires_grad_()
    torch.manual_seed(0)
    z = DiagonalNormals(loc, scale, logits).rsample()
    found = torch.autograd.grad(z.square().sum(), (logits, loc, scale))
    one = [v[:1].detach().clone().requires_grad_() for v in (logits, loc, scale)]
    weights = one[0].softmax(-1)
    exact = torch.autograd.grad((weights * (one[1] ** 2 + one[2] ** 2).squeeze(-1)).sum(), one)
    for some, right in zip(found, exact, strict=True):
        error = some.std(0) / math.sqrt(len(some))
        assert bool(((some.mean(0) - right[0]).abs() < 4 * error).all())


def test_gradients_of_a_mixture_in_three_dimensions_are_exact():
    """E sin(a·z) + (b·z)² has a closed form; unequal scales, gradients in all parameters, at 4 standard errors."""
    generator, count = torch.Generator().manual_seed(0), 100_000
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    one, a, b = [draw(3), 1.5 * draw(3, 3), (0.3 * draw(3, 3)).exp()], draw(3), draw(3)
    wide = [part.expand(count, *part.shape).clone().requires_grad_() for part in one]
    torch.manual_seed(0)
    z = DiagonalNormals(wide[1], wide[2], wide[0]).rsample()
    found = torch.autograd.grad(((z @ a).sin() + (z @ b).square()).sum(), wide)
    logits, loc, scale = (part.clone().requires_grad_() for part in one)
    damped = (loc @ a).sin() * (-0.5 * scale.square() @ a.square()).exp()
    exact = (logits.softmax(-1) * (damped + (loc @ b).square() + scale.square() @ b.square())).sum()
    for some, right in zip(found, torch.autograd.grad(exact, (logits, loc, scale)), strict=True):
        assert bool(((some.mean(0) - right).abs() < 4 * some.std(0) / math.sqrt(count)).all())


def test_the_density_of_a_mixture_is_that_of_torch():
    loc, scale, logits = torch.randn(5, 3, 2).double(), torch.rand(5, 3, 2).double() + 0.1, torch.randn(5, 3).double()
    normals = torch.distributions.Independent(torch.distributions.Normal(loc, scale), 1)
    right = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(logits=logits), normals)
    mixture, z = DiagonalNormals(loc, scale, logits), torch.randn(4, 5, 2).double()
    torch.testing.assert_close(mixture.log_prob(z), right.log_prob(z), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.mean, right.mean, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(mixture.variance, right.variance, rtol=1e-10, atol=1e-10)


def two_modes():
    """z ~ N(0, 1), and z² is observed as 1 with scale .3."""
    z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
    pyro.sample("square", dist.Normal(z.square(), 0.3), obs=number(1.0))


@pytest.mark.slow
def test_free_parameters_start_at_both_modes():
    """A guide with one mode is log 2 below the evidence, by symmetry; a mixture is not, and gives each mode a half."""
    axis = torch.linspace(-6, 6, 6001).double()
    density = dist.Normal(number(0.0), 1.0).log_prob(axis) + dist.Normal(axis.square(), 0.3).log_prob(number(1.0))
    truth = float(density.logsumexp(0)) + math.log(float(axis[1] - axis[0]))
    gap = {}
    for guide in ("diag_normal", "mixture(components=2)"):
        run = fit(two_modes, guide, None, elbo="trace", steps=100, lr=0.01, compile=False, progress=False)
        gap[guide] = truth - measure(run.pair, (), facts_of(run.pair, ()), draws=20_000, kl="sampled", seed=1).elbo_mean
    assert gap["diag_normal"] > math.log(2) > 10 * gap["mixture(components=2)"] > 0
    with torch.no_grad():
        draws = torch.stack([run.pair.guide()["z"] for _ in range(1000)])
    assert 0.4 < float((draws > 0).double().mean()) < 0.6

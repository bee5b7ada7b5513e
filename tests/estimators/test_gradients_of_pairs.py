"""Gradients of the bound at the exact posterior are those of the evidence: the KL to it has gradient 0."""

import math

import pytest
import torch
from catalogue import columns, linear_gaussian
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO

from pyro_vi.data.spec import DataSpec
from pyro_vi.elbo.decomposition import terms
from pyro_vi.elbo.draws import stream
from pyro_vi.estimators.table import get
from pyro_vi.guides.exact import Exact
from pyro_vi.models.linear_gaussian import LinearGaussian
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.pair import Pair

EXACT = {"rtol": 1e-10, "atol": 1e-10}
NAMES = ("weight", "bias", "log_scale")


def evidence_gradient(model: LinearGaussian, x: torch.Tensor) -> dict[str, torch.Tensor]:
    parameters = [model.get_parameter(name) for name in NAMES]
    return dict(zip(NAMES, torch.autograd.grad(model.log_evidence(x).mean(), parameters), strict=True))


@pytest.mark.parametrize("noise", ["shared", "diagonal"])
def test_trace_with_the_exact_guide_has_the_gradient_of_the_evidence_in_every_draw(noise):
    torch.manual_seed(4)
    model = LinearGaussian(
        DataSpec("made up", 50, (3,), "real", torch.float64, "made up"), latent_dim=2, noise=noise, scale=0.7
    )
    x = columns()
    expected = evidence_gradient(model, x)
    guide = Exact(model, (x,))
    for seed in range(3):
        torch.manual_seed(seed)
        loss = Trace_ELBO().differentiable_loss(model, guide, x) / 50
        found = torch.autograd.grad(-loss, [model.get_parameter(name) for name in NAMES])
        for name, gradient in zip(NAMES, found, strict=True):
            torch.testing.assert_close(gradient, expected[name], **EXACT)


def test_the_terms_have_the_gradient_of_the_evidence_for_each_datum():
    model, x = linear_gaussian(), columns()
    weight = terms(model, Exact(model, (x,)), x, seed=1).log_weight
    for row in range(len(x)):
        for name in NAMES:
            parameter = model.get_parameter(name)
            (found,) = torch.autograd.grad(weight[row], parameter, retain_graph=True)
            (exact,) = torch.autograd.grad(model.log_evidence(x[row : row + 1]).sum(), parameter)
            torch.testing.assert_close(found, exact, **EXACT)


def test_gradient_of_the_evidence_is_the_posterior_mean_of_that_of_the_likelihood():
    """∇_θ log p_θ(x) = E_{p(z|x)}[∇_θ log p_θ(x | z)] for a fixed prior, at 4 standard errors for every element."""
    model, x, draws = linear_gaussian(), columns(rows=3), 20_000
    with torch.no_grad(), isolated(6):
        z = model.posterior(x)["z"].sample((draws,))

    def reconstruction(parameters: dict[str, torch.Tensor], z: torch.Tensor) -> torch.Tensor:
        # One draw's mean over the data, with the model's own distribution of x given z.
        return torch.func.functional_call(_Likelihood(model), {f"model.{n}": v for n, v in parameters.items()}, (z, x))

    per_draw = torch.func.vmap(torch.func.grad(reconstruction), in_dims=(None, 0))
    found = per_draw({name: model.get_parameter(name).detach() for name in NAMES}, z)
    for name, exact in evidence_gradient(model, x).items():
        error = found[name].std(0) / math.sqrt(draws)
        assert ((found[name].mean(0) - exact).abs() < 4 * error).all()
        assert (error < 0.1).all()


class _Likelihood(torch.nn.Module):
    def __init__(self, model: LinearGaussian) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.model.observation(z).log_prob(x).mean()


@pytest.mark.parametrize("name", ["trace", "mean_field"])
def test_named_estimators_have_the_gradients_of_pyros_own(name):
    model, x = linear_gaussian(), columns()
    guide = Exact(model, (x,))
    parameters = list(model.parameters())
    found = []
    for elbo in (get(name), {"trace": Trace_ELBO, "mean_field": TraceMeanField_ELBO}[name]()):
        torch.manual_seed(2)
        found.append(torch.autograd.grad(elbo.differentiable_loss(model, guide, x), parameters))
    for ours, pyros in zip(*found, strict=True):
        assert torch.equal(ours, pyros)


def test_gradient_of_the_terms_loss_is_that_of_the_estimator():
    """`Terms.loss` is not only the same number as Pyro's loss: it has the same gradient."""
    model, x = linear_gaussian(), columns()
    guide = Exact(model, (x,))
    for kl, elbo in (("sampled", Trace_ELBO()), ("analytic", TraceMeanField_ELBO())):
        torch.manual_seed(9)
        expected = torch.autograd.grad(elbo.differentiable_loss(model, guide, x), list(model.parameters()))
        found = torch.autograd.grad(terms(model, guide, x, kl=kl, seed=9).loss, list(model.parameters()))
        for ours, pyros in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, pyros, **EXACT)


def test_streamed_draws_of_the_exact_guide_are_the_evidence():
    model, x = linear_gaussian(), columns()
    with isolated(0):
        for chunk in stream(Pair(model, Exact(model, (x,))), (x,), 30, kl="sampled"):
            torch.testing.assert_close(chunk.elbo, model.log_evidence(x).detach().expand(30, -1), **EXACT)

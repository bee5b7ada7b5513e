"""The exact posterior as a guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BITS, columns, linear_gaussian, spec
from pyro.infer import Trace_ELBO
from torch import nn

from pyro_vi.errors import InputError
from pyro_vi.guides.exact import Exact
from pyro_vi.models.regression import Regression
from pyro_vi.models.vae import VAE
from pyro_vi.programs.isolation import isolated


def test_it_draws_from_the_models_posterior():
    model, x = linear_gaussian(), columns()
    with isolated(1):
        node = pyro.poutine.trace(Exact(model, (x,))).get_trace(x).nodes["z"]
    posterior = model.posterior(x)["z"]
    assert torch.equal(node["fn"].loc, posterior.loc)
    assert torch.equal(node["fn"].scale_tril, posterior.scale_tril)
    assert node["scale"] == 50 / 8
    assert [(frame.name, frame.full_size) for frame in node["cond_indep_stack"]] == [("data", 50)]


def test_it_has_no_parameters_of_its_own_and_follows_the_models():
    model, x = linear_gaussian(), columns()
    guide = Exact(model, (x,))
    assert {id(p) for p in guide.parameters()} == {id(p) for p in model.parameters()}
    with torch.no_grad():
        model.bias.add_(1.0)
    torch.testing.assert_close(guide.model.posterior(x)["z"].mean, model.posterior(x)["z"].mean)
    loc = pyro.poutine.trace(guide).get_trace(x).nodes["z"]["fn"].loc
    assert torch.autograd.grad(loc.sum(), model.bias)[0].abs().sum() > 0


def test_draws_have_the_posterior_moments():
    model, x, draws = linear_gaussian(), columns(2), 20_000
    guide = Exact(model, (x,))
    with isolated(3), torch.no_grad():
        z = guide(x.repeat(draws, 1))["z"].reshape(draws, 2, 2)
        posterior = model.posterior(x)["z"]
    error = posterior.stddev / draws**0.5
    assert ((z.mean(0) - posterior.mean).abs() < 4 * error).all()
    covariance = torch.stack([torch.cov(z[:, row].mT) for row in range(2)])
    exact = posterior.covariance_matrix
    spread = ((posterior.variance.unsqueeze(-1) * posterior.variance.unsqueeze(-2) + exact**2) / draws).sqrt()
    assert ((covariance - exact).abs() < 4 * spread).all()


class Chained(nn.Module):
    """u ~ N(0, 1), z | u ~ N(u, 1), x | z ~ N(z, 1); p(x) = N(0, 3)."""

    def forward(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
            z = pyro.sample("z", dist.Normal(u, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def posterior(self, x):
        return {"u": dist.Normal(x / 3, (2 / 3) ** 0.5), "z": lambda draws: dist.Normal((draws["u"] + x) / 2, 0.5**0.5)}


def test_a_posterior_over_several_sites_may_be_a_chain():
    """With the joint posterior, every draw of the ELBO is the evidence."""
    x = columns()[:, 0]
    model = Chained()
    with isolated(1):
        loss = Trace_ELBO().loss(model, Exact(model, (x,)), x)
    assert -loss == pytest.approx(float(dist.Normal(0 * x, 3**0.5).log_prob(x).sum()), rel=1e-10)


def test_a_model_without_a_closed_form_is_refused():
    with pytest.raises(InputError, match="VAE has none: use guide 'diag_normal'"):
        Exact(VAE(spec(support="boolean")), (BITS,))


def test_a_model_that_has_a_closed_form_under_some_options_says_under_which():
    match = (
        "regression has a closed form with normal priors, known_scale and no groups: use guide 'diag_normal' otherwise"
    )
    with pytest.raises(InputError, match=match):
        Exact(Regression(spec(3), known_scale=1.0, groups=2), (columns(), columns()[:, 0]))


def test_a_posterior_that_lacks_a_site_is_refused():
    class Half(nn.Module):
        def forward(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
                u = pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0))
                pyro.sample("x", dist.Normal(z + u, 1.0), obs=x[:, 0])

        def posterior(self, x):
            return {"z": dist.Normal(x[:, 0], 1.0)}

    with pytest.raises(InputError, match="lacks its latent sites u"):
        Exact(Half(), (columns(),))

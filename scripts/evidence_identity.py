"""Check log p(x) = ELBO + KL(q(z | x) ‖ p(z | x)) in numbers: `python scripts/evidence_identity.py`.

In the linear-Gaussian model all three terms have a closed form. So the identity can be checked to the last digit for any
guide: the exact posterior, a shifted one, two diagonal ones. The ELBO is a lower bound because the KL is never below 0. The
bound is tight where the guide is the posterior.
"""

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import pyro_vi
from pyro_vi.guides.exact import Exact
from pyro_vi.models.linear_gaussian import LinearGaussian


def expected_elbo(model: LinearGaussian, x: Tensor, q: MultivariateNormal) -> Tensor:
    """E_q[log p(x | z)] − KL(q(z | x) ‖ p(z)) of each datum, in closed form."""
    scale = model.log_scale.exp()
    # E|x − A z − b|² = |x − A m − b|² + tr(A S Aᵀ), feature by feature.
    spread = torch.einsum("dk,nkl,dl->nd", model.weight, q.covariance_matrix, model.weight)
    log_density = torch.distributions.Normal(model.decode(q.loc), scale).log_prob(x)
    reconstruction = (log_density - 0.5 * spread / scale**2).sum(-1)
    prior = MultivariateNormal(torch.zeros_like(q.loc), torch.eye(q.loc.shape[-1], dtype=x.dtype))
    return reconstruction - kl_divergence(q, prior)


def main() -> None:
    """Print the three terms for four guides, and then single draws of the exact guide's ELBO."""
    torch.manual_seed(0)
    x = torch.randn(5, 6, dtype=torch.float64)
    spec = pyro_vi.DataSpec("toy", 5, (6,), "real", torch.float64, "drawn here")
    model = LinearGaussian(spec, latent_dim=3, noise="diagonal", scale=[0.5, 0.8, 1.0, 1.2, 0.7, 0.9], learn=False)
    posterior = model.posterior(x)["z"]
    evidence = model.log_evidence(x)
    variance = posterior.covariance_matrix.diagonal(dim1=-2, dim2=-1)
    best = torch.linalg.inv(posterior.covariance_matrix).diagonal(dim1=-2, dim2=-1).reciprocal()
    guides = {
        "exact posterior": posterior,
        "best diagonal": MultivariateNormal(posterior.loc, torch.diag_embed(best)),
        "diagonal, marginal variances": MultivariateNormal(posterior.loc, torch.diag_embed(variance)),
        "mean off by 0.5": MultivariateNormal(posterior.loc + 0.5, posterior.covariance_matrix),
    }
    shown = Table(title="Mean of 5 data, in nats", title_justify="left")
    for column in ("guide", "ELBO", "KL(q || posterior)", "sum", "log p(x)", "largest error"):
        shown.add_column(column, justify="left" if column == "guide" else "right")
    for name, q in guides.items():
        elbo, kl = expected_elbo(model, x, q), kl_divergence(q, posterior)
        error = (elbo + kl - evidence).abs().max()
        cells = (f"{float(value.mean()):.6f}" for value in (elbo, kl, elbo + kl, evidence))
        shown.add_row(name, *cells, f"{float(error):.0e}")
    Console(highlight=False, width=110).print(shown)
    print("\nWith the exact guide, each single draw gives the evidence, whatever z is drawn (first datum):")
    for seed in range(3):
        draw = pyro_vi.terms(model, Exact(model, (x,)), x, kl="sampled", seed=seed)
        print(f"  draw {seed}: log p(x, z) - log q(z | x) = {float(draw.elbo[0]):.12f}")
    print(f"  log p(x)                               = {float(evidence[0]):.12f}")


if __name__ == "__main__":
    main()

"""The closed forms of probabilistic PCA."""

import torch
from torch import Tensor

from pyro_vi import Run

PPCA = "linear_gaussian(latent_dim=2)"


def closed_form(run: Run, x: Tensor) -> tuple[Tensor, Tensor]:
    """E[z | x] = P⁻¹ Aᵀ (x − b) / σ² with P = I + Aᵀ A / σ², and log N(x; b, A Aᵀ + σ² I)."""
    weight, bias = (run.params[name] for name in ("weight", "bias"))
    variance = (2 * run.params["log_scale"]).exp()
    precision = torch.eye(2).to(weight) + weight.T @ weight / variance
    means = torch.linalg.solve(precision, weight.T @ (x - bias).T / variance).T
    whole = weight @ weight.T + variance * torch.eye(len(bias)).to(weight)
    return means, torch.distributions.MultivariateNormal(bias, whole).log_prob(x)

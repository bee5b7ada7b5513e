"""A path of normals: its density against a loop and against an exact posterior, and draws one step after the other."""

import math

import torch
from torch import nn
from torch.distributions import MultivariateNormal, Normal

from pyro_vi.amortized.paths import NormalPath


def made(steps: int = 5, rows: int = 4, dim: int = 2, width: int = 3) -> tuple[NormalPath, tuple[torch.Tensor, ...]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width + dim, 6), nn.Tanh(), nn.Linear(6, 2 * dim)).double()
    loc, log_scale = torch.randn(2, rows, steps, dim).double()
    given = torch.randn(rows, steps, width).double()
    return NormalPath(loc, log_scale, given, net), (loc, log_scale, given, net)  # type: ignore[return-value]


def test_the_density_is_that_of_a_loop_and_the_draws_are_its_own():
    path, (loc, log_scale, given, net) = made()
    torch.manual_seed(1)
    z = path.rsample((7,))
    assert z.shape == (7, 4, 5, 2)
    torch.manual_seed(1)
    noise, before = torch.randn(7, 4, 5, 2, dtype=torch.float64), torch.zeros(7, 4, 2).double()
    total = []
    for t in range(5):
        shift, stretch = net(torch.cat([given[:, t].expand(7, 4, 3), before], -1)).chunk(2, -1)
        step = Normal(loc[:, t] + shift, (log_scale[:, t] + stretch).exp())
        torch.testing.assert_close(z[:, :, t], step.mean + step.stddev * noise[:, :, t], rtol=0, atol=1e-12)
        before = z[:, :, t]
        total.append(step.log_prob(before).sum(-1))
    torch.testing.assert_close(path.log_prob(z), torch.stack(total, -1), rtol=0, atol=1e-12)


def test_it_holds_the_exact_posterior_of_two_steps():
    """z_1 ~ N(0, 1), z_2 | z_1 ~ N(.9 z_1, .25), x_t | z_t ~ N(z_t, .49): log p(x, z) − log q(z) is log p(x) for any z."""
    prior = torch.tensor([[1.0, 0.9], [0.9, 0.81 + 0.25]], dtype=torch.float64)
    evidence, x = prior + 0.49 * torch.eye(2, dtype=torch.float64), torch.tensor([0.7, -1.1], dtype=torch.float64)
    gain = prior @ torch.linalg.inv(evidence)
    mean, cov = gain @ x, prior - gain @ prior
    slope, left = cov[1, 0] / cov[0, 0], cov[1, 1] - cov[1, 0] ** 2 / cov[0, 0]
    net = nn.Sequential(nn.Linear(1, 2)).double()
    with torch.no_grad():
        net[0].weight.copy_(torch.stack([slope, torch.zeros_like(slope)]).unsqueeze(-1))
        net[0].bias.zero_()
    loc = torch.stack([mean[0], mean[1] - slope * mean[0]]).unsqueeze(-1)
    log_scale = 0.5 * torch.stack([cov[0, 0], left]).log().unsqueeze(-1)
    q = NormalPath(loc, log_scale, torch.zeros(2, 0).double(), net)
    torch.manual_seed(0)
    z = q.sample((6,))[..., 0]
    zero = torch.zeros(2).double()
    joint = MultivariateNormal(zero, prior).log_prob(z) + Normal(z, math.sqrt(0.49)).log_prob(x).sum(-1)
    exact = MultivariateNormal(zero, evidence).log_prob(x).expand(6)
    torch.testing.assert_close(joint - q.log_prob(z.unsqueeze(-1)).sum(-1), exact, rtol=0, atol=1e-10)

"""Path of a chain: each step of a sequence given the one before it, and the features of the step."""

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.nn.functional import linear


class NormalPath(dist.TorchDistribution):
    """Path v_t | v_{t−1} ~ N(μ_t + m_t, diag σ_t² e^{2 s_t}) with (m_t, s_t) = net(h_t, v_{t−1}) and v_0 = 0, t = 1 … T.

    The batch shape is (*rows, T) and the event shape (D,). The log-density at step t is that of v_t given v_{t−1}; the sum over
    t is that of the path. Draws are made one step after the other, densities of all steps at once.

    Args:
        loc: μ, (*rows, T, D).
        log_scale: log σ, (*rows, T, D).
        given: h, (*rows, T, H).
        net: a network whose first layer is linear, from H + D numbers to 2 D.

    Example:
        >>> net = nn.Sequential(nn.Linear(1, 2, bias=False))
        >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [0.0]]))  # a random walk: m_t = v_{t−1} and s_t = 0
        >>> walk = NormalPath(torch.zeros(3, 1), torch.zeros(3, 1), torch.zeros(3, 0), net)
        >>> walk.log_prob(torch.tensor([[1.0], [1.0], [3.0]]))  # log N(1; 0, 1), log N(1; 1, 1), log N(3; 1, 1)
        tensor([-1.4189, -0.9189, -2.9189], grad_fn=<SumBackward1>)
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.real_vector
    has_rsample = True

    def __init__(self, loc: Tensor, log_scale: Tensor, given: Tensor, net: nn.Sequential) -> None:
        self.loc, self.log_scale = loc, log_scale
        first = net[0]
        assert isinstance(first, nn.Linear)
        width = given.shape[-1]
        # What does not depend on the draws is computed for all steps at once.
        self.fixed = linear(given, first.weight[:, :width], first.bias)
        self.weight, self.rest = first.weight[:, width:], net[1:]
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw paths, (*sample_shape, *rows, T, D)."""
        noise = torch.randn((*sample_shape, *self.loc.shape), dtype=self.loc.dtype, device=self.loc.device)
        v, path = torch.zeros_like(noise[..., 0, :]), []
        for t in range(self.batch_shape[-1]):
            mean, log_scale = self._step(self.loc[..., t, :], self.log_scale[..., t, :], self.fixed[..., t, :], v)
            v = mean + log_scale.exp() * noise[..., t, :]
            path.append(v)
        return torch.stack(path, -2)

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of each step given the one before, (..., T)."""
        before = torch.cat([torch.zeros_like(value[..., :1, :]), value[..., :-1, :]], -2)
        mean, log_scale = self._step(self.loc, self.log_scale, self.fixed, before)
        density: Tensor = dist.Normal(mean, log_scale.exp(), validate_args=False).log_prob(value)
        return density.sum(-1)

    def _step(self, loc: Tensor, log_scale: Tensor, fixed: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        shift, stretch = self.rest(fixed + linear(before, self.weight)).chunk(2, -1)
        return loc + shift, log_scale + stretch

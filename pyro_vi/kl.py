"""Closed forms of KL(q ‖ p) that torch lacks, registered with `torch.distributions` when this module is imported.

One replaces Pyro's own: its KL of a Delta leaves out the Delta's ``log_density`` (pyro-ppl 1.9.2), and with it the Jacobian of
every constrained site of an AutoNormal guide: `TraceMeanField_ELBO` is then off by the mean of that Jacobian.
"""

from typing import Any

from pyro.distributions import Delta, Distribution
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, register_kl


@register_kl(MultivariateNormal, Independent)
def _multivariate_normal_independent(q: MultivariateNormal, p: Independent) -> Tensor:
    """KL(N(m, S) ‖ N(μ, diag σ²)) = ½ [tr(S/σ²) + |(m − μ)/σ|² − D + 2 Σ log σ_d − log det S]; shape: the batch's."""
    if not isinstance(p.base_dist, Normal) or p.reinterpreted_batch_ndims != 1:
        raise NotImplementedError
    loc, scale = p.base_dist.loc, p.base_dist.scale
    # |L / σ|² sums to the trace; the log-determinant is twice that of the Cholesky factor L.
    trace = (q.scale_tril / scale.unsqueeze(-1)).square().sum((-2, -1))
    distance = ((q.loc - loc) / scale).square().sum(-1)
    log_det = q.scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return 0.5 * (trace + distance - q.event_shape[0]) + scale.log().sum(-1) - log_det


@register_kl(Delta, Distribution)
def _delta(q: Any, p: Any) -> Tensor:
    """KL(Delta(v, c) ‖ p) = c − log p(v), with c the density that the Delta states; shape: the batch's."""
    value: Tensor = q.log_prob(q.v) - p.log_prob(q.v)
    return value

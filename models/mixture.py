"""The Gaussian mixture: which component a datum comes from is a latent, and evidence and posterior are sums over components."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.programs import data_plate

COVARIANCES = ("full", "diag", "tied", "spherical")
ROUNDS = 20
"""Rounds of k-means at the start."""
Numbers = Any
"""An array as numbers in lists, a NumPy array or a tensor; None for the default."""


class GaussianMixture(nn.Module):
    """Gaussian mixture: k ~ Categorical(w), x | k ~ N(μ_k, Σ_k); p(x) = Σ_k w_k N(x; μ_k, Σ_k).

    The parameters are the model's own, so that a fit maximises the likelihood; under the estimator ``enum`` it is a sum over k,
    without draws. A fit by name starts from k-means on the data. The likelihood has no upper bound where a component shrinks to
    one datum; ``floor`` keeps it from doing so.

    Source: Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm, JRSS B 39 (1977).

    Args:
        data: description of the data set; its event shape is ``(D,)`` or ``()``.
        components: number K of components.
        covariance: ``"full"``, ``"diag"``, ``"tied"`` (one full matrix for all) or ``"spherical"`` (one variance each).
        weights: w, of shape ``(K,)``; by default all equal.
        means: μ, of shape ``(K, D)``.
        covariances: as `sklearn.mixture.GaussianMixture` has them: ``(K, D, D)``, ``(K, D)``, ``(D, D)`` or ``(K,)``.
        floor: least standard deviation, of each number given those before it.
        learn: if true, w, μ and Σ are parameters; otherwise they are fixed.

    Raises:
        InputError: the data are not real-valued vectors, an array has the wrong shape, or a number is out of range.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> spec = DataSpec("numbers", 1, (), "real", torch.float32, "made up")
        >>> model = GaussianMixture(spec, components=2, means=[[-2.0], [2.0]])
        >>> model.posterior(torch.tensor([0.0, 2.0]))["component"].probs[:, 1]
        tensor([0.5000, 0.9997], grad_fn=<...>)
    """

    logits: Tensor
    means: Tensor
    log_scale: Tensor
    lower: Tensor

    def __init__(
        self,
        data: DataSpec,
        *,
        components: int = 3,
        covariance: str = "full",
        weights: Numbers = None,
        means: Numbers = None,
        covariances: Numbers = None,
        floor: float = 1e-4,
        learn: bool = True,
    ) -> None:
        super().__init__()
        if len(data.event_shape) > 1:
            raise InputError(
                f"mixture takes vectors, but a datum of '{data.name}' has shape {data.event_shape}; flatten the data"
            )
        if data.support == "boolean":
            raise InputError(
                f"mixture has a density for real values, but '{data.name}' is binary; use real-valued data"
            )
        if covariance not in COVARIANCES:
            raise InputError(f"covariance must be one of {', '.join(COVARIANCES)}, not {covariance!r}")
        if not (isinstance(components, int) and components > 0):
            raise InputError(f"components must be a whole number of at least 1, not {components!r}")
        if not floor >= 0:
            raise InputError(f"floor is a standard deviation and must be at least 0, not {floor!r}")
        self.data, self.components, self.covariance, self.floor = data, components, covariance, floor
        self.features = math.prod(data.event_shape)
        given = {"weights": weights, "means": means, "covariances": covariances}
        self.given = {name for name, value in given.items() if value is not None}
        K, D = components, self.features
        shares = self._array("weights", torch.ones(K, dtype=data.dtype) / K if weights is None else weights, (K,))
        if not bool((shares > 0).all()):
            raise InputError("weights must be positive")
        values = {
            "logits": shares.log(),
            "means": self._array("means", torch.randn(K, D) if means is None else means, (K, D)),
            **self._scales(self._eye() if covariances is None else covariances),
        }
        for name, tensor in values.items():
            if learn:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def start(self, x: Tensor) -> None:
        """Set what was not given to the clusters of k-means on rows ``x``: their shares, means and covariances."""
        rows, K = x.reshape(len(x), -1), self.components
        if len(rows) <= K:
            return
        found = _clusters(rows, self.means.detach() if "means" in self.given else None, K)
        shares = nn.functional.one_hot(found, K).to(rows.dtype)
        # As if each cluster had one more datum, spread as all of them are.
        counts = shares.sum(0) + 1
        means = (shares.mT @ rows + rows.mean(0)) / counts.unsqueeze(-1)
        deviations = rows - means[found]
        everything = torch.cov(rows.mT).reshape(self.features, -1).diagonal().clamp(min=1e-6).diag()
        each = (torch.einsum("nk,nd,ne->kde", shares, deviations, deviations) + everything) / counts.reshape(-1, 1, 1)
        pooled = (each * (counts / counts.sum()).reshape(-1, 1, 1)).sum(0)
        variances = each.diagonal(dim1=-2, dim2=-1)
        forms = {"full": each, "tied": pooled, "diag": variances, "spherical": variances.mean(-1)}
        with torch.no_grad():
            if "weights" not in self.given:
                self.logits.copy_((counts / counts.sum()).log())
            if "means" not in self.given:
                self.means.copy_(means)
            if "covariances" not in self.given:
                for name, value in self._scales(forms[self.covariance]).items():
                    getattr(self, name).copy_(value)

    def forward(self, x: Tensor) -> Tensor:
        """Draw the component and score the batch ``x`` of shape ``(B, D)``; return ``x``."""
        with data_plate(self.data.num_data, x):
            component = pyro.sample("component", dist.Categorical(logits=self.logits))
            value: Tensor = pyro.sample("x", self.observation(component), obs=x)
        return value

    def observation(self, component: Tensor) -> Any:
        """Distribution of x given components, whole numbers of shape ``(...)``."""
        mean, scale = self.means[component], self._scale()
        scale = scale if self.covariance == "tied" else scale[component]
        if not self.data.event_shape:
            return dist.Normal(mean.squeeze(-1), scale.reshape(scale.shape[: component.dim()]))
        if self.covariance in ("full", "tied"):
            return dist.MultivariateNormal(mean, scale_tril=scale)
        return dist.Normal(mean, scale if self.covariance == "diag" else scale.unsqueeze(-1)).to_event(1)

    def decode(self, component: Tensor) -> Tensor:
        """E[x | k] = μ_k, for whole numbers of shape ``(...)``."""
        mean: Tensor = self.observation(component).mean
        return mean

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of each row of ``x``, in nats: shape ``(B,)``."""
        return self._joint(x).logsumexp(-1)

    def posterior(self, x: Tensor) -> dict[str, Any]:
        """p(k | x) of each row of ``x``, the responsibilities: a Categorical of batch shape ``(B,)``."""
        return {"component": dist.Categorical(logits=self._joint(x))}

    def _joint(self, x: Tensor) -> Tensor:
        """log w_k N(x; μ_k, Σ_k), of shape ``(B, K)``."""
        every = self.observation(torch.arange(self.components, device=x.device))
        joint: Tensor = every.log_prob(x.unsqueeze(1)) + self.logits.log_softmax(-1)
        return joint

    def _scale(self) -> Tensor:
        """Cholesky factors for ``full`` and ``tied``, otherwise standard deviations."""
        deviations = self.log_scale.exp() + self.floor
        return deviations.diag_embed() + self.lower.tril(-1) if self.covariance in ("full", "tied") else deviations

    def _eye(self) -> Tensor:
        """Unit covariances in the shape of this form."""
        K, D = self.components, self.features
        if self.covariance in ("full", "tied"):
            return torch.eye(D).expand(*((K,) if self.covariance == "full" else ()), D, D)
        return torch.ones((K, D) if self.covariance == "diag" else (K,))

    def _scales(self, covariances: Any) -> dict[str, Tensor]:
        """The parameters of given covariances."""
        tensor = self._array("covariances", covariances, tuple(self._eye().shape))
        matrices = self.covariance in ("full", "tied")
        if matrices:
            factor, wrong = torch.linalg.cholesky_ex(tensor)
            deviations = factor.diagonal(dim1=-2, dim2=-1)
        else:
            factor, wrong, deviations = tensor, tensor <= 0, tensor.clamp(min=0).sqrt()
        if bool(wrong.any()):
            raise InputError("covariances must be positive definite")
        if not bool((deviations > self.floor).all()):
            raise InputError(f"covariances have a standard deviation of at most {self.floor:g}; give a smaller floor")
        scales = {"log_scale": (deviations - self.floor).log()}
        return scales | ({"lower": factor.tril(-1)} if matrices else {})

    def _array(self, name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.as_tensor(value, dtype=self.data.dtype).detach().clone()
        if tuple(tensor.shape) != shape:
            raise InputError(f"mixture's {name} must have shape {shape}, not {tuple(tensor.shape)}")
        return tensor


def _clusters(x: Tensor, centres: Tensor | None, count: int) -> Tensor:
    """The cluster of each row by k-means: from given centres, or from rows that are far from one another.

    Each next centre is a row with probability proportional to its squared distance from the nearest one (Arthur and
    Vassilvitskii 2007). Features are taken in units of their standard deviations.
    """
    spread = x.std(0).clamp(min=1e-6)
    rows = x / spread
    if centres is None:
        chosen = rows[torch.randint(len(rows), (1,), device=rows.device)]
        while len(chosen) < count:
            away = torch.cdist(rows, chosen).square().amin(-1)
            chosen = torch.cat([chosen, rows[torch.multinomial(away + 1e-12, 1)]])
    else:
        chosen = centres / spread
    for _ in range(ROUNDS):
        nearest = torch.cdist(rows, chosen).argmin(-1)
        shares = nn.functional.one_hot(nearest, count).to(rows.dtype)
        counts = shares.sum(0).unsqueeze(-1)
        chosen = torch.where(counts > 0, shares.mT @ rows / counts.clamp(min=1), chosen)
    return torch.cdist(rows, chosen).argmin(-1)

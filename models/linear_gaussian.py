"""The linear-Gaussian model, whose evidence and posterior have a closed form, with two of its forms by name.

* `LinearGaussian` is the model. `PPCA` is the same with one noise variance, `FactorAnalysis` with one for each feature.
"""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.programs import data_plate


class LinearGaussian(nn.Module):
    """Linear-Gaussian model: z ~ N(0, I), x | z ~ N(A z + b, Σ) with diagonal Σ; p(x) = N(b, A Aᵀ + Σ).

    Maximum likelihood gives probabilistic PCA for one shared noise variance (Tipping and Bishop 1999), and factor analysis
    for a free diagonal. The posterior is N(P⁻¹ Aᵀ Σ⁻¹ (x − b), P⁻¹) with precision P = I + Aᵀ Σ⁻¹ A.

    Args:
        data: description of the data set; its event shape is ``(D,)`` or ``()``.
        latent_dim: dimension of z.
        noise: ``"shared"`` for Σ = σ² I, ``"diagonal"`` for one variance per feature, or ``"fixed"`` for those of ``scale``,
            which are not learned.
        weight: A, of shape ``(D, latent_dim)``; by default drawn from N(0, 1 / latent_dim).
        bias: b, of shape ``(D,)``; by default 0.
        scale: standard deviation of the noise, a number, or one per feature, of shape ``(D,)``.
        learn: if true, A, b and, unless the noise is fixed, Σ are parameters; otherwise they are fixed.

    Raises:
        InputError: the data are not real-valued vectors, or a given array has the wrong shape.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> spec = DataSpec("pair", 1, (1,), "real", torch.float32, "made up")
        >>> model = LinearGaussian(spec, latent_dim=1, weight=[[1.0]])
        >>> model.log_evidence(torch.tensor([[1.3]]))  # log N(1.3; 0, 2)
        tensor([-1.6880], grad_fn=<...>)
    """

    weight: Tensor
    bias: Tensor
    log_scale: Tensor

    def __init__(
        self,
        data: DataSpec,
        *,
        latent_dim: int = 8,
        noise: str = "shared",
        weight: Sequence[Sequence[float]] | Tensor | None = None,
        bias: Sequence[float] | Tensor | None = None,
        scale: float | Sequence[float] | Tensor = 1.0,
        learn: bool = True,
    ) -> None:
        super().__init__()
        if len(data.event_shape) > 1:
            raise InputError(
                f"linear_gaussian takes vectors, but a datum of '{data.name}' has shape {data.event_shape}; flatten the data"
            )
        if data.support == "boolean":
            raise InputError(
                f"linear_gaussian has a density for real values, but '{data.name}' is binary; "
                "use real-valued data, such as 'digits(standardize=True)'"
            )
        if noise not in ("shared", "diagonal", "fixed"):
            raise InputError(f"noise must be 'shared', 'diagonal' or 'fixed', not {noise!r}")
        if not (isinstance(latent_dim, int) and latent_dim > 0):
            raise InputError(f"latent_dim must be a whole number of at least 1, not {latent_dim!r}")
        self.data, self.latent_dim = data, latent_dim
        features = math.prod(data.event_shape)
        given = torch.randn(features, latent_dim) / math.sqrt(latent_dim) if weight is None else weight
        deviations = torch.as_tensor(scale, dtype=data.dtype)
        if noise == "diagonal" and deviations.dim() == 0:
            deviations = deviations.expand(features).clone()
        if not bool((deviations > 0).all()):
            raise InputError("scale holds standard deviations and must be positive")
        values = {
            "weight": (given, (features, latent_dim)),
            "bias": (torch.zeros(features) if bias is None else bias, (features,)),
            "log_scale": (deviations.log(), (features,) if deviations.dim() else ()),
        }
        for name, (value, shape) in values.items():
            tensor = torch.as_tensor(value, dtype=data.dtype)
            if tuple(tensor.shape) != shape:
                raise InputError(f"linear_gaussian's {name} must have shape {shape}, not {tuple(tensor.shape)}")
            tensor = tensor.detach().clone()
            if learn and not (name == "log_scale" and noise == "fixed"):
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: Tensor) -> Tensor:
        """Draw z and score the batch ``x`` of shape ``(B, D)``; return ``x``."""
        with data_plate(self.data.num_data, x):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            value: Tensor = pyro.sample("x", self.observation(z), obs=x)
        return value

    def observation(self, z: Tensor) -> Any:
        """Distribution of x given z, for z of shape ``(..., latent_dim)``."""
        mean = z @ self.weight.mT + self.bias
        scale = self.log_scale.exp()
        if not self.data.event_shape:
            return dist.Normal(mean.squeeze(-1), scale.squeeze(-1) if scale.dim() else scale)
        return dist.Normal(mean, scale).to_event(1)

    def decode(self, z: Tensor) -> Tensor:
        """E[x | z] = A z + b, for z of shape ``(..., latent_dim)``."""
        mean: Tensor = self.observation(z).mean
        return mean

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) = log N(x; b, A Aᵀ + Σ) of each row of ``x``, in nats: shape ``(B,)``."""
        variance = (2 * self.log_scale).exp().expand(self.bias.shape)
        marginal = dist.LowRankMultivariateNormal(self.bias, self.weight, variance)
        value: Tensor = marginal.log_prob(x.reshape(len(x), -1))
        return value

    def posterior(self, x: Tensor) -> dict[str, dist.Distribution]:
        """p(z | x) of each row of ``x``, by site: a multivariate normal of batch shape ``(B,)``."""
        weighted = self.weight.mT * (-2 * self.log_scale).exp()  # Aᵀ Σ⁻¹
        precision = torch.eye(self.latent_dim, dtype=x.dtype, device=x.device) + weighted @ self.weight
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
        mean = (x.reshape(len(x), -1) - self.bias) @ (covariance @ weighted).mT
        scale_tril = torch.linalg.cholesky(covariance)
        return {"z": dist.MultivariateNormal(mean, scale_tril=scale_tril)}


class PPCA(LinearGaussian):
    """Probabilistic PCA: z ~ N(0, I), x | z ~ N(A z + b, σ² I); maximum likelihood spans the principal subspace.

    At the maximum, σ² is the mean of the eigenvalues of the covariance that are left out (Tipping and Bishop 1999).

    Args:
        data: description of the data set; its event shape is ``(D,)`` or ``()``.
        latent_dim: dimension of z.
        scale: σ; where it starts, if it is learned: by default from the data, with half of their variance.
        learn_scale: if false, σ is fixed: latents whose eigenvalue is below σ² then collapse to the prior (arXiv:1911.02469).

    Raises:
        InputError: the data are not real-valued vectors, or a number is out of range.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> spec = DataSpec("made up", 100, (5,), "real", torch.float32, "made up")
        >>> [name for name, _ in PPCA(spec, learn_scale=False).named_parameters()]
        ['weight', 'bias']
    """

    def __init__(
        self, data: DataSpec, *, latent_dim: int = 8, scale: float | None = None, learn_scale: bool = True
    ) -> None:
        noise = "shared" if learn_scale else "fixed"
        super().__init__(data, latent_dim=latent_dim, noise=noise, scale=1.0 if scale is None else scale)
        self.scaled = learn_scale and scale is None

    def start(self, x: Tensor) -> None:
        """Set b to the mean, A in units of the standard deviations, and σ, unless it was given, to half of the variance."""
        _start(self, x, self.scaled)


class FactorAnalysis(LinearGaussian):
    """Factor analysis: z ~ N(0, I), x | z ~ N(A z + b, Σ) with one noise variance per feature.

    Source: Rubin and Thayer, EM algorithms for ML factor analysis, Psychometrika 47 (1982).

    Args:
        data: description of the data set; its event shape is ``(D,)`` or ``()``.
        latent_dim: dimension of z, the number of factors.
        scale: standard deviations of the noise where they start, a number, or one per feature, of shape ``(D,)``; by default
            from the data, with half of their variances.

    Raises:
        InputError: the data are not real-valued vectors, or a number is out of range.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> FactorAnalysis(DataSpec("made up", 100, (5,), "real", torch.float32, "made up")).log_scale.shape
        torch.Size([5])
    """

    def __init__(
        self, data: DataSpec, *, latent_dim: int = 8, scale: float | Sequence[float] | Tensor | None = None
    ) -> None:
        super().__init__(data, latent_dim=latent_dim, noise="diagonal", scale=1.0 if scale is None else scale)
        self.scaled = scale is None

    def start(self, x: Tensor) -> None:
        """Set b to the mean, A in units of the standard deviations, and Σ, unless it was given, to half of the variances."""
        _start(self, x, self.scaled)


def _start(model: LinearGaussian, x: Tensor, scaled: bool) -> None:
    rows = x.reshape(len(x), -1)
    variance = rows.var(0, correction=0)
    variance = torch.where(variance > 0, variance, 1.0)
    with torch.no_grad():
        model.bias.copy_(rows.mean(0))
        model.weight.mul_((variance / 2).sqrt().unsqueeze(-1))
        if scaled:
            noise = variance if model.log_scale.dim() else variance.mean()
            model.log_scale.copy_(0.5 * (noise / 2).log())

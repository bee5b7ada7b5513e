"""Bayesian regression: linear, logistic and Poisson, with priors of the weights and effects of groups."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.programs import data_plate

LIKELIHOODS = {"boolean": "bernoulli", "class": "bernoulli", "nonnegative_integer": "poisson", "real": "normal"}
"""The likelihood for each kind of target."""
SCALES: dict[str, Callable[[Tensor], Any]] = {
    "half_normal": dist.HalfNormal,
    "half_cauchy": dist.HalfCauchy,
    "exponential": lambda scale: dist.Exponential(1 / scale),
}
"""Priors of a standard deviation, by name."""
NO_TARGETS = ("lengths", "group", "sigma")
"""Second columns of data sets that are no targets."""
WIDE = 2.5
"""Default scale of a prior, in standard deviations of the target for one standard deviation of a feature."""


class Regression(nn.Module):
    """Regression: η = b + xᵀ w, y ~ N(η, σ²), Bernoulli(1 / (1 + e^−η)) or Poisson(e^η); b, w and σ have priors.

    With groups, b_j = b + τ u_j, u_j ~ N(0, 1), takes the place of b in group j; with ``slopes``, w_j = w + υ v_j, too. All
    latents are shared by the data, so that a fit takes all rows in each step unless it is given a ``batch_size``; minibatches
    are scaled to the whole data. The batch is ``(x, y)`` or ``(x, y, group)``: x of shape ``(B, D)`` or ``(B,)``, y and group
    of shape ``(B,)``, groups numbered from 0.

    Scales that are not given come from the data: 2.5 standard deviations of y for one of the feature, as in Gelman, Hill and
    Vehtari, Regression and Other Stories (2020), chapter 9.

    Args:
        data: description of the data set; its event shape is ``(D,)`` or ``()``.
        likelihood: ``"normal"``, ``"bernoulli"`` or ``"poisson"``; by default the one of the target's kind: 0/1 values and
            two classes, counts, or real values.
        prior: ``"normal"``, or ``"student"`` with ``df`` degrees of freedom: a prior of the weights with heavy tails.
        df: degrees of freedom.
        weight_scale: scale of the weights' prior: a number, or one for each feature; by default 2.5 for one standard deviation
            of the feature, in standard deviations of y if y is normal.
        intercept: if true, the model has an intercept b.
        intercept_scale: standard deviation of the prior of b, which then has mean 0. By default b has the mean of y (of a
            Poisson y, its log; of a Bernoulli y, 0), and 2.5 standard deviations of y about it, wider if the features are far
            from 0, as b is the value there.
        scale_prior: prior of σ, τ and υ: ``"half_normal"``, ``"half_cauchy"`` or ``"exponential"``.
        noise_scale: scale of the prior of σ; by default 2.5 standard deviations of y.
        known_scale: σ, if it is known; ``"column"`` takes it for each row from the last column of x.
        groups: number of groups; by default those of the data, 0 without a third column.
        group_scale: scale of the prior of τ and of υ; by default 2.5, in standard deviations of y if y is normal.
        slopes: if true, weights differ between groups too.
        centred: if true, the effects of groups are drawn as b_j ~ N(b, τ²): better where each group has many data.

    Raises:
        InputError: the data are not vectors, or an option is out of range.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> spec = DataSpec("made up", 2, (1,), "real", torch.float32, "made up")
        >>> model = Regression(spec, intercept=False, weight_scale=1.0, known_scale=1.0)
        >>> model.log_evidence(torch.tensor([[1.0], [0.0]]), torch.tensor([1.0, 0.0]))  # log N(1; 0, 2) + log N(0; 0, 1)
        tensor(-2.4345)
    """

    weight_scale: Tensor
    intercept_loc: Tensor
    intercept_scale: Tensor
    noise_scale: Tensor
    group_scale: Tensor

    def __init__(
        self,
        data: DataSpec,
        *,
        likelihood: str = "auto",
        prior: str = "normal",
        df: float = 4.0,
        weight_scale: float | Sequence[float] | Tensor | None = None,
        intercept: bool = True,
        intercept_scale: float | None = None,
        scale_prior: str = "half_normal",
        noise_scale: float | None = None,
        known_scale: float | str | None = None,
        groups: int | None = None,
        group_scale: float | None = None,
        slopes: bool = False,
        centred: bool = False,
    ) -> None:
        super().__init__()
        if len(data.event_shape) > 1:
            raise InputError(
                f"regression takes vectors, but a datum of '{data.name}' has shape {data.event_shape}; flatten the data"
            )
        self.data, self.likelihood = data, _likelihood(likelihood, data)
        for option, word, words in (
            ("prior", prior, ("normal", "student")),
            ("scale_prior", scale_prior, tuple(SCALES)),
        ):
            if word not in words:
                raise InputError(f"{option} must be one of {', '.join(words)}, not {word!r}")
        if isinstance(known_scale, str) and known_scale != "column":
            raise InputError(f"known_scale must be a number or 'column', not {known_scale!r}")
        if known_scale is not None and self.likelihood != "normal":
            raise InputError(f"known_scale is for the normal likelihood, not for {self.likelihood}; leave it out")
        if not df > 0:
            raise InputError(f"df must be positive, not {df!r}")
        if groups is not None and not (isinstance(groups, int) and groups >= 0):
            raise InputError(f"groups must be a whole number of at least 0, not {groups!r}")
        if isinstance(known_scale, int | float) and not known_scale > 0:
            raise InputError(f"known_scale is a standard deviation and must be positive, not {known_scale!r}")
        self.prior, self.df, self.scale_prior, self.known_scale = prior, df, scale_prior, known_scale
        self.has_intercept, self.slopes, self.centred = intercept, slopes, centred
        self.features = math.prod(data.event_shape) - (known_scale == "column")
        classes = [len(column.classes) for column in data.others[1:2]]
        self.groups = groups if groups is not None else (classes or [0])[0]
        """Number of groups, which `start` finds if it is not known yet."""
        if (slopes or centred) and groups == 0:
            raise InputError("slopes and centred are of groups, and groups is 0; leave them out")
        given = {
            "weight_scale": weight_scale,
            "intercept_scale": intercept_scale,
            "noise_scale": noise_scale,
            "group_scale": group_scale,
        }
        self.open = {name for name, value in given.items() if value is None} | ({"groups"} if groups is None else set())
        for name, value in given.items():
            scale = torch.as_tensor(WIDE if value is None else value, dtype=data.dtype).detach().clone()
            if not bool((scale > 0).all()):
                raise InputError(f"{name} is the scale of a prior and must be positive, not {value!r}")
            if scale.dim() and (name != "weight_scale" or scale.shape != (self.features,)):
                wanted = f"a number, or {self.features} for the features" if name == "weight_scale" else "a number"
                raise InputError(f"{name} must be {wanted}, not of shape {tuple(scale.shape)}")
            self.register_buffer(name, scale.expand(self.features).clone() if name == "weight_scale" else scale)
        self.register_buffer("intercept_loc", torch.zeros((), dtype=data.dtype))

    def start(self, x: Tensor, y: Tensor | None = None, group: Tensor | None = None) -> None:
        """Set what was not given from rows: scales of priors, and the number of groups."""
        if y is None:
            raise InputError(
                f"regression takes (x, y) or (x, y, group), and '{self.data.name}' has no targets; give them too, as in "
                "'diabetes(target=True)' or \"table.csv(target='y')\""
            )
        if y.dim() != 1:
            raise InputError(
                f"targets are one number for each row, of shape (rows,), not {tuple(y.shape)}; flatten them"
            )
        self._check_groups(group)
        if "groups" in self.open and group is not None:
            self.groups = max(self.groups, int(group.max()) + 1)
        features, target = self._split(x)[0], y.to(self.data.dtype)
        unit = target.std().clamp(min=1e-6) if self.likelihood == "normal" else torch.ones_like(target[0])
        centre = {"normal": target.mean(), "poisson": target.mean().clamp(min=1e-6).log()}
        away = features - features.mean(0)  # not torch.std, which warns of no features
        spread = (away.square().sum(0) / max(len(x) - 1, 1)).sqrt()
        weight = WIDE * unit / torch.where(spread > 0, spread, 1.0)
        if "weight_scale" in self.open:
            self.weight_scale.copy_(weight)
        # b is the target at x = 0, which may be far from the data.
        level = ((WIDE * unit).square() + (self.weight_scale * features.mean(0)).square().sum()).sqrt()
        for name, scale in (("intercept_scale", level), ("noise_scale", WIDE * unit), ("group_scale", WIDE * unit)):
            if name in self.open:
                getattr(self, name).copy_(scale)
        if "intercept_scale" in self.open:
            self.intercept_loc.copy_(centre.get(self.likelihood, torch.zeros(())))

    def _check_groups(self, group: Tensor | None) -> None:
        """Raise InputError if options are about groups that the data lack, or if the groups are not numbered from 0."""
        if group is None:
            said = [name for name, asked in (("slopes", self.slopes), ("centred", self.centred)) if asked]
            said += ["groups"] if "groups" not in self.open and self.groups else []
            if said:
                raise InputError(
                    f"{said[0]} is of groups, and '{self.data.name}' has no column of them; give one, as in "
                    f"\"table.csv(target='y', group='county')\", or leave {said[0]} out"
                )
            return
        most = self.groups if "groups" not in self.open else math.inf
        if group.dim() != 1 or group.is_floating_point() or int(group.min()) < 0 or int(group.max()) >= most:
            found = f"{group.dtype} of shape {tuple(group.shape)} from {group.min().item()} to {group.max().item()}"
            limit = f" to {self.groups - 1}" if "groups" not in self.open else ""
            raise InputError(f"groups are whole numbers of shape (rows,), from 0{limit}, not {found}; number them so")

    def forward(self, x: Tensor, y: Tensor | None = None, group: Tensor | None = None) -> Tensor:
        """Draw the coefficients and score the targets ``y``; return them, or a draw of them."""
        features, known = self._split(x)
        scale_of, grouped = SCALES[self.scale_prior], bool(self.groups) and group is not None
        level: Any = x.new_zeros(())
        weights: Any = None
        if self.has_intercept:
            level = pyro.sample("intercept", dist.Normal(self.intercept_loc, self.intercept_scale))
        if self.features:
            weights = pyro.sample("weights", self._weights())
        if grouped:
            level, weights = self._of_groups(level, weights, scale_of, group)
        if self.likelihood == "normal" and known is None:
            known = pyro.sample("scale", scale_of(self.noise_scale))
        with data_plate(self.data.num_data, x):
            mean = level if weights is None else level + (features * weights).sum(-1)
            target = None if y is None else y.to(x.dtype)
            value: Tensor = pyro.sample(
                "y", self._observation(mean.expand(*mean.shape[:-1], len(x)), known), obs=target
            )
        return value

    def _of_groups(self, level: Any, weights: Any, scale_of: Any, group: Any) -> tuple[Any, Any]:
        """The level and the weights of each row."""
        spread = pyro.sample("group_scale", scale_of(self.group_scale))
        tilt: Any = None
        if self.slopes and weights is not None:
            tilt = pyro.sample("slope_scale", scale_of(self.group_scale.expand(self.features)).to_event(1))
        with pyro.plate("groups", self.groups):
            levels = _effects("group", level, spread, self.centred, 0)
            slopes = None if tilt is None else _effects("slopes", weights, tilt, self.centred, 1)
        return levels[..., group], weights if slopes is None else slopes[..., group, :]

    def _observation(self, mean: Tensor, scale: Any) -> Any:
        if self.likelihood == "normal":
            return dist.Normal(mean, scale)
        return dist.Bernoulli(logits=mean) if self.likelihood == "bernoulli" else dist.Poisson(mean.exp())

    def _weights(self) -> Any:
        zero = torch.zeros_like(self.weight_scale)
        if self.prior == "student":
            return dist.StudentT(self.df, zero, self.weight_scale).to_event(1)
        return dist.Normal(zero, self.weight_scale).to_event(1)

    # The closed form.

    @property
    def log_evidence(self) -> Callable[[Tensor, Tensor], Tensor]:
        """``log_evidence(x, y)``: log p(y | x) in nats, of all rows together; only with a closed form."""
        self._refuse_open("log_evidence")
        return self._log_evidence

    @property
    def posterior(self) -> Callable[[Tensor, Tensor], dict[str, Any]]:
        """``posterior(x, y)``: b, and w given b; only with a closed form."""
        self._refuse_open("posterior")
        return self._posterior

    def _refuse_open(self, name: str) -> None:
        """Raise AttributeError if there is no closed form: it takes normal priors, a known scale, and no groups."""
        if self.likelihood != "normal" or self.prior != "normal" or self.known_scale is None or self.groups:
            raise AttributeError(
                f"{name}: a regression has a closed form with normal priors, known_scale and no groups"
            )

    def _log_evidence(self, x: Tensor, y: Tensor) -> Tensor:
        design, loc, spread, noise = self._design(x)
        marginal = dist.LowRankMultivariateNormal(design @ loc, design * spread, noise.square())
        value: Tensor = marginal.log_prob(y.to(x.dtype))
        return value

    def _posterior(self, x: Tensor, y: Tensor) -> dict[str, Any]:
        design, loc, spread, noise = self._design(x)
        weighted = design / noise.square().unsqueeze(-1)
        covariance = torch.linalg.inv(design.mT @ weighted + (1 / spread.square()).diag())
        mean = loc + covariance @ weighted.mT @ (y.to(x.dtype) - design @ loc)
        sites: dict[str, Any] = {}
        first = int(self.has_intercept)
        if self.has_intercept:
            sites["intercept"] = dist.Normal(mean[0], covariance[0, 0].sqrt())
        if self.features:
            gain = covariance[first:, :first] / covariance[:1, :1]
            root = torch.linalg.cholesky(covariance[first:, first:] - gain @ covariance[:first, first:])

            def weights(draws: dict[str, Tensor]) -> Any:
                shift = (draws["intercept"] - mean[0]).unsqueeze(-1) * gain[:, 0] if first else 0.0
                return dist.MultivariateNormal(mean[first:] + shift, scale_tril=root)

            sites["weights"] = weights
        return sites

    def _design(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features with a column of ones for b, prior means and standard deviations, and the noise of each row."""
        features, known = self._split(x)
        ones = features.new_ones(len(x), int(self.has_intercept))
        loc = torch.cat([self.intercept_loc.expand(ones.shape[1]), torch.zeros_like(self.weight_scale)])
        spread = torch.cat([self.intercept_scale.expand(ones.shape[1]), self.weight_scale])
        noise = torch.as_tensor(known, dtype=x.dtype, device=x.device).expand(len(x))
        return torch.cat([ones, features], 1), loc, spread, noise

    def _split(self, x: Tensor) -> tuple[Tensor, Any]:
        """The features, ``(B, D)``, and the known scale."""
        rows = x.reshape(len(x), -1)
        return (rows[:, :-1], rows[:, -1]) if self.known_scale == "column" else (rows, self.known_scale)


def _effects(name: str, centre: Any, scale: Any, centred: bool, event_dim: int) -> Any:
    """Effects of groups around a centre: drawn themselves, or as standard normal numbers."""
    if centred:
        return pyro.sample(name, dist.Normal(centre, scale).to_event(event_dim))
    return centre + scale * pyro.sample(name, dist.Normal(torch.zeros_like(scale), 1.0).to_event(event_dim))


def _likelihood(name: str, data: DataSpec) -> str:
    target = data.others[0] if data.others else None
    if target is not None and target.name in NO_TARGETS:
        raise InputError(
            f"regression takes targets as its second column, and '{data.name}' has {target.name} there; give arrays (x, y), or "
            "(x, y, group), with known errors of y as the last column of x under known_scale='column'"
        )
    if name == "auto":
        numbers = target is None or all(word.isdigit() for word in target.classes)  # counts, unless they have names
        if target is not None and len(target.classes) > 2 and (target.support == "class" or not numbers):
            raise InputError(
                f"regression takes two classes, and '{data.name}' has {len(target.classes)}; use model 'bayesian_network'"
            )
        return "normal" if target is None else LIKELIHOODS.get(target.support, "normal")
    if name not in LIKELIHOODS.values():
        raise InputError(f"likelihood must be one of auto, normal, bernoulli, poisson, not {name!r}")
    return name

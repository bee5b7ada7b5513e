"""The linear Gaussian state space model, exact by the Kalman filter and smoother: structural time series of any form."""

import math
from contextlib import nullcontext
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.models.kalman import Filtered, Smoothed, filtered, smoothed, started
from pyro_vi.programs import data_plate

FORMS: dict[str, tuple[list[list[float]], list[float]]] = {
    "local_level": ([[1.0]], [1.0]),
    "local_linear_trend": ([[1.0, 1.0], [0.0, 1.0]], [1.0, 0.1]),
}
"""Transition of the states behind each number of a datum, and their variances where the fit starts, in units of the data's."""
Numbers = Any
"""An array as numbers in lists, a NumPy array or a tensor; None for the default."""


class StateSpace(nn.Module):
    """Linear Gaussian state space model: z_t ~ N(F z_{t−1}, Q), x_t ~ N(H z_t, R), for t = 1, …, T.

    By default the start is diffuse: the first k observations, as few as determine the state, start the filter. The first state
    is z_k ~ p(z_k | x_1..k) under a flat prior, and the evidence is log p(x_k+1..T | x_1..k), which is exact (Durbin and
    Koopman 2012, section 5.2). With ``mean`` and ``variance`` it is z_1 ~ N(mean, variance), and k = 0.

    The data are one series, ``(T,)`` or ``(T, D)``, or a row for each series, ``(B, T)`` or ``(B, T, D)``, with ``lengths`` of
    shape ``(B,)`` if some are padded. The states are one site ``z``, of shape ``((T − k + 1) d,)``, or one for each step.

    Args:
        data: description of the data set; real values.
        form: ``"local_level"``, a level that moves, or ``"local_linear_trend"``, a level whose slope moves: one for each of the
            D numbers of a datum. The matrices that follow take its place.
        transition: F, of shape ``(d, d)``.
        observation: H, of shape ``(D, d)``.
        state_variance: Q: a number, one for each state, or a positive definite matrix; by default from the data's variance.
        noise_variance: R: a number, one for each of D, or a positive definite matrix.
        mean: of the first state, of shape ``(d,)``; by default the start is diffuse.
        variance: of the first state, as ``state_variance``.
        series: ``"one"`` if the data are one series, ``"rows"`` if each row is one; by default one if a row is a single number,
            or if there is only one row.
        states: ``"path"`` for one site, ``"steps"`` for sites ``z_1, z_2, …``; by default a path for one series.
        learn: if true, the variances are parameters, and correlations stay as given; otherwise they are fixed.

    Raises:
        InputError: the data are not real-valued series, a matrix has the wrong shape or is not positive definite, or the
            observations do not determine the state.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> spec = DataSpec("series", 3, (), "real", torch.float32, "made up")
        >>> model = StateSpace(spec, state_variance=1.0, noise_variance=1.0, learn=False)
        >>> model.log_evidence(torch.tensor([0.0, 1.0, 1.0]))  # log N(1; 0, 3) + log N(1; 2/3, 8/3)
        tensor(-3.0651)
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        form: str = "local_level",
        transition: Numbers = None,
        observation: Numbers = None,
        state_variance: Numbers = None,
        noise_variance: Numbers = None,
        mean: Numbers = None,
        variance: Numbers = None,
        series: str = "auto",
        states: str = "auto",
        learn: bool = True,
    ) -> None:
        super().__init__()
        if data.support == "boolean":
            raise InputError(f"state_space has a density for real values, but '{data.name}' is binary; use real values")
        for name, value, known in (
            ("form", form, tuple(FORMS)),
            ("series", series, ("auto", "one", "rows")),
            ("states", states, ("auto", "path", "steps")),
        ):
            if value not in known:
                raise InputError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        self.data, shape = data, data.event_shape
        row = bool(shape) and data.num_data == 1 and series == "auto"
        self.row = row
        """True for one series that is the only row, so that the batch has one dimension more than the series."""
        self.one = series == "one" or row or (series == "auto" and shape in ((), (1,)))
        if len(shape) > (2 if row or not self.one else 1) or (not self.one and not shape):
            raise InputError(
                "state_space takes one series of shape (T,) or (T, D), or rows of shape (T,) or (T, D); "
                f"a row of '{data.name}' has shape {shape}"
            )
        self.path = states == "path" or (states == "auto" and self.one)
        inner = shape if self.one and not row else shape[1:]
        self.features, self.flat = math.prod(inner), not inner
        self._matrices(form, transition, observation)
        d, D = len(self.F), self.features
        default = torch.tensor(FORMS[form][1], dtype=data.dtype).repeat(D) if transition is None else torch.ones(d)
        self.given = {n for n, v in (("state", state_variance), ("noise", noise_variance)) if v is not None}
        self.learn = learn
        self._covariance("state", default if state_variance is None else state_variance, d, learn)
        self._covariance("noise", 1.0 if noise_variance is None else noise_variance, D, learn)
        self.diffuse = mean is None and variance is None
        self.used = self._needed() if self.diffuse else 0
        """k, the number of observations that start the filter."""
        if not self.diffuse:
            self._covariance("first", 1.0 if variance is None else variance, d, learn=False)
            self.register_buffer("mean", self._array("mean", torch.zeros(d) if mean is None else mean, (d,)))

    F: Tensor
    H: Tensor
    mean: Tensor
    noise_log_scale: Tensor
    state_log_scale: Tensor

    # Parameters.

    def start(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Set variances that were not given from those of the steps of ``x``."""
        series = self._series(x)
        steps = series.diff(dim=-2)
        known = (
            torch.ones_like(steps[..., :1]) if lengths is None else self._known(series, lengths)[..., 1:, None].to(x)
        )
        variance = ((steps.square() * known).sum(-2) / known.sum(-2).clamp(min=1)).reshape(-1, self.features).mean(
            0
        ) / 3
        with torch.no_grad():
            if "noise" not in self.given:
                self.noise_log_scale.add_(variance.sqrt().clamp(min=1e-6).log())
            if "state" not in self.given:
                self.state_log_scale.add_(0.5 * variance.mean().clamp(min=1e-12).log())

    def root(self, which: str) -> Tensor:
        """Cholesky factor of a covariance: ``"state"`` for Q, ``"noise"`` for R, ``"first"`` for the start."""
        scale: Tensor = getattr(self, f"{which}_log_scale").exp()
        return scale.unsqueeze(-1) * getattr(self, f"{which}_unit")

    # The program.

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Draw the states and score the series; return ``x``."""
        series = self._series(x)
        if self.path and lengths is not None:
            raise InputError("states='path' has no series of other lengths; use states='steps'")
        program = self._path if self.path else self._steps
        if self.one:
            program(series, lengths)
        else:
            with data_plate(self.data.num_data, x):
                program(series, lengths)
        return x

    def _path(self, series: Tensor, lengths: Tensor | None) -> None:
        z = pyro.sample("z", self.prior(series))
        observed = series[..., self.used :, :]
        pyro.sample("x", self._noise(self.decode(z)[..., min(self.used, 1) :, :], 1), obs=observed)

    def _steps(self, series: Tensor, lengths: Tensor | None) -> None:
        known: Any = None if lengths is None else self._known(series, lengths)
        mean, root = self._initial(series)
        first, last = max(self.used, 1), series.shape[-2]
        z: Any = None
        for t in range(first, last + 1):
            with nullcontext() if known is None else poutine.mask(mask=known[..., t - 1]):
                moments = (z @ self.F.mT, self.root("state")) if t > first else (mean, root)
                z = pyro.sample(f"z_{t}", _normal(*moments))
                if t > self.used:
                    pyro.sample(f"x_{t}", self._noise(z @ self.H.mT, 0), obs=series[..., t - 1, :])

    def prior(self, series: Tensor) -> Any:
        """Distribution of the path of the states, flat: event shape ``((T − k + 1) d,)``."""
        mean, root = self._initial(series)
        count, d = series.shape[-2] - max(self.used, 1) + 1, len(self.F)
        powers = torch.eye(d, dtype=mean.dtype, device=mean.device).unsqueeze(0)
        while len(powers) < count:
            powers = torch.cat([powers, powers @ (powers[-1] @ self.F)])
        powers = powers[:count]
        # z_t = F^(t−1) z_1 + Σ_s F^(t−s) w_s, so the factor of the covariance is known: no matrix of T rows is decomposed.
        lags = torch.arange(count, device=mean.device)
        lags = lags.unsqueeze(-1) - lags
        blocks = powers[lags.clamp(min=0)] * (lags >= 0).reshape(count, count, 1, 1)
        factor = torch.cat([blocks[:, :1] @ root, blocks[:, 1:] @ self.root("state")], 1)
        means = torch.einsum("tij,...j->...ti", powers, mean)
        scale_tril = factor.permute(0, 2, 1, 3).reshape(count * d, count * d)
        return dist.MultivariateNormal(means.flatten(-2), scale_tril=scale_tril)

    def decode(self, z: Tensor) -> Tensor:
        """E[x_t | z_t] of a path, for z of shape ``(..., (T − k + 1) d)``: shape ``(..., T − k + 1, D)``."""
        return z.unflatten(-1, (-1, len(self.F))) @ self.H.mT

    # Closed forms.

    def log_evidence(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """log p(x_k+1..T | x_1..k) by the Kalman filter, in nats: of each row, ``(B,)``, or of one series, ``()``."""
        return self._filter(self._series(x), lengths).evidence

    def smooth(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return means and covariances of the states given x: ``(..., T − k + 1, d)`` and ``(..., T − k + 1, d, d)``."""
        found = self._smoother(self._series(x), lengths)
        return torch.stack(found.means, -2), torch.stack(found.covariances, -3)

    def posterior(self, x: Tensor, lengths: Tensor | None = None) -> dict[str, Any]:
        """p(z | x) by site: the normal of the path, or a chain over the steps, each given the one before."""
        series = self._series(x)
        found = self._smoother(series, lengths)
        if self.path:
            return {"z": dist.MultivariateNormal(torch.cat(found.means, -1), scale_tril=found.factor())}
        first = max(self.used, 1)
        known = None if lengths is None else self._known(series, lengths)
        sites: dict[str, Any] = {}
        for place, (mean, root) in enumerate(zip(found.means, found.roots, strict=True)):
            mask = None if known is None else known[..., first + place - 1]
            if place == 0:
                sites[f"z_{first}"] = _masked(_normal(mean, root), mask)
            else:
                before = (f"z_{first + place - 1}", found.means[place - 1], found.gains[place - 1])
                sites[f"z_{first + place}"] = partial(_given, *before, mean, root, mask)
        return sites

    def _smoother(self, series: Tensor, lengths: Tensor | None) -> Smoothed:
        return smoothed(self._filter(series, lengths), self.F)

    def _filter(self, series: Tensor, lengths: Tensor | None) -> Filtered:
        known = None if lengths is None else self._known(series, lengths)
        mean, root = self._initial(series)
        return filtered(series, known, self.used, mean, root, self.F, self.H, *self._variances())

    def _initial(self, series: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and Cholesky factor of the covariance of the first state, given the observations that start the filter."""
        if not self.diffuse:
            return self.mean.expand(*series.shape[:-2], -1), self.root("first")
        steps, k = series.shape[-2], self.used
        if steps <= k:
            raise InputError(f"the series has {steps} steps, and {k} of them start the filter; give more steps")
        return started(series[..., :k, :], self.F, self.H, *self._variances())

    def _variances(self) -> tuple[Tensor, Tensor]:
        """Q and R."""
        state, noise = self.root("state"), self.root("noise")
        return state @ state.mT, noise @ noise.mT

    # Shapes.

    def _series(self, x: Tensor) -> Tensor:
        """The data with the shape ``(..., T, D)``."""
        x = x[0] if self.row else x
        return x.unsqueeze(-1) if self.flat else x

    def _known(self, series: Tensor, lengths: Tensor) -> Tensor:
        """Which steps are data, and no padding: ``(B, T)``."""
        return torch.arange(series.shape[-2], device=series.device) < lengths.unsqueeze(-1)

    def _noise(self, mean: Tensor, steps: int) -> Any:
        """Distribution of x given its mean, with ``steps`` dimensions of time."""
        return _normal(mean, self.root("noise"), steps)

    def _matrices(self, form: str, transition: Any, observation: Any) -> None:
        block, D = torch.tensor(FORMS[form][0]), self.features
        F = torch.block_diag(*[block] * D) if transition is None else torch.as_tensor(transition, dtype=self.data.dtype)
        if F.dim() != 2 or F.shape[0] != F.shape[1]:
            raise InputError(f"state_space's transition must have shape (d, d), not {tuple(F.shape)}")
        d = len(F)
        if observation is None and transition is not None and d != D:
            raise InputError(f"state_space needs observation, of shape ({D}, {d}), for this transition")
        H = (
            torch.eye(D).repeat_interleave(d // D, 1) * torch.eye(1, d // D).repeat(1, D)
            if observation is None
            else observation
        )
        self.register_buffer("F", self._array("transition", F, (d, d)))
        self.register_buffer("H", self._array("observation", H, (D, d)))

    def _needed(self) -> int:
        """Number of observations that determine the state."""
        rows, power = [], torch.eye(len(self.F), dtype=self.F.dtype)
        for count in range(1, len(self.F) + 1):
            rows.append(self.H @ power)
            power = power @ self.F
            if int(torch.linalg.matrix_rank(torch.cat(rows))) == len(self.F):
                return count
        raise InputError("the observations do not determine the states, so the start cannot be diffuse; give variance")

    def _covariance(self, which: str, value: Any, size: int, learn: bool) -> None:
        given = torch.as_tensor(value, dtype=self.data.dtype).detach().clone()
        given = given.expand(size) if given.dim() == 0 else given
        matrix = self._array(f"{which} variance", given.diag() if given.dim() == 1 else given, (size, size))
        factor, wrong = torch.linalg.cholesky_ex(matrix)
        if bool(wrong):
            raise InputError(f"the {which} variance must be positive definite")
        scale = factor.diagonal().clone()
        self.register_buffer(f"{which}_unit", factor / scale.unsqueeze(-1))
        if learn:
            self.register_parameter(f"{which}_log_scale", nn.Parameter(scale.log()))
        else:
            self.register_buffer(f"{which}_log_scale", scale.log())

    def _array(self, name: str, value: Any, shape: tuple[int, ...]) -> Tensor:
        tensor = torch.as_tensor(value, dtype=self.data.dtype).detach().clone()
        if tuple(tensor.shape) != shape:
            raise InputError(f"state_space's {name} must have shape {shape}, not {tuple(tensor.shape)}")
        return tensor


def _normal(mean: Tensor, root: Tensor, steps: int = 0) -> Any:
    normal: Any = dist.MultivariateNormal(mean, scale_tril=root)
    return normal.to_event(steps) if steps else normal


def _masked(distribution: Any, mask: Tensor | None) -> Any:
    return distribution if mask is None else distribution.mask(mask)


def _given(
    before: str, centre: Tensor, gain: Tensor, mean: Tensor, root: Tensor, mask: Tensor | None, draws: dict[str, Tensor]
) -> Any:
    """The distribution of a state from the draw of the one before."""
    away = (draws[before] - centre).unsqueeze(-1)
    return _masked(_normal(mean + (gain @ away).squeeze(-1), root), mask)

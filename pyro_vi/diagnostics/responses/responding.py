"""The ELBO of independent normals over fixed draws, its maximum by Newton steps, and the response of its means there.

* `Surface` is the ELBO as a function of means and log standard deviations, with exact derivatives; `Response` what it gives.
"""

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from pyro_vi.amortized.density import log_joint
from pyro_vi.amortized.frame import Frame
from pyro_vi.data import Batch
from pyro_vi.errors import InputError, first_line

STEPS, CUTS = 100, 30
"""Most Newton steps, and how often one is halved."""
CLOSE = 1e-9
"""Nats that a Newton step promises below which it is at the maximum."""
REACH = 2.0
"""Longest step, in standard deviations of q, and in their logarithms."""
FLAT, LEFT = 1e-8, 1e-3
"""Least curvature in units of the largest, and nats that a further Newton step may promise, at a maximum."""
AT_ONCE = 2**18
"""Numbers of the draws and of the data in them that are kept for gradients at once."""


@dataclass(frozen=True)
class Response:
    """Linear response at the maximum of the ELBO.

    Attributes:
        covariance: of all numbers on the scale of the model's sites, (D, D).
        sd: standard deviations of q there, (D,).
        mean: means of q there, (D,).
        deficit: the ELBO at the maximum minus that at the start, in nats.
        sizes: how many numbers each site has on its support.
    """

    covariance: Tensor
    sd: Tensor
    mean: Tensor
    deficit: float
    sizes: dict[str, int]


class Surface:
    """The ELBO (1/S) Σ_s log p(x, m + e^l ε_s) + Σ l over fixed draws ε, as a function of m and l.

    The draws are mirrored and have covariance I, so that the ELBO of a normal posterior has no Monte Carlo error.

    Args:
        frame: the latents of the model.
        args: the batch.
        draws: S.
        seed: seed of the draws.
    """

    def __init__(self, frame: Frame, args: Batch, draws: int, seed: int) -> None:
        self.frame, self.call = frame, frame.call(args, {})
        self.names = list(frame.sites)
        self.shapes = [frame.sites[name].start.shape for name in self.names]
        self.sizes = [shape.numel() for shape in self.shapes]
        size = sum(self.sizes)
        generator = torch.Generator().manual_seed(seed)
        half = torch.randn(max(draws // 2, 2 * size), size, generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(half.mT @ half / len(half))
        half = torch.linalg.solve_triangular(factor, half.mT, upper=False).mT
        self.noise = torch.cat([half, -half])
        data = sum(a.numel() for a in args if isinstance(a, Tensor))
        self.chunk = max(1, AT_ONCE // (size + data))

    def _one(self, u: Tensor) -> Tensor:
        """log p(x, z) + log |dz/du| at one point, (D,)."""
        parts = zip(self.names, self.shapes, u.to(self.frame.dtype).split(self.sizes), strict=True)
        local, shared = log_joint(self.frame, self.call, {name: part.reshape(shape) for name, shape, part in parts})
        return (local.double().sum() + shared.double()).reshape(())

    def _site(self, u: Tensor) -> Tensor:
        """The numbers on the scale of the model's sites, at one point."""
        parts = zip(self.names, self.shapes, u.split(self.sizes), strict=True)
        sites = self.call.sites
        return torch.cat([sites[n].bijection_on(u.device)(v.reshape(shape)).reshape(-1) for n, shape, v in parts])

    def _derivatives(self, m: Tensor, spread: Tensor) -> tuple[float, Tensor, Tensor]:
        """Value, gradient and Hessian in (m / e^l, l): each step is in standard deviations of q."""
        size = len(m)
        value, slope, hessian = 0.0, torch.zeros(2 * size).double(), torch.zeros(2 * size, 2 * size).double()
        for noise in self.noise.split(self.chunk):
            eta = torch.zeros(2 * size, dtype=torch.float64, requires_grad=True)
            u = m + spread * (eta[:size] + eta[size:].exp() * noise)
            part = vmap(self._one, randomness="error")(u).sum()
            (gradient,) = torch.autograd.grad(part, eta, create_graph=True)
            rows = [torch.autograd.grad(g, eta, retain_graph=True)[0] for g in gradient]
            value += float(part)
            slope += gradient.detach()
            hessian += torch.stack(rows)
        count = len(self.noise)
        slope, hessian = slope / count, hessian / count
        slope[size:] += 1
        return value / count + float(spread.log().sum()), slope, (hessian + hessian.mT) / 2

    def _value(self, m: Tensor, spread: Tensor) -> float:
        with torch.no_grad():
            parts = [vmap(self._one, randomness="error")(m + spread * e).sum() for e in self.noise.split(self.chunk)]
        return float(torch.stack(parts).sum()) / len(self.noise) + float(spread.log().sum())

    def peak(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Return the means and standard deviations at the maximum that damped Newton steps reach from others.

        Raises:
            InputError: the model does not run on many draws at once, or there is no maximum near.
        """
        m, spread, _, _ = self._search(loc.double(), scale.double())
        return m, spread

    def response(self, near: tuple[Tensor, Tensor], loc: Tensor, scale: Tensor) -> Response:
        """Return the response at the maximum.

        Args:
            near: means and standard deviations near the maximum.
            loc, scale: those of the fitted guide.
        """
        m, spread, value, hessian = self._search(*near)
        return self._at(m, spread, hessian, value - self._value(loc.double(), scale.double()))

    def _search(self, m: Tensor, spread: Tensor) -> tuple[Tensor, Tensor, float, Tensor]:
        """Means, standard deviations, ELBO, and Hessian in units of q, at the maximum."""
        size = len(m)
        noise = 10 * torch.finfo(self.frame.dtype).eps
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            try:
                value, slope, hessian = self._derivatives(m, spread)
            except Exception as error:  # a program that can be fitted may fail here, as under vmap
                raise InputError(
                    "there is no linear response: the model gives no second derivatives of log p(x, z) for many draws at once "
                    f"({first_line(error)})"
                ) from error
            if not (torch.isfinite(slope).all() and torch.isfinite(hessian).all()):
                raise InputError(
                    "there is no linear response: log p(x, z) or its derivatives are no finite numbers at draws of the guide; "
                    "run pyro_vi.check on the pair"
                )
            for _ in range(STEPS):
                values, vectors = torch.linalg.eigh(-hessian)
                step = vectors @ ((vectors.mT @ slope) / values.abs().clamp(min=1e-3))
                gain = float(slope @ step)
                if gain < CLOSE:
                    break
                step = step * min(1.0, REACH / float(step.abs().max()))
                for cut in range(CUTS):
                    part = step * 0.5**cut
                    new = m + spread * part[:size], spread * part[size:].exp()
                    risen = self._value(*new)
                    if risen >= value + 1e-4 * 0.5**cut * gain - noise * abs(value):
                        break
                else:
                    break
                m, spread = new
                value, slope, hessian = self._derivatives(m, spread)
            values = torch.linalg.eigvalsh(-hessian)
            if not (values.min() > FLAT * values.max() and float(slope @ torch.linalg.solve(-hessian, slope)) < LEFT):
                raise InputError(
                    "there is no linear response: the ELBO has no maximum near the fitted guide, or is flat there; fit longer, "
                    "or give latents that the data do not determine a proper prior"
                )
        return m, spread, value, hessian

    @torch.enable_grad()
    def _at(self, m: Tensor, spread: Tensor, hessian: Tensor, deficit: float) -> Response:
        """The response at the maximum, whose Hessian is in units of q."""
        size = len(m)
        eta = torch.zeros(2 * size, dtype=torch.float64, requires_grad=True)
        u = m + spread * (eta[:size] + eta[size:].exp() * self.noise)
        values = vmap(self._site)(u)
        mean = values.mean(0)
        jacobian = torch.stack([torch.autograd.grad(one, eta, retain_graph=True)[0] for one in mean])
        covariance = jacobian @ torch.linalg.solve(-hessian, jacobian.mT)
        sd = (values - mean).square().mean(0).sqrt()
        numels = [self.call.sites[n].bijection_on(u.device)(self.frame.sites[n].start).numel() for n in self.names]
        return Response(covariance, sd.detach(), mean.detach(), deficit, dict(zip(self.names, numels, strict=True)))

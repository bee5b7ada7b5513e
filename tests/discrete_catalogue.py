"""Pairs with discrete sites in float64, with their gradients by enumeration (and quadrature over what is continuous).

* ``bernoulli``: z ~ Bernoulli, as the discrete pair of `estimator_catalogue`, with slope and shift.
* ``one_hot``: z ~ OneHotCategorical of 3 states under an encoder.
* ``discrete_first``: c ~ Bernoulli, z | c ~ Normal; the guide in the same order.
* ``continuous_first``: z ~ Normal, c | z ~ Bernoulli; the guide in the same order.
"""

import itertools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from estimator_catalogue import DATA
from pyro import poutine
from torch import Tensor, nn

Points = list[tuple[Tensor, Tensor, Tensor, Tensor]]
"""For each combination of draws: its log-probability, log p(x | ·), log p(·), log q(·), each of shape ``(data, nodes)``."""

_NODES, _MASS = np.polynomial.hermite_e.hermegauss(40)
NODES, MASS = torch.as_tensor(_NODES), torch.as_tensor(_MASS / _MASS.sum())
CENTRES = (-1.0, 0.3, 1.5)


def _tensor(value: Any) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


@dataclass(frozen=True)
class Discrete:
    """A pair: ``draw`` is its guide's parameters, ``points`` enumerates it, ``run`` is model or guide."""

    start: dict[str, Any]
    run: Callable[[Tensor, Any, bool, dict[str, Any]], None]
    points: Callable[[Tensor, Any], Points]

    def build(self, enumerate: str | None, beta: float | None = None) -> tuple[nn.Module, nn.Module]:
        """Model (without parameters) and guide, the latent sites scaled by ``beta``."""
        infer = {} if enumerate is None else {"enumerate": enumerate}
        entry = self

        class Model(nn.Module):
            def forward(self, x: Tensor) -> None:
                entry.run(x, None, True, {"infer": {}, "beta": beta})

        class Guide(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                for name, value in entry.start.items():
                    self.register_parameter(name, _tensor(value))

            def forward(self, x: Tensor) -> None:
                entry.run(x, self, False, {"infer": infer, "beta": beta})

        return Model(), Guide()

    def gradient(self, bound: str, count: int, beta: float = 1.0) -> Tensor:
        """Of −bound of `DATA` in the guide's parameters, flat."""
        guide = self.build(None)[1]
        points = self.points(DATA, guide)
        log_mass, *parts = (torch.cat([p[i].expand(len(DATA), -1) for p in points], 1) for i in range(4))
        log_weight = parts[0] + beta * (parts[1] - parts[2])
        if bound == "elbo":
            total = (log_mass.exp() * log_weight).sum()
        else:
            grid = torch.tensor(list(itertools.product(range(log_mass.shape[1]), repeat=count)))
            value = log_weight[:, grid].logsumexp(-1) - math.log(count)
            total = (log_mass[:, grid].sum(-1).exp() * value).sum()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(-total, list(guide.parameters()))])


def _latent(options: dict[str, Any]) -> Any:
    return nullcontext() if options["beta"] is None else poutine.scale(scale=max(options["beta"], 1e-300))


def _bernoulli(x: Tensor, guide: Any, is_model: bool, options: dict[str, Any]) -> None:
    with pyro.plate("data", len(x)):
        with _latent(options):
            fn = dist.Bernoulli(x.new_tensor(0.35)) if is_model else dist.Bernoulli(logits=guide.m + guide.l * x)
            z = pyro.sample("z", fn, infer=dict(options["infer"]))
        if is_model:
            pyro.sample("x", dist.Normal(2 * z - 1, 1.0), obs=x)


def _bernoulli_points(x: Tensor, guide: Any) -> Points:
    logit = (guide.m + guide.l * x).unsqueeze(-1)
    found = []
    for z in (0.0, 1.0):
        value = x.new_tensor(z)
        log_q = dist.Bernoulli(logits=logit).log_prob(value)
        log_p = dist.Bernoulli(x.new_tensor(0.35)).log_prob(value).expand_as(log_q)
        found.append((log_q, dist.Normal(2 * value - 1, 1.0).log_prob(x).unsqueeze(-1), log_p, log_q))
    return found


def _one_hot(x: Tensor, guide: Any, is_model: bool, options: dict[str, Any]) -> None:
    with pyro.plate("data", len(x)):
        with _latent(options):
            prior = x.new_tensor([0.5, 0.3, 0.2]).log()
            logits = prior if is_model else guide.m + guide.l * x.unsqueeze(-1)
            z = pyro.sample("z", dist.OneHotCategorical(logits=logits), infer=dict(options["infer"]))
        if is_model:
            pyro.sample("x", dist.Normal((z * x.new_tensor(CENTRES)).sum(-1), 1.0), obs=x)


def _one_hot_points(x: Tensor, guide: Any) -> Points:
    log_q = (guide.m + guide.l * x.unsqueeze(-1)).log_softmax(-1)
    log_p = x.new_tensor([0.5, 0.3, 0.2]).log()
    return [
        (
            log_q[:, [state]],
            dist.Normal(x.new_tensor(CENTRES[state]), 1.0).log_prob(x).unsqueeze(-1),
            log_p[state].reshape(1, 1),
            log_q[:, [state]],
        )
        for state in range(3)
    ]


def _discrete_first(x: Tensor, guide: Any, is_model: bool, options: dict[str, Any]) -> None:
    with pyro.plate("data", len(x)):
        with _latent(options):
            fn = dist.Bernoulli(x.new_tensor(0.35)) if is_model else dist.Bernoulli(logits=guide.m + guide.l * x)
            c = pyro.sample("c", fn, infer=dict(options["infer"]))
            inner = dist.Normal(2 * c - 1, 1.0) if is_model else dist.Normal(guide.a + guide.d * c, guide.r.exp())
            z = pyro.sample("z", inner)
        if is_model:
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)


def _discrete_first_points(x: Tensor, guide: Any) -> Points:
    logit = (guide.m + guide.l * x).unsqueeze(-1)
    found = []
    for state in (0.0, 1.0):
        c = x.new_tensor(state)
        q = dist.Normal(guide.a + guide.d * c, guide.r.exp())
        z = q.loc + q.scale * NODES
        log_c = dist.Bernoulli(logits=logit).log_prob(c)
        log_p = dist.Bernoulli(x.new_tensor(0.35)).log_prob(c) + dist.Normal(2 * c - 1, 1.0).log_prob(z)
        likelihood = dist.Normal(z, 0.8).log_prob(x.unsqueeze(-1))
        found.append((log_c + MASS.log(), likelihood, log_p.expand_as(likelihood), log_c + q.log_prob(z)))
    return found


def _continuous_first(x: Tensor, guide: Any, is_model: bool, options: dict[str, Any]) -> None:
    with pyro.plate("data", len(x)):
        with _latent(options):
            fn = dist.Normal(x.new_zeros(()), 1.0) if is_model else dist.Normal(guide.a + guide.d * x, guide.r.exp())
            z = pyro.sample("z", fn)
            logit = z if is_model else guide.m + guide.l * z
            c = pyro.sample("c", dist.Bernoulli(logits=logit), infer=dict(options["infer"]))
        if is_model:
            pyro.sample("x", dist.Normal(z + 2 * c - 1, 0.8), obs=x)


def _continuous_first_points(x: Tensor, guide: Any) -> Points:
    q = dist.Normal((guide.a + guide.d * x).unsqueeze(-1), guide.r.exp())
    z = q.loc + q.scale * NODES
    found = []
    for state in (0.0, 1.0):
        c = x.new_tensor(state)
        log_c = dist.Bernoulli(logits=guide.m + guide.l * z).log_prob(c)
        log_p = dist.Normal(0.0, 1.0).log_prob(z) + dist.Bernoulli(logits=z).log_prob(c)
        likelihood = dist.Normal(z + 2 * c - 1, 0.8).log_prob(x.unsqueeze(-1))
        found.append((MASS.log() + log_c, likelihood, log_p, q.log_prob(z) + log_c))
    return found


_NORMAL = {"a": 0.2, "d": 0.5, "r": -0.4}
PAIRS: dict[str, Discrete] = {
    "bernoulli": Discrete({"m": 0.4, "l": -0.5}, _bernoulli, _bernoulli_points),
    "one_hot": Discrete({"m": [0.1, -0.4, 0.6], "l": [-0.5, 0.2, 0.7]}, _one_hot, _one_hot_points),
    "discrete_first": Discrete({"m": 0.4, "l": -0.5, **_NORMAL}, _discrete_first, _discrete_first_points),
    "continuous_first": Discrete({"m": 0.4, "l": -0.5, **_NORMAL}, _continuous_first, _continuous_first_points),
}

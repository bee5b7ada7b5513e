"""Discrete and other draws without a path, under the score function: baselines, and estimators of Pyro beside `Trace_ELBO`."""

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from differential.harness import Program
from pyro.distributions import constraints
from pyro.infer import ELBO, RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceGraph_ELBO, TraceTMC_ELBO
from torch import Tensor, nn

N = 6


def _model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(2 * k, 1.0), obs=x)


def _pair(infer: Callable[[Tensor], dict[str, Any]], elbo: Callable[[], ELBO], net: nn.Module | None = None) -> Program:
    def guide(x: Tensor) -> None:
        if net is not None:
            pyro.module("baseline", net)
        logit = pyro.param("logit", torch.tensor(0.1))
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=logit * x), infer=infer(x))

    return Program(_model, guide, (1 + torch.randn(N),), elbo=elbo, rows=N)


def score_function() -> Program:
    return _pair(lambda x: {}, Trace_ELBO)


def graph_without_baseline() -> Program:
    return _pair(lambda x: {}, TraceGraph_ELBO)


def neural_baseline() -> Program:
    """A network that is fitted beside the loss to the costs downstream."""
    net = nn.Sequential(nn.Linear(1, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0))
    return _pair(lambda x: {"baseline": {"nn_baseline": net, "nn_baseline_input": x[:, None]}}, TraceGraph_ELBO, net)


def decaying_average() -> Program:
    options = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}}
    return _pair(lambda x: options, TraceGraph_ELBO)


def given_baseline() -> Program:
    return _pair(lambda x: {"baseline": {"baseline_value": 0.3 * x}}, TraceGraph_ELBO)


def enumerated_in_the_guide() -> Program:
    return _pair(lambda x: {"enumerate": "sequential"}, lambda: TraceEnum_ELBO(max_plate_nesting=1))


def enumerated_with_draws() -> Program:
    """Several draws of a discrete site as a Monte Carlo sum."""
    return _pair(
        lambda x: {"enumerate": "parallel", "num_samples": 3, "expand": False},
        lambda: TraceTMC_ELBO(max_plate_nesting=1),
    )


def renyi() -> Program:
    """Rényi's bound of order 0.5 of a global latent, by two draws."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.4), constraint=constraints.positive)
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.2)), scale))

    return Program(model, guide, (torch.randn(N),), elbo=lambda: RenyiELBO(alpha=0.5, num_particles=2), rows=N)


def gamma_by_rejection() -> Program:
    """A local Poisson count under a Gamma guide of its own rate: path derivatives and the score function together."""

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            count = pyro.sample("count", dist.Poisson(rate))
            pyro.sample("x", dist.Normal(count, 0.5), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("rate", dist.Gamma(pyro.param("shape", torch.tensor(3.0), constraints.positive), 2.0))
        with pyro.plate("data", len(x)):
            rate = pyro.param("rates", torch.full((len(x),), 1.5), constraint=constraints.positive)
            pyro.sample("count", dist.Poisson(rate))

    return Program(model, guide, (torch.tensor([0.0, 2, 1, 3, 1]),), elbo=TraceGraph_ELBO, rows=5)


PROGRAMS = [
    score_function,
    graph_without_baseline,
    neural_baseline,
    decaying_average,
    given_baseline,
    enumerated_in_the_guide,
    enumerated_with_draws,
    gamma_by_rejection,
    renyi,
]

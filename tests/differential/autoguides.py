"""Each of Pyro's AutoGuides, handed over as an instance, on a regression with a hierarchy and on a mixture."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as auto
import torch
from differential.harness import Program
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.distributions.transforms import block_autoregressive, iterated
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide.initialization import init_to_mean, init_to_median, init_to_uniform
from torch import Tensor

N = 6


def regression(group: Tensor, y: Tensor) -> None:
    """Means of three groups around a common mean; the scale is positive."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 3):
        a = pyro.sample("a", dist.Normal(mu, tau))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a[group], 0.5), obs=y)


def _with(make: Callable[[Any], Any], *, drawn: bool = False, elbo: Callable[[], Any] = Trace_ELBO) -> Program:
    args = (torch.arange(N) % 3, 1 + torch.randn(N))
    return Program(regression, make(regression), args, elbo=elbo, rows=N, drawn=drawn)


def auto_normal() -> Program:
    return _with(partial(auto.AutoNormal, init_loc_fn=init_to_mean, init_scale=0.05))


def auto_normal_as_it_comes() -> Program:
    """The initial values are feasible ones that Pyro looks for."""
    return _with(auto.AutoNormal, elbo=TraceMeanField_ELBO)


def auto_delta() -> Program:
    return _with(partial(auto.AutoDelta, init_loc_fn=init_to_mean))


def auto_delta_as_it_comes() -> Program:
    return _with(auto.AutoDelta, drawn=True)


def auto_diagonal_normal() -> Program:
    return _with(partial(auto.AutoDiagonalNormal, init_loc_fn=init_to_mean, init_scale=0.2))


def auto_multivariate_normal() -> Program:
    return _with(partial(auto.AutoMultivariateNormal, init_loc_fn=init_to_mean))


def auto_multivariate_normal_by_median() -> Program:
    return _with(partial(auto.AutoMultivariateNormal, init_loc_fn=init_to_median), drawn=True)


def auto_low_rank() -> Program:
    """The factor of the covariance is drawn."""
    return _with(partial(auto.AutoLowRankMultivariateNormal, rank=2), drawn=True)


def auto_normalizing_flow() -> Program:
    """A flow that cannot be inverted: its density is known with its draw only."""
    flow = partial(iterated, 1, block_autoregressive, hidden_factors=[2])
    return _with(lambda model: auto.AutoNormalizingFlow(model, flow), drawn=True)


def auto_iaf() -> Program:
    return _with(partial(auto.AutoIAFNormal, hidden_dim=[6], num_transforms=2), drawn=True)


def auto_laplace() -> Program:
    return _with(partial(auto.AutoLaplaceApproximation, init_loc_fn=init_to_mean))


def auto_structured() -> Program:
    def make(model: Any) -> Any:
        return auto.AutoStructured(
            model,
            conditionals={"mu": "normal", "tau": "delta", "a": "mvn"},
            dependencies={"a": {"mu": "linear"}},
            init_loc_fn=init_to_mean,
        )

    return _with(make)


def auto_gaussian() -> Program:
    return _with(partial(auto.AutoGaussian, init_loc_fn=init_to_mean), drawn=True)


def auto_normal_messenger() -> Program:
    return _with(partial(auto.AutoNormalMessenger, init_scale=0.05), drawn=True)


def auto_hierarchical_normal_messenger() -> Program:
    return _with(partial(auto.AutoHierarchicalNormalMessenger, hierarchical_sites=["a"]))


def auto_regressive_messenger() -> Program:
    return _with(auto.AutoRegressiveMessenger, drawn=True)


def auto_messenger_of_ones_own() -> Program:
    """A subclass that overrides the posterior of one site."""

    class Mine(auto.AutoNormalMessenger):
        def get_posterior(self, name: str, prior: Any) -> Any:
            if name == "tau":
                loc = pyro.param("tau_loc", lambda: torch.tensor(0.1))
                return dist.LogNormal(loc, pyro.param("tau_scale", lambda: torch.tensor(0.1), constraints.positive))
            return super().get_posterior(name, prior)

    return _with(Mine, drawn=True)


def auto_guide_list() -> Program:
    """One guide for the global latents, another for those of groups, and a function for the scale."""

    def scale(group: Tensor, y: Tensor) -> None:
        loc = pyro.param("tau_loc", torch.tensor(0.1))
        pyro.sample("tau", dist.LogNormal(loc, pyro.param("tau_sd", torch.tensor(0.1), constraints.positive)))

    def make(model: Any) -> Any:
        guide = auto.AutoGuideList(model)
        guide.append(auto.AutoDelta(poutine.block(model, expose=["mu"]), init_loc_fn=init_to_mean))
        guide.append(auto.AutoNormal(poutine.block(model, expose=["a"]), init_loc_fn=init_to_mean))
        guide.append(scale)
        return guide

    return _with(make, drawn=True)


def auto_discrete_parallel() -> Program:
    """A mixture: a normal for what is continuous, probabilities of each assignment for what is not."""

    def model(x: Tensor) -> None:
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 2.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("x", dist.Normal(locs[z], 1.0), obs=x)

    guide = auto.AutoGuideList(model)
    guide.append(auto.AutoNormal(poutine.block(model, expose=["locs"]), init_loc_fn=init_to_mean))
    guide.append(auto.AutoDiscreteParallel(poutine.block(model, expose=["z"])))
    return Program(model, guide, (torch.randn(N),), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=N)


def easy_guide() -> Program:
    class Guide(EasyGuide):
        def init(self, site: Any) -> Tensor:
            return torch.full(site["fn"].shape(), 0.8)

        def guide(self, group: Tensor, y: Tensor) -> None:
            self.map_estimate("tau")
            both = self.group(match="mu|a")
            loc = pyro.param("both_loc", torch.zeros(both.event_shape))
            scale = pyro.param("both_scale", torch.full(both.event_shape, 0.1), constraint=constraints.positive)
            both.sample("both_auxiliary", dist.Normal(loc, scale).to_event(1))

    return _with(Guide)


def easy_guide_of_a_subsampled_plate() -> Program:
    """The plate is the guide's own; both sides draw the same rows, and each row has its parameters."""

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x), subsample_size=3) as rows:
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[rows])

    class Guide(EasyGuide):
        def guide(self, x: Tensor) -> None:
            self.map_estimate("w")
            with self.plate("data", len(x), subsample_size=3):
                loc = pyro.param("z_loc", torch.zeros(len(x)), event_dim=0)
                pyro.sample("z", dist.Normal(loc, 0.4))

        def init(self, site: Any) -> Tensor:
            return torch.zeros(site["fn"].shape())

    return Program(model, Guide(model), (torch.randn(N),), rows=N)


def auto_normal_from_uniform() -> Program:
    """A model with bounded latents, whose initial values are drawn uniformly."""

    def model(x: Tensor) -> None:
        low = pyro.sample("low", dist.Uniform(-3.0, 0.0))
        share = pyro.sample("share", dist.Beta(2.0, 2.0))
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(low + 4 * share * weights[0], 1.0), obs=x)

    guide = auto.AutoNormal(model, init_loc_fn=init_to_uniform)
    return Program(model, guide, (torch.randn(N),), rows=N, drawn=True)


PROGRAMS = [
    auto_normal,
    auto_normal_as_it_comes,
    auto_delta,
    auto_delta_as_it_comes,
    auto_diagonal_normal,
    auto_multivariate_normal,
    auto_multivariate_normal_by_median,
    auto_low_rank,
    auto_normalizing_flow,
    auto_iaf,
    auto_laplace,
    auto_structured,
    auto_gaussian,
    auto_normal_messenger,
    auto_hierarchical_normal_messenger,
    auto_regressive_messenger,
    auto_messenger_of_ones_own,
    auto_guide_list,
    auto_discrete_parallel,
    easy_guide,
    easy_guide_of_a_subsampled_plate,
    auto_normal_from_uniform,
]

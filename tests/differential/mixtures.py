"""Mixtures, topics and deep exponential families: discrete sites summed out, parameters of each datum, fixed components."""

import pyro
import pyro.distributions as dist
import torch
from differential.harness import Program
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoNormal, init_to_value
from torch import Tensor, nn
from torch.nn.functional import softplus

POINTS = torch.tensor([-2.1, -1.7, -2.4, 0.3, 1.6, 2.2, 1.9, 2.5], dtype=torch.float64)


def enumerating() -> TraceEnum_ELBO:
    return TraceEnum_ELBO(max_plate_nesting=1)


@config_enumerate
def _mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=x)


START = {"weights": torch.tensor([0.4, 0.6]), "scale": torch.tensor(1.2), "locs": torch.tensor([-1.0, 1.0])}
GLOBAL = ["weights", "locs", "scale"]


def _start(site: dict) -> Tensor:
    return START[site["name"]].to(torch.get_default_dtype())


def gmm_map() -> Program:
    """A MAP estimate of weights, means and scale; the assignments are summed out in the model."""
    guide = AutoDelta(poutine.block(_mixture, expose=GLOBAL), init_loc_fn=_start)
    return Program(_mixture, guide, (POINTS,), elbo=enumerating, rows=8)


def gmm_mean_field() -> Program:
    guide = AutoNormal(poutine.block(_mixture, hide=["assignment"]), init_loc_fn=_start)
    return Program(_mixture, guide, (POINTS,), elbo=enumerating, rows=8)


def gmm_assignments_in_the_guide() -> Program:
    """A probability of each point, a parameter with a row for each datum, summed out in the guide."""

    def model(x: Tensor) -> None:
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            assignment = pyro.sample("assignment", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("obs", dist.Normal(locs[assignment], 1.0), obs=x)

    @config_enumerate
    def guide(x: Tensor) -> None:
        with pyro.plate("components", 2):
            loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
            pyro.sample("locs", dist.Normal(loc, pyro.param("sd", torch.full((2,), 0.2), constraints.positive)))
        with pyro.plate("data", len(x)):
            probs = pyro.param("probs", torch.full((len(x), 2), 0.5), constraint=constraints.simplex)
            pyro.sample("assignment", dist.Categorical(probs))

    return Program(model, guide, (POINTS,), elbo=enumerating, rows=8)


def stick_breaking() -> Program:
    """A truncated Dirichlet process."""
    T = 3

    def weights(beta: Tensor) -> Tensor:
        rest = torch.cumprod(1 - beta, -1)
        return nn.functional.pad(beta, (0, 1), value=1) * nn.functional.pad(rest, (1, 0), value=1)

    @config_enumerate
    def model(x: Tensor) -> None:
        with pyro.plate("sticks", T - 1):
            beta = pyro.sample("beta", dist.Beta(1.0, 1.5))
        with pyro.plate("components", T):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights(beta)))
            pyro.sample("obs", dist.Normal(loc[z], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        kappa = pyro.param("kappa", lambda: torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        tau = pyro.param("tau", lambda: torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("sticks", T - 1):
            pyro.sample("beta", dist.Beta(torch.ones(T - 1), kappa))
        with pyro.plate("components", T):
            pyro.sample("loc", dist.Normal(tau, 0.3))

    return Program(model, guide, (POINTS,), elbo=enumerating, rows=8)


def lda() -> Program:
    """Topics of documents, amortised; the topic of each word is summed out, documents are subsampled by the plate."""
    topics, words, length, documents = 2, 5, 4, 6
    predictor = nn.Sequential(nn.Linear(words, 3), nn.Sigmoid(), nn.Linear(3, topics), nn.Softmax(-1))

    def model(data: Tensor | None = None, batch_size: int | None = None) -> None:
        with pyro.plate("topics", topics):
            weight = pyro.sample("topic_weights", dist.Gamma(1.0 / topics, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(words) / words))
        with pyro.plate("documents", documents, batch_size) as ind:
            shares = pyro.sample("doc_topics", dist.Dirichlet(weight))
            with pyro.plate("words", length):
                topic = pyro.sample("topic", dist.Categorical(shares), infer={"enumerate": "parallel"})
                pyro.sample("word", dist.Categorical(topic_words[topic]), obs=data[:, ind])

    def guide(data: Tensor, batch_size: int | None = None) -> None:
        pyro.module("predictor", predictor)
        weight = pyro.param("weight_posterior", lambda: torch.ones(topics), constraint=constraints.positive)
        concentration = pyro.param(
            "words_posterior", lambda: 0.5 + torch.eye(topics, words), constraint=constraints.greater_than(0.5 - 0.1)
        )
        with pyro.plate("topics", topics):
            pyro.sample("topic_weights", dist.Gamma(weight, 1.0))
            pyro.sample("topic_words", dist.Dirichlet(concentration))
        with pyro.plate("documents", documents, batch_size) as ind:
            seen = data[:, ind]
            counts = torch.zeros(words, seen.shape[1]).scatter_add(0, seen, torch.ones(seen.shape))
            shares = predictor(counts.T)
            pyro.sample("doc_topics", dist.Delta(shares, event_dim=1))

    data = torch.randint(0, words, (length, documents))
    return Program(model, guide, (data, 4), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=2), rows=documents)


def sparse_gamma() -> Program:
    """A deep exponential family: positive parameters of each datum, created by a function at the first run."""
    n, top, width = 4, 2, 3

    def model(x: Tensor) -> None:
        with pyro.plate("w_top", top * 3):
            w_top = pyro.sample("w_t", dist.Gamma(0.5, 0.5))
        with pyro.plate("w_bottom", 3 * width):
            w_bottom = pyro.sample("w_b", dist.Gamma(0.5, 0.5))
        with pyro.plate("data", len(x)):
            z_top = pyro.sample("z_t", dist.Gamma(0.3, 0.3).expand([top]).to_event(1))
            mean = z_top @ w_top.reshape(top, 3)
            z = pyro.sample("z_b", dist.Gamma(0.3, 0.3 / mean).to_event(1))
            pyro.sample("x", dist.Poisson(z @ w_bottom.reshape(3, width)).to_event(1), obs=x)

    def gamma(name: str, shape: tuple[int, ...]) -> dist.Gamma:
        shape_q = pyro.param(f"log_shape_{name}", lambda: torch.linspace(-0.2, 0.4, shape.numel()).reshape(shape))
        mean_q = pyro.param(f"log_mean_{name}", lambda: torch.linspace(0.3, -0.3, shape.numel()).reshape(shape))
        alpha, mean = softplus(shape_q), softplus(mean_q)
        return dist.Gamma(alpha, alpha / mean)

    def guide(x: Tensor) -> None:
        with pyro.plate("w_top", top * 3):
            pyro.sample("w_t", gamma("w_t", torch.Size([top * 3])))
        with pyro.plate("w_bottom", 3 * width):
            pyro.sample("w_b", gamma("w_b", torch.Size([3 * width])))
        with pyro.plate("data", len(x)):
            pyro.sample("z_t", gamma("z_t", torch.Size([len(x), top])).to_event(1))
            pyro.sample("z_b", gamma("z_b", torch.Size([len(x), 3])).to_event(1))

    return Program(model, guide, (torch.randint(0, 4, (n, width)).double(),), rows=n)


def boosting() -> Program:
    """A guide that is a mixture: one component is fixed and one, with its weight, is fitted."""
    weights, fixed = torch.tensor([0.7]), [(torch.tensor(-1.0), torch.tensor(0.6))]

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(z**2, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc_1", torch.tensor(0.8))
        scale = pyro.param("scale_1", torch.tensor(0.5), constraint=constraints.positive)
        share = pyro.param("share_1", torch.tensor(0.3), constraint=constraints.unit_interval)
        locs = torch.stack([*(m for m, _ in fixed), loc])
        scales = torch.stack([*(s for _, s in fixed), scale])
        probs = torch.cat([weights / weights.sum() * (1 - share), share[None]])
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(probs), dist.Normal(locs, scales)))

    return Program(model, guide, (1.0 + torch.rand(6),), elbo=lambda: Trace_ELBO(num_particles=2), rows=6)


def zero_inflated() -> Program:
    """Counts that are zero for one of two reasons, with parameters read by name."""

    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        gate = pyro.sample("gate", dist.Beta(1.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.ZeroInflatedPoisson(rate, gate=gate), obs=x)

    guide = AutoNormal(model, init_loc_fn=init_to_value(values={"rate": torch.tensor(2.0), "gate": torch.tensor(0.3)}))
    return Program(model, guide, (torch.tensor([0.0, 0, 3, 1, 0, 2, 4]),), rows=7)


PROGRAMS = [
    gmm_map,
    gmm_mean_field,
    gmm_assignments_in_the_guide,
    stick_breaking,
    lda,
    sparse_gamma,
    boosting,
    zero_inflated,
]

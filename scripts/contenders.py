"""The contenders of `benchmark_step.py`, on the same VAE, and loops in stock Pyro that audit it and estimate its evidence.

A contender is a function of a `Problem`. It returns a function that takes a given number of steps and returns the last
loss, in nats per datum. `WAYS` has all contenders by name. `missing` says why one cannot run.
"""

import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, nn

from pyro_vi.compiling import Compile
from pyro_vi.data import load
from pyro_vi.estimators.table import get
from pyro_vi.fitting import Loop, Settings
from pyro_vi.programs import build_pair

SIZES = {"tiny": (5, 16, 2), "digits": (64, 64, 8), "mnist": (784, 400, 20)}  # data, hidden, latent
BATCH, BATCHES, PARTICLES, LR = 128, 24, 5, 1e-3

Steps = Callable[[int], float]


@dataclass(frozen=True)
class Problem:
    """A size of the VAE and an objective: ``trace``, ``mean_field``, ``iwae`` (K = 5), or ``flow`` (``trace``, other guide)."""

    size: str
    objective: str

    def rows(self) -> Tensor:
        """Return random binary data, because the time of a step does not depend on the values."""
        chance = torch.rand(BATCH * BATCHES, SIZES[self.size][0], generator=torch.Generator().manual_seed(0))
        return (chance < 0.3).float()

    def elbo(self) -> Any:
        """Return the objective as a `pyro.infer.ELBO`; IWAE is ours, because Pyro has none."""
        if self.objective == "iwae":
            return get("iwae", num_particles=PARTICLES)
        return TraceMeanField_ELBO() if self.objective == "mean_field" else Trace_ELBO()


class Model(nn.Module):
    """z ~ N(0, I), x | z ~ Bernoulli(f(z))."""

    def __init__(self, size: str) -> None:
        super().__init__()
        data, hidden, self.latent = SIZES[size]
        self.decoder = nn.Sequential(nn.Linear(self.latent, hidden), nn.Tanh(), nn.Linear(hidden, data))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


class Guide(nn.Module):
    """q(z | x) = N(μ(x), σ(x)²), or two affine coupling layers that are conditioned on the same encoder's output."""

    def __init__(self, size: str, flow: bool) -> None:
        super().__init__()
        data, hidden, latent = SIZES[size]
        self.encoder = nn.Sequential(nn.Linear(data, hidden), nn.Tanh(), nn.Linear(hidden, 2 * latent))
        self.flow = None
        if flow:
            from zuko.flows import RealNVP

            self.flow = RealNVP(latent, 2 * latent, transforms=2, hidden_features=(hidden,))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            encoded = self.encoder(x)
            if self.flow is None:
                loc, log_scale = encoded.chunk(2, -1)
                pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))
            else:
                pyro.sample("z", ZukoToPyro(self.flow(encoded)))


def programs(problem: Problem) -> tuple[Model, Guide]:
    """Return model and guide, with the same initial parameters in each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(problem.size), Guide(problem.size, flow=problem.objective == "flow")


def stock(problem: Problem) -> Steps:
    """Steps of `pyro.infer.SVI` with its defaults, including validation, written as in Pyro's tutorials."""
    own_model, own_guide = programs(problem)

    def model(x: Tensor) -> None:
        pyro.module("model", own_model)
        own_model(x)

    def guide(x: Tensor) -> None:
        pyro.module("guide", own_guide)
        own_guide(x)

    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), loss=problem.elbo())
    batches = itertools.cycle(problem.rows().split(BATCH))
    store: Any = None

    def steps(count: int) -> float:
        nonlocal store
        # Importing zuko turns torch's validation off for the whole process; this restores Pyro's default.
        with pyro.validation_enabled(True), pyro.get_param_store().scope(state=store) as store:
            for x in itertools.islice(batches, count):
                loss = svi.step(x)
        return loss / BATCH

    return steps


def hand_written(objective: str, model: Model, guide: Guide) -> Callable[[Tensor], Tensor]:
    """Return the loss of a batch without Pyro, from formulas of KL and log-weights; a sum over the data, as in Pyro."""
    misfit, samples = nn.functional.binary_cross_entropy_with_logits, (PARTICLES,) * (objective == "iwae")

    def loss(x: Tensor) -> Tensor:
        encoded = guide.encoder(x)
        if guide.flow is not None:
            z, log_q = guide.flow(encoded).rsample_and_log_prob()
            minus_log_prior = 0.5 * (z.square() + math.log(2 * math.pi)).sum()
            return misfit(model.decoder(z), x, reduction="sum") + minus_log_prior + log_q.sum()
        loc, log_scale = encoded.chunk(2, -1)
        scale, eps = log_scale.exp(), torch.randn(*samples, *loc.shape)
        z = loc + scale * eps
        logits = model.decoder(z)
        if objective == "mean_field":
            kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * log_scale)
            return misfit(logits, x, reduction="sum") + kl.sum()
        kl = 0.5 * (z.square() - eps.square()) - log_scale  # log q(z | x) − log p(z), whose constants cancel
        if objective == "trace":
            return misfit(logits, x, reduction="sum") + kl.sum()
        minus_log_weight = misfit(logits, x.expand_as(logits), reduction="none").sum(-1) + kl.sum(-1)
        return (math.log(PARTICLES) - (-minus_log_weight).logsumexp(0)).sum()

    return loss


def in_torch(problem: Problem, compiled: bool) -> Steps:
    """Steps in plain PyTorch. ``compiled`` compiles the loss and its backward pass, but not Adam's update, which is fused."""
    model, guide = programs(problem)
    plain = hand_written(problem.objective, model, guide)
    loss_of = torch.compile(plain, dynamic=False) if compiled else plain
    optimizer = torch.optim.Adam([*model.parameters(), *guide.parameters()], LR, fused=True)
    return descending(loss_of, optimizer, problem.rows().split(BATCH))


def descending(
    loss_of: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, batches: Sequence[Tensor]
) -> Steps:
    """Steps of an optimizer on the loss of one batch after the other, which is a sum over the data, written by hand."""
    dealt = itertools.cycle(batches)

    def steps(count: int) -> float:
        for x in itertools.islice(dealt, count):
            optimizer.zero_grad()
            loss = loss_of(x)
            loss.backward()
            optimizer.step()
            value = loss.item()
        return value / len(batches[0])

    return steps


def in_numpyro(problem: Problem, scan: bool) -> Steps:
    """Steps in NumPyro: one compiled ``svi.update`` per call, or with ``scan`` one pass over the data (rounded up)."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as ndist
    from numpyro import infer

    data, hidden, latent = SIZES[problem.size]

    def dense(name: str, rows: int, columns: int) -> Callable[[Any], Any]:
        key, bound = jax.random.PRNGKey(len(name) + rows), rows**-0.5  # torch's initial distribution
        weight = numpyro.param(f"{name}.weight", jax.random.uniform(key, (rows, columns), minval=-bound, maxval=bound))
        bias = numpyro.param(f"{name}.bias", jnp.zeros(columns))
        return lambda x: x @ weight + bias

    def model(x: Any) -> None:
        first, second = dense("decoder1", latent, hidden), dense("decoder2", hidden, data)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", ndist.Normal(jnp.zeros(latent), 1.0).to_event(1))
            numpyro.sample("x", ndist.Bernoulli(logits=second(jnp.tanh(first(z)))).to_event(1), obs=x)

    def guide(x: Any) -> None:
        first, second = dense("encoder1", data, hidden), dense("encoder2", hidden, 2 * latent)
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(second(jnp.tanh(first(x))), 2, -1)
            numpyro.sample("z", ndist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    batches = jnp.asarray(problem.rows().numpy()).reshape(BATCHES, BATCH, data)
    losses = {"trace": infer.Trace_ELBO(), "mean_field": infer.TraceMeanField_ELBO()}
    losses["iwae"] = infer.RenyiELBO(alpha=0, num_particles=PARTICLES)
    svi = infer.SVI(model, guide, numpyro.optim.Adam(LR), losses[problem.objective])
    state = svi.init(jax.random.PRNGKey(0), batches[0])

    def whole_pass(state: Any, batches: Any) -> tuple[Any, Any]:
        state, losses = jax.lax.scan(svi.update, state, batches)
        return state, losses[-1]

    update, per_call = jax.jit(whole_pass if scan else svi.update), BATCHES if scan else 1
    dealt = itertools.repeat(batches) if scan else itertools.cycle(list(batches))

    def steps(count: int) -> float:
        nonlocal state
        for x in itertools.islice(dealt, math.ceil(count / per_call)):
            state, loss = update(state, x)
            value = float(loss)
        return value / BATCH

    return steps


def ours(problem: Problem, compile: Compile) -> Steps:
    """Steps of `pyro_vi.fit` on the same, unchanged programs."""
    data = load(problem.rows(), heldout=0.0)
    settings = Settings(10**6, BATCH, "constant", None, beta=1.0, warmup=0, seed=0, kept=())
    pair = build_pair(*programs(problem), data)
    loop = Loop(pair, problem.elbo(), data, settings, lambda p: torch.optim.Adam(p, LR, fused=True), compile=compile)

    def steps(count: int) -> float:
        loop.take(count)
        return loop.position.losses[-1]

    return steps


WAYS: dict[str, Callable[[Problem], Steps]] = {
    "stock": stock,
    "torch": partial(in_torch, compiled=False),
    "torch_compiled": partial(in_torch, compiled=True),
    "numpyro_update": partial(in_numpyro, scan=False),
    "numpyro_scan": partial(in_numpyro, scan=True),
    "eager": partial(ours, compile=False),
    "captured": partial(ours, compile="captured"),
    "compiled": partial(ours, compile=True),
}
COMPILED = ("torch_compiled", "numpyro_update", "numpyro_scan", "compiled")  # contenders that compile


def missing(way: str, objective: str) -> str:
    """Return why a contender cannot run an objective; empty if it can."""
    if way.startswith("numpyro") and objective == "flow":
        return "NumPyro has no flows that are conditioned on each datum"
    package = "zuko" if objective == "flow" else "numpyro" if way.startswith("numpyro") else "torch"
    return f"{package} is not installed: pip install 'pyro-vi[bench]'" if find_spec(package) is None else ""


@pyro.validation_enabled(True)
def gradient_moments(model: nn.Module, guide: nn.Module, x: Tensor, draws: int) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the gradient of `Trace_ELBO`, in the loop that a user without `pyro_vi.audit` would write."""
    elbo, parameters = Trace_ELBO(), [*model.parameters(), *guide.parameters()]
    total = square = torch.zeros(())
    for _ in range(draws):
        gradients = torch.autograd.grad(elbo.differentiable_loss(model, guide, x), parameters)
        flat = torch.cat([g.reshape(-1) for g in gradients]).double() / len(x)
        total, square = total + flat, square + flat.square()
    mean = total / draws
    return mean, (square / draws - mean.square()) * draws / (draws - 1)


@pyro.validation_enabled(True)
def log_evidence(model: nn.Module, guide: nn.Module, x: Tensor, particles: int, chunk: int = 100) -> Tensor:
    """Return the evidence as a user of stock Pyro would: from traces of K draws, in an outer plate of 100 at a time."""
    sums = []
    with torch.no_grad():
        for start in range(0, particles, chunk):
            plate = pyro.plate("particles", min(chunk, particles - start), dim=-2)
            drawn = poutine.trace(plate(guide)).get_trace(x)
            scored = poutine.trace(poutine.replay(plate(model), trace=drawn)).get_trace(x)
            drawn.compute_log_prob()
            scored.compute_log_prob()
            log_p = scored.nodes["z"]["log_prob"] + scored.nodes["x"]["log_prob"]
            sums.append((log_p - drawn.nodes["z"]["log_prob"]).logsumexp(0))
    return torch.stack(sums).logsumexp(0) - math.log(particles)


def use_threads(count: int) -> None:
    """Set the threads of torch and XLA; call this before JAX is imported, because JAX reads the number once."""
    torch.set_num_threads(count)
    os.environ["NPROC"] = str(count)  # the size of XLA's pool
    if count == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"

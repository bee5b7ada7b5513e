"""The deep Markov model of the chorales in NumPyro; `chorales.py` runs it.

A path of the latent variable is one sample site, whose distribution is a `Chain`. It draws step after step, in a
`jax.lax.scan`, and evaluates the density of all steps at once. The initial weights come from NumPy's generator: XLA takes a
quarter of a second to compile each draw of its own.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from chorales import BATCH, ENCODER, HIDDEN, LATENT, LR, NOTES, WARMING, WIDTH
from jax.nn import relu, sigmoid, softplus
from lines import tell
from numpyro.handlers import scale
from numpyro.infer import SVI, Trace_ELBO

SEED = 2
"""In the first passes, the scales of the guide, which depend on its own draws, may grow without limit. About half of the seeds
end in NaN, in PyTorch and in NumPyro. This one does not, like 0 in PyTorch."""


class Chain(dist.Distribution):
    """A path (steps, dimension) of normal steps.

    Its mean and scale at t are ``step(z, input)``, of the value and of the input at t-1 and t.

    Args:
        step: function of values and inputs, of one step or of many.
        first: value before the first step (batch, dimension).
        inputs: inputs of the steps (batch, steps, ...), or None.
        inside: 1 up to the end of the path, then 0 (batch, steps); later steps are drawn, but not in the density.
    """

    support = dist.constraints.real_matrix

    def __init__(self, step: Callable[[Any, Any], Any], first: Any, inputs: Any, inside: Any) -> None:
        self.step, self.first, self.inputs, self.inside = step, first, inputs, inside
        super().__init__(first.shape[:1], (inside.shape[1], first.shape[1]), validate_args=False)

    def sample_with_intermediates(self, key: Any, sample_shape: tuple[int, ...] = ()) -> tuple[Any, list[Any]]:
        """Return a path, and the means and scales of its steps."""
        assert sample_shape == ()

        def move(z: Any, given: Any) -> Any:
            noise, taken = given
            loc, scale = self.step(z, taken)
            z = loc + scale * noise
            return z, (z, loc, scale)

        noise = jax.random.normal(key, (self.event_shape[0], *self.first.shape))
        inputs = None if self.inputs is None else self.inputs.swapaxes(0, 1)
        drawn = jax.lax.scan(move, self.first, (noise, inputs))[1]
        z, loc, scale = (column.swapaxes(0, 1) for column in drawn)
        return z, [loc, scale]

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Return a path."""
        return self.sample_with_intermediates(key, sample_shape)[0]

    def log_prob(self, value: Any, intermediates: list[Any] | None = None) -> Any:
        """Return the log density of each path up to its end."""
        before = jnp.concatenate([self.first[:, None], value[:, :-1]], 1)
        loc, scale = intermediates or self.step(before, self.inputs)
        return (dist.Normal(loc, scale).log_prob(value).sum(-1) * self.inside).sum(-1)


def programs(frequency: np.ndarray) -> tuple[Callable[..., None], Callable[..., None]]:
    """Return model and guide; the notes start at their frequencies. Weights start as those of PyTorch's layers do."""
    generator = np.random.default_rng(SEED)

    def start(inputs: int, *shape: int) -> np.ndarray:
        return (generator.uniform(-1, 1, shape) * inputs**-0.5).astype(np.float32)

    def dense(name: str, inputs: int, outputs: int, **given: np.ndarray) -> Callable[[Any], Any]:
        weight = numpyro.param(f"{name}.weight", given.get("weight", start(inputs, inputs, outputs)))
        bias = numpyro.param(f"{name}.bias", given.get("bias", start(inputs, outputs)))
        return lambda x: x @ weight + bias

    def perceptron(name: str, inputs: int, width: int, outputs: int, **given: np.ndarray) -> Callable[[Any], Any]:
        first, second = dense(f"{name}1", inputs, width), dense(f"{name}2", width, outputs, **given)
        return lambda x: second(relu(first(x)))

    def before(count: int) -> Any:
        return jnp.broadcast_to(numpyro.param("before", np.zeros(LATENT, np.float32)), (count, LATENT))

    def transition() -> Callable[[Any, Any], tuple[Any, Any]]:
        gates, proposals = (perceptron(name, LATENT, WIDTH, LATENT) for name in ("gate", "proposal"))
        eye = {"weight": np.eye(LATENT, dtype=np.float32), "bias": np.zeros(LATENT, np.float32)}
        linear, spread = dense("linear", LATENT, LATENT, **eye), dense("spread", LATENT, LATENT)

        def prior(z: Any, _: None) -> tuple[Any, Any]:
            gate, proposal = sigmoid(gates(z)), proposals(z)
            return (1 - gate) * linear(z) + gate * proposal, 1e-3 + softplus(spread(relu(proposal)))

        return prior

    def read(x: Any, inside: Any, name: str, reverse: bool) -> Any:
        """Return the states of a GRU (steps, batch, width) over the steps inside; it is at zero outside."""

        def initial(*shape: int) -> np.ndarray:
            return start(ENCODER, *shape)

        width = 3 * ENCODER
        take = dense(f"{name}.input", NOTES, width, weight=initial(NOTES, width), bias=initial(width))
        keep = dense(f"{name}.state", ENCODER, width)

        def cell(state: Any, given: Any) -> Any:
            (reset, update, new), inside = jnp.split(given[0], 3, -1), given[1]
            old_reset, old_update, old = jnp.split(keep(state), 3, -1)
            update = sigmoid(update + old_update)
            candidate = jnp.tanh(new + sigmoid(reset + old_reset) * old)
            state = inside[:, None] * ((1 - update) * candidate + update * state)
            return state, state

        first = jnp.zeros((x.shape[1], ENCODER))
        return jax.lax.scan(cell, first, (take(x), inside), reverse=reverse)[1]

    def posterior(x: Any, inside: Any) -> tuple[Any, Callable[[Any, Any], tuple[Any, Any]]]:
        """Return what the steps of the guide take of the notes, and the step; the notes are multiplied once for all."""
        both = zip(("forward", "backward"), (False, True), strict=True)
        features = jnp.concatenate([read(x.swapaxes(0, 1), inside.T, *way) for way in both], -1).swapaxes(0, 1)
        size, middle = 2 * ENCODER + LATENT, 2 * ENCODER
        weight = numpyro.param("combine.weight", start(size, size, ENCODER))
        bias = numpyro.param("combine.bias", start(size, ENCODER))
        log_scale = np.full(LATENT, math.log(0.1), np.float32)
        head = dense("head", ENCODER, 2 * LATENT, bias=np.concatenate([start(ENCODER, LATENT), log_scale]))

        def step(z: Any, taken: Any) -> tuple[Any, Any]:
            loc, log_scale = jnp.split(head(relu(taken + z @ weight[middle:])), 2, -1)
            return loc, jnp.exp(log_scale)

        return features @ weight[:middle] + bias, step

    def model(x: Any, lengths: Any, weight: float = 1.0) -> None:
        inside, prior, first = jnp.arange(x.shape[1]) < lengths[:, None], transition(), before(len(x))
        logits = np.log(frequency / (1 - frequency)).astype(np.float32)
        emission = perceptron("emission", LATENT, HIDDEN, NOTES, bias=logits)
        with numpyro.plate("data", len(x)):
            with scale(scale=weight):
                z = numpyro.sample("z", Chain(prior, first, None, inside))
            notes = dist.Bernoulli(logits=emission(z)).mask(inside[..., None])
            numpyro.sample("x", notes.to_event(2), obs=x)

    def guide(x: Any, lengths: Any, weight: float = 1.0) -> None:
        inside, first = jnp.arange(x.shape[1]) < lengths[:, None], before(len(x))
        inputs, step = posterior(x, inside)
        with numpyro.plate("data", len(x)), scale(scale=weight):
            numpyro.sample("z", Chain(step, first, inputs, inside))

    return model, guide


def follow(given: list[np.ndarray], passes: int) -> None:
    """Fit, a pass in one compiled `jax.lax.scan`, and tell of the held-out bound per time step after each pass."""
    x, lengths, *test = given
    model, guide = programs((x.sum((0, 1)) / lengths.sum()).clip(1e-3, 1 - 1e-3))
    batches = len(x) // BATCH
    steps, count = passes * batches, int(test[1].sum())
    svi = SVI(model, guide, numpyro.optim.Adam(lambda t: LR / 2 * (1 + jnp.cos(jnp.pi * t / steps))), Trace_ELBO())
    state = jax.jit(svi.init)(jax.random.PRNGKey(SEED), x[:BATCH], lengths[:BATCH])

    @jax.jit
    def one_pass(state: Any, order: Any, weights: Any, x: Any, lengths: Any) -> Any:
        def step(state: Any, given: Any) -> Any:
            index, weight = given
            return svi.update(state, x[index], lengths[index], weight)

        return jax.lax.scan(step, state, (order, weights))[0]

    evaluate, generator = jax.jit(svi.evaluate), np.random.default_rng(SEED)
    train, test = jax.device_put((x, lengths)), jax.device_put(test)
    weights = np.minimum(1.0, np.arange(1.0, steps + 1) / (WARMING * steps)).astype(np.float32).reshape(passes, -1)
    for done in range(passes):
        order = generator.permutation(len(x))[: batches * BATCH].reshape(batches, BATCH)
        state = one_pass(state, order, weights[done], *train)
        tell(heldout=-float(evaluate(state, *test)) / count, seen=done + 1)
    keys = jax.random.split(state.rng_key, 10)
    tell(final=-sum(float(evaluate(state._replace(rng_key=key), *test)) for key in keys) / 10 / count)

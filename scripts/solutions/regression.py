"""A hierarchical regression: 10,000 rows in 100 groups, y ~ N(b_g + xᵀ w, σ²), b_g ~ N(b, τ²), by a diagonal normal guide.

All ways take full-batch steps of Adam at 1e-2, 2000 of them, on the same made-up rows. The bound is the log predictive density
of 1000 held-out rows, from 20 draws, every 100 steps (pyro_vi: and the ELBO besides), and from 100 at
the end. All have the same model up to the scales of wide priors; each has its own start.
"""

import math
from typing import Any

import numpy as np
from lines import ours, solve, tell

GROUPS, FEATURES, HELD, LR, EVERY = 100, 8, 1000, 1e-2, 100


def arrays(rows: int) -> list[np.ndarray]:
    """Return x, y and the groups of ``rows`` training rows, followed by `HELD` held-out ones."""
    draws = np.random.default_rng(0)
    group = draws.integers(GROUPS, size=rows + HELD)
    group[:GROUPS] = np.arange(GROUPS)
    x = draws.standard_normal((rows + HELD, FEATURES))
    mean = 2.0 + 1.5 * draws.standard_normal(GROUPS)[group] + x @ draws.standard_normal(FEATURES)
    return [x.astype(np.float32), (mean + draws.standard_normal(rows + HELD)).astype(np.float32), group]


def in_pyro_vi(compile: Any, steps: int, rows: int) -> None:
    """`pyro_vi.fit` with the model `regression` of the shelf."""
    from dataclasses import replace

    import torch

    import pyro_vi

    columns = [torch.from_numpy(column) for column in arrays(rows)]
    data = pyro_vi.load(tuple(column[:rows] for column in columns), heldout=0.0)
    data = replace(data, heldout=tuple(column[rows:] for column in columns))
    run = pyro_vi.fit(
        "regression(centred=True)", "diag_normal", data, steps=steps, lr=LR, schedule="constant", compile=compile,
        records=max(1, steps // EVERY), progress=False,
        callbacks=lambda record: tell(heldout=record["heldout_lpd"], seen=record["step"]),
    )  # fmt: skip
    tell(note=run.choice.note if run.choice else "")
    from pyro_vi.elbo import facts_of, log_predictive

    found = log_predictive(run.pair, data.heldout, facts_of(run.pair, data.heldout), draws=100, seed=1)
    assert found is not None
    tell(final=float(found.mean()))


def in_pyro(steps: int, rows: int) -> None:
    """`pyro.infer.SVI` and `AutoDiagonalNormal`, with their defaults."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, Predictive, Trace_ELBO
    from pyro.infer.autoguide import AutoDiagonalNormal

    pyro.set_rng_seed(0)
    x, y, group = (torch.from_numpy(column) for column in arrays(rows))

    def model(x: Any, y: Any, group: Any) -> None:
        level = pyro.sample("level", dist.Normal(0.0, 10.0))
        weights = pyro.sample("weights", dist.Normal(torch.zeros(FEATURES), 5.0).to_event(1))
        spread = pyro.sample("spread", dist.HalfNormal(5.0))
        with pyro.plate("groups", GROUPS):
            levels = pyro.sample("levels", dist.Normal(level, spread))
        noise = pyro.sample("noise", dist.HalfNormal(5.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(levels[group] + x @ weights, noise), obs=y)

    guide = AutoDiagonalNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), Trace_ELBO())

    def density(draws: int) -> float:
        with torch.no_grad():
            found = Predictive(guide, num_samples=draws)(x, y, group)
            weights, levels, noise = (found[name] for name in ("weights", "levels", "noise"))
            weights, levels, noise = weights.reshape(draws, -1), levels.reshape(draws, -1), noise.reshape(draws, 1)
            each = dist.Normal(levels[:, group[rows:]] + weights @ x[rows:].T, noise).log_prob(y[rows:])
            return float((each.logsumexp(0) - math.log(draws)).mean())

    for step in range(1, steps + 1):
        svi.step(x[:rows], y[:rows], group[:rows])
        if step % EVERY == 0:
            tell(heldout=density(20), seen=step)
    tell(final=density(100))


def in_torch(compiled: bool, steps: int, rows: int) -> None:
    """The loss by hand: a diagonal normal of (b, w, log τ, b_1 … b_G, log σ)."""
    import torch

    torch.manual_seed(0)
    x, y, group = (torch.from_numpy(column) for column in arrays(rows))
    size = FEATURES + GROUPS + 3
    loc, log_scale = torch.zeros(size, requires_grad=True), torch.full((size,), -2.3, requires_grad=True)
    parts = (1, FEATURES, 1, 1, GROUPS)

    def normal(value: Any, mean: Any, log_scale: Any) -> Any:
        return -0.5 * ((value - mean) * (-log_scale).exp()).square() - log_scale - 0.5 * math.log(2 * math.pi)

    def plain(x: Any, y: Any, group: Any) -> Any:
        z = loc + log_scale.exp() * torch.randn(size)
        level, weights, spread, noise, levels = z.split(parts)
        prior = normal(level, 0.0, torch.tensor(10.0).log()).sum() + normal(weights, 0.0, torch.tensor(5.0).log()).sum()
        for positive in (spread, noise):  # a half normal of the exponential, and its Jacobian
            prior = prior + (normal(positive.exp(), 0.0, torch.tensor(5.0).log()) + math.log(2) + positive).sum()
        prior = prior + normal(levels, level, spread).sum()
        entropy = log_scale.sum() + 0.5 * size * math.log(2 * math.pi * math.e)
        return -(prior + normal(y, levels[group] + x @ weights, noise).sum() + entropy)

    def density(draws: int) -> float:
        with torch.no_grad():
            z = loc + log_scale.exp() * torch.randn(draws, size)
            _, weights, _, noise, levels = z.split(parts, -1)
            each = normal(y[rows:], levels[:, group[rows:]] + weights @ x[rows:].T, noise)
            return float((each.logsumexp(0) - math.log(draws)).mean())

    loss = torch.compile(plain, dynamic=False) if compiled else plain
    optimizer = torch.optim.Adam([loc, log_scale], LR, fused=True)
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        loss(x[:rows], y[:rows], group[:rows]).backward()
        optimizer.step()
        if step % EVERY == 0:
            tell(heldout=density(20), seen=step)
    tell(final=density(100))


def in_numpyro(steps: int, rows: int) -> None:
    """`numpyro.infer.SVI` and `AutoDiagonalNormal`, 100 steps in one compiled `jax.lax.scan`."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, Trace_ELBO
    from numpyro.infer.autoguide import AutoDiagonalNormal

    x, y, group = (jnp.asarray(column) for column in arrays(rows))

    def model(x: Any, y: Any, group: Any) -> None:
        level = numpyro.sample("level", dist.Normal(0.0, 10.0))
        weights = numpyro.sample("weights", dist.Normal(jnp.zeros(FEATURES), 5.0).to_event(1))
        spread = numpyro.sample("spread", dist.HalfNormal(5.0))
        with numpyro.plate("groups", GROUPS):
            levels = numpyro.sample("levels", dist.Normal(level, spread))
        noise = numpyro.sample("noise", dist.HalfNormal(5.0))
        with numpyro.plate("data", len(x)):
            numpyro.sample("y", dist.Normal(levels[group] + x @ weights, noise), obs=y)

    guide = AutoDiagonalNormal(model)
    svi = SVI(model, guide, numpyro.optim.Adam(LR), Trace_ELBO())
    train = (x[:rows], y[:rows], group[:rows])
    state = svi.init(jax.random.PRNGKey(0), *train)

    @jax.jit
    def many(state: Any, train: Any) -> Any:
        return jax.lax.scan(lambda state, _: svi.update(state, *train), state, length=EVERY)[0]

    @jax.jit
    def each(params: Any, key: Any) -> Any:
        found = guide.sample_posterior(key, params, sample_shape=(20,))
        mean = found["levels"][:, group[rows:]] + found["weights"] @ x[rows:].T
        return dist.Normal(mean, found["noise"][:, None]).log_prob(y[rows:])

    def density(number: int, draws: int) -> float:
        keys = [jax.random.PRNGKey(100 * number + part) for part in range(draws // 20)]
        values = jnp.concatenate([each(svi.get_params(state), key) for key in keys])
        return float((jax.nn.logsumexp(values, 0) - math.log(draws)).mean())

    for done in range(steps // EVERY):
        state = many(state, train)
        tell(heldout=density(done, 20), seen=(done + 1) * EVERY)
    tell(final=density(steps, 100))


WAYS = {
    "stock": in_pyro,
    "torch": lambda **sizes: in_torch(False, **sizes),
    "torch_compiled": lambda **sizes: in_torch(True, **sizes),
    "numpyro": in_numpyro,
    **ours(in_pyro_vi),
}

if __name__ == "__main__":
    solve(WAYS, __doc__, steps=2000, rows=10_000)

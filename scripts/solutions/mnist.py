"""A VAE 784-400-z40 with ReLU on statically binarised MNIST: batches of 128, Adam at 1e-3, the analytic KL.

All ways fit the same model on the same rows and evaluate the same held-out rows: the first 1000 of a fixed random order after
each pass (pyro_vi also as many training rows, and after the first step), and all 10,000 at the end, one draw each. The ways in
PyTorch, Pyro and NumPyro leave out the last, short batch of a pass; pyro_vi takes it, as it does by default.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
from lines import ours, solve, tell

Z, HIDDEN, PIXELS, BATCH, LR = 40, 400, 784, 128, 1e-3
WATCHED = 1000
"""Held-out rows that are evaluated during a fit."""


def arrays(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first training rows, and the held-out rows in a fixed random order, as 0 and 1 in bytes."""
    with np.load(Path(os.environ["PYRO_VI_DATA"], "mnist_static_binarized", "binarized_mnist_packed.npz")) as file:
        train, test = (np.unpackbits(file[name], axis=1) for name in ("train", "test"))
    return train[:rows], test[np.random.default_rng(0).permutation(len(test))]


def in_pyro_vi(compile: Any, passes: int, rows: int) -> None:
    """`pyro_vi.fit`, which tells of each record; the order of the held-out rows is that of the other ways."""
    from dataclasses import replace

    import pyro_vi

    data = pyro_vi.load("mnist_static")
    order = np.random.default_rng(0).permutation(data.num_heldout)
    data = replace(data, heldout=(data.heldout[0][order],))
    if rows < data.spec.num_data:
        data = replace(data, spec=replace(data.spec, num_data=rows), columns=(data.columns[0][:rows],))
    width = f"hidden=({HIDDEN},), activation='relu'"
    run = pyro_vi.fit(
        f"vae(latent_dim={Z}, {width})", f"diag_normal({width})", data, epochs=passes, batch_size=BATCH, lr=LR,
        schedule="constant", compile=compile, records=passes, progress=False,
        callbacks=lambda record: tell(heldout=record["heldout_elbo"], seen=record["epoch"]),
    )  # fmt: skip
    tell(note=run.choice.note if run.choice else "")
    from pyro_vi.elbo import facts_of, measure

    found = measure(run.pair, data.heldout, facts_of(run.pair, data.heldout), draws=1, num_data=data.num_heldout)
    tell(final=found.elbo_mean)


def networks() -> tuple[Any, Any]:
    """Return encoder and decoder."""
    from torch import nn

    encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * Z))
    decoder = nn.Sequential(nn.Linear(Z, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, PIXELS))
    return encoder, decoder


def in_pyro(passes: int, rows: int) -> None:
    """`pyro.infer.SVI` with its defaults, as in Pyro's tutorial of the VAE."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, TraceMeanField_ELBO

    pyro.set_rng_seed(0)
    train, test = (torch.from_numpy(part).float() for part in arrays(rows))
    encoder, decoder = networks()

    def model(x: Any) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, pyro.optim.Adam({"lr": LR}), TraceMeanField_ELBO())
    for done in range(passes):
        for index in torch.randperm(len(train)).split(BATCH)[: len(train) // BATCH]:
            svi.step(train[index])
        tell(heldout=-svi.evaluate_loss(test[:WATCHED]) / WATCHED, seen=done + 1)
    tell(final=-svi.evaluate_loss(test) / len(test))


def in_torch(compiled: bool, passes: int, rows: int) -> None:
    """The loss by hand, and Adam in its fused form; with ``compiled`` loss and gradients by `torch.compile`."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    torch.manual_seed(0)
    train, test = (torch.from_numpy(part).float() for part in arrays(rows))
    encoder, decoder = networks()

    def plain(x: Any) -> Any:
        loc, log_scale = encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        logits = decoder(loc + scale * torch.randn_like(loc))
        kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * log_scale).sum()
        return binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl

    loss = torch.compile(plain, dynamic=False) if compiled else plain
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], LR, fused=True)
    for done in range(passes):
        for index in torch.randperm(len(train)).split(BATCH)[: len(train) // BATCH]:
            optimizer.zero_grad()
            loss(train[index]).backward()
            optimizer.step()
        with torch.no_grad():
            tell(heldout=-plain(test[:WATCHED]).item() / WATCHED, seen=done + 1)
    with torch.no_grad():
        tell(final=-plain(test).item() / len(test))


def in_numpyro(passes: int, rows: int) -> None:
    """`numpyro.infer.SVI` in single precision, with a whole pass over the data in one compiled `jax.lax.scan`."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import SVI, TraceMeanField_ELBO

    train, test = (jnp.asarray(part, jnp.float32) for part in arrays(rows))

    def dense(name: str, inputs: int, outputs: int) -> Any:
        def start(key: Any) -> Any:
            return jax.random.uniform(key, (inputs, outputs), minval=-(inputs**-0.5), maxval=inputs**-0.5)

        weight, bias = numpyro.param(f"{name}.weight", start), numpyro.param(f"{name}.bias", jnp.zeros(outputs))
        return lambda x: x @ weight + bias

    def model(x: Any) -> None:
        first, second = dense("decoder1", Z, HIDDEN), dense("decoder2", HIDDEN, PIXELS)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(Z), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=second(jax.nn.relu(first(z)))).to_event(1), obs=x)

    def guide(x: Any) -> None:
        first, second = dense("encoder1", PIXELS, HIDDEN), dense("encoder2", HIDDEN, 2 * Z)
        with numpyro.plate("data", len(x)):
            loc, log_scale = jnp.split(second(jax.nn.relu(first(x))), 2, -1)
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    svi = SVI(model, guide, numpyro.optim.Adam(LR), TraceMeanField_ELBO())
    state = svi.init(jax.random.PRNGKey(0), train[:BATCH])
    count = len(train) // BATCH

    @jax.jit
    def one_pass(state: Any, key: Any, train: Any) -> Any:
        order = jax.random.permutation(key, len(train))[: count * BATCH].reshape(count, BATCH)
        return jax.lax.scan(lambda state, index: svi.update(state, train[index]), state, order)[0]

    evaluate = jax.jit(svi.evaluate)
    for done in range(passes):
        state = one_pass(state, jax.random.PRNGKey(done), train)
        tell(heldout=-float(evaluate(state, test[:WATCHED])) / WATCHED, seen=done + 1)
    parts = jnp.split(test, len(test) // WATCHED)  # the function is compiled for this number of rows
    tell(final=-sum(float(evaluate(state, part)) for part in parts) / len(test))


WAYS = {
    "stock": in_pyro,
    "torch": lambda **sizes: in_torch(False, **sizes),
    "torch_compiled": lambda **sizes: in_torch(True, **sizes),
    "numpyro": in_numpyro,
    **ours(in_pyro_vi),
}

if __name__ == "__main__":
    solve(WAYS, __doc__, passes=10, rows=50_000)

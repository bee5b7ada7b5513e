"""A deep Markov model of the JSB chorales: z_t of dimension 32, gated transition, bidirectional GRU in the guide; 20 passes.

All ways fit the same model to the same rows, batches of 20 chorales, with Adam at 1e-2 which falls to 0 along a cosine, and a
weight of the KL that rises to 1 over the first half of the steps. The bound is the held-out ELBO of the test chorales per time
step, one draw, after each pass. The ways in PyTorch, stock Pyro and NumPyro leave out the last, short batch of a pass, and draw
the path step after step as Pyro's own example does.
"""

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from lines import ours, solve, tell

NOTES, LATENT, WIDTH, HIDDEN, ENCODER, BATCH, LR = 88, 32, 64, 64, 64, 20, 1e-2
WARMING = 0.5
"""Fraction of the steps over which the weight of the KL rises to 1."""


def arrays(rows: int, steps: int) -> list[np.ndarray]:
    """Return x (chorales, steps, 88), padded, and the lengths, of the first training chorales and of all held-out ones."""
    with np.load(Path(os.environ["PYRO_VI_DATA"], "jsb_chorales", "jsb_chorales_quarter.npz")) as file:
        found = {name: file[name] for name in file}
    made = []
    for part in ("train", "test"):
        lengths = found[f"{part}_lengths"].astype(np.int64)
        rolls = np.split(np.unpackbits(found[f"{part}_roll_packed"], axis=1)[:, :NOTES], np.cumsum(lengths)[:-1])
        x = np.zeros((len(lengths), int(lengths.max()), NOTES), np.float32)
        for row, roll in zip(x, rolls, strict=True):
            row[: len(roll)] = roll
        few = rows if part == "train" else len(x)
        made += [x[:few, :steps], np.minimum(lengths[:few], steps)]
    return made


def in_pyro_vi(compile: Any, passes: int, rows: int, steps: int) -> None:
    """`pyro_vi.fit` with `deep_markov` and `structured` of the shelf."""
    from dataclasses import replace

    import torch

    import pyro_vi

    x, lengths, test, ends = (torch.from_numpy(column) for column in arrays(rows, steps))
    data = pyro_vi.load("jsb")
    spec = replace(data.spec, num_data=len(x), event_shape=(x.shape[1], NOTES))
    data = replace(data, spec=spec, columns=(x.to(torch.uint8), lengths), heldout=(test, ends))
    per_step = len(ends) / int(ends.sum())
    run = pyro_vi.fit(
        f"deep_markov(latent_dim={LATENT}, transition_dim={WIDTH}, hidden=({HIDDEN},))",
        f"structured(hidden=({ENCODER},), init_scale=0.1)",
        data, elbo="trace", epochs=passes, batch_size=BATCH, lr=LR, schedule="cosine", records=passes,
        warmup=int(WARMING * passes * -(-len(x) // BATCH)), compile=compile, progress=False,
        callbacks=lambda record: tell(heldout=record["heldout_elbo"] * per_step, seen=record["epoch"]),
    )  # fmt: skip
    tell(note=run.choice.note if run.choice else "")
    from pyro_vi.elbo import facts_of, measure

    found = measure(run.pair, data.heldout, facts_of(run.pair, data.heldout), num_data=len(test), draws=10, rows=20)
    tell(final=found.elbo_mean * per_step)


def networks(x: np.ndarray, lengths: np.ndarray) -> Any:
    """Return the networks of model and guide in one module; the notes start at their frequencies."""
    import torch
    from torch import nn
    from torch.nn.functional import softplus

    class Networks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.before = nn.Parameter(torch.zeros(LATENT))
            self.gate = nn.Sequential(nn.Linear(LATENT, WIDTH), nn.ReLU(), nn.Linear(WIDTH, LATENT))
            self.proposal = nn.Sequential(nn.Linear(LATENT, WIDTH), nn.ReLU(), nn.Linear(WIDTH, LATENT))
            self.linear, self.spread = nn.Linear(LATENT, LATENT), nn.Linear(LATENT, LATENT)
            nn.init.eye_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)
            self.emission = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, NOTES))
            frequency = torch.from_numpy(x.sum((0, 1)) / lengths.sum()).clamp(1e-3, 1 - 1e-3)
            self.emission[-1].bias.data.copy_(frequency.logit())
            self.reader = nn.GRU(NOTES, ENCODER, batch_first=True, bidirectional=True)
            self.combine = nn.Sequential(nn.Linear(2 * ENCODER + LATENT, ENCODER), nn.ReLU())
            self.head = nn.Linear(ENCODER, 2 * LATENT)
            nn.init.constant_(self.head.bias[LATENT:], math.log(0.1))

        def read(self, x: Any, lengths: Any) -> Any:
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
            return nn.utils.rnn.pad_packed_sequence(self.reader(packed)[0], batch_first=True, total_length=x.shape[1])[
                0
            ]

        def prior(self, z: Any) -> tuple[Any, Any]:
            gate, proposal = self.gate(z).sigmoid(), self.proposal(z)
            return torch.lerp(self.linear(z), proposal, gate), 1e-3 + softplus(self.spread(proposal.relu()))

        def posterior(self, features: Any, z: Any) -> tuple[Any, Any]:
            loc, log_scale = self.head(self.combine(torch.cat([features, z], -1))).chunk(2, -1)
            return loc, log_scale.exp()

    return Networks()


def in_pyro(passes: int, rows: int, steps: int) -> None:
    """`pyro.infer.SVI` with its defaults; a site for each step, as in Pyro's example of the deep Markov model."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro import poutine
    from pyro.infer import SVI, Trace_ELBO

    pyro.set_rng_seed(0)
    given = arrays(rows, steps)
    net, columns = networks(*given[:2]), [torch.from_numpy(column) for column in given]

    def model(x: Any, lengths: Any, weight: float = 1.0) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = net.before.expand(len(x), LATENT)
            for t in range(x.shape[1]):
                with poutine.mask(mask=t < lengths):
                    with poutine.scale(scale=weight):
                        z = pyro.sample(f"z{t}", dist.Normal(*net.prior(z)).to_event(1))
                    pyro.sample(f"x{t}", dist.Bernoulli(logits=net.emission(z)).to_event(1), obs=x[:, t])

    def guide(x: Any, lengths: Any, weight: float = 1.0) -> None:
        pyro.module("net", net)
        features = net.read(x, lengths)
        with pyro.plate("data", len(x)):
            z = net.before.expand(len(x), LATENT)
            for t in range(x.shape[1]):
                with poutine.mask(mask=t < lengths), poutine.scale(scale=weight):
                    z = pyro.sample(f"z{t}", dist.Normal(*net.posterior(features[:, t], z)).to_event(1))

    count = len(columns[0]) // BATCH
    settings = {"optimizer": torch.optim.Adam, "optim_args": {"lr": LR}, "T_max": passes * count}
    scheduler = pyro.optim.CosineAnnealingLR(settings)
    svi = SVI(model, guide, scheduler, Trace_ELBO())
    _followed(svi.step, scheduler.step, lambda *test: -svi.evaluate_loss(*test), columns, passes)


def in_torch(passes: int, rows: int, steps: int) -> None:
    """The loss by hand: the path step after step, then all densities at once."""
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    torch.manual_seed(0)
    given = arrays(rows, steps)
    net, columns = networks(*given[:2]), [torch.from_numpy(column) for column in given]

    def path(features: Any) -> Any:
        z = net.before.expand(len(features), LATENT)
        drawn, log_q = [], []
        for t in range(features.shape[1]):
            loc, scale = net.posterior(features[:, t], z)
            noise = torch.randn_like(loc)
            z = loc + scale * noise
            drawn.append(z)
            log_q.append(-0.5 * noise.square().sum(-1) - scale.log().sum(-1))
        return torch.stack(drawn, 1), torch.stack(log_q, 1)

    def plain(x: Any, lengths: Any, weight: float = 1.0) -> Any:
        z, log_q = path(net.read(x, lengths))
        first = net.before.expand(len(x), 1, LATENT)
        mean, scale = net.prior(torch.cat([first, z[:, :-1]], 1))
        log_p = (-0.5 * ((z - mean) / scale).square() - scale.log()).sum(-1)
        misfit = binary_cross_entropy_with_logits(net.emission(z), x, reduction="none").sum(-1)
        inside = torch.arange(x.shape[1]) < lengths.unsqueeze(-1)
        return ((weight * (log_q - log_p) + misfit) * inside).sum()

    optimizer = torch.optim.Adam(net.parameters(), LR, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, passes * (len(columns[0]) // BATCH))

    def step(*batch: Any, weight: float) -> None:
        optimizer.zero_grad()
        plain(*batch, weight).backward()
        optimizer.step()

    def bound(*test: Any) -> float:
        with torch.no_grad():
            return -plain(*test).item()

    _followed(step, scheduler.step, bound, columns, passes)


def in_numpyro(passes: int, rows: int, steps: int) -> None:
    """`numpyro.infer.SVI` in single precision, with a whole pass over the data in one compiled `jax.lax.scan`."""
    from chorales_numpyro import follow

    follow(arrays(rows, steps), passes)


def _followed(step: Any, anneal: Any, bound: Any, columns: list[Any], passes: int) -> None:
    """Take the steps of all passes, and tell of the held-out bound per time step after each pass."""
    import torch

    x, lengths, test, ends = columns
    count, batches = int(ends.sum()), len(x) // BATCH
    rising = WARMING * passes * batches
    for done in range(passes):
        for number, index in enumerate(torch.randperm(len(x)).split(BATCH)[:batches]):
            step(x[index], lengths[index], weight=min(1.0, (done * batches + number + 1) / rising))
            anneal()
        tell(heldout=bound(test, ends) / count, seen=done + 1)
    tell(final=sum(bound(test, ends) for _ in range(10)) / 10 / count)


WAYS = {"stock": in_pyro, "torch": in_torch, "numpyro": in_numpyro, **ours(in_pyro_vi)}

if __name__ == "__main__":
    solve(WAYS, __doc__, passes=20, rows=229, steps=129)

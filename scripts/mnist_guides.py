"""Guides on static binarised MNIST: the test bound after ten epochs, and the time beside a hand-written loop's.

    PYRO_VI_DATA=folder python scripts/mnist_guides.py --guides diag_normal "flow(kind='coupling')"

The model is a VAE 784-400-z40 with ReLU; batches of 128, Adam at a constant rate of 1e-3. `diag_normal` is fitted with the
analytic KL, the others without the score of q (`stl`); for that, a coupling flow inverts its draws in two passes, and an
autoregressive one in 40. The hand-written loop is the same VAE
with its analytic KL and `torch.optim.Adam`, in plain PyTorch, without records, checks or checkpoints. The
bound is the mean over the test images, in nats. Times are of the processor, those of the compiler included, so that other work
on the machine matters little; run one thread to compare them.
"""

import os
from dataclasses import dataclass

import torch
import tyro
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_vi
from pyro_vi.data import load
from pyro_vi.elbo import facts_of, measure

MODEL = "vae(latent_dim=40, hidden=(400,), activation='relu')"
ENCODER = "hidden=(400,), activation='relu'"
BATCH, LR = 128, 1e-3


@dataclass(frozen=True)
class Options:
    """The guides to fit, and for how long."""

    guides: tuple[str, ...] = ("diag_normal", "full_normal", "flow(kind='coupling')")
    """Guides of the shelf, with options or without; each gets an encoder with 400 hidden units."""
    epochs: int = 10
    """Passes over the 50,000 rows."""
    draws: int = 10
    """Draws for the bound of each test image under a guide; the hand-written loop has 10."""
    by_hand: bool = True
    """Run the hand-written loop too."""


def main(options: Options) -> None:
    """Fit each guide, and print a line for each."""
    data = load("mnist_static")
    print(
        f"{data.spec.num_data} rows, {data.num_heldout} test rows, {options.epochs} epochs, {torch.get_num_threads()} threads"
    )
    for guide in options.guides:
        elbo = "mean_field" if guide.startswith("diag_normal") else "stl"
        start = processor()
        run = pyro_vi.fit(
            MODEL, with_encoder(guide), data, elbo=elbo, epochs=options.epochs, batch_size=BATCH, lr=LR,
            schedule="constant", progress=False,
        )  # fmt: skip
        seconds = processor() - start
        args = run.data.heldout
        found = measure(
            run.pair, args, facts_of(run.pair, args), num_data=len(args[0]), draws=options.draws, seed=1, rows=1000
        )
        print(
            f"{guide:24s} test bound {found.elbo_mean:9.3f} nats  {seconds:6.1f} s  {elbo}; {run.choice.note}",
            flush=True,
        )
    if options.by_hand:
        seconds, bound = by_hand(data.train()[0], data.heldout[0], options.epochs)
        print(f"{'by hand':24s} test bound {bound:9.3f} nats  {seconds:6.1f} s  analytic KL, in PyTorch", flush=True)


def with_encoder(guide: str) -> str:
    """Add the options of the encoder to a guide.

    >>> with_encoder("flow(kind='coupling')")
    "flow(kind='coupling', hidden=(400,), activation='relu')"
    """
    name, _, options = guide.removesuffix(")").partition("(")
    return f"{name}({', '.join(filter(None, [options, ENCODER]))})"


def processor() -> float:
    """Seconds of the processor that this process and the ones that it waited for have taken."""
    return sum(os.times()[:4])


class ByHand(nn.Module):
    """The VAE in plain PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 80))
        self.decoder = nn.Sequential(nn.Linear(40, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x: Tensor) -> Tensor:
        """The negative ELBO of each row, in nats."""
        loc, log_scale = self.encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        error = binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)
        return error + (0.5 * (loc.square() + (2 * log_scale).exp() - 1) - log_scale).sum(-1)


def by_hand(train: Tensor, test: Tensor, epochs: int) -> tuple[float, float]:
    """Return the seconds of the fit, and the test bound in nats per image, with 10 draws."""
    torch.manual_seed(0)
    net = ByHand()
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    start = processor()
    for _ in range(epochs):
        for rows in torch.randperm(len(train)).split(BATCH):
            optimizer.zero_grad()
            net(train[rows]).mean().backward()
            optimizer.step()
    seconds = processor() - start
    with torch.no_grad():
        return seconds, -float(torch.stack([net(test) for _ in range(10)]).mean())


if __name__ == "__main__":
    main(tyro.cli(Options))

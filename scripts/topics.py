"""Topics of 20 Newsgroups: held-out perplexity, and the top words of each topic.

    PYRO_VI_DATA=folder python scripts/topics.py

The data are those of Dieng, Ruiz and Blei (2020, arXiv:1907.04907): 11,214 and 7,531 documents, 3,072 words. Perplexity is
exp(−Σ log p(w) / number of words). *By completion*: the topics of a test document are inferred from one half of its words, and
the other half is scored by p(w) = E_q[p(w | θ)], with 20 draws of q(θ | first half). *By the bound*: the log-probability of a
test document is its ELBO without the multinomial coefficient. Beside them stands the perplexity without topics, that of the
words' frequencies.

The encoder reads the shares of the words of a document. With standardised counts, long documents and rare words move it farther
than what a document is about, and the perplexity falls much later.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from pyro import poutine
from torch import Tensor, nn

import pyro_vi
from pyro_vi.data import Data, load
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.networks import mlp_body

BATCH, DRAWS, ROWS = 200, 20, 500


@dataclass(frozen=True)
class Options:
    """The model, and the length of the fit."""

    topics: int = 50
    """Number of topics."""
    words: str = "mixture"
    """"mixture" (latent Dirichlet allocation) or "product" (ProdLDA)."""
    steps: int = 8000
    """Steps of 200 documents; 8000 take about five minutes of one core."""
    lr: float = 3e-3
    """Learning rate of Adam, which falls to 0 as a cosine."""
    seed: int = 0
    """Seed of the fit."""


class Shares(nn.Module):
    """Features of a document from the shares of its words; the mean document has inputs of the size 1.

    Args:
        counts: the example whose moments standardise the counts, (rows, words).
    """

    def __init__(self, counts: Tensor) -> None:
        super().__init__()
        scale = counts.std(0, correction=0)
        self.register_buffer("mean", counts.mean(0))
        self.register_buffer("scale", torch.where(scale > 0, scale, 1.0))
        self.body = mlp_body(counts.shape[1], (256, 256), "relu")

    def forward(self, standard: Tensor) -> Tensor:
        counts = (standard * self.scale + self.mean).clamp(min=0)
        features: Tensor = self.body(10 * counts / counts.sum(-1, keepdim=True).clamp(min=1))
        return features


def main(options: Options) -> None:
    """Fit the model, and print its perplexities and its topics."""
    torch.set_num_threads(1)
    data = load("20ng(heldout_part='test_h1')", seed=options.seed)
    first, second = data.heldout[0], load("20ng(heldout_part='test_h2')").heldout[0]
    run, seconds = fitted(options, data)
    print(
        f"topics {options.topics}, words {options.words}, seed {options.seed}: {options.steps} steps, "
        f"{seconds:.0f} s of processor"
    )
    frequencies = data.train()[0].double().sum(0).clamp(min=0.5)
    unigram = (frequencies / frequencies.sum()).log()
    completion, bound = scored(run.pair, first, second)
    print(f"perplexity by completion {completion:.1f}, by the bound {bound:.1f}, without topics "
          f"{float((-(second.double() @ unigram).sum() / second.sum()).exp()):.1f}")  # fmt: skip
    for number, words in enumerate(run.pair.model.top_words(8)):
        print(f"{number:3d}  {' '.join(words)}")


def fitted(options: Options, data: Data) -> tuple[Any, float]:
    """Fit the model, and return the run and the seconds of processor time."""
    start = time.process_time()
    guide = partial(DiagNormal, encoder=Shares(data.example(BATCH)[0]))
    run = pyro_vi.fit(
        f"topic(topics={options.topics}, words={options.words!r}, learn_prior=True)", guide, data, elbo="mean_field",
        steps=options.steps, batch_size=BATCH, lr=options.lr, schedule="cosine", seed=options.seed, progress=False,
    )  # fmt: skip
    return run, time.process_time() - start


def scored(pair: Any, first: Tensor, second: Tensor) -> tuple[float, float]:
    """Return the perplexities by completion and by the bound."""
    model, log_second, bound = pair.model, 0.0, 0.0
    with torch.no_grad():
        for h1, h2 in zip(first.split(ROWS), second.split(ROWS), strict=True):
            draws = [poutine.trace(pair.guide).get_trace(h1).nodes["eta"]["value"] for _ in range(DRAWS)]
            probs = torch.stack([model.decode(eta) for eta in draws]).mean(0)
            log_second += float((h2 * probs.log()).sum())
            whole = h1 + h2
            prior = poutine.trace(model).get_trace(whole).nodes["eta"]["fn"]
            for _ in range(DRAWS):
                site = poutine.trace(pair.guide).get_trace(whole).nodes["eta"]
                eta = site["value"]
                log_words = (whole * model.log_words(model.shares(eta))).sum()
                bound += float(log_words + (prior.log_prob(eta) - site["fn"].log_prob(eta)).sum()) / DRAWS
    words = float(second.sum())
    return math.exp(-log_second / words), math.exp(-bound / (words + float(first.sum())))


if __name__ == "__main__":
    main(tyro.cli(Options))

"""MNIST with a label on 100 images of each class: the semi-supervised VAE against logistic regression on the same labels.

    PYRO_VI_DATA=folder python scripts/semi_supervised.py --seeds 0

The VAE sees all 60,000 images, drawn as 0/1 in each epoch, and 1000 labels; images with a label come ten times in an epoch.
Logistic regression sees the 1000 images with labels, as intensities; its C is the best of seven on the test set, which favours
it. Accuracies are on the 10,000 test images, ± the binomial standard error. The classifier is r(y | x) of the model; *Bayes* is
`classify` with the guide.
"""

import dataclasses
import time
import warnings
from dataclasses import dataclass

import torch
import tyro
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import pyro_vi
from pyro_vi.data import Data, load

PENALTIES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 10.0)
NETWORK = "hidden=(256, 256), activation='relu'"


@dataclass(frozen=True)
class Options:
    """The model, and the length of the fit."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of the labels and of the fit."""
    labels: int = 100
    """Labels of each class."""
    steps: int = 20_000
    """Steps of 128 images; 20,000 take about five minutes of one core."""
    enters: str = "prior"
    """The part that reads the class: the "prior" of z, or the "decoder" as in M2, which runs ten times for each image."""
    alpha: float = 10.0
    """Weight of the classifier's log-probability of a label."""
    repeats: int = 10
    """How often an image with a label comes in an epoch."""


def main(options: Options) -> None:
    """Fit both for each seed, and print their accuracies."""
    for seed in options.seeds:
        data = load(f"mnist(labels={options.labels})", seed=seed)
        known = (data.columns[1] >= 0).nonzero()[:, 0]
        test, truth = data.heldout
        start = time.process_time()
        run = pyro_vi.fit(
            f"semi_supervised_vae(latent_dim=20, {NETWORK}, enters={options.enters!r}, alpha={options.alpha}, dropout=0.3)",
            f"diag_normal({NETWORK})", repeated(data, known, options.repeats), elbo="enum", steps=options.steps,
            batch_size=128, lr=1e-3, schedule="cosine", seed=seed, progress=False,
        )  # fmt: skip
        seconds = time.process_time() - start
        model = run.pair.model
        own, bayes = (accuracy(model.classify(test, guide), truth) for guide in (None, run.pair.guide))
        print(
            f"seed {seed}: {len(known)} labels, {options.steps} steps, {seconds:.0f} s of processor; {run.choice.note}"
        )
        print(f"  classifier {own}, Bayes {bayes}, logistic regression {logistic(seed, data, known)}", flush=True)


def repeated(data: Data, rows: Tensor, times: int) -> Data:
    """Return the data with some rows repeated."""
    index = torch.cat([torch.arange(data.spec.num_data), rows.repeat(times - 1)])
    columns = tuple(column[index] for column in data.columns)
    spec = dataclasses.replace(data.spec, num_data=len(index))
    return dataclasses.replace(data, spec=spec, columns=columns, labels=None)


def logistic(seed: int, data: Data, rows: Tensor) -> str:
    """The best accuracy of logistic regressions on the intensities of the rows with labels."""
    grey = load("mnist(binarize=False)", seed=seed)
    images, labels = grey.train()[0][rows].numpy(), data.columns[1][rows].numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        fits = [LogisticRegression(C=C, max_iter=1000).fit(images, labels) for C in PENALTIES]
    found = [torch.from_numpy(fit.predict_proba(grey.heldout[0].numpy())) for fit in fits]
    best = max(found, key=lambda probabilities: int((probabilities.argmax(-1) == data.heldout[1]).sum()))
    return accuracy(best, data.heldout[1])


def accuracy(probabilities: Tensor, truth: Tensor) -> str:
    """The share of rows whose class has the largest probability, with its standard error."""
    share = float((probabilities.argmax(-1) == truth).double().mean())
    return f"{share:.4f} ± {(share * (1 - share) / len(truth)) ** 0.5:.4f}"


if __name__ == "__main__":
    main(tyro.cli(Options))

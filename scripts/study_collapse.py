"""Collapse with a known cause: `python scripts/study_collapse.py`.

The model is probabilistic PCA with 8 latents on digits / 16, centred, with A in closed form (Tipping and Bishop 1999), so that
the number of units in use is known: that of the eigenvalues of the covariance above the noise (Lucas et al. 2019,
arXiv:1911.02469). The script prints what `pyro_vi.collapse` says of it with the exact posterior and with the prior as the
guide, and of a decoder that uses 2 directions.
"""

from collections import Counter

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits

import pyro_vi
from pyro_vi.data import DataSpec
from pyro_vi.guides.exact import Exact
from pyro_vi.guides.prior import Prior
from pyro_vi.models.linear_gaussian import LinearGaussian

UNITS = 8


def model_of(x: torch.Tensor, noise: float, used: int = UNITS) -> LinearGaussian:
    """The maximum of the likelihood at a noise variance, with the first ``used`` directions alone."""
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    signal = (values.flip(0)[:UNITS] - noise).clamp(min=0)
    signal[used:] = 0
    spec = DataSpec("digits", len(x), (x.shape[1],), "real", x.dtype, "scikit-learn")
    weight = vectors.flip(1)[:, :UNITS] * signal.sqrt()
    return LinearGaussian(spec, latent_dim=UNITS, noise="fixed", scale=noise**0.5, weight=weight)


def main() -> None:
    """Print the table."""
    x = torch.as_tensor(load_digits().data, dtype=torch.float64) / 16
    x = x - x.mean(0)
    shown = Table()
    for column in ("noise", "decoder", "guide", "active", "KL", "I(x; z)", "gain", "causes", "verdict"):
        shown.add_column(column)
    for noise, used, guide in ((0.3, UNITS, Exact), (0.1, UNITS, Exact), (0.3, UNITS, Prior), (0.3, 2, Exact)):
        model = model_of(x, noise, used)
        found = pyro_vi.collapse(model, guide(model, (x[:4],)), x, rows=len(x))
        gain = found.gain.max().item()
        causes = Counter(cause for cause in found.cause.values.tolist() if cause)
        bounds = [round(found[f"total_information_{side}"].item(), 2) + 0.0 for side in ("lower", "upper")]
        shown.add_row(
            f"{noise:g}",
            "maximum" if used == UNITS else f"{used} directions",
            guide.__name__.lower(),
            f"{found.attrs['active']} of {UNITS}",
            f"{found.total_kl.item():.4f}",
            f"{bounds[0]:.2f} to {bounds[1]:.2f}",
            "" if gain != gain else f"{gain:.3f}",
            ", ".join(f"{count} {cause}" for cause, count in causes.items()),
            found.attrs["verdict"],
        )
    Console(highlight=False, width=120).print(shown)


if __name__ == "__main__":
    main()

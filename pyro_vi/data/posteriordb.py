"""Five Bayesian posteriors with reference draws, from posteriordb (Magnusson et al. 2024, arXiv:2407.04967; BSD 3-clause).

`read` reads one of `NAMES` from the folder PYRO_VI_DATA. The same names are data sets: ``pyro_vi.load("kidiq")``.

| name | model |
| --- | --- |
| eight_schools | mu ~ N(0, 5²), tau ~ C⁺(5), theta_j ~ N(mu, tau²), y_j ~ N(theta_j, sigma_j²), sigma_j known |
| kidiq | beta flat, sigma ~ C⁺(2.5), kid_score ~ N(beta_1 + beta_2 mom_iq, sigma²) |
| arK | alpha, beta_k ~ N(0, 10²), sigma ~ C⁺(2.5), y_t ~ N(alpha + Σ_k beta_k y_{t−k}, sigma²), k = 1 … 5 |
| gauss_mix | mu_1 < mu_2, mu_k ~ N(0, 2²), sigma_k ~ N⁺(2²), w_1 ~ Beta(5, 5), w_2 = 1 − w_1, y ~ Σ_k w_k N(mu_k, sigma_k²) |
| sblrc | beta ~ N(0, 10²), sigma ~ N⁺(10²), y ~ N(X beta, sigma²) |
"""

import json
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_vi.data.files import UNREADABLE
from pyro_vi.data.sets.raw import damaged, folder_arrays, folder_file
from pyro_vi.errors import InputError
from pyro_vi.support import unknown

FOLDERS = {
    "eight_schools": "eight_schools-eight_schools_noncentered",
    "kidiq": "kidiq-kidscore_momiq",
    "arK": "arK-arK",
    "gauss_mix": "low_dim_gauss_mix-low_dim_gauss_mix",
    "sblrc": "sblrc-blr",
}
NAMES = tuple(FOLDERS)


@dataclass(frozen=True, eq=False)
class Posterior:
    """A posterior: its data, and draws from it. All numbers are float64.

    Attributes:
        name: one of `NAMES`.
        data: the data by name, as in posteriordb.
        names: names of the D parameters, such as "beta[1]".
        draws: reference draws on the constrained scale, (chains, draws, D): thinned draws of NUTS, nearly independent.
        mean: their mean, (D,).
        sd: their standard deviation, (D,).
        mcse: Monte Carlo standard error of the mean, (D,).
        covariance: their covariance, (D, D).
    """

    name: str
    data: dict[str, Tensor] = field(repr=False)
    names: tuple[str, ...]
    draws: Tensor = field(repr=False)
    mean: Tensor
    sd: Tensor
    mcse: Tensor = field(repr=False)
    covariance: Tensor = field(repr=False)


def read(name: str) -> Posterior:
    """Read a posterior from the folder PYRO_VI_DATA.

    Args:
        name: one of `NAMES`.

    Raises:
        UsageError: an unknown name.
        InputError: the folder lacks a file, or a file is damaged.

    Example:
        >>> read("kidiq").names  # doctest: +SKIP
        ('beta[1]', 'beta[2]', 'sigma')
    """
    if name not in FOLDERS:
        raise unknown("posterior", name, FOLDERS)
    names, draws = folder_arrays(name, f"posteriordb/{FOLDERS[name]}/reference_draws.npz", ("names", "draws"))
    summary = _json(name, "reference_summary.json")
    try:
        if summary["names"] != names.tolist():
            raise ValueError("the summary has other parameters than the draws")
        moments = [_double(summary[key]) for key in ("mean", "sd", "mcse_mean", "covariance")]
        data = {key: _double(value) for key, value in _json(name, "data.json").items()}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(name, folder_file(name, f"posteriordb/{FOLDERS[name]}/reference_summary.json"), error) from error
    return Posterior(name, data, tuple(map(str, names)), torch.from_numpy(draws).double(), *moments)


def _json(name: str, file: str) -> dict[str, object]:
    path = folder_file(name, f"posteriordb/{FOLDERS[name]}/{file}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise damaged(name, path, error) from error
    if not isinstance(found, dict):
        raise InputError(f"data set {name!r}: {path} holds no JSON object; replace the file by an intact copy")
    return found


def _double(value: object) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)

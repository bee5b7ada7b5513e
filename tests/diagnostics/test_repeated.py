"""Captured draws of the evidence are the eager ones, in chunks and parts of any length; sums in parts are of the whole."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, conjugate_model, number, scalars
from torch import Tensor, nn

from pyro_vi.diagnostics import repeated, weights
from pyro_vi.diagnostics.log_evidence import evidence
from pyro_vi.diagnostics.repeated import Total
from pyro_vi.diagnostics.tails import Tail
from pyro_vi.elbo import draws

SAME = {"rtol": 1e-9, "atol": 1e-9}


@pytest.fixture(autouse=True)
def never_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "to_compile", lambda operations: 1e6)
    monkeypatch.setattr(weights, "MANY", 2)


def both(model, guide, x: Tensor, **options):
    found = [evidence(model, guide, x, method="iw", compile=mode, **options) for mode in ("auto", False)]
    for name in ("log_evidence", "mc_se", "ess", "khat"):
        np.testing.assert_allclose(found[0][name], found[1][name], **SAME, err_msg=name)
    return found[0].attrs["note"].split(" ")[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "closure", "masked_rows", "auxiliary"])
@pytest.mark.parametrize("cached", [1, 2**17])
def test_captured_draws_are_the_eager_ones(name, cached, monkeypatch):
    """Chunks of 6 draws, whole or in parts of one draw, and a rest."""
    entry = CATALOGUE[name]
    x = entry.batch[0]
    monkeypatch.setattr(draws, "MEMORY", 6 * x.numel())
    monkeypatch.setattr(repeated, "CACHED", cached)
    assert both(*entry.build(), x, particles=40) == "captured"
    assert both(*entry.build(), x, particles=40, rows=3) == "captured"


def test_draws_that_depend_on_parameters_are_not_captured(monkeypatch):
    entry = CATALOGUE["discrete"]
    monkeypatch.setattr(draws, "MEMORY", 6 * entry.batch[0].numel())
    assert both(*entry.build(), entry.batch[0], particles=40) == "eager"


class Guide(nn.Module):
    """q(z_n) = N(0.5 x_n, 0.7²), with something done in each run."""

    def __init__(self, change) -> None:
        super().__init__()
        self.register_buffer("runs", number(0.0))
        self.change = change

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.change(self, 0.5 * x), 0.7))


def counted(guide: Guide, loc: Tensor) -> Tensor:
    guide.runs.add_(1)
    return loc + 0.01 * guide.runs


def branched(guide: Guide, loc: Tensor) -> Tensor:
    return loc if float(loc.sum()) > 0 else -loc


def numbered(guide: Guide, loc: Tensor) -> Tensor:
    guide.calls = getattr(guide, "calls", 0) + 1
    return loc + 0.1 * guide.calls


@pytest.mark.parametrize("change", [counted, branched, numbered])
def test_programs_that_a_graph_would_freeze_are_eager(change, monkeypatch):
    monkeypatch.setattr(draws, "MEMORY", 5 * len(scalars()))
    guides = [Guide(change) for _ in range(2)]
    found = [
        evidence(conjugate_model, guide, scalars(), method="iw", particles=20, compile=mode)
        for guide, mode in zip(guides, ("auto", False), strict=True)
    ]
    assert found[0].attrs["note"].startswith("eager draws")
    assert found[0].drop_attrs().identical(found[1].drop_attrs())
    assert torch.equal(*(guide.runs for guide in guides))


def jittered(guide: Guide, loc: Tensor) -> Tensor:
    """A Cholesky factor that does not exist for data above 50, where another is taken."""
    matrix = torch.eye(2, dtype=loc.dtype) * torch.where((loc > 25).any(), -1.0, 1.0)
    try:
        factor = torch.linalg.cholesky(matrix)
    except RuntimeError:
        factor = torch.linalg.cholesky(matrix + 5 * torch.eye(2, dtype=loc.dtype))
    return loc.clamp(max=1.0) * factor[0, 0]


@pytest.mark.parametrize("datum", [0, 4])
def test_where_captured_draws_raise_on_a_value_they_are_eager(datum, monkeypatch):
    """In the block that they are captured on, and in a later one."""
    monkeypatch.setattr(draws, "MEMORY", 5 * 4)
    x = scalars(8)
    x[datum] = 99.0
    assert both(conjugate_model, Guide(jittered), x, particles=50, rows=4) == "eager"


def test_other_numbers_are_not_used(monkeypatch):
    monkeypatch.setattr(
        repeated.Repeated, "__call__", lambda self, of=repeated.Repeated.__call__: [v + 1e-6 for v in of(self)]
    )
    entry = CATALOGUE["closure"]
    monkeypatch.setattr(draws, "MEMORY", 6 * entry.batch[0].numel())
    assert both(*entry.build(), entry.batch[0], particles=40) == "eager"


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(number(0.0), 1.0))
        z = pyro.sample("z", dist.Normal(u, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def two_draws(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.3 * x, 0.8))
        pyro.sample("z", dist.Normal(0.5 * (x + u), 0.7))


def test_the_draws_of_several_sites_and_those_after_them_are_the_same(monkeypatch):
    """A chunk of draws takes the same numbers in parts, so that the eager draws that are left are the same too."""
    monkeypatch.setattr(draws, "MEMORY", 6 * len(scalars()))
    monkeypatch.setattr(repeated, "CACHED", 1)
    assert both(two_sites, two_draws, scalars(), particles=23) == "captured"


@pytest.mark.parametrize("gathered", [1, 7, 1024])
def test_sums_in_parts_are_those_of_the_whole(gathered, monkeypatch):
    """Also of weights that are 0, and where the largest come first or last."""
    monkeypatch.setattr(repeated, "GATHERED", gathered)
    generator = torch.Generator().manual_seed(0)
    every = 30 * torch.randn(50, 6, generator=generator, dtype=torch.float64)
    every[:, 1] = every[:, 1].sort().values
    every[:, 2] = every[:, 2].sort(descending=True).values
    every[:20, 3] = -math.inf
    every[:, 4] = -math.inf
    every[:, 5] += 1e5
    tail, total = Tail(50), Total(50, Tail(50))
    tail.add(every)
    for part in every.split(3):
        total.add(part)
    for found, expected in zip(total.sums(), (every.logsumexp(0), (2 * every).logsumexp(0)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(total.tail.top(), tail.top())

"""The deep Markov model: its density against a loop over the steps, masks of padded steps, ancestral draws, any guide."""

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import pyro_vi
from pyro_vi.data import Data, load
from pyro_vi.errors import InputError
from pyro_vi.models.deep_markov import DeepMarkov, Path, Transition
from pyro_vi.programs import Give, build_pair


def sequences(kind: str = "real", dtype: torch.dtype = torch.float64) -> Data:
    noise = torch.Generator().manual_seed(0)
    lengths = [7, 4, 1, 6]
    pieces = [torch.randn(length, 3, generator=noise, dtype=dtype) for length in lengths]
    if kind == "boolean":
        pieces = [(piece > 0).to(dtype) for piece in pieces]
    return load(pieces, heldout=0.0)


def elbo(pair: Any, args: tuple[Tensor, ...], z: Tensor) -> float:
    """log p(x, z) − log q(z | x) at a path, as the traces have it: scaled to all data."""
    with Give({"z": z}):
        guide = poutine.trace(pair.guide).get_trace(*args)
        model = poutine.trace(poutine.replay(pair.model, guide)).get_trace(*args)
    return float(model.log_prob_sum() - guide.log_prob_sum())


@pytest.mark.parametrize("kind", ["real", "boolean"])
@pytest.mark.parametrize("guide", ["diag_normal", "full_normal", "structured", "prior"])
def test_a_padded_batch_has_the_elbos_of_its_sequences(kind: str, guide: str) -> None:
    """Same draws, and the encoder too ends where a sequence ends."""
    data = sequences(kind)
    x, lengths = data.train()
    pair = build_pair("deep_markov(latent_dim=2)", guide, data, rows=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        z = torch.randn(4, 7, 2, dtype=torch.float64)
        whole = elbo(pair, (x, lengths), z)
        alone = [elbo(pair, (x[i : i + 1, :n], lengths[i : i + 1]), z[i : i + 1, :n]) for i, n in enumerate(lengths)]
        # A batch of one of four sequences counts four times.
        assert whole == pytest.approx(sum(alone) / 4, abs=1e-9)
        other = x.clone()
        other[1, 4:] = 1 - other[1, 4:]
        assert elbo(pair, (other, lengths), z) == pytest.approx(whole, abs=1e-9)
        terms = pyro_vi.terms(pair.model, pair.guide, (x, lengths))
        assert set(terms.sites) == {"z", "x"}


def test_the_density_of_a_path_is_that_of_a_loop() -> None:
    torch.manual_seed(0)
    transition, start = Transition(3, 5).double(), torch.randn(3).double()
    path = Path(start, transition, (4, 6))
    z, total = path.sample(), []
    before = start.expand(4, 3)
    for t in range(6):
        mean, scale = transition(before)
        total.append(dist.Normal(mean, scale).log_prob(z[:, t]).sum(-1))
        before = z[:, t]
    torch.testing.assert_close(path.log_prob(z), torch.stack(total, 1), rtol=0, atol=1e-12)
    wide = path.expand((2, 4, 6))
    assert wide.sample().shape == (2, 4, 6, 3)
    assert wide.log_prob(z).shape == (2, 4, 6)
    with pytest.raises(ValueError, match="6 steps cannot have 7"):
        path.expand((4, 7))


def test_draws_are_ancestral() -> None:
    """z_t = a z_{t−1} + s ε: mean aᵗ z_0 and variance s² Σ a^{2k} at each step, at 4 standard errors of 4000 draws."""
    torch.manual_seed(0)
    a, s, count = 0.9, 0.5, 4000
    path = Path(torch.tensor([2.0]).double(), lambda z: (a * z, torch.full_like(z, s)), (5,))
    z = path.sample((count,)).squeeze(-1)
    steps = torch.arange(1, 6).double()
    variance = s**2 * (1 - a ** (2 * steps)) / (1 - a**2)
    assert ((z.mean(0) - 2 * a**steps).abs() < 4 * (variance / count).sqrt()).all()
    assert ((z.var(0) - variance).abs() < 4 * variance * math.sqrt(2 / count)).all()
    covariance = ((z[:, 0] - z[:, 0].mean()) * (z[:, 4] - z[:, 4].mean())).mean()
    assert abs(float(covariance) - a**4 * s**2) < 4 * math.sqrt(float(variance[0] * variance[4] * 2) / count)


def test_the_transition_is_gated() -> None:
    """μ = (1 − g)(W z + b) + g h: W z + b where the gate is closed, which starts as z, and h where it is open."""
    torch.manual_seed(0)
    transition, z = Transition(2, 4).double(), torch.randn(9, 2).double()
    last = transition.gate[-1]
    for bias, wanted in ((-50.0, z), (50.0, transition.proposal(z))):
        torch.nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        torch.nn.init.constant_(last.bias, bias)  # type: ignore[arg-type]
        torch.testing.assert_close(transition(z)[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["diag_normal", "full_normal", "structured", "flow", "mixture", "student", "prior"])
def test_guides_of_the_shelf_serve_it(guide: str) -> None:
    data = sequences("boolean", torch.float32)
    run = pyro_vi.fit("deep_markov(latent_dim=2)", guide, data, elbo="trace", steps=2, progress=False, compile=False)
    assert math.isfinite(run.history[-1]["elbo"])
    longer = torch.zeros(2, 9, 3), torch.tensor([9, 2])  # more steps than the example
    assert run.guide(*longer)["z"].shape == (2, 9, 2)


@pytest.mark.parametrize(
    ("data", "law"),
    [
        (torch.randn(5, 6), "gaussian"),
        (torch.randn(5, 6, 2), "gaussian"),
        (torch.ones(5, 6, 2, dtype=torch.int64) * torch.arange(2), "bernoulli"),
        (torch.ones(5, 6, 2, dtype=torch.int64) * torch.arange(4, 6), "poisson"),
    ],
)
def test_sequences_of_any_kind_without_lengths(data: Tensor, law: str) -> None:
    loaded = load(data, heldout=0.0)
    model = DeepMarkov(loaded.spec, latent_dim=2)
    assert model.law.name == law
    (x,) = loaded.train()
    assert model(x).shape == x.shape
    assert model.decode(torch.zeros(5, 6, 2)).shape == x.shape
    full = model(x, torch.full((5,), 6))
    assert torch.equal(full, x)


@pytest.mark.parametrize(
    ("data", "options", "problem"),
    [
        (torch.zeros(4), {}, r"takes sequences of shape \(steps, features\), but a datum of 'array' has shape \(\)"),
        (torch.zeros(4, 3, 2, 2), {}, r"has shape \(3, 2, 2\); give data such as 'jsb' or 'robot'"),
        (torch.zeros(4, 3, 2), {"latent_dim": 0}, "latent_dim must be a whole number of at least 1, not 0"),
        (torch.zeros(4, 3, 2), {"transition_dim": -1}, "transition_dim must be a whole number of at least 1, not -1"),
        (
            torch.full((4, 3, 2), 0.5),
            {"likelihood": "bernoulli"},
            "a bernoulli likelihood has no density at the values",
        ),
    ],
)
def test_refused(data: Tensor, options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        DeepMarkov(load(data, heldout=0.0).spec, **options)


def test_images_and_labels_are_refused() -> None:
    with pytest.raises(
        InputError, match="deep_markov takes sequences, but 'digits' has images; give data such as 'jsb'"
    ):
        DeepMarkov(load("digits").spec)
    spec = load((torch.zeros(4, 3, 2), torch.tensor([0, 1, 0, 1]))).spec
    with pytest.raises(InputError, match="deep_markov takes \\(x, lengths\\), but 'array' has the column 'label'"):
        DeepMarkov(spec)


def test_the_emission_starts_at_the_mean_of_the_steps() -> None:
    """At z = 0 and zero weights E[x_t] is the mean over the steps of the sequences; padding does not count."""
    for kind in ("real", "boolean"):
        data = sequences(kind)
        x, lengths = data.train()
        model = DeepMarkov(data.spec, hidden=(4,))
        model.start(x, lengths)
        torch.nn.init.zeros_(model.emission[-1].weight)  # type: ignore[arg-type]
        steps = torch.cat([row[:n] for row, n in zip(x, lengths, strict=True)])
        torch.testing.assert_close(model.decode(torch.zeros(16).double()), steps.mean(0))

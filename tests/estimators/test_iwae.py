"""The importance-weighted bound: one draw, the ratio of signal to noise, and subsampled plates."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import conjugate_model
from estimator_catalogue import row_gradients, row_model
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

from pyro_vi import audit, estimators
from pyro_vi.errors import UsageError
from pyro_vi.estimators.bound import Bound

COUNTS = (1, 4, 16, 64, 256)
POINT = {"x": 1.3, "m": 0.6, "s": 0.75}


def rows_for(count: int) -> int:
    return 800_000 // count if count > 4 else 200_000


@pytest.fixture(scope="module")
def moments():
    """Mean, standard deviation and rows of the gradient in m, by name and K."""
    found = {}
    for name in ("iwae", "dreg"):
        for count in COUNTS:
            elbo = estimators.get(name, num_particles=count, vectorize_particles=True)
            in_m, _ = row_gradients(elbo, **POINT, rows=rows_for(count), seed=count)
            found[name, count] = float(in_m.mean()), float(in_m.std()), len(in_m)
    return found


def slope(ratios):
    """Of log ratio against log K, by least squares."""
    x, y = torch.tensor(COUNTS).log(), torch.tensor(ratios).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())


@pytest.mark.parametrize("count", COUNTS)
def test_the_means_of_iwae_and_dreg_agree(moments, count):
    (iwae, iwae_sd, rows), (dreg, dreg_sd, _) = moments["iwae", count], moments["dreg", count]
    assert abs(iwae - dreg) < 4 * math.hypot(iwae_sd, dreg_sd) / math.sqrt(rows)
    if count == 4:
        assert dreg == pytest.approx(0.0214, abs=0.0005)  # .0212 and .0216 by Monte Carlo in NumPy


def test_the_ratio_of_signal_to_noise_falls_under_iwae(moments):
    """As K^(−1/2); the mean is taken from DReG, which has the same and shows it with less noise."""
    ratios = [moments["dreg", k][0] / moments["iwae", k][1] for k in COUNTS]
    assert slope(ratios) == pytest.approx(-0.5, abs=0.1)
    assert ratios[0] == pytest.approx(0.1 / 1.5, rel=0.02)  # closed form: (x − 2m) / (2s)
    # Those beyond were found in NumPy with the means of IWAE itself, known to about a fifth.
    assert ratios[:3] == pytest.approx([0.068, 0.031, 0.013], rel=0.2)


def test_the_ratio_of_signal_to_noise_rises_under_dreg(moments):
    """As K^(1/2)."""
    ratios = [moments["dreg", k][0] / moments["dreg", k][1] for k in COUNTS]
    assert slope(ratios) == pytest.approx(0.5, abs=0.1)
    assert ratios == pytest.approx([0.60, 1.16, 2.29, 4.59, 9.17], rel=0.04)


def test_with_one_draw_it_is_trace_bit_for_bit():
    class Guide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = nn.Parameter(torch.tensor(0.2, dtype=torch.float64))

        def forward(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.m * x, x.new_tensor(0.6)))

    guide, x = Guide(), torch.tensor([1.3, -0.4, 0.2], dtype=torch.float64)
    found = []
    for elbo in (Trace_ELBO(), estimators.get("iwae", num_particles=1)):
        torch.manual_seed(1)
        loss = elbo.differentiable_loss(row_model, guide, x)
        found.append((loss.detach(), *torch.autograd.grad(loss, [guide.m])))
    for pyros, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, pyros, rtol=1e-10, atol=1e-10)


def test_sticking_the_landing_is_refused_with_dreg_as_the_remedy():
    """With q detached the weights' own dependence on the guide is lost, and the mean gradient is another one (below)."""
    with pytest.raises(UsageError, match=r"biased.*'dreg'"):
        Bound(bound="iwae", gradient="path", num_particles=4)


@pytest.mark.slow
def test_with_q_detached_it_would_be_biased_and_the_audit_would_find_it():
    """Why it is refused: at K = 4, m = .6, s = .75, x = 1.3 the mean gradient is .091 for .021, by Monte Carlo in NumPy."""
    naive = Bound(bound="iwae", num_particles=4)
    naive.gradient = "path"  # past the refusal

    def guide(x):
        m = pyro.param("m", torch.tensor(0.6, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(m, 0.75))

    x = torch.tensor([1.3], dtype=torch.float64)
    found = audit(
        conjugate_model, guide, x, elbos=["dreg(num_particles=4)", "iwae(num_particles=4)", naive], draws=4000
    )
    mean, error = found.grad_mean.values[:, 0], (found.grad_var.values[:, 0] / 4000) ** 0.5
    assert abs(mean[0] - 0.0214) < 4 * error[0] + 0.0005  # and half of the last digit of these numbers
    assert abs(mean[2] - 0.091) < 4 * error[2] + 0.0005
    assert float(found.bias_p[1, 0]) > 0.01 and float(found.bias_p[2, 0]) < 1e-6


def test_it_rises_to_the_evidence():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_tensor(0.2), x.new_tensor(0.9)))

    rows = 20_000
    x = torch.full((rows,), 1.3, dtype=torch.float64)
    evidence = float(dist.Normal(0.0, 2**0.5).log_prob(x[0]))
    torch.manual_seed(0)
    bounds = [
        -estimators.get("iwae", num_particles=k, vectorize_particles=True).loss(row_model, guide, x) / rows
        for k in (1, 4, 16, 64)
    ]
    assert bounds == sorted(bounds)
    # K (log p − bound) tends to half the variance of the weight p(z | x) / q(z) (Domke and Sheldon 2018, arXiv:1808.09034).
    z = torch.linspace(-12, 12, 100_001, dtype=torch.float64)
    weight = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x[0]) - evidence
    chi = torch.trapezoid((2 * weight - dist.Normal(0.2, 0.9).log_prob(z)).exp(), z) - 1
    assert 64 * (evidence - bounds[-1]) == pytest.approx(float(chi) / 2, rel=0.15)


# Trap 1: 8 data, subsample 2, K = 50.

DATA = torch.tensor([1.3, -0.4, 0.6, -1.1, 2.0, 0.1, -2.2, 0.8], dtype=torch.float64)
EVIDENCE = float(dist.Normal(0.0, 2**0.5).log_prob(DATA).sum())


def subsampled(batch):
    """The programs draw the minibatch themselves; the guide is the prior but a little off."""

    def model(x):
        with pyro.plate("data", len(x), batch) as index:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), x.new_ones(())))
            pyro.sample("x", dist.Normal(z, x.new_ones(())), obs=x[index])

    def guide(x):
        with pyro.plate("data", len(x), batch):
            pyro.sample("z", dist.Normal(x.new_tensor(0.1), x.new_tensor(1.2)))

    return model, guide


def bounds_of(elbo, batch, evaluations):
    torch.manual_seed(3)
    return -torch.tensor([elbo.loss(*subsampled(batch), DATA) for _ in range(evaluations)], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("vectorize", [True, False], ids=["vectorized", "loop"])
@pytest.mark.parametrize("name", ["iwae", "renyi", "vimco", "dreg"])
def test_under_a_subsampled_plate_the_mean_over_minibatches_is_the_bound_of_all_data(name, vectorize):
    """Particles made at once or one by one share the minibatch, which they weigh datum by datum."""
    count = 50 if vectorize else 5
    elbo = estimators.get(name, num_particles=count, vectorize_particles=vectorize)
    part, full = bounds_of(elbo, 2, 350), bounds_of(elbo, None, 60)
    error = part.std() / math.sqrt(len(part)), full.std() / math.sqrt(len(full))
    assert abs(float(part.mean() - full.mean())) < 4 * math.hypot(*error)
    assert float(part.mean()) < EVIDENCE + 4 * float(error[0])
    assert float(full.mean()) < EVIDENCE
    assert max(error) < 0.25


@pytest.mark.slow
def test_pyros_own_is_above_the_evidence_there():
    """The error that is guarded against: with N / B inside the logarithm, 8 data look better than they can."""
    found = bounds_of(RenyiELBO(alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=1), 2, 300)
    assert float(found.mean()) > EVIDENCE + 4 * float(found.std()) / math.sqrt(len(found))
    ours = bounds_of(estimators.get("iwae", num_particles=50, vectorize_particles=True), 2, 300)
    assert float(found.mean()) - float(ours.mean()) > 1

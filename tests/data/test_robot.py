"""The simulated arm: it conserves energy, its hand is where geometry has it, and its draws depend on the seed."""

import math

import pytest
import torch
from data_toys import same

from pyro_vi.data.loading import load
from pyro_vi.data.sets.robot import LENGTHS, STEP, acceleration, hand, inertia_matrix, moved


def energy(q: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return 0.5 * torch.einsum("...i,...ij,...j", v, inertia_matrix(q), v)


@pytest.mark.slow
def test_a_free_arm_keeps_its_energy_and_angular_momentum() -> None:
    """Without torque and friction, E = ½ q̇ᵀ M q̇ and the momentum of the first angle, (M q̇)_1, are constant."""
    q, v = torch.tensor([[0.3, 1.1], [-1.0, -2.0]]).double(), torch.tensor([[1.0, -2.0], [0.5, 3.0]]).double()
    start, turning = energy(q, v), (inertia_matrix(q) @ v.unsqueeze(-1))[:, 0, 0]
    for _ in range(2000):
        q, v = moved(q, v, q, 1e-3, gain=0.0, friction=0.0)
    torch.testing.assert_close(energy(q, v), start, rtol=1e-10, atol=0)
    torch.testing.assert_close((inertia_matrix(q) @ v.unsqueeze(-1))[:, 0, 0], turning, rtol=1e-10, atol=0)
    assert (q - torch.tensor([[0.3, 1.1], [-1.0, -2.0]]).double()).abs().max() > 1


def test_a_stretched_arm_turns_as_a_rod() -> None:
    """At rest and stretched, the torques (τ_1, τ_2) give M(0) q̈ = τ; both in proportion to M's columns turn one joint only."""
    matrix = inertia_matrix(torch.zeros(2).double())
    found = acceleration(torch.zeros(2).double(), torch.zeros(2).double(), matrix[:, 0])
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0]).double())
    # Stretched, the arm is two rods in line: the moments of inertia about the shoulder add up.
    whole = LENGTHS[0] ** 2 / 3 + LENGTHS[1] ** 2 / 12 + (LENGTHS[0] + LENGTHS[1] / 2) ** 2
    assert float(matrix[0, 0]) == pytest.approx(whole)


@pytest.mark.slow
def test_the_arm_comes_to_rest_at_its_waypoint() -> None:
    q, v, goal = torch.zeros(1, 2).double(), torch.zeros(1, 2).double(), torch.tensor([[1.0, -0.7]]).double()
    for _ in range(3000):
        q, v = moved(q, v, goal, 0.02)
    torch.testing.assert_close(q, goal, atol=1e-8, rtol=0)


@pytest.mark.slow
def test_trajectories_have_lengths_noise_and_a_seed() -> None:
    data = load("robot(sequences=60, steps=20, noise=0.0)", dtype=torch.float64)
    x, lengths = data.train()
    assert (x.shape, data.num_heldout) == ((50, 20, 4), 10)
    assert (int(lengths.min()), int(lengths.max())) == (10, 20)
    inside = torch.arange(20) < lengths.unsqueeze(1)
    assert not x[~inside].any()
    torch.testing.assert_close(hand(x[..., :2])[inside], x[..., 2:][inside])
    assert data.spec.features == ("q1", "q2", "hand x", "hand y")
    same_seed = load("robot(sequences=60, steps=20, noise=0.0)", dtype=torch.float64)
    assert same(data.train(), same_seed.train())
    other = load("robot(sequences=60, steps=20, noise=0.0)", seed=1, dtype=torch.float64)
    assert not torch.equal(other.train()[0], x)
    noisy = load("robot(sequences=60, steps=20, noise=0.1, observe='angles')", dtype=torch.float64).train()[0]
    error = (noisy - x[..., :2])[inside]
    assert abs(float(error.std()) - 0.1) < 4 * 0.1 / math.sqrt(2 * error.numel())
    assert STEP > 0

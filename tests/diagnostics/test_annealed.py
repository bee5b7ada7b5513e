"""Annealed importance sampling with exact transitions has the expected bounds of the closed form; with HMC it is valid."""

import math

import pytest
import torch
from torch import Tensor

from pyro_vi.diagnostics.annealing.annealed import forward, reverse
from pyro_vi.diagnostics.annealing.transitions import hamiltonian, moves_of, pilot

LOG_P = -4.630510
"""z ~ N(0, 1), x | z ~ N(z, .25), x = 3: log N(3; 0, 1.25)."""


class Line:
    """z ~ N(0, 1), x | z ~ N(z, .25), x = 3, in ``rows`` equal rows; the path starts at the prior."""

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows

    def draw(self, count: int) -> Tensor:
        return torch.randn(count, self.rows, 1, dtype=torch.float64)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        z = positions[..., 0]
        base = -0.5 * z.square() - 0.5 * math.log(2 * math.pi)
        return base, -0.5 * (3 - z).square() / 0.25 - 0.5 * math.log(2 * math.pi * 0.25)

    def exact(self, beta: Tensor | float, shape: torch.Size) -> Tensor:
        """Independent draws of π_β: normal with precision 1 + 4 β and mean 12 β over it."""
        precision = torch.as_tensor(1 + 4 * beta, dtype=torch.float64)
        return 12 * beta / precision + torch.randn(shape, dtype=torch.float64) / precision.sqrt()


@pytest.mark.parametrize(
    ("steps", "lower", "upper"),
    [
        (1, -20.225791, -1.345791),
        (4, -7.673708, -2.953708),
        (16, -5.268933, -4.088933),
        (64, -4.781070, -4.486070),
        (256, -4.667577, -4.593827),
    ],
)
def test_perfect_transitions_have_the_bounds_of_the_closed_form(steps: int, lower: float, upper: float) -> None:
    density, chains = Line(), 4000
    betas = torch.linspace(0, 1, steps + 1, dtype=torch.float64).unsqueeze(-1)

    def perfect(positions: Tensor, number: int) -> Tensor:
        return density.exact(betas[number], positions.shape)

    with torch.random.fork_rng():
        torch.manual_seed(1)
        low = forward(density, betas, perfect, chains)[:, 0]
        high = reverse(density, betas, perfect, density.exact(1.0, torch.Size([chains, 1, 1])))[:, 0]
    for found, expected in ((low, lower), (high, upper)):
        assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / chains**0.5


class Square:
    """A bent density with a known moment: z ~ N(0, I) in two dimensions, w = N(y; z_1² + z_2, 1), at β = 1."""

    def __init__(self, rows: int = 1) -> None:
        self.rows = rows

    def draw(self, count: int) -> Tensor:
        return torch.randn(count, self.rows, 2, dtype=torch.float64)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        return -0.5 * positions.square().sum(-1), -0.5 * (1.5 - positions[..., 0].square() - positions[..., 1]).square()


def test_the_acceptance_makes_hamiltonian_transitions_leave_a_bent_density_as_it_is() -> None:
    """Exact draws by rejection (w ≤ 1), then 5 transitions with a step so long that most are rejected: equal moments."""
    density, count = Square(), 40_000
    one = torch.ones(1, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        draws = density.draw(5 * count)
        draws = draws[torch.rand(5 * count, dtype=torch.float64) < density.at(draws)[1][:, 0].exp()][:count]
        moved, chances = draws, []
        for _ in range(5):
            moved, chance = hamiltonian(density, moved, one, 0.9 * one, torch.ones(1, 2, dtype=torch.float64))
            chances.append(chance.mean())
    assert 0.1 < torch.stack(chances).mean() < 0.5
    for moment in (lambda z: z[..., 1], lambda z: z[..., 0].square(), lambda z: density.at(z)[1]):
        before, after = moment(draws), moment(moved)
        error = math.hypot(float(before.std()), float(after.std())) / len(draws) ** 0.5
        assert abs(float(before.mean() - after.mean())) < 4 * error


def test_hamiltonian_transitions_are_reversible() -> None:
    """Detailed balance: from exact draws z to z', E[z_2' z_1²] = E[z_2 z_1'²]."""
    density, one = Square(), torch.ones(1, dtype=torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        draws = density.draw(100_000)
        draws = draws[torch.rand(len(draws), dtype=torch.float64) < density.at(draws)[1][:, 0].exp()]
        moved, _ = hamiltonian(density, draws, one, 0.6 * one, torch.tensor([[0.7, 1.2]]).double())
    flow = moved[..., 1] * draws[..., 0].square() - draws[..., 1] * moved[..., 0].square()
    assert flow.std() > 0.5
    assert abs(float(flow.mean())) < 4 * float(flow.std()) / len(draws) ** 0.5


def test_the_weights_of_hamiltonian_annealing_are_unbiased_and_reverse_ones_too() -> None:
    density, chains = Line(), 4000
    with torch.random.fork_rng():
        torch.manual_seed(2)
        plan = pilot(density, 12, 64, torch.ones(1, 1), 100)
        assert 0.5 < float(plan.accepted) <= 1
        moves = moves_of(density, plan)
        low = forward(density, plan.betas, moves, chains)[:, 0]
        high = reverse(density, plan.betas, moves, density.exact(1.0, torch.Size([chains, 1, 1])))[:, 0]
    assert float(low.mean()) < LOG_P < float(high.mean())
    assert float(high.mean() - low.mean()) < 2.5
    for weight in ((low - LOG_P).exp(), (LOG_P - high).exp()):
        assert abs(float(weight.mean()) - 1) < 4 * float(weight.std()) / chains**0.5

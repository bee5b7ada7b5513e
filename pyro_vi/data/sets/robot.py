"""A made data set: trajectories of a two-link arm of a robot, simulated with a seed.

The arm lies in a horizontal plane and has two uniform rods. Its angles are q = (q_1, q_2), the second one relative to the first
rod, and its equations of motion are those of a textbook (Spong, Hutchinson and Vidyasagar, Robot Modeling and Control, ch. 7):

    M(q) q̈ + c(q, q̇) + F q̇ = τ
    M(q) = [[a + 2 b cos q_2, d + b cos q_2], [d + b cos q_2, d]]
    c(q, q̇) = b sin q_2 · (−q̇_2 (2 q̇_1 + q̇_2), q̇_1²)

with a = I_1 + I_2 + m_1 (l_1/2)² + m_2 (l_1² + (l_2/2)²), b = m_2 l_1 l_2/2, d = I_2 + m_2 (l_2/2)², I_i = m_i l_i²/12.
A controller pulls the arm to a waypoint w, τ = K (w − q). Waypoints are uniform; the arm gets a new one with probability 1/15
in each step. The hand is at (l_1 cos q_1 + l_2 cos(q_1 + q_2), l_1 sin q_1 + l_2 sin(q_1 + q_2)).
"""

import math

import torch
from torch import Tensor

from pyro_vi.data.seeds import generator, split
from pyro_vi.data.sets.raw import Raw
from pyro_vi.data.sets.series import lengths_column
from pyro_vi.errors import UsageError

MASSES, LENGTHS = (1.0, 1.0), (1.0, 0.8)
GAIN, FRICTION = 4.0, 1.5
STEP, SUBSTEPS = 0.15, 10
"""Seconds between two observations, and steps of the integration in them."""
SWITCH = 1 / 15
_COLUMNS = {"angles": ("q1", "q2"), "hand": ("hand x", "hand y")}
OBSERVED = (*_COLUMNS, "both")


def robot(
    seed: int,
    heldout: float | None,
    *,
    sequences: int = 600,
    steps: int = 50,
    noise: float = 0.02,
    observe: str = "both",
) -> Raw:
    """Simulate trajectories of a two-link arm: x (steps, columns), with normal noise, and the lengths, uniform from steps/2 on.

    Args:
        sequences: number of trajectories.
        steps: length of the longest ones.
        noise: standard deviation of the noise, in radians and in lengths of the first link.
        observe: the "angles" of the joints, the position of the "hand", or "both".
    """
    if sequences < 2 or steps < 4:
        raise UsageError(
            "data set 'robot': a set has at least 2 sequences of at least 4 steps; raise sequences or steps"
        )
    draws = generator(seed, 0, "robot")
    q, _, _ = simulate(sequences, steps, draws)
    parts = {"angles": q, "hand": hand(q)}
    chosen = list(_COLUMNS) if observe == "both" else [observe]
    x = torch.cat([parts[name] for name in chosen], -1)
    lengths = torch.randint(steps // 2, steps + 1, (sequences,), generator=draws)
    lengths[0] = steps
    x = x + noise * torch.randn(x.shape, generator=draws, dtype=torch.float64)
    x = x * (torch.arange(steps) < lengths.unsqueeze(1)).unsqueeze(-1)
    kept, rest = split(sequences, 1 / 6 if heldout is None else heldout, seed)
    source = f"simulated two-link arm, {STEP} s a step, noise {noise}, seed {seed}: see pyro_vi.data.sets.robot"
    names = tuple(name for part in chosen for name in _COLUMNS[part])
    column = lengths_column(lengths[kept], lengths[rest])
    return Raw(x[kept], x[rest], "real", source, features=names, others=(column,))


def simulate(sequences: int, steps: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return angles, angular velocities and waypoints at each step, each (sequences, steps, 2), in float64."""

    def uniform() -> Tensor:
        drawn = 2 * torch.rand((sequences, 2), generator=draws, dtype=torch.float64) - 1
        return drawn * torch.tensor([math.pi / 2, 2.0], dtype=torch.float64)

    q, v, waypoint = uniform(), torch.zeros((sequences, 2), dtype=torch.float64), uniform()
    path = []
    for _ in range(steps):
        path.append(torch.stack([q, v, waypoint]))
        change = torch.rand((sequences, 1), generator=draws, dtype=torch.float64) < SWITCH
        waypoint = torch.where(change, uniform(), waypoint)
        for _ in range(SUBSTEPS):
            q, v = moved(q, v, waypoint, STEP / SUBSTEPS)
    whole = torch.stack(path, 2)
    return whole[0], whole[1], whole[2]


def moved(
    q: Tensor, v: Tensor, waypoint: Tensor, seconds: float, gain: float = GAIN, friction: float = FRICTION
) -> tuple[Tensor, Tensor]:
    """Return angles and velocities after a step of the classical Runge-Kutta method of order 4."""

    def slope(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return v, acceleration(q, v, gain * (waypoint - q) - friction * v)

    k1 = slope(q, v)
    k2 = slope(q + seconds / 2 * k1[0], v + seconds / 2 * k1[1])
    k3 = slope(q + seconds / 2 * k2[0], v + seconds / 2 * k2[1])
    k4 = slope(q + seconds * k3[0], v + seconds * k3[1])
    first, second = (seconds / 6 * (k1[i] + 2 * k2[i] + 2 * k3[i] + k4[i]) for i in (0, 1))
    return q + first, v + second


def acceleration(q: Tensor, v: Tensor, torque: Tensor) -> Tensor:
    """Return q̈ of shape (..., 2) under a torque of the same shape: M(q)⁻¹ (τ − c(q, q̇))."""
    _, b, _ = _inertia()
    matrix, sine = inertia_matrix(q), b * q[..., 1].sin()
    first = torque[..., 0] + sine * v[..., 1] * (2 * v[..., 0] + v[..., 1])
    second = torque[..., 1] - sine * v[..., 0] ** 2
    m11, m12, m22 = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 1]
    determinant = m11 * m22 - m12**2
    return torch.stack([m22 * first - m12 * second, m11 * second - m12 * first], -1) / determinant.unsqueeze(-1)


def inertia_matrix(q: Tensor) -> Tensor:
    """Return M(q) of shape (..., 2, 2); the kinetic energy is ½ q̇ᵀ M(q) q̇."""
    a, b, d = _inertia()
    cosine = b * q[..., 1].cos()
    return torch.stack([a + 2 * cosine, d + cosine, d + cosine, d + 0 * cosine], -1).unflatten(-1, (2, 2))


def hand(q: Tensor) -> Tensor:
    """Return the position of the hand of shape (..., 2), for angles (..., 2)."""
    angles = q.cumsum(-1)
    reach = torch.tensor(LENGTHS, dtype=q.dtype)
    return torch.stack([(reach * angles.cos()).sum(-1), (reach * angles.sin()).sum(-1)], -1)


def _inertia() -> tuple[float, float, float]:
    (m1, m2), (l1, l2) = MASSES, LENGTHS
    i1, i2 = m1 * l1**2 / 12, m2 * l2**2 / 12
    return i1 + i2 + m1 * (l1 / 2) ** 2 + m2 * (l1**2 + (l2 / 2) ** 2), m2 * l1 * l2 / 2, i2 + m2 * (l2 / 2) ** 2

"""Two moons: log Z by quadrature in polar coordinates, and the program against the density."""

import numpy as np
import pytest
import torch
from pyro import poutine

import pyro_vi
from pyro_vi.data import load
from pyro_vi.errors import InputError
from pyro_vi.models.two_moons import TwoMoons

NOTHING = load(None, dtype=torch.float64).spec


def test_log_z_in_polar_coordinates():
    model = TwoMoons(NOTHING)
    nodes, mass = np.polynomial.legendre.leggauss(200)
    radius, weight = torch.as_tensor(3 * (nodes + 1)), torch.as_tensor(3 * mass)
    angle = torch.arange(400, dtype=torch.float64) * 2 * torch.pi / 400
    points = radius[:, None, None] * torch.stack([angle.cos(), angle.sin()], -1)
    density = model.log_density(points).exp() * (radius * weight)[:, None] * 2 * torch.pi / 400
    assert float(model.log_evidence()) == pytest.approx(float(density.sum().log()), abs=1e-9)


def test_the_density_by_hand_and_in_the_program():
    """At (2, 0), −U = log(1 + exp(−½ (4 / 0.6)²)); the two moons are mirror images."""
    model = TwoMoons(NOTHING)
    points = torch.tensor([[2.0, 0.0], [-2.0, 0.0]], dtype=torch.float64)
    expected = torch.tensor([np.log1p(np.exp(-0.5 * (4 / 0.6) ** 2))] * 2)
    torch.testing.assert_close(model.log_density(points), expected, rtol=1e-10, atol=1e-12)
    trace = poutine.trace(model).get_trace()
    z = trace.nodes["z"]["value"]
    assert float(trace.log_prob_sum()) == pytest.approx(float(model.log_density(z)), rel=1e-10)


def test_data_are_refused():
    with pytest.raises(
        InputError, match="two_moons is a target without data; give data=None, on the command line --data none"
    ):
        pyro_vi.fit("two_moons", "diag_normal", torch.zeros(9, 2), steps=1, progress=False)

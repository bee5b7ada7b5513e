"""The noisy cone: its evidence by quadrature in the plane."""

import pytest
import torch
from pyro import poutine

import pyro_vi
from pyro_vi.data import load
from pyro_vi.errors import InputError
from pyro_vi.models.noisy_cone import NoisyCone

NOTHING = load(None, dtype=torch.float64).spec


@pytest.mark.parametrize("height", [5.0, 0.5])
def test_the_evidence_is_the_integral_over_the_plane(height):
    model = NoisyCone(NOTHING, height=height)
    side = torch.linspace(-4, 4, 1201, dtype=torch.float64)
    density = model.log_density(torch.cartesian_prod(side, side)).exp().reshape(1201, 1201)
    expected = torch.trapezoid(torch.trapezoid(density, side), side).log()
    assert float(model.log_evidence()) == pytest.approx(float(expected), abs=1e-6)
    if height == 5.0:
        assert float(model.log_evidence()) == pytest.approx(-5.323232, abs=1e-6)


def test_the_program_has_the_density_of_the_picture():
    model = NoisyCone(NOTHING)
    trace = poutine.trace(model).get_trace()
    point = torch.stack([trace.nodes[name]["value"] for name in ("x", "y")])
    assert float(trace.log_prob_sum()) == pytest.approx(float(model.log_density(point)), rel=1e-10)


def test_a_height_that_is_not_positive_is_refused():
    with pytest.raises(InputError, match="height must be positive"):
        NoisyCone(NOTHING, height=0.0)


def test_data_are_refused():
    with pytest.raises(
        InputError, match="noisy_cone is a target without data; give data=None, on the command line --data none"
    ):
        pyro_vi.fit("noisy_cone", "diag_normal", torch.zeros(9, 2), steps=1, progress=False)

"""The funnel: log Z = 0 by quadrature, and its best mean field."""

import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

import pyro_vi
from pyro_vi.data import load
from pyro_vi.errors import InputError
from pyro_vi.models.funnel import Funnel

NOTHING = load(None, dtype=torch.float64).spec


def test_the_density_of_the_picture_is_a_density():
    v, x = torch.linspace(-12, 12, 601).double(), torch.linspace(-60, 60, 3001).double()
    density = Funnel(NOTHING, scale=1.5).log_density(torch.cartesian_prod(v, x)).exp().reshape(601, 3001)
    assert float(torch.trapezoid(torch.trapezoid(density, x), v)) == pytest.approx(1.0, abs=1e-3)


def test_its_joint_density_has_log_z_0():
    """By hand at one draw, and log Z = 0 of the shelf's evidence."""
    model = Funnel(NOTHING)
    trace = poutine.trace(model).get_trace()
    v, x = trace.nodes["v"]["value"], trace.nodes["x"]["value"]
    expected = dist.Normal(0 * v, 3.0).log_prob(v) + dist.Normal(0 * x, (v / 2).exp()).log_prob(x).sum()
    assert float(trace.log_prob_sum()) == pytest.approx(float(expected), rel=1e-10)
    assert x.shape == (9,) and float(model.log_evidence()) == 0
    assert model.best_mean_field() == pytest.approx(-1.862847, abs=1e-6)


@pytest.mark.slow
def test_it_is_fitted_without_data():
    run = pyro_vi.fit("funnel(dim=2)", "diag_normal", None, steps=1, compile=False, progress=False)
    assert pyro_vi.evidence(run.model, run.guide, ()).attrs["total"] == 0


@pytest.mark.parametrize("options", [{"dim": 0}, {"scale": 0.0}])
def test_what_does_not_fit_is_refused(options):
    with pytest.raises(InputError, match="must be"):
        Funnel(NOTHING, **options)


def test_data_are_refused():
    with pytest.raises(
        InputError, match="funnel is a target without data; give data=None, on the command line --data none"
    ):
        pyro_vi.fit("funnel", "diag_normal", torch.zeros(9, 2), steps=1, progress=False)

"""The latent sites of a model as a guide reads them: where a prior has its mass."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vi.data import DataSpec
from pyro_vi.priors import prior_of
from pyro_vi.programs.latents import Reading


def test_a_law_that_is_the_same_for_each_row_is_drawn_from_once():
    """The rows of a flow's draws cost a pass for each number, so that 1000 rows must not cost 1000 times as much."""
    torch.manual_seed(0)
    prior = prior_of("flow", 2, DataSpec("pair", 1000, (2,), "real", torch.float32, "made up"), hidden=(8,))
    drawn = []
    law = prior(torch.zeros(()))
    original = law.rsample
    law.rsample = lambda shape=(): drawn.append(torch.Size(shape)) or original(shape)

    def model():
        with pyro.plate("data", 1000):
            pyro.sample("z", law)

    with Reading() as reading:
        model()
    site = reading.latents["z"]
    assert drawn == [torch.Size([100])]
    assert site.start.shape == site.spread.shape == (1000, 2) and bool((site.start == site.start[0]).all())


@pytest.mark.parametrize("rows", [(), (5,)])
def test_the_mass_of_a_normal_is_its_mean_and_scale(rows):
    with Reading() as reading:
        pyro.sample("z", dist.Normal(3.0, 0.5).expand(rows))
    site = reading.latents["z"]
    torch.testing.assert_close(site.start, torch.full(rows, 3.0))
    torch.testing.assert_close(site.spread, torch.full(rows, 0.5))


def test_the_mass_of_a_law_without_a_variance_is_that_of_draws_where_the_law_says_nothing():
    """A Student t has no mean with one degree of freedom, and no finite variance with two."""
    with Reading() as reading:
        pyro.sample("z", dist.StudentT(torch.tensor([1.0, 2.0, 5.0]), 3.0, 0.5).to_event(1))
    site = reading.latents["z"]
    assert site.start.isfinite().all() and (site.start[1:] == 3.0).all() and site.start[0] != 3.0
    assert site.spread.isfinite().all() and (site.spread > 0).all()
    torch.testing.assert_close(site.spread[2], torch.tensor(0.5 * (5 / 3) ** 0.5))

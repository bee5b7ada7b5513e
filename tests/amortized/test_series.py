"""Sites whose names differ by a number are the steps of a series, if they are alike."""

import pyro
import pyro.distributions as dist
import torch
from amortized_toys import gauss

from pyro_vi.amortized.series import steps_of
from pyro_vi.programs import Reading


def test_series_are_found_by_their_names_and_shapes():
    with Reading() as read:
        for name in ("z_10", "z_9", "z_11", "alone_1", "k1", "k2", "a[1].b", "a[2].b", "w"):
            pyro.sample(name, gauss(0.0))
        pyro.sample("u1", gauss(0.0))  # of another shape than u2
        pyro.sample("u2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("v1", gauss(0.0))  # on another support than v2
        pyro.sample("v2", dist.Gamma(torch.ones(()), 1.0))
    found = {name: (step.stem, step.step) for name, step in steps_of(read.latents).items()}
    assert found == {
        "z_9": ("z_", 0),
        "z_10": ("z_", 1),
        "z_11": ("z_", 2),
        "k1": ("k", 0),
        "k2": ("k", 1),
        "a[1].b": ("a[].b", 0),
        "a[2].b": ("a[].b", 1),
    }

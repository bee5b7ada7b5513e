"""The normals of a chain multiply to the joint one."""

import torch
from torch.distributions import MultivariateNormal

from pyro_vi.amortized.chain import NormalChain, joined


def test_the_parts_multiply_to_the_joint_density():
    torch.manual_seed(0)
    loc, tril = torch.randn(3, 5).double(), torch.randn(3, 5, 5).double().tril()
    tril.diagonal(dim1=-2, dim2=-1).abs_()
    z = torch.randn(7, 3, 5).double()  # seven particles
    chain, total = NormalChain(loc, tril), torch.zeros(7, 3).double()
    for place in (slice(0, 2), slice(2, 3), slice(3, 5)):
        noise = chain.noise(joined([z[..., : place.start]] if place.start else []))
        total = total + chain.given(noise, place).log_prob(z[..., place])
    torch.testing.assert_close(total, MultivariateNormal(loc, scale_tril=tril).log_prob(z))


def test_vectors_of_more_particles_widen_the_others():
    assert joined([]) is None
    found = joined([torch.zeros(3, 2), torch.ones(4, 3, 1)])
    assert found is not None and found.shape == (4, 3, 3)

"""log p(x, z) on the unconstrained scale, by hand."""

import pyro
import pyro.distributions as dist
import torch
from binding_toys import bind_one
from catalogue import number, scalars
from pyro import poutine

from pyro_vi.amortized.density import coupled, log_joint
from pyro_vi.amortized.frame import Frame


def model(x):
    r = pyro.sample("r", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", 50, subsample=torch.arange(len(x))), poutine.scale(scale=0.5):
        z = pyro.sample("z", dist.Normal(number(0.0), r))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_rows_and_what_they_share_are_apart_without_the_factor_of_a_minibatch():
    """log Gamma(r) + log r for all data, r = eᵘ; ½ [log N(z; 0, r) + log N(x; z, 1)] for each row."""
    x = scalars()
    frame = Frame(bind_one(model, (x,)), (x,), "laplace")
    u, z = number(0.3), x.flip(0)
    local, shared = log_joint(frame, frame.call((x,), {}), {"r": u, "z": z})
    r = u.exp()
    torch.testing.assert_close(shared, dist.Gamma(number(2.0), 1.0).log_prob(r) + u)
    each = dist.Normal(number(0.0), r).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    torch.testing.assert_close(local, 0.5 * each)


def test_many_vectors_at_once_are_those_of_single_ones():
    x = scalars()
    frame = Frame(bind_one(model, (x,)), (x,), "laplace")
    call = frame.call((x,), {})
    u, z = torch.linspace(-1, 1, 3).double(), torch.stack([x, x + 1, x - 1])
    local, shared = log_joint(frame, call, {"r": u.unsqueeze(-1), "z": z})
    for k in range(3):
        one, other = log_joint(frame, call, {"r": u[k], "z": z[k]})
        torch.testing.assert_close(local[k], one)
        torch.testing.assert_close(shared.reshape(-1)[k], other)


def test_rows_that_depend_on_each_other_are_found():
    z = torch.randn(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert coupled(-z.square(), z.new_zeros(()), {"z": z}) is None
    assert coupled(-(z - z.roll(3)).square(), z.new_zeros(()), {"z": z}) == "z"
    assert coupled(-z.square(), z.sum(), {"z": z}) == "z"

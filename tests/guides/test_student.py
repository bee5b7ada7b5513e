"""The Student guide: its density by hand."""

import pyro
import pyro.distributions as dist
import torch
from binding_toys import bind_one
from catalogue import number, scalars
from pyro import poutine

from pyro_vi.elbo.decomposition import terms
from pyro_vi.guides.student import Student
from pyro_vi.programs.isolation import isolated


def model(x):
    r = pyro.sample("r", dist.Gamma(number(2.0), 1.0))
    with pyro.plate("data", 50, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(torch.zeros(2).double(), r.sqrt()).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def test_a_student_has_the_density_of_its_numbers():
    x = scalars()
    bound = bind_one(model, (x,))
    guide = Student(bound, (x,), hidden=(4,))
    with isolated(1):
        trace = poutine.trace(guide).get_trace(x)
    call = guide.frame.call((x,), {})
    numbers = dict(guide.numbers(call))["z"]
    law = dist.StudentT(1 + numbers["log_df"].exp(), numbers["loc"], numbers["log_scale"].exp()).to_event(1)
    start, spread = guide.q["z"].start, guide.q["z"].spread
    z = trace.nodes["z"]["value"]
    expected = law.log_prob((z - start) / spread) - spread.log().sum()
    torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z), expected)
    assert terms(bound, guide, x, seed=1).sources["z"].kind == "analytic"

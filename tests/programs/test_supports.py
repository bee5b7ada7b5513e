"""Supports by values: what torch reads from the last transform is not relied on."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints
from torch.distributions import transforms as T

from pyro_vi.programs import inside, masked_by, range_of, support_of, words_of

NORMAL = dist.Normal(torch.zeros(3), 1.0)


def moved(base, *transforms):
    return dist.TransformedDistribution(base, list(transforms))


# Distribution, its lowest and its highest value.
RANGES = {
    "real": (NORMAL, -math.inf, math.inf),
    "positive": (dist.Gamma(2.0, 1.0), 0.0, math.inf),
    "interval": (dist.Uniform(-1.0, 3.0), -1.0, 3.0),
    "of a vector": (dist.Uniform(torch.zeros(3), 2.0).to_event(1).expand([5]), 0.0, 2.0),
    "above": (dist.Pareto(1.5, 3.0), 1.5, math.inf),
    "scaled beta": (moved(dist.Beta(2.0, 1.0), T.AffineTransform(-1.0, 2.0)), -1.0, 1.0),
    "turned beta": (moved(dist.Beta(2.0, 1.0), T.AffineTransform(1.0, -3.0)), -2.0, 1.0),
    "scaled log-normal": (moved(NORMAL, T.ExpTransform(), T.AffineTransform(0.0, 2.0)), 0.0, math.inf),
    "below": (moved(NORMAL, T.ExpTransform(), T.AffineTransform(3.0, -1.0)), -math.inf, 3.0),
    "bijection": (moved(NORMAL, biject_to(constraints.interval(2.0, 5.0))), 2.0, 5.0),
    "there and back": (
        moved(dist.Beta(2.0, 1.0), T.SigmoidTransform().inv, T.AffineTransform(1.0, 2.0), T.SigmoidTransform()),
        *(0.0, 1.0),
    ),
    "twice a sigmoid": (moved(NORMAL, T.SigmoidTransform(), T.SigmoidTransform()), 0.5, 1 / (1 + math.exp(-1))),
    "masked": (dist.Uniform(0.0, 2.0).mask(False), 0.0, 2.0),
}


@pytest.mark.parametrize("name", RANGES)
def test_range_and_support(name):
    fn, low, high = RANGES[name]
    found = range_of(fn)
    torch.testing.assert_close((found.low.max(), found.high.min()), (found.low.min(), found.high.max()))
    assert (float(found.low.max()), float(found.high.max())) == pytest.approx((low, high), rel=1e-6)
    support = support_of(fn)
    assert support.event_dim == len(fn.event_shape)
    torch.manual_seed(0)
    draws = fn.sample((20,))
    assert bool(support.check(draws).all()) and bool(inside(fn, draws).all())
    for outside in (low - 0.1, high + 0.1):
        if math.isfinite(outside):
            assert not bool(support.check(torch.full_like(draws, outside)).any())
            assert not bool(inside(fn, torch.full_like(draws, outside)).any())


@pytest.mark.parametrize(
    ("fn", "kind"),
    [
        (dist.Dirichlet(torch.ones(3)), "Simplex"),
        (dist.LKJCholesky(3, 1.0), "CorrCholesky"),
        (moved(NORMAL.to_event(1), dist.transforms.OrderedTransform()), "OrderedVector"),
        (dist.Categorical(torch.ones(3)), "IntegerInterval"),
        (dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Gamma(torch.ones(2), 1.0)), "GreaterThanEq"),
    ],
)
def test_a_support_that_is_stated_rightly_is_kept(fn, kind):
    assert type(support_of(fn)).__name__.lstrip("_") == kind
    torch.manual_seed(0)
    assert bool(inside(fn, fn.sample((9,))).all())


def test_a_distribution_may_state_no_support():
    class Silent(dist.TorchDistribution):
        arg_constraints = {}  # noqa: RUF012

        def log_prob(self, value):
            return value

    fn = Silent(validate_args=False)
    assert (support_of(fn), range_of(fn), inside(fn, torch.ones(2))) == (None, None, None)


def test_a_value_that_torch_clamps_has_no_density():
    """log p(0) = -inf under a logit-normal; torch gives a finite number."""
    fn = moved(dist.Normal(0.0, 1.0), T.SigmoidTransform())
    assert inside(fn, torch.tensor([0.0, 0.5, 1.0])).tolist() == [False, True, False]
    assert bool(fn.log_prob(torch.tensor(0.0)).isfinite())


def test_a_flow_keeps_the_density_of_its_draw():
    """Looking at the range of a transform does not touch its cache."""
    fn = moved(NORMAL, T.ExpTransform(cache_size=1))
    value = fn.rsample()
    before = fn.transforms[0].inv(value)
    range_of(fn)
    assert fn.transforms[0].inv(value) is before


def test_masks_of_the_site_and_of_the_distribution_are_one():
    mask = torch.tensor([True, False, True])
    for fn, own, expected in (
        (NORMAL, None, None),
        (NORMAL, mask, mask),
        (NORMAL.mask(mask), None, mask),
        (NORMAL.mask(mask).expand([2, 3]), torch.tensor([True, True, False]), mask & torch.tensor([True, True, False])),
        (NORMAL.mask(False), mask, False),
        (NORMAL.mask(True), None, None),
    ):
        found = masked_by({"fn": fn, "mask": own})
        assert (found is None) == (expected is None)
        assert found is None or torch.equal(*(torch.as_tensor(m).expand(2, 3) for m in (found, expected)))


def test_a_support_in_words():
    entries = constraints.interval(torch.zeros(2), torch.tensor([1.0, 2.0]))
    said = {
        "real": constraints.independent(constraints.real, 2),
        "positive": dist.LogNormal(0.0, 1.0).support,
        "nonnegative": dist.Exponential(1.0).support,
        "above 2": constraints.greater_than(2.0),
        "below 3": constraints.less_than(3.0),
        "0 to 1": dist.Beta(1.0, 1.0).support,
        "-1 to 2.5": constraints.interval(-torch.ones(3), 2.5),
        "0 to its bound": entries,
        "0 or 1": dist.Bernoulli(0.5).support,
        "integer, from 0": dist.Poisson(1.0).support,
        "integer, 0 to 2": dist.Categorical(torch.ones(3)).support,
        "simplex": dist.Dirichlet(torch.ones(3)).support,
        "Cholesky factor of a correlation": dist.LKJCholesky(2).support,
        "ordered vector": dist.constraints.ordered_vector,
        "not stated": constraints.dependent,
    }
    assert {words: words_of(support) for words, support in said.items()} == {words: words for words in said}

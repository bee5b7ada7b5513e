"""Pyro's AutoGuides by name or class: what is summed out is left to the estimator, and what they get wrong is refused."""

import pyro
import pyro.distributions as dist
import pytest
from catalogue import NUM_DATA, closure_pair, columns, inner_subsample_pair, scalars
from differential.harness import float64
from differential.mixtures import POINTS, gmm_mean_field
from pyro import poutine
from pyro.infer.autoguide import AutoNormal

from pyro_vi import estimators
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError
from pyro_vi.programs.build import build_pair
from pyro_vi.programs.isolation import isolated


def test_a_site_that_is_marked_for_enumeration_is_summed_out():
    """The same pair by name and by hand: equal parameters have equal losses."""
    elbo = estimators.get("enum", max_plate_nesting=1)
    with float64():
        program = gmm_mean_field()
        pairs = [build_pair(program.model, g, load(POINTS, heldout=0.0)) for g in ("auto_normal", program.guide)]
        pairs[0].guide.load_state_dict(pairs[1].guide.state_dict())
        losses = []
        for pair in pairs:
            with isolated(1):
                losses.append(elbo.loss(pair.model, pair.guide, POINTS))
    assert losses[0] == losses[1]


def test_a_batch_of_some_rows_is_refused_where_rows_have_parameters():
    """They would be those of other rows in the next batch."""
    model, _ = closure_pair()
    build_pair(model, "auto_normal", load(columns(20), heldout=0.0))
    with pytest.raises(
        InputError, match=r"parameters for each row of site 'z', and cannot tell which 8 of the 20 rows"
    ):
        build_pair(model, AutoNormal, load(columns(20), heldout=0.0), rows=8)
    with pytest.raises(InputError, match=rf"which 8 of the {NUM_DATA} rows"):
        build_pair("linear_gaussian", "auto_iaf", load(columns(NUM_DATA), heldout=0.0), rows=8)


def test_a_minibatch_of_the_model_itself():
    """AutoNormal has parameters for all rows; most others have them for as many as are drawn."""
    model, _ = inner_subsample_pair()
    data = load(scalars(NUM_DATA), heldout=0.0)
    guide = build_pair(model, "auto_normal", data).guide
    assert dict(guide.named_parameters())["locs.z_unconstrained"].shape == (NUM_DATA,)
    for name in ("auto_diagonal_normal", "auto_structured", "auto_gaussian"):
        with pytest.raises(InputError, match="for the 8 rows of plate 'data' at site 'z', and the model draws others"):
            build_pair(model, name, data)


@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_mask_or_a_scale_is_refused_but_for_a_point(scale):
    def model(x):
        part = poutine.mask(mask=x > 0) if scale is None else poutine.scale(scale=scale)
        with pyro.plate("data", len(x)), part:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    data = load(scalars(), heldout=0.0)
    with pytest.raises(InputError, match="masks some of it" if scale is None else r"scales its density by 0\.5"):
        build_pair(model, "auto_normal", data)
    build_pair(model, "auto_delta", data)


def test_a_class_of_ones_own_gets_the_model_as_it_is():
    class Mine(AutoNormal):
        pass

    pair = build_pair("linear_gaussian", Mine, load(columns(20), heldout=0.0), rows=8)
    assert isinstance(pair.guide, Mine)

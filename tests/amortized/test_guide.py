"""What all families share: shapes, particles and densities on models of any layout, and the keys of the parameters."""

import copy

import pyro
import pytest
import torch
from amortized_toys import (
    Pixels,
    exchangeable,
    gauss,
    groups,
    groups_inside,
    many,
    obs_masked,
    one_sequence,
    regression,
    sequence,
    started,
    table,
    there,
    three_levels,
    time_first,
    within,
)
from binding_toys import bind_one
from catalogue import columns, scalars
from pyro import poutine

from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.guides.flow import Flow
from pyro_vi.guides.full_normal import FullNormal
from pyro_vi.guides.low_rank_normal import LowRankNormal
from pyro_vi.guides.mixture import Mixture
from pyro_vi.guides.structured import Structured
from pyro_vi.guides.student import Student
from pyro_vi.programs import isolated, prototype

FAMILIES = {
    "diag_normal": DiagNormal,
    "full_normal": FullNormal,
    "low_rank_normal": LowRankNormal,
    "student": Student,
    "mixture": Mixture,
    "flow": Flow,
    "structured": Structured,
}
MODELS = {
    "groups": (groups, (table(),)),
    "masked": (groups, (table(), there())),
    "groups inside": (groups_inside, (table().mT,)),
    "members without latents": (exchangeable, (table(),)),
    "obs_mask": (obs_masked, (table(), there())),
    "pixels": (Pixels(), (table(),)),
    "three levels": (three_levels, (columns(3, 8).reshape(3, 2, 4),)),
    "plates without data": (within, (scalars(),)),
    "sequence": (sequence, (table(), torch.tensor([4, 1, 2, 3, 4, 2]))),
    "time first": (time_first, (columns(4, 6).reshape(4, 3, 2),)),
    "started": (started, (table(),)),
    "one sequence": (one_sequence, (scalars(),)),
    "regression": (regression, (columns(), scalars())),
    "many supports": (many, (columns(),)),
}
QUICK = {"three levels", "plates without data", "many supports", "one sequence"}
CELLS = [
    pytest.param(model, family, marks=[] if model in QUICK else [pytest.mark.slow], id=f"{model}-{family}")
    for model in MODELS
    for family in FAMILIES
]
PARTICLES = 3


def made(family, model, *batch, **options):
    torch.manual_seed(0)
    bound = bind_one(model, batch)
    return bound, FAMILIES[family](bound, batch, **{"hidden": (4,), **options})


def traced(guide, batch, values=None, seed=0):
    with isolated(seed):
        program = guide if values is None else poutine.condition(guide, data=values)
        trace = poutine.trace(program).get_trace(*batch)
    trace.compute_log_prob()
    return trace.nodes


@pytest.mark.parametrize(("model", "family"), CELLS)
def test_each_particle_has_the_shapes_of_the_model_and_the_density_of_its_own_draw(model, family):
    """log q of a draw is the same from what is kept of it, afresh, and for one particle of several."""
    program, batch = MODELS[model]
    bound, guide = made(family, program, *batch)
    ours, theirs = prototype(guide, batch), prototype(bound, batch)
    for name, site in ours.latents.items():
        other = theirs.sites[name]
        assert (site.batch_shape, site.event_shape, site.plates) == (other.batch_shape, other.event_shape, other.plates)
    assert ours.latents.keys() == theirs.latents.keys()

    nodes = traced(guide, batch)
    values = {name: nodes[name]["value"].detach().clone() for name in ours.latents}
    afresh = traced(guide, batch, values)
    for name in values:
        torch.testing.assert_close(afresh[name]["log_prob"], nodes[name]["log_prob"], rtol=1e-5, atol=1e-5)

    nesting = max(theirs.max_plate_nesting, *(len(site.batch_shape) for site in ours.latents.values()))
    with pyro.plate("_particles", PARTICLES, dim=-nesting - 1):
        together = traced(guide, batch)
    for particle in range(PARTICLES):
        one = {}
        for name, site in ours.latents.items():
            value = together[name]["value"].detach()
            padding = (1,) * (nesting - len(site.batch_shape))
            assert value.shape == (PARTICLES, *padding, *site.batch_shape, *site.event_shape)
            one[name] = value[particle].reshape(site.batch_shape + site.event_shape)
        alone = traced(guide, batch, one)
        for name in one:
            density = together[name]["log_prob"]
            own = density[particle].reshape(alone[name]["log_prob"].shape)
            torch.testing.assert_close(own, alone[name]["log_prob"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_of_a_guide_goes_into_another_one(family):
    _, guide = made(family, groups, table())
    _, other = made(family, groups, table(seed=8))
    other.load_state_dict(guide.state_dict())
    for again in (other, copy.deepcopy(guide)):
        second = traced(again, (table(),), seed=1)
        with isolated(1):
            first = guide(table())
        assert all(torch.equal(first[name], second[name]["value"]) for name in first)


def test_sequences_of_another_length_have_the_same_parameters_or_are_refused():
    _, guide = made("diag_normal", time_first, columns(4, 6).reshape(4, 3, 2))
    for steps in (2, 7):
        draws = guide(columns(steps, 6).reshape(steps, 3, 2))
        assert list(draws) == [f"{name}_{t}" for t in range(steps) for name in "zs"]
    _, joint = made("full_normal", sequence, table())
    assert len(joint(table(6, 2))) == 2
    with pytest.raises(InputError, match="made without site 'z_5', which the model has on this batch"):
        joint(table(6, 5))


def test_a_start_before_the_first_step_shares_the_head_of_the_series():
    """q(z_0) has the features of the first step, as q(z_1) has."""
    _, guide = made("diag_normal", started, table())
    assert list(guide.q) == ["z"]
    locs = {name: loc for name, (loc, _) in guide.parameters_of(table()).items()}
    torch.testing.assert_close(locs["z_0"], locs["z_1"])
    assert len(guide(table(6, 7))) == 8


def test_it_says_where_the_numbers_of_each_site_come_from():
    _, guide = made("diag_normal", groups, table())
    assert guide.describe()["top"].startswith("free parameters")
    assert guide.describe()["z"] == "MLP of x for each row of members, pooled over the others, 4 features"

    def model(x=None):
        with pyro.plate("rows", 8):
            pyro.sample("z", gauss(0.0))

    _, guide = made("diag_normal", model)
    assert guide.describe()["z"].startswith("free parameters")

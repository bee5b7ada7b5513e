"""The rows of a fit: how many in a step, in which order, how many are held out, and the reason that is given."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import NUM_DATA, global_pair, inner_subsample_pair, number, scalars
from small_fits import DIAGONAL, LINEAR
from torch import nn

from pyro_vi.amortized import starts
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting import plan as planning
from pyro_vi.fitting.plan import plan
from pyro_vi.programs.build import build_pair


@pytest.fixture(autouse=True)
def few_rows(monkeypatch):
    """A minibatch is 8 rows, and 60 rows are few."""
    monkeypatch.setattr(planning, "MINIBATCH", 8)
    monkeypatch.setattr(planning, "SMALL", 60)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("slope", number(0.5)) * x, 0.7))


def free_guide(x):
    loc = pyro.param("loc", torch.zeros(len(x), dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc, 0.7))


def flat_guide(x):
    loc = pyro.param("flat", torch.zeros(3 * len(x), dtype=x.dtype))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc.reshape(3, -1).sum(0), 0.7))


class Shared(nn.Module):
    """A model with four latents that all data share."""

    def __init__(self, data):
        super().__init__()

    def forward(self, x):
        total = sum(pyro.sample(name, dist.Normal(number(0.0), 1.0)) for name in "abcd")
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)


def series(x):
    """A random walk, as a loop."""
    z = number(0.0)
    for t, value in enumerate(x):
        z = pyro.sample(f"z{t}", dist.Normal(z, 1.0))
        pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=value)


def series_guide(x):
    for t in range(len(x)):
        pyro.sample(f"z{t}", dist.Normal(pyro.param("loc", number(0.0)), 1.0))


def no_latents(x):
    loc = pyro.param("loc", number(0.0))
    for t, value in enumerate(x):
        pyro.sample(f"x{t}", dist.Normal(loc, 1.0), obs=value)


def of_length(rows, model=local):
    """A model that takes so many rows and no fewer."""

    def whole(x):
        if len(x) < rows:
            raise ValueError(f"{rows} rows, please")
        model(x)

    return whole


def fixed_plate(size):
    """A model whose plate has a size of its own."""

    def model(x):
        padded = torch.cat([x, x.new_zeros(size - len(x))])
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=padded)

    def guide(x):
        loc = pyro.param("loc", number(0.0))
        with pyro.plate("data", size):
            pyro.sample("z", dist.Normal(loc, 1.0))

    return model, guide


WHOLE = {
    "a latent that all share": (*global_pair(), NUM_DATA, "all data share 'w'"),
    "four of them, in a class": (
        *(Shared, lambda x: [pyro.sample(name, dist.Normal(pyro.param("m", number(0.0)), 1.0)) for name in "abcd"]),
        *(20, "all data share 'a', 'b', 'c', …"),
    ),
    "a series": (series, series_guide, 4, "all data share 'z0', 'z1', 'z2', …"),
    "no plate": (no_latents, lambda x: None, 4, "the model has no plate of data"),
    "own minibatch": (*inner_subsample_pair(), 20, "all data share 'w'"),
    "a row each": (local, free_guide, 20, "parameter 'loc' has a row for each datum"),
    "a row each, of many": (local, free_guide, 70, "parameter 'loc' has a row for each datum"),
    "some numbers each, in one vector": (local, flat_guide, 20, "parameter 'flat' has a row for each datum"),
    "a row each, in no other number": (of_length(20), free_guide, 20, "parameter 'loc' has a row for each datum"),
    "no fewer rows": (of_length(20), local_guide, 20, "the pair cannot take 8 rows: "),
    "no fewer rows, of many": (of_length(70), local_guide, 70, "the pair cannot take 8 rows: "),
    "a plate of a fixed size": (*fixed_plate(20), 20, "the pair cannot take 8 rows"),
}


@pytest.mark.parametrize("case", WHOLE)
def test_all_rows_in_the_given_order_and_none_held_out(case):
    model, guide, rows, reason = WHOLE[case]
    planned = plan(model, guide, scalars(rows))
    assert planned.reason.startswith(reason)
    assert (planned.batch_size, planned.data.num_heldout, planned.whole) == (rows, 0, rows)
    for epoch in (0, 1):
        ((_, (x,)),) = planned.data.batches(epoch, planned.batch_size)
        assert torch.equal(x, scalars(rows))
    assert planned.note == f"all {rows} rows in each step, in the given order ({planned.reason}); none held out"
    assert "\n" not in planned.note


def test_the_error_of_a_program_that_needs_all_rows_is_told():
    assert "ValueError: 20 rows, please (test_plan.py line " in plan(of_length(20), local_guide, scalars(20)).reason


def test_latents_of_data_alone_are_fitted_in_shuffled_minibatches_and_a_tenth_is_held_out():
    for rows, size in ((20, 8), (70, 8), (6, 5)):
        planned = plan(local, local_guide, scalars(rows))
        held = max(1, rows // 10)
        assert (planned.reason, planned.batch_size, planned.whole) == ("", size, rows)
        assert (planned.data.spec.num_data, planned.data.num_heldout) == (rows - held, held)
        assert planned.data.shuffle is (rows > 8)
    assert plan(local, local_guide, scalars(20)).note == "18 rows in batches of 8, shuffled; 2 held out"
    assert plan(local, local_guide, scalars(6)).note == "all 5 rows in each step, in the given order; 1 held out"


@pytest.mark.parametrize("rows", [20, 70])
def test_a_network_that_is_as_wide_as_the_data_are_long_is_no_row_for_each(rows):
    """In the first try 20 data are taken as a whole, and 8 of 70."""
    encoder = nn.Sequential(nn.Linear(1, 20 if rows == 20 else 8), nn.Tanh()).double()

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x.unsqueeze(-1)).mean(-1), 0.7))

    planned = plan(local, guide, scalars(rows))
    assert (planned.reason, planned.batch_size) == ("", 8)


def test_a_named_model_is_made_for_the_rows_that_are_fitted():
    planned = plan(LINEAR, DIAGONAL, scalars(20).unsqueeze(-1))
    assert planned.pair.model.data.num_data == planned.data.spec.num_data == 18
    assert plan(Shared, lambda x: None, scalars(20)).data.num_heldout == 0


@pytest.mark.parametrize("guide", ["AutoNormal", "auto_diagonal_normal"])
def test_a_named_model_that_needs_all_rows_is_built_on_all_of_them(guide):
    """Of 20 rows, 2 would be held out; one of Pyro's guides has a row for each datum, or one vector for all of them."""
    planned = plan(LINEAR, guide, scalars(20).unsqueeze(-1))
    assert planned.reason.endswith("has parameters for each row")
    assert (planned.batch_size, planned.data.num_heldout) == (20, 0)
    assert planned.pair.guide(*planned.data.example(20))["z"].shape == (20, 2)


def test_what_is_asked_for_is_done():
    planned = plan(local, local_guide, scalars(20), batch_size=5, heldout=0.25, shuffle=False, drop_last=True)
    assert (planned.batch_size, planned.data.spec.num_data, planned.data.num_heldout) == (5, 15, 5)
    assert planned.note == "15 rows in batches of 5, in the given order; 5 held out"
    assert (planned.data.shuffle, planned.data.drop_last) == (False, True)
    planned = plan(*global_pair(), scalars(NUM_DATA), batch_size=16, heldout=0.2)
    assert (planned.batch_size, planned.data.num_heldout, planned.data.shuffle) == (16, 10, True)
    assert plan(*global_pair(), scalars(NUM_DATA), batch_size=16).data.num_heldout == 0
    assert plan(local, local_guide, scalars(20), heldout=0).note == "20 rows in batches of 8, shuffled; none held out"
    planned = plan(local, local_guide, scalars(20), batch_size=1000)
    assert (planned.batch_size, planned.data.shuffle, planned.data.num_heldout) == (18, False, 2)


def test_data_that_are_split_already_stay_as_they_are():
    data = load(scalars(20), heldout=0.3)
    planned = plan(*global_pair(), data)
    assert (planned.data.num_heldout, planned.batch_size, planned.whole) == (6, 14, 20)
    assert planned.note == "all 14 rows in each step, in the given order (all data share 'w'); 6 held out"
    assert plan("vae", "diag_normal", "digits", batch_size=100).data.num_heldout == 299


def test_programs_that_hold_their_data():
    x = scalars(20)
    planned = plan(lambda: local(x), lambda: local_guide(x), None)
    assert planned.note == "the programs hold their data themselves"
    assert (planned.batch_size, planned.data.example(), planned.data.num_heldout) == (1, (), 0)


def test_a_batch_that_the_programs_cannot_take_is_refused():
    with pytest.raises(InputError, match="20 rows, please"):
        plan(of_length(20), local_guide, scalars(20), batch_size=5)
    with pytest.raises(UsageError, match=r"^batch_size 0 is out of range; it must be at least 1, or None"):
        plan(local, local_guide, scalars(20), batch_size=0)


def test_one_row_can_be_fitted_where_nothing_is_held_out():
    assert plan(*global_pair(), scalars(1)).note.startswith("the one row in each step")
    assert plan(local, local_guide, scalars(1), heldout=0.0).batch_size == 1
    with pytest.raises(InputError, match="array: 1 row cannot be split; give at least 2 rows, or heldout=0"):
        plan(local, local_guide, scalars(1))


@pytest.mark.slow
@pytest.mark.parametrize("rows", [40, 80], ids=["few", "many"])
@pytest.mark.parametrize("size", [None, 8], ids=["all", "minibatches"])
@pytest.mark.parametrize("made", [False, True], ids=["function", "class"])
def test_the_start_is_searched_once_on_the_rows_of_a_step(rows, size, made, monkeypatch):
    """However often the pair is built to find its rows; the start is that of a pair built for these rows at once."""
    searched = []

    def counting(*given):
        searched.append(starts_searched(*given))
        return searched[-1]

    starts_searched = starts._searched
    monkeypatch.setattr(starts, "_searched", counting)
    x = scalars(rows)
    found = plan(Shared if made else Shared(None), "diag_normal", x, batch_size=size)
    assert len(searched) == 1
    assert searched[0] is not None
    assert (found.batch_size, found.data.spec.num_data) == (size or rows, rows)
    direct = build_pair(Shared if made else Shared(None), "diag_normal", found.data, seed=0, rows=found.batch_size)
    assert len(searched) == 2
    for one, two in zip(found.pair.parameters(), direct.parameters(), strict=True):
        assert torch.equal(one, two)
    assert starts._skipped.get() is None

"""Features of each level: of rows, of elements within them, and of steps; the network by the shape of the data, or by name."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_toys import (
    GROUPS,
    MEMBERS,
    exchangeable,
    gauss,
    groups,
    groups_inside,
    obs_masked,
    one_sequence,
    regression,
    sequence,
    table,
    there,
    three_levels,
    time_first,
)
from binding_toys import bind_one
from catalogue import columns, scalars
from torch import nn

from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal

MOVED = [2, 0, 3, 1]


def images(*shape):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", gauss(0.0))
            mean = z[(..., *(None for _ in shape))].expand(*z.shape, *shape)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(len(shape)), obs=x)

    return model, (columns(3, int(torch.Size(shape).numel())).reshape(3, *shape),)


def guide_of(model, batch, **options):
    torch.manual_seed(0)
    return DiagNormal(bind_one(model, batch), batch, **{"hidden": (8,), **options})


def locs(guide, *batch):
    return {name: loc.detach() for name, (loc, _) in guide.parameters_of(*batch).items()}


def changed(guide, before, after):
    """For each site, the elements of loc that differ between two batches."""
    now, then = locs(guide, *before), locs(guide, *after)
    return {name: ~torch.isclose(now[name], then[name], rtol=1e-10, atol=1e-12) for name in now}


@pytest.mark.parametrize("outside", [True, False])
def test_a_group_does_not_know_the_order_of_its_members_and_a_member_knows_its_own_datum(outside):
    def turned(x):
        return x if outside else x.mT

    guide = guide_of(groups if outside else groups_inside, (turned(table()),))
    assert guide.encoder.kind == "set"
    now = locs(guide, turned(table()))
    then = locs(guide, turned(table()[:, MOVED]))
    torch.testing.assert_close(then["mu"], now["mu"], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(turned(then["z"]), turned(now["z"])[:, MOVED], rtol=1e-10, atol=1e-12)
    other = table()
    other[2, 1] += 1
    found = changed(guide, (turned(table()),), (turned(other),))
    assert found["mu"].flatten().tolist() == [row == 2 for row in range(GROUPS)]
    # The other members of the group know of it through the group.
    assert turned(found["z"]).any(1).tolist() == [row == 2 for row in range(GROUPS)]
    shift = (now["z"] - locs(guide, turned(other))["z"]).abs()
    assert turned(shift)[2].argmax() == 1


def test_three_levels_know_their_own_part_of_the_data():
    x = columns(3, 8).reshape(3, 2, 4)
    guide = guide_of(three_levels, (x,))
    now, then = locs(guide, x), locs(guide, x[:, :, MOVED])
    for name in ("a", "b"):
        torch.testing.assert_close(then[name], now[name], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(then["c"], now["c"][:, :, MOVED], rtol=1e-10, atol=1e-12)
    assert [tuple(now[name].shape) for name in "abc"] == [(3, 1, 1), (3, 2, 1), (3, 2, 4)]
    # Schools that change places take their features with them.
    swapped = locs(guide, x.flip(1))
    torch.testing.assert_close(swapped["b"], now["b"].flip(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("model", [groups, exchangeable, obs_masked])
def test_masked_members_leave_no_trace_in_the_features(model):
    seen = there()
    guide = guide_of(model, (table(), seen))
    for value in (1e6, torch.nan):
        other = torch.where(seen, table(), value)
        assert not any(bool(v.any()) for v in changed(guide, (table(), seen), (other, seen)).values())
    # The group is that of the members that are there.
    alone, rest = table(1, 2), torch.cat([table(1, 2), torch.full((1, 2), 9.0).double()], 1)
    some = torch.tensor([[True, True, False, False]])
    short, long = locs(guide, alone, some[:, :2])["mu"], locs(guide, rest, some)["mu"]
    torch.testing.assert_close(short, long, rtol=1e-10, atol=1e-12)
    none = locs(guide, table(), torch.zeros_like(seen))
    assert all(bool(loc.isfinite().all()) for loc in none.values())


def test_groups_of_another_size_are_encoded_by_the_same_network():
    guide = guide_of(groups, (table(),))
    for rows, members in ((2, 9), (7, 1)):
        draws = guide(table(rows, members))
        assert {name: tuple(value.shape) for name, value in draws.items()} == {
            "top": (),
            "mu": (rows, 1),
            "z": (rows, members),
        }


def test_steps_of_a_sequence_know_the_past_and_the_future_of_their_own_sequence():
    x = table()
    guide = guide_of(sequence, (x,))
    assert (guide.encoder.kind, list(guide.q)) == ("recurrent", ["z"])
    for step in (0, MEMBERS - 1):
        other = x.clone()
        other[2, step] += 1
        for found in changed(guide, (x,), (other,)).values():
            assert found.tolist() == [row == 2 for row in range(GROUPS)]


def test_steps_beyond_the_length_of_a_sequence_leave_no_trace():
    x, lengths = table(), torch.tensor([4, 1, 2, 3, 4, 2])
    guide = guide_of(sequence, (x, lengths))
    beyond = torch.arange(MEMBERS) >= lengths.unsqueeze(-1)
    for value in (1e6, torch.nan):
        found = changed(guide, (x, lengths), (torch.where(beyond, value, x), lengths))
        assert not any(bool(v.any()) for v in found.values())
    long = torch.cat([x, x], 1)  # steps that the example does not have
    beyond = torch.arange(2 * MEMBERS) >= 6
    found = changed(guide, (long, lengths + 2), (torch.where(beyond, 1e6, long), lengths + 2))
    assert len(found) == 2 * MEMBERS and not any(bool(v.any()) for v in found.values())


KINDS = {
    "numbers": ((regression, (columns(), scalars())), "mlp"),
    "small tables": (images(7, 7), "mlp"),
    "images": (images(8, 8), "conv"),
    "images of channels": (images(3, 8, 9), "conv"),
    "many layers": (images(5, 8, 8), "mlp"),
    "sets": ((exchangeable, (table(),)), "set"),
    "sequences": ((time_first, (columns(4, 6).reshape(4, 3, 2),)), "recurrent"),
}


@pytest.mark.parametrize("shape", KINDS)
def test_the_shape_of_the_data_chooses_the_network(shape):
    (model, batch), kind = KINDS[shape]
    guide = guide_of(model, batch)
    assert guide.encoder.kind == kind
    rows = next(v for v in batch).shape[1 if shape == "sequences" else 0]
    assert all(len(loc) == rows for name, loc in locs(guide, *batch).items() if name != "b")


@pytest.mark.parametrize(("name", "network"), [("mlp", "_Flat"), ("conv", "_Conv"), ("recurrent", "_Recurrent")])
def test_a_network_can_be_asked_for_by_name(name, network):
    guide = guide_of(*images(8, 8), encoder=name)
    assert type(guide.encoder.network).__name__ == network
    assert len(locs(guide, *images(8, 8)[1])["z"]) == 3


@pytest.mark.parametrize("shape", ["images", "sequences"])
def test_widths_and_activations_are_checked_for_every_network(shape):
    model, batch = KINDS[shape][0]
    for options, message in (
        ({"hidden": (0,)}, "hidden must hold positive whole numbers"),
        ({"activation": "rleu"}, "no activation named 'rleu'; did you mean 'relu'"),
    ):
        with pytest.raises(InputError, match=message):
            guide_of(model, batch, **options)
    assert guide_of(model, batch, hidden=16).encoder.width == guide_of(model, batch, hidden=(16,)).encoder.width


class Own(nn.Module):
    """A network of a person's own, which returns the shape that it is told."""

    def __init__(self, result=None):
        super().__init__()
        self.layer, self.result = nn.Linear(4, 5), result

    def forward(self, x, y):
        features = self.layer(torch.cat([x, y.unsqueeze(-1)], -1))
        return features if self.result is None else self.result(features)


def test_a_network_can_be_handed_over():
    """It is called with the standardised columns, and is a part of the guide."""
    own = Own()
    guide = guide_of(regression, (columns(), scalars()), encoder=own)
    assert guide.encoder.width == 5 and guide.encoder.describe() == "your network of argument 0 and y, 5 features"
    guide(columns(), scalars())["z"].sum().backward()
    assert own.layer.weight.grad is not None
    members = nn.Sequential(nn.Unflatten(-1, (MEMBERS, 1)), nn.Linear(1, 3))
    guide = guide_of(groups, (table(),), encoder=members)
    assert [tuple(loc.shape) for loc in locs(guide, table()).values()] == [(), (GROUPS, 1), (GROUPS, MEMBERS)]


REFUSED = {
    "a typing error": (regression, (columns(), scalars()), "cnov", r"no encoder named 'cnov'.*did you mean 'conv'"),
    "and without local sites": (one_sequence, (scalars(),), "cnov", r"no encoder named 'cnov'"),
    "no set": (
        regression,
        (columns(), scalars()),
        "set",
        "'set' needs a plate of elements within each datum; use 'mlp'",
    ),
    "no steps": (regression, (columns(), scalars()), "recurrent", r"needs a column of shape \(rows, steps, …\)"),
    "no images": (regression, (columns(), scalars()), "conv", r"needs images, of shape \(rows, height, width\)"),
    "another signature": (
        regression,
        (columns(), scalars()),
        nn.Linear(3, 2),
        r"fails on columns of shape \(8, 3\), \(8,\)",
    ),
    "no features": (regression, (columns(), scalars()), Own(torch.sum), r"shape \(8, width\) here, not \(\)"),
    "no tensor": (regression, (columns(), scalars()), Own(list), r"shape \(8, width\) here, not list"),
    "rows lost": (regression, (columns(), scalars()), Own(lambda v: v[:2]), r"shape \(8, width\) here, not \(2, 5\)"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_an_encoder_that_does_not_suit_the_data_is_refused(fault):
    model, batch, encoder, message = REFUSED[fault]
    with pytest.raises(InputError, match=message) as error:
        guide_of(model, batch, encoder=encoder)
    assert "\n" not in str(error.value)

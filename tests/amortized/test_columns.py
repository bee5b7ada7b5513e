"""The columns of a batch: where rows, elements and steps lie, and which elements may change places."""

import pyro
import pytest
import torch
from amortized_toys import (
    GROUPS,
    MEMBERS,
    Pixels,
    exchangeable,
    gauss,
    groups,
    groups_inside,
    items,
    obs_masked,
    regression,
    sequence,
    table,
    there,
    three_levels,
    time_first,
)
from binding_toys import bind_one
from catalogue import columns, scalars

from pyro_vi.amortized.columns import Column
from pyro_vi.amortized.frame import Frame


def one_column(x):
    """A table of one column, as files have it: it is no sequence of one step."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", gauss(0.0))
        pyro.sample("x", gauss(z), obs=x[:, 0])


CUBE = columns(3, 8).reshape(3, 2, 4)
FOUND = {
    "groups": (groups, (table(),), [(("groups", "members"), (0, 1), (), "x", False)]),
    "groups inside": (groups_inside, (table().mT,), [(("groups", "members"), (1, 0), (), "x", False)]),
    "members without latents": (exchangeable, (table(),), [(("groups", "members"), (0, 1), (), "x", False)]),
    "items with numbers of their own": (items, (table(),), [(("data",), (0, 1), (MEMBERS,), "x", False)]),
    "pixels under a decoder": (Pixels(), (table(),), [(("data",), (0, 1), (MEMBERS,), "x", False)]),
    "pixels with biases": (Pixels(slope=False), (table(),), [(("data",), (0, 1), (MEMBERS,), "x", False)]),
    "three levels": (three_levels, (CUBE,), [(("districts", "schools", "pupils"), (0, 1, 2), (), "x", False)]),
    "masks are columns too": (
        groups,
        (table(), there()),
        [(("groups", "members"), (0, 1), (), "x", False), (("groups", "members"), (0, 1), (), None, False)],
    ),
    "obs_mask": (
        obs_masked,
        (table(), there()),
        [(("groups", "members"), (0, 1), (), "x_observed", False), (("groups", "members"), (0, 1), (), None, False)],
    ),
    "covariates": (
        regression,
        (columns(), scalars()),
        [(("data",), (0, 1), (3,), None, False), (("data",), (0,), (), "y", False)],
    ),
    "one column, observed": (one_column, (columns(4, 1),), [(("data",), (0, 1), (1,), None, False)]),
    "a sequence of one step": (sequence, (table()[:, :1],), [(("data",), (0, 1), (1,), None, True)]),
    "a sequence": (sequence, (table(),), [(("data",), (0, 1), (MEMBERS,), None, True)]),
    "time first": (time_first, (CUBE.double(),), [(("data",), (1, 0, 2), (3, 4), None, True)]),
}


@pytest.mark.parametrize("name", FOUND)
def test_rows_elements_and_steps_are_found_by_what_is_observed(name):
    model, batch, expected = FOUND[name]
    found = Frame(bind_one(model, batch), batch, "toy").columns
    assert [(c.plates, c.order, c.shape, c.site, c.steps) for c in found] == expected
    for column in found:
        sizes = [batch[column.position].shape[i] for i in column.order]
        assert list(column.of(batch).shape) == sizes
        assert sizes[len(column.plates) :] == list(column.shape)


def test_the_parameters_of_the_model_stay_as_they_are():
    model = Pixels()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    Frame(model, (table(),), "toy")
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_elements_in_an_order_are_no_set():
    """An autoregression: the sum of the log-densities depends on the order, for any latents."""

    def model(x):
        with pyro.plate("data", len(x), dim=-2):
            a = pyro.sample("a", gauss(0.0))
            before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
            with pyro.plate("time", x.shape[1], dim=-1):
                pyro.sample("x", gauss(a * before), obs=x)

    (column,) = Frame(bind_one(model, (table(),)), (table(),), "toy").columns
    assert (column.plates, column.shape) == (("data",), (MEMBERS,))


def test_the_observed_sites_of_further_steps_follow_the_numbers_in_their_names():
    column = Column(0, ("data",), (0, 1), (3,), None, True, ((0, "x[1].y"), (2, "x[3].y")))
    assert [column.observed_at(step) for step in range(5)] == ["x[1].y", "", "x[3].y", "x[4].y", "x[5].y"]


def test_a_mask_is_laid_out_like_the_column():
    """(members, groups) as (groups, members); a mask that all groups share has one row."""
    batch = (table().mT,)
    frame = Frame(bind_one(groups_inside, batch), batch, "toy")
    datum = frame.read(batch, {}, {}).data["x"]
    mask = there()
    assert frame.columns[0].like(datum, mask.mT).equal(mask)
    assert frame.columns[0].like(datum, mask.mT[:, :1]).shape == (1, MEMBERS)
    assert frame.columns[0].like(datum, mask[:, 0]).shape == (GROUPS, 1)

"""The sites that a site depends on: those of its prior, and those with which it shares a child."""

import torch
from amortized_toys import collider, walk
from binding_toys import bind_one
from catalogue import columns, scalars

from pyro_vi.amortized.frame import Frame
from pyro_vi.amortized.parents import Parent, aligned, parents_of


def found(model, *args):
    bound = bind_one(model, args)
    return parents_of(Frame(bound, args, "structured"), bound, args)


def test_parents_are_those_of_the_prior_and_those_that_share_a_child():
    parents = {name: {parent.name for parent in ups.values()} for name, ups in found(collider, scalars()).items()}
    assert parents == {"w": set(), "u": set(), "s": set(), "z": {"w", "s"}}


def test_parents_in_a_sequence_are_counted_back():
    parents = found(walk, columns(8, 5))
    assert [set(parents[f"z_{t}"].values()) for t in range(5)] == [set(), *({Parent("z_", 1)} for _ in range(4))]


def test_rows_are_averaged_or_repeated():
    value = torch.arange(6.0).reshape(2, 3, 1)  # rows of a and b, vectors of one number
    torch.testing.assert_close(aligned(value, ("a", "b"), ("a",)), torch.tensor([[1.0], [4.0]]))
    assert aligned(value, ("a", "b"), ("b", "a")).shape == (3, 2, 1)
    assert aligned(value, ("a", "b"), ("a", "c", "b")).shape == (2, 1, 3, 1)
    assert aligned(torch.zeros(7, 4), (), ("a",)).shape == (7, 1, 4)  # seven particles

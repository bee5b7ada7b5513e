"""Shapes that depend on values are refused where the values are others in the next call, and nowhere else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from pyro_vi.errors import NoGraph
from pyro_vi.tracing.graph import trace

X = torch.tensor([0.5, -1.0, 2.0])
MASK = torch.tensor([True, False, True])
Function = Callable[[Tensor, Tensor], Tensor]


def written(x: Tensor, mask: Tensor) -> Tensor:
    made = torch.zeros(3, dtype=torch.bool)
    made.view(3, 1)[1:, 0] = x[1:] > 0  # through two views
    return x + len(x[made])


def sibling(x: Tensor, mask: Tensor) -> Tensor:
    made = torch.zeros(3, dtype=torch.bool)
    view = made.view(-1)  # of the same memory, and made before it is written
    made[1:] = x[1:] > 0
    return x + len(x[view])


def in_place(x: Tensor, mask: Tensor) -> Tensor:
    mask.logical_and_(x > 0)
    return x + len(x[mask])


def written_later(x: Tensor, mask: Tensor) -> Tensor:
    length = len(x[mask])
    mask.copy_(x > 0)  # for the next call
    return x + length


def copied(x: Tensor, mask: Tensor) -> Tensor:
    own = mask.clone()
    own |= x > 0  # what it is a copy of stays
    return x + len(x[mask])


def packed(x: Tensor, mask: Tensor) -> Tensor:
    rows = x.reshape(3, 1, 1).expand(3, 2, 1)
    return pack_padded_sequence(rows, 1 + (x > 0).long(), batch_first=True, enforce_sorted=False).data.sum() + x


VARYING: dict[str, tuple[Function, str]] = {
    "mask": (lambda x, mask: x + len(x[x > 0]), "x[mask]"),
    "length alone": (lambda x, mask: x * x[x > 0].shape[0], "x[mask]"),
    "rows and mask": (lambda x, mask: x.expand(2, 3)[:, x > 0].sum(), "x[mask]"),
    "nonzero": (lambda x, mask: x + x.nonzero().numel(), "nonzero"),
    "where": (lambda x, mask: x + torch.where(x > 0)[0].numel(), "nonzero"),
    "masked_select": (lambda x, mask: x.masked_select(x > 0), "masked_select"),
    "unique": (lambda x, mask: x.unique(), "unique"),
    "unique_consecutive": (lambda x, mask: x.unique_consecutive(), "unique_consecutive"),
    "bincount": (lambda x, mask: (x > 0).long().bincount(), "bincount"),
    "repeat_interleave": (lambda x, mask: x.repeat_interleave((x > 0).long()), "repeat_interleave"),
    "sparse": (lambda x, mask: x + x.to_sparse()._nnz(), "to_sparse"),
    "packed": (packed, "a packed sequence"),
    "draw": (lambda x, mask: x + len(x[torch.rand(3) > 0.5]), "x[mask]"),
    "written": (written, "x[mask]"),
    "sibling": (sibling, "x[mask]"),
    "in place": (in_place, "x[mask]"),
    "written later": (written_later, "x[mask]"),
}
FIXED: dict[str, Function] = {
    "mask that is only read": lambda x, mask: x + len(x[mask]) + mask.nonzero().numel(),
    "of a mask": lambda x, mask: x + len(x[~mask]),
    "constant": lambda x, mask: x + len(x[torch.tensor([True, False, True])]),
    "made": lambda x, mask: x + len(torch.ones(3, 3)[torch.ones(3, 3).tril().bool()]),
    "whole numbers": lambda x, mask: x[x.argsort()],
    "no shape": lambda x, mask: torch.where(x > 0, x, 1.0).masked_fill(x < 0, 2.0) + (x > 0).sum(),
    "put": lambda x, mask: torch.index_put(x, (x > 0,), torch.tensor(1.0)),
    "copied": copied,
}


@pytest.mark.parametrize("name", VARYING)
def test_what_varies_is_refused(name):
    function, said = VARYING[name]
    with pytest.raises(NoGraph) as caught:
        trace(lambda mask, x: function(x, mask), MASK.clone(), X, state=1)
    assert f"a shape that depends on values ({said}), which would be the same for all" in str(caught.value)


@pytest.mark.parametrize("name", FIXED)
def test_what_does_not_is_traced(name):
    function = FIXED[name]
    other = torch.tensor([-3.0, 0.1, -0.2])
    graph = trace(lambda mask, x: function(x, mask), MASK.clone(), X, state=1)
    torch.testing.assert_close(graph(MASK.clone(), other), function(other, MASK.clone()), rtol=0, atol=0)


def test_what_is_not_held_varies():
    with pytest.raises(NoGraph):
        trace(lambda mask, x: x + len(x[mask]), MASK, X)

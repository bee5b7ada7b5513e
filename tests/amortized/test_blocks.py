"""The numbers of q: they start where they are told, for free parameters and for an encoder's features."""

import pytest
import torch

from pyro_vi.amortized.blocks import Block, Part

PARTS = {
    "loc": Part(torch.tensor([1.0, 2.0, 3.0])),
    "low": Part(torch.zeros(2, 3), gain=0.0),
    "one": Part(torch.ones(())),
}


def block(lengths):
    rows = ("data",) if lengths is None else ("data", "k")[: len(lengths)]
    made = Block(["a", "b"], [1, 2], rows, lengths, torch.tensor([4.0, 5.0, 6.0]), torch.tensor([0.1, 0.2, 0.3]))
    torch.manual_seed(0)
    made.make(PARTS, 4)
    return made


@pytest.mark.parametrize("lengths", [(), (7,), (7, 2)], ids=["shared", "rows", "rows of two plates"])
def test_free_parameters_start_at_the_parts_and_are_chosen_by_row(lengths):
    made = block(lengths)
    assert {n: tuple(p.shape) for n, p in made.named_parameters()} == {
        n: (*lengths, *part.start.shape) for n, part in PARTS.items()
    }
    assert all(torch.equal(v, PARTS[n].start.expand(v.shape)) for n, v in made(None, {}).items())
    if lengths:
        with torch.no_grad():
            made.loc.add_(torch.arange(7.0).reshape(7, *(1 for _ in lengths)))
        rows = torch.tensor([5, 0, 5])
        assert torch.equal(made(None, {"data": rows})["loc"], made.loc[rows])
    if len(lengths) == 2:
        assert torch.equal(made(None, {"k": torch.tensor([1])})["loc"], made.loc[:, 1:])


def test_features_move_the_numbers_around_their_start():
    made = block(None)
    zero, other = made(torch.zeros(6, 5, 4), {}), made(torch.ones(6, 5, 4), {})
    for name, part in PARTS.items():
        assert torch.equal(zero[name], part.start.expand(6, 5, *part.start.shape))
        assert bool((zero[name] != other[name]).all()) == (part.gain > 0)


def test_each_site_has_its_slice_and_its_units():
    made = block(())
    assert (made.dim, made.slice("a"), made.slice("b")) == (3, slice(0, 1), slice(1, 3))
    assert [value.tolist() for value in made.units("b")] == [[5.0, 6.0], pytest.approx([0.2, 0.3])]

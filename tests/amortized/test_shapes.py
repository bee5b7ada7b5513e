"""The numbers of a site as a vector for each row: `to_vector` and `to_site` are inverse wherever the plates lie."""

import pytest
import torch

from pyro_vi.amortized.shapes import Shape

SHAPES = {
    "one row each": (Shape(1, (-1,), (5,), ()), ()),
    "vectors": (Shape(1, (-1,), (5,), (2, 3)), (2, 3)),
    "data outside": (Shape(2, (-2,), (5, 3), (2,)), (2,)),
    "data inside": (Shape(2, (-1,), (3, 5), (2,)), (2,)),
    "two levels": (Shape(2, (-2, -1), (5, 3), ()), ()),
    "two levels, the inner first": (Shape(3, (-1, -3), (5, 2, 3), (2,)), (2,)),
    "plates without rows": (Shape(3, (-2,), (4, 5, 3), (2,)), (2,)),
    "fewer dimensions than plates": (Shape(3, (-1,), (5,), (2,)), (2,)),
    "shared": (Shape(2, (), (), (2,)), (2,)),
    "shared, in a plate": (Shape(2, (), (3,), ()), ()),
    "no plates": (Shape(0, (), (), ()), ()),
}


@pytest.mark.parametrize("particles", [(), (7,), (7, 6)], ids=["one draw", "particles", "two plates of particles"])
@pytest.mark.parametrize("name", SHAPES)
def test_vectors_hold_the_numbers_of_a_row_and_give_the_site_back(name, particles):
    shape, event = SHAPES[name]
    padding = (1,) * (shape.nesting - len(shape.batch)) if particles else ()
    full = (*particles, *padding, *shape.batch, *event)
    value = torch.arange(torch.Size(full).numel()).reshape(full)
    vector = shape.to_vector(value)
    lengths = tuple(shape.batch[dim] for dim in shape.rows)
    assert vector.shape == (*particles, *lengths, shape.numel)
    assert shape.to_site(vector).equal(value)
    batch = full[: len(full) - len(event)]
    assert shape.batch_of((*particles, *lengths)) == batch
    # The vector of a row is what the site has there, in the order of memory.
    places = [dim - len(event) for dim in shape.rows]
    moved = value.movedim(places, [len(particles) + i for i in range(len(places))])
    assert vector.equal(moved.reshape(vector.shape))
    # A number of each row is put where the row is, and goes for all of its elements.
    number = torch.arange(torch.Size((*particles, *lengths)).numel()).reshape((*particles, *lengths))
    wide = shape.place(number).expand(batch)
    assert shape.to_vector(wide[(..., *[None] * len(event))].expand(full)).equal(
        number.unsqueeze(-1).expand(vector.shape)
    )
    assert shape.place(vector, 1)[..., 0].equal(shape.place(vector[..., 0]))

"""The owners of a pair's parameters, and some of its rows."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, Entry, PyroGuide, bound_pair, columns, scalars
from torch.distributions import constraints

from pyro_vi.programs.build import pair_of

every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)


@every_entry
def test_owners(entry: Entry):
    pair = pair_of(*entry.build(), entry.batch)
    found = pair.owned(entry.batch)
    assert {name: owner for name, (owner, _) in found.items()} == entry.owners
    assert len({id(parameter) for _, parameter in found.values()}) == len(found)
    assert {id(p) for p in pair.parameters() if p.requires_grad} == {id(p) for _, p in found.values()}


def test_without_a_batch_a_shared_parameter_is_the_models():
    pair = pair_of(*bound_pair(), (columns(),))
    assert {owner for owner, _ in pair.owned().values()} == {"model"}


def test_held_parameters_have_the_name_the_constraint_and_the_shape_of_the_program():
    def model(x):
        pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)
        pyro.param("a.mix", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)

    pair = pair_of(model, PyroGuide(), (scalars(),))
    found: dict[str, object] = {}
    for name, _, constraint in pair.held():
        found.setdefault(name, constraint)
    free = dict.fromkeys(("encoder.weight", "encoder.bias", "w_loc"), constraints.real)
    assert found == {"rate": constraints.positive, "a.mix": constraints.simplex, "scale": constraints.positive} | free
    values = pair.values()
    torch.testing.assert_close(values["rate"], torch.tensor(2.0))
    torch.testing.assert_close(values["a.mix"], torch.tensor([0.2, 0.3, 0.5]))
    torch.testing.assert_close(values["scale"], torch.tensor(0.6, dtype=torch.float64))


def test_evenly_spaced_rows_are_taken_of_nested_columns_too():
    def model(batch):
        with pyro.plate("rows", len(batch["x"])):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + batch["of"][0], 1.0), obs=batch["x"])

    def guide(batch):
        with pyro.plate("rows", len(batch["x"])):
            pyro.sample("z", dist.Normal(batch["x"], 1.0))

    args = ({"x": torch.arange(10.0), "of": [torch.arange(10.0)]},)
    (taken,), numbers = pair_of(model, guide, args).evenly(args, 4)
    assert numbers == [0, 3, 6, 9]
    assert taken["x"].tolist() == taken["of"][0].tolist() == [0.0, 3.0, 6.0, 9.0]


def test_all_rows_are_taken_where_a_latent_is_shared():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        pyro.sample("w", dist.Normal(0.0, 1.0))

    args = (torch.arange(10.0),)
    taken, numbers = pair_of(model, guide, args).evenly(args, 4)
    assert taken == args and numbers == list(range(10))

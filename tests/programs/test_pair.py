"""The owners of a pair's parameters."""

import pytest
from catalogue import CATALOGUE, Entry, bound_pair, columns

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

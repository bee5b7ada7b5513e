"""Values that a thread draws during the epoch before have the same bits, and the thread ends."""

import threading

import pytest
import torch

from pyro_vi import fit
from pyro_vi.data import Data, Redrawn, load, redrawing


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if "redrawing" in thread.name]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Data:
    monkeypatch.setattr(redrawing, "WORTH", 1)
    return load("digits", seed=2)


def test_each_epoch_is_that_of_the_data_in_any_order(small: Data) -> None:
    redrawn = Redrawn(small)
    for epoch, more in ((0, True), (1, True), (5, True), (6, False), (7, True), (7, False)):
        assert torch.equal(redrawn.stored(epoch, more)[0], small.stored(epoch)[0])
        assert bool(threads())
    redrawn.close()
    assert not threads()
    assert torch.equal(redrawn.stored(8)[0], small.stored(8)[0]) and not threads()


@pytest.mark.parametrize("data", [load("digits(binarize=False)"), load(torch.randn(9, 2)), load(None), load("digits")])
def test_no_thread_where_nothing_or_little_is_redrawn(data: Data) -> None:
    redrawn = Redrawn(data)
    assert len(redrawn.stored(0, more=True)) == len(data.columns) and not threads()


def test_a_failure_in_the_thread_is_raised_at_its_epoch(small: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawn(data: Data, epoch: int, rows: int) -> tuple[torch.Tensor, ...]:
        if epoch:
            raise MemoryError("too much")
        return (torch.zeros(rows, 64),)

    monkeypatch.setattr(Data, "_drawn", drawn)
    redrawn = Redrawn(small)
    assert len(redrawn.stored(0, more=True)[0]) == small.spec.num_data
    with pytest.raises(MemoryError, match="too much"):
        redrawn.stored(1)
    redrawn.close()
    assert not threads()


@pytest.mark.slow
def test_a_fit_has_the_same_bits_with_and_without_the_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"epochs": 3, "batch_size": 500, "progress": False, "compile": False}
    found = []
    for worth in (1, 2**40):
        monkeypatch.setattr(redrawing, "WORTH", worth)
        run = fit("vae(latent_dim=2)", "diag_normal", "digits", **options)  # type: ignore[arg-type]
        found.append({name: value.clone() for name, value in run.pair.state_dict().items()})
        assert not threads()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])

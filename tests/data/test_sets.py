"""The data sets by name: sizes, supports, moments and labels that their sources state."""

import os
from typing import Any

import numpy as np
import pytest
import torch
from data_toys import message, same
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine

from pyro_vi.data.loading import load
from pyro_vi.data.sets.raw import known_labels
from pyro_vi.errors import UsageError

needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")


@pytest.mark.parametrize(
    ("name", "source"), [("wine", load_wine), ("breast_cancer", load_breast_cancer), ("iris", load_iris)]
)
def test_tables_of_scikit_learn_keep_their_labels_apart(name: str, source: Any) -> None:
    found, data = source(), load(name, heldout=0.0, dtype=torch.float64)
    assert torch.equal(data.train()[0], torch.from_numpy(found.data))
    assert data.labels is not None
    assert torch.equal(data.labels, torch.from_numpy(found.target))
    assert data.classes == tuple(found.target_names)
    assert data.spec.features == tuple(found.feature_names)
    assert data.spec.others == ()
    split, labelled = load(name, seed=3), load(f"{name}(labels=True)", seed=3)
    assert same(split.train(), labelled.train()[:1])
    assert split.labels is not None
    assert split.heldout_labels is not None
    assert same((split.labels, split.heldout_labels), (labelled.train()[1], labelled.heldout[1]))
    (column,) = labelled.spec.others
    assert (column.name, column.support, column.classes) == ("label", "class", data.classes)


def test_tables_are_standardised_by_their_training_rows() -> None:
    raw, data = load("wine", dtype=torch.float64), load("wine(standardize=True)", dtype=torch.float64)
    (train,) = data.train()
    torch.testing.assert_close(train.mean(0), torch.zeros(13).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(train.std(0, correction=0), torch.ones(13).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(data.standardized(raw.heldout[0]), data.heldout[0], atol=1e-12, rtol=0)
    assert raw.standard is None
    assert torch.equal(raw.standardized(raw.heldout[0]), raw.heldout[0])


def test_the_target_of_diabetes_is_a_column_on_request() -> None:
    found = load_diabetes(scaled=False)
    x, y = load("diabetes(target=True)", heldout=0.0, dtype=torch.float64).train()
    assert torch.equal(x, torch.from_numpy(found.data))
    assert torch.equal(y, torch.from_numpy(found.target))
    assert load("diabetes(target=True)").spec.others[0].name == "target"
    assert len(load("diabetes").train()) == 1


def test_labels_of_some_rows_of_each_class() -> None:
    data, other = load("digits(labels=7)", seed=2), load("digits(labels=7)", seed=3)
    x, y = data.train()
    assert data.labels is not None
    assert [int((y == k).sum()) for k in range(10)] == [7] * 10
    assert torch.equal(y[y >= 0], data.labels[y >= 0])
    assert int((y == -1).sum()) == len(y) - 70
    assert (data.heldout[1] >= 0).all()
    assert torch.equal(load("digits(labels=7)", seed=2).train()[1], y)
    assert not torch.equal(other.train()[1] >= 0, y >= 0)
    # Images are still redrawn in each epoch, and stay beside their labels.
    again = data.train(1)
    assert torch.equal(again[1], y)
    assert not torch.equal(again[0], x)
    index, (images, labels) = next(data.batches(1, 50))
    assert same((images, labels), (again[0][index], y[index]))
    assert data.to(dtype=torch.float64).train()[1].dtype == torch.int64
    text = "wine: class 'class_2' has 48 training rows, and labels=49 asks for more; give at most 48"
    assert message(load, "wine(labels=49)", heldout=0.0) == text


def test_known_labels_are_drawn_without_favour() -> None:
    """2 of 8 rows of a class: each row has probability 1/4; 400 seeds, 4 standard errors."""
    labels = torch.zeros(8, dtype=torch.int64)
    counts = sum((known_labels(labels, 2, ("a",), seed, "x") == 0).double() for seed in range(400))
    assert torch.is_tensor(counts)
    assert (counts / 400 - 0.25).abs().max() < 4 * (0.25 * 0.75 / 400) ** 0.5


def test_labels_move_with_the_data_and_programs_do_not_see_them() -> None:
    data = load("digits").to(dtype=torch.float64)
    assert data.labels is not None
    assert data.labels.dtype == torch.int64
    assert len(data.example(3)) == 1
    assert torch.equal(data.to("cpu").labels, data.labels)  # type: ignore[arg-type]


@pytest.mark.slow
@needs_folder
def test_labels_of_images() -> None:
    mnist = load("mnist")
    assert mnist.labels is not None
    # The counts that everyone reports of the 60000 training images.
    wanted = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.labels.bincount().tolist() == wanted
    assert mnist.heldout_labels is not None
    assert mnist.heldout_labels[:5].tolist() == [7, 2, 1, 0, 4]
    omniglot = load("omniglot")
    assert omniglot.labels is not None
    assert omniglot.heldout_labels is not None
    assert len(omniglot.classes) == 50
    assert int((omniglot.labels == omniglot.classes.index("Latin")).sum()) > 0


@needs_folder
def test_faces_and_silhouettes() -> None:
    frey = load("frey")
    assert (frey.spec.num_data, frey.num_heldout, frey.spec.event_shape) == (1565, 200, (560,))
    assert (frey.spec.support, frey.spec.image_shape) == ("unit_interval", (28, 20))
    assert load("frey(binarize=True)").spec.support == "boolean"
    caltech, inverted = load("caltech"), load("caltech(invert=True)")
    assert (caltech.spec.num_data, caltech.num_heldout) == (4100, 2307)
    assert load("caltech(heldout_part='valid')").num_heldout == 2264
    assert torch.equal(1 - caltech.train()[0], inverted.train()[0])
    assert inverted.train()[0][:, 0].mean() < 0.2  # the corner is background
    assert caltech.labels is not None
    assert sorted(set(caltech.labels.tolist())) == list(range(101))


@needs_folder
def test_chorales_are_padded_sequences_with_their_lengths() -> None:
    data = load("jsb")
    x, lengths = data.train()
    assert x.shape == (229, 160, 88)
    assert int(lengths.sum()) == 13807
    assert (int(lengths.min()), int(lengths.max())) == (25, 129)
    assert [len(load(f"jsb(heldout_part='{part}')").heldout[1]) for part in ("valid", "test")] == [76, 77]
    inside = torch.arange(160) < lengths.unsqueeze(1)
    assert not x[~inside].any()
    assert float(x[inside].sum(-1).mean()) == pytest.approx(3.9, abs=0.05)  # notes a step
    assert data.heldout[0].shape == (77, 160, 88)
    assert int(data.heldout[1].sum()) == 4725
    assert data.spec.features[39] == "C4"  # the middle C, MIDI note 60
    assert data.columns[0].dtype == torch.uint8
    ((name, support),) = [(column.name, column.support) for column in data.spec.others]
    assert (name, support) == ("lengths", "nonnegative_integer")


@needs_folder
def test_the_nile_is_one_series() -> None:
    data = load("nile", dtype=torch.float64)
    assert data.train()[0].shape == (1, 100, 1)
    assert data.num_heldout == 0
    assert float(data.train()[0].mean()) == pytest.approx(919.35)
    assert float(data.train()[0].std()) == pytest.approx(169.23, abs=5e-3)
    (scaled,) = load("nile(standardize=True)", dtype=torch.float64).train()
    assert float(scaled.mean()) == pytest.approx(0, abs=1e-12)
    assert float(scaled.std(correction=0)) == pytest.approx(1)


@pytest.mark.slow
@needs_folder
def test_newsgroups_are_counts_of_words() -> None:
    data, whole = load("20ng(heldout_part='valid')"), load("20ng")
    assert (data.spec.num_data, data.spec.event_shape, data.spec.support) == (11214, (3072,), "nonnegative_integer")
    assert data.columns[0].dtype == torch.int16  # 69 MB, floats by batch
    assert int(data.columns[0].sum()) == 919850  # type: ignore[union-attr]
    assert [int(held.sum(dtype=torch.float64)) for held in (data.heldout[0], whole.heldout[0])] == [8334, 594276]
    halves = [load(f"20ng(heldout_part='test_{half}')").heldout[0] for half in ("h1", "h2")]
    assert len(halves[0]) == len(halves[1]) == len(whole.heldout[0]) == 7531
    assert len(data.spec.features) == len(set(data.spec.features)) == 3072
    assert data.example(2)[0].dtype == torch.float32


def test_moons_lie_on_their_circles() -> None:
    data = load("moons(rows=200, noise=0.0)", heldout=0.0, dtype=torch.float64)
    (x,), labels = data.train(), data.labels
    assert labels is not None
    centre = torch.where(labels.unsqueeze(1) == 0, torch.zeros(2).double(), torch.tensor([1.0, 0.5]).double())
    torch.testing.assert_close((x - centre).norm(dim=1), torch.ones(200).double())
    assert same(load("moons", seed=4).train(), load("moons", seed=4).train())
    assert np.bincount(labels).tolist() == [100, 100]
    assert "has no option 'row'; did you mean 'rows'?" in message(load, "moons(row=3)", error=UsageError)

"""The registered data sets: known shapes and moments, splits, options, folders and downloads."""

import functools
import gzip
import http.server
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import torch
from data_toys import message, same
from sklearn.datasets import load_digits

from pyro_vi.data import posteriordb
from pyro_vi.data.columns import draw
from pyro_vi.data.loading import available, load
from pyro_vi.data.sets import images as of_images
from pyro_vi.errors import UsageError

needs_folder = pytest.mark.skipif("PYRO_VI_DATA" not in os.environ, reason="PYRO_VI_DATA is not set")


STATIC = "mnist_static_binarized/binarized_mnist_packed.npz"


OMNIGLOT = "omniglot/omniglot_28.npz"


def test_digits_shapes_and_spec() -> None:
    data = load("digits")
    (train,), (heldout,) = data.train(), data.heldout
    assert train.shape == (1498, 64)
    assert heldout.shape == (299, 64)
    assert train.dtype == heldout.dtype == data.spec.dtype == torch.float32
    assert set(train.unique().tolist()) == set(heldout.unique().tolist()) == {0.0, 1.0}
    spec = data.spec
    assert (spec.name, spec.num_data, spec.event_shape) == ("digits", 1498, (64,))
    assert (spec.support, spec.image_shape) == ("boolean", (8, 8))
    assert "CC BY 4.0" in spec.source


def test_digits_are_those_of_scikit_learn_with_and_without_its_file(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = load_digits()
    for path in (Path.is_file, lambda _: False):
        monkeypatch.setattr(Path, "is_file", path)
        values, target = of_images._sklearn_digits()
        assert values.dtype == torch.uint8 and target.dtype == torch.int64
        assert np.array_equal(values.numpy(), whole.data) and np.array_equal(target.numpy(), whole.target)


@pytest.mark.parametrize("rows", [1, 3, 4095, 4096, 4097, 5000])
def test_the_first_rows_are_drawn_as_all_are(rows: int) -> None:
    stored = torch.arange(17, dtype=torch.uint8).expand(5000, 17)
    whole = draw(stored, 16, torch.Generator().manual_seed(1), 5000)
    assert torch.equal(draw(stored, 16, torch.Generator().manual_seed(1), rows), whole[:rows])


def test_digits_split_is_disjoint_and_covers() -> None:
    data = load("digits(binarize=False)", seed=3)
    assert data.spec.support == "unit_interval"
    parts = torch.cat([data.train()[0], data.heldout[0]])
    whole = torch.from_numpy(load_digits().data / 16).float()
    # As multisets of rows: sorted lexicographically, both are the same table.
    assert np.array_equal(np.unique(parts.numpy(), axis=0), np.unique(whole.numpy(), axis=0))
    assert len(parts) == len(whole)
    assert torch.allclose(parts.double().sum(0), whole.double().sum(0))
    other = load("digits(binarize=False)", seed=4)
    assert not torch.equal(other.heldout[0], data.heldout[0])


def test_binarised_digits_average_to_the_pixel_values() -> None:
    epochs = 200
    data, pixels = load("digits", seed=5), load("digits(binarize=False)", seed=5).train()[0].double()
    total = torch.zeros_like(pixels)
    for epoch in range(epochs):
        total += data.train(epoch)[0]
    mean, error = total / epochs, (pixels * (1 - pixels) / epochs).sqrt()
    certain = (pixels == 0) | (pixels == 1)
    assert torch.equal(mean[certain], pixels[certain])
    # 4 standard errors for each level's average over all its pixels and epochs: 15 comparisons of huge samples.
    for level in range(1, 16):
        where = pixels == level / 16
        standard_error = (level / 16 * (1 - level / 16) / (epochs * int(where.sum()))) ** 0.5
        assert abs(float(mean[where].mean()) - level / 16) < 4 * standard_error
    # Per pixel: z-scores of that many draws have variance 1.
    z = ((mean - pixels) / error)[~certain]
    assert abs(float(z.square().mean()) - 1) < 4 * (2 / len(z)) ** 0.5 + 0.01


def test_heldout_digits_are_one_draw_of_the_pixel_values() -> None:
    drawn, pixels = load("digits", seed=2).heldout[0], load("digits(binarize=False)", seed=2).heldout[0]
    assert ((drawn == pixels) | ((pixels > 0) & (pixels < 1))).all()
    error = (pixels * (1 - pixels)).sum().sqrt()
    assert abs(float((drawn - pixels).sum())) < 4 * float(error)


def test_standardised_digits() -> None:
    data = load("digits(standardize=True)", seed=1, dtype=torch.float64)
    (train,) = data.train()
    assert train.mean(0).abs().max() < 1e-6
    assert (train.std(0, correction=0) - 1).abs().max() < 1e-6
    assert (data.spec.support, data.spec.image_shape) == ("real", None)
    assert data.spec.event_shape == (train.shape[1],)
    pixels = load("digits(binarize=False)", seed=1, dtype=torch.float64)
    raw = pixels.train()[0]
    varies = raw.std(0) > 0
    assert train.shape == (1498, int(varies.sum()))
    loc, scale = raw[:, varies].mean(0), raw[:, varies].std(0, correction=0)
    assert torch.allclose(data.heldout[0], (pixels.heldout[0][:, varies] - loc) / scale)
    assert load("digits(standardize=True)").train()[0].std(0, correction=0).sub(1).abs().max() < 1e-6


def test_available() -> None:
    images = ["digits", "mnist", "mnist_static", "omniglot", "frey", "caltech"]
    tables = ["wine", "breast_cancer", "iris", "diabetes", "moons"]
    assert list(available()) == [*images, *tables, "jsb", "robot", "nile", "20ng", *posteriordb.NAMES]
    assert all(text and "\n" not in text for text in available().values())


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (
            "digts",
            "no data set named 'digts'; did you mean 'digits'? Available: digits, mnist, mnist_static, omniglot, frey",
        ),
        ("digts(binarize=False)", "did you mean 'digits'?"),
        (
            "digits(binarise=False)",
            "data set 'digits' has no option 'binarise'; did you mean 'binarize'? Its options are",
        ),
        ("digits(binarize='no')", "data set 'digits': binarize='no' is not allowed; use True or False"),
        ("digits(binarize=1)", "binarize=1 is not allowed; use True or False"),
        ("digits(binarize=True, standardize=True)", "exclude each other; leave one out"),
        ("digits(False)", "'False' has no option name; write it as option=value"),
        ("digits(binarize=", "cannot read 'digits(binarize='"),
        ("omniglot(heldout_part='train')", "heldout_part='train' is not allowed; use 'test' or 'valid'"),
        ("mnist(standardize=True)", "has no option 'standardize'; did you mean 'binarize'? Its options are: binarize"),
        ("digits(labels=0)", "labels=0 is not allowed; use False or True or a whole number of at least 1"),
        ("moons(noise=-1)", "noise=-1 is not allowed; use a number of at least 0"),
        ("20ng(heldout_part='h1')", "use 'test' or 'valid' or 'test_h1' or 'test_h2'"),
        ("wine(columns='alcohol')", "data set 'wine' has no option 'columns'. Its options are: standardize, labels"),
        ("robot(steps=3)", "at least 2 sequences of at least 4 steps; raise sequences or steps"),
    ],
)
def test_refused_names(name: str, problem: str) -> None:
    assert problem in message(load, name, error=UsageError)


def test_sets_with_their_own_split_refuse_another() -> None:
    text = "data set 'mnist' has a held-out part of its own; leave heldout out"
    assert message(load, "mnist", heldout=0.1, error=UsageError) == text
    text = "data set 'kidiq' is fitted as a whole, and nothing of it is held out; leave heldout out"
    assert message(load, "kidiq", heldout=0.1, error=UsageError) == text


@pytest.fixture
def no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYRO_VI_DATA", raising=False)


@pytest.mark.parametrize(("name", "relative"), [("mnist_static", STATIC), ("omniglot", OMNIGLOT)])
def test_missing_and_damaged_folders(
    name: str, relative: str, no_folder: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = f"data set '{name}': PYRO_VI_DATA is not set; set it to a folder that has {relative}"
    assert message(load, name) == text
    monkeypatch.setenv("PYRO_VI_DATA", str(tmp_path))
    assert message(load, name) == text.replace("is not set", f"has no {relative}")
    (tmp_path / relative).parent.mkdir()
    (tmp_path / relative).write_bytes(b"PK\x03\x04 damaged")
    text = message(load, name)
    assert text.startswith(f"data set '{name}': cannot read ")
    assert text.endswith("; replace the file by an intact copy")


def test_small_mnist_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYRO_VI_DATA", str(tmp_path))
    (tmp_path / "mnist").mkdir()
    assert "put the original train-images-idx3-ubyte.gz there" in message(load, "mnist")
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    header = np.array([2051, 5, 28, 28], ">u4").tobytes()
    names = list(of_images.MNIST_SHA256)
    for name in names[:2]:
        (tmp_path / "mnist" / name).write_bytes(gzip.compress(header + images.tobytes()))
    data = load("mnist(binarize=False)")
    assert data.labels is None
    assert "put the original train-labels-idx1-ubyte.gz there" in message(load, "mnist(labels=True)")
    for name, count in zip(names[2:], (5, 4), strict=True):
        labels = np.array([2049, count], ">u4").tobytes() + bytes(range(count))
        (tmp_path / "mnist" / name).write_bytes(gzip.compress(labels))
    assert "5 and 5 images have 5 and 4 labels" in message(load, "mnist")
    (tmp_path / "mnist" / names[3]).unlink()
    assert torch.equal(data.heldout[0], torch.from_numpy(images).reshape(5, 784) / 255)
    assert same(data.train(), data.heldout)
    for content in (b"no gzip", gzip.compress(b"short"), gzip.compress(header + b"1"), gzip.compress(b"\0" * 16)):
        (tmp_path / "mnist" / "t10k-images-idx3-ubyte.gz").write_bytes(content)
        assert "put the original t10k-images-idx3-ubyte.gz there" in message(load, "mnist")


@pytest.mark.slow
@needs_folder
def test_mnist() -> None:
    data, grey = load("mnist"), load("mnist(binarize=False)")
    assert data.spec.num_data == 60000
    assert (data.spec.event_shape, data.spec.image_shape, data.spec.support) == ((784,), (28, 28), "boolean")
    assert grey.spec.support == "unit_interval"
    assert data.columns[0].dtype == torch.uint8
    (heldout,), (pixels,) = data.heldout, grey.heldout
    assert heldout.shape == pixels.shape == (10000, 784)
    assert round(float(pixels.mean()), 4) == 0.1325  # the well-known mean of the test images, 33.8 / 255
    assert abs(float((heldout - pixels).sum())) < 4 * float((pixels * (1 - pixels)).sum().sqrt())
    index, (batch,) = next(data.batches(0, 100))
    assert batch.shape == (100, 784)
    assert torch.equal(batch, data.train(0)[0][index])
    assert torch.equal(data.example(5)[0], data.train(0)[0][:5])


@needs_folder
def test_mnist_static() -> None:
    data, valid = load("mnist_static"), load("mnist_static(heldout_part='valid')")
    (train,) = data.train()
    assert (train.shape, data.heldout[0].shape) == ((50000, 784), (10000, 784))
    assert (data.spec.support, data.spec.image_shape) == ("boolean", (28, 28))
    means = [round(float(x.mean(dtype=torch.float64)), 4) for x in (train, valid.heldout[0], data.heldout[0])]
    assert means == [0.1306, 0.1311, 0.1325]
    data.spec.check(data.heldout[0])
    assert data.to(dtype=torch.float64).columns[0].dtype == torch.uint8


@needs_folder
def test_omniglot() -> None:
    data, grey = load("omniglot"), load("omniglot(binarize=False, heldout_part='valid')")
    assert (data.spec.num_data, data.heldout[0].shape, grey.heldout[0].shape) == (23000, (8115, 784), (1345, 784))
    assert (data.spec.support, grey.spec.support, data.spec.image_shape) == ("boolean", "unit_interval", (28, 28))
    (batch,), (pixels,) = data.example(4000), grey.example(4000)
    assert abs(float((batch - pixels).sum())) < 4 * float((pixels * (1 - pixels)).sum().sqrt())


@pytest.fixture
def cache(tmp_path: Path, no_folder: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pooch, "os_cache", lambda project: tmp_path / "cache" / project)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "cache" / "pyro_vi"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | Path], None]]:
    servers = []

    def start(folder: str | Path) -> None:
        handler = functools.partial(Quiet, directory=str(folder))
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(of_images, "MNIST_URL", f"http://127.0.0.1:{server.server_port}/")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


FOLDER = os.environ.get("PYRO_VI_DATA", "")


@pytest.mark.slow
@needs_folder
def test_mnist_is_downloaded_once(cache: Path, serve: Callable[[str | Path], None], monkeypatch: Any) -> None:
    serve(Path(FOLDER) / "mnist")
    downloaded = load("mnist(binarize=False)")
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(of_images.MNIST_SHA256)
    monkeypatch.setattr(of_images, "MNIST_URL", "http://127.0.0.1:9/")
    again = load("mnist(binarize=False)")  # from the cache: nothing listens there
    assert same(downloaded.columns, again.columns)
    monkeypatch.setenv("PYRO_VI_DATA", FOLDER)
    assert same(downloaded.columns, load("mnist(binarize=False)").columns)


def test_failed_download(cache: Path, serve: Callable[[str | Path], None], tmp_path: Path, monkeypatch: Any) -> None:
    name = "train-images-idx3-ubyte.gz"
    remedy = f"; set PYRO_VI_DATA to a folder that has mnist/{name}"
    monkeypatch.setattr(of_images, "MNIST_URL", "http://127.0.0.1:9/")
    text = message(load, "mnist")
    assert text.startswith(f"data set 'mnist': cannot download http://127.0.0.1:9/{name} (")
    assert text.endswith(remedy)
    (tmp_path / "served").mkdir()
    serve(tmp_path / "served")
    assert "404" in message(load, "mnist")
    (tmp_path / "served" / name).write_bytes(b"something else")
    text = message(load, "mnist")
    assert "SHA256" in text
    assert text.endswith(remedy)
    assert not (cache / "mnist" / name).exists()

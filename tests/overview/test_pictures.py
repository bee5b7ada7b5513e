"""Pictures with a stand-in for graphviz, and without it."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vi
from pyro_vi.overview import pictures


class Digraph:
    """Records what is drawn and writes its edges."""

    def __init__(self, name: str = "") -> None:
        self.name, self.edges, self.parts = name, [], []

    def attr(self, **_: object) -> None: ...
    def node(self, *_: object, **__: object) -> None: ...

    def subgraph(self, other: "Digraph") -> None:
        self.parts.append(other.name)

    def edge(self, source: str, target: str) -> None:
        self.edges.append((source, target))

    def render(self, path: str, **options: object) -> None:
        Path(f"{path}.{options['format']}").write_text(f"{self.edges} {self.parts}")


@pytest.fixture
def graphviz(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in, as graphviz need not be there."""
    module = SimpleNamespace(Digraph=Digraph, __spec__=SimpleNamespace(name="graphviz"))
    monkeypatch.setitem(sys.modules, "graphviz", module)
    monkeypatch.setattr(pictures.shutil, "which", lambda name: f"/bin/{name}")


def model(x):
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x):
    pyro.sample("w", dist.Normal(pyro.param("loc", torch.zeros(())), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x, 1.0))


@pytest.mark.usefixtures("graphviz")
def test_the_pictures_have_the_edges_of_the_programs(tmp_path):
    layout = pyro_vi.show(model, guide, torch.zeros(9), out=tmp_path / "new")
    assert layout.pictures == tuple(str(tmp_path / "new" / name) for name in ("model.png", "guide.png"))
    assert layout.picture_note == ""
    assert (tmp_path / "new" / "model.png").read_text() == "[('w', 'z'), ('z', 'x')] ['cluster_data']"
    assert (tmp_path / "new" / "guide.png").read_text() == "[] ['cluster_data']"
    assert str(layout).splitlines()[-2:] == list(layout.pictures)
    assert (tmp_path / "new" / "layout.json").is_file()


@pytest.mark.usefixtures("graphviz")
def test_a_program_that_cannot_be_tracked_is_said_in_one_line(tmp_path, monkeypatch):
    def fails(program, *args, **options):
        raise RuntimeError("cannot be tracked\nat all")

    monkeypatch.setattr(pictures, "render_model", fails)
    layout = pyro_vi.show(model, guide, torch.zeros(9), out=tmp_path)
    assert layout.pictures == ()
    assert layout.picture_note == "no picture of the model, as pyro.render_model fails: RuntimeError: cannot be tracked"


def test_without_graphviz_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: None)
    layout = pyro_vi.show(model, guide, torch.zeros(9), out=tmp_path)
    assert layout.pictures == () and [path.name for path in tmp_path.iterdir()] == ["layout.json"]
    assert layout.picture_note == "no picture, as the Python package graphviz is not installed: pip install graphviz"
    assert str(layout).endswith(layout.picture_note)
    monkeypatch.setattr(pictures.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(pictures.shutil, "which", lambda name: None)
    assert "program dot is not installed" in pyro_vi.show(model, guide, torch.zeros(9), out=tmp_path).picture_note

"""A step that is compiled by another process: what is handed over, what comes back, and fits that take it."""

import gc
import operator
import os
import re
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from catalogue import columns
from small_fits import DIAGONAL, LINEAR, quick, same_fit
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi import Run
from pyro_vi.compiling import background, choice, inductor
from pyro_vi.compiling.background import Background, Pending
from pyro_vi.compiling.choice import Choice, Chosen
from pyro_vi.compiling.cost import SECONDS
from pyro_vi.compiling.inductor import compile_graph, is_kept
from pyro_vi.compiling.written import read_graph, write_graph
from pyro_vi.data.loading import load
from pyro_vi.errors import NoGraph
from pyro_vi.fitting.settings import Position
from pyro_vi.fitting.steps import Steps

aten = torch.ops.aten


def graph_of(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    with torch.no_grad():
        return make_fx(function)(*(value.clone() for value in inputs))


def nodes_of(graph: fx.Graph) -> list[str]:
    """The nodes of a graph, with their numbers for their names; all arguments with their types."""
    numbers = {node: f"%{i}" for i, node in enumerate(graph.nodes)}

    def shown(value: Any) -> str:
        if isinstance(value, fx.Node):
            return numbers[value]
        if isinstance(value, dict):
            return f"{{{', '.join(f'{key}={shown(one)}' for key, one in value.items())}}}"
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return f"{kind}({', '.join(map(shown, value))})"
        return f"{type(value).__name__} {value!r}"

    return [
        f"{node.op} {node.target if node.op == 'call_function' else ''} {shown(node.args)} {shown(node.kwargs)}"
        for node in graph.nodes
    ]


def there_and_back(graph: fx.GraphModule) -> fx.GraphModule:
    found = read_graph(write_graph(graph.graph))
    assert nodes_of(found.graph) == nodes_of(graph.graph)
    found.graph.lint()
    return found


def drawn(function: Callable[..., Any], inputs: Sequence[Tensor]) -> list[Tensor]:
    torch.manual_seed(5)
    return [value.clone() for value in function(*(one.clone() for one in inputs))]


# ---- graphs as plain values


def step(place: Tensor, table: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
    """Tensors in lists, several results, slices, dtypes, devices, None, special floats, draws and changes in place."""
    picked = aten.index.Tensor(table, [rows])
    both = torch.cat([picked, picked.flip(0)], 0)
    top, where = both.max(0)
    clamped = both[1:-1, ::2].clamp(min=None, max=1.5).masked_fill(both[1:-1, ::2] > 1, float("-inf"))
    filled = torch.full_like(clamped, float("nan"), dtype=torch.float32, device="cpu")
    noise = torch.randn(3, dtype=torch.float64) + torch.zeros((), dtype=torch.float64)
    laid = both.reshape(1, 2, 2, -1).clone(memory_format=torch.channels_last)
    one, _, _ = aten.native_layer_norm(both, [both.shape[1]], None, None, 1e-5)
    place.add_(noise.sum())
    return place + 0, top, where, clamped, filled, noise, laid, one, torch.gather(both, 1, both.argsort(1))


def stepped() -> list[Tensor]:
    made = torch.Generator().manual_seed(1)
    table = torch.randn(6, 4, generator=made, dtype=torch.float64)
    return [torch.zeros((), dtype=torch.float64), table, torch.tensor([1, 5])]


def test_a_graph_there_and_back():
    graph = graph_of(step, *stepped())
    text = "\n".join(nodes_of(graph.graph))
    for part in ("list(%", "NoneType None", "float -inf", "float nan", "torch.float32", "channels_last", "getitem"):
        assert part in text, part
    found = there_and_back(graph)
    for one, two in zip(drawn(graph, stepped()), drawn(found, stepped()), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)


def test_unused_nodes_stay():
    """Such as draws, which move the generator."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.placeholder("unused")
    graph.call_function(aten.randn.default, ([2],), {"dtype": torch.float64, "pin_memory": False})
    graph.call_function(aten.add_.Tensor, (x, 1), {"alpha": 2.5})
    graph.output((x,))
    found = there_and_back(fx.GraphModule(torch.nn.Module(), graph))
    assert len(found.graph.nodes) == 5
    assert drawn(found, [torch.zeros(2), torch.zeros(2)])[0].tolist() == [2.5, 2.5]


ARGUMENTS = [
    *(None, True, 1, -(2**62), 1.5, -0.0, float("nan"), float("inf"), float("-inf"), 1 + 2j, "mean"),
    *(torch.float64, torch.bool, torch.device("cpu"), torch.device("cuda", 1), torch.strided, torch.sparse_coo),
    *(torch.contiguous_format, torch.channels_last, torch.preserve_format),
    *([], (), [1, 2], (1, (2, [3.5, None])), slice(None, -1, 2), (slice(1, None), ...), {"a": [1]}),
]


@pytest.mark.parametrize("value", ARGUMENTS, ids=repr)
def test_each_kind_of_argument(value):
    """As argument, as keyword, and beside the results of nodes; also once it was pickled."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(aten.add.Tensor, (x, value), {"alpha": value})
    graph.call_function(operator.getitem, (y, value))
    graph.call_function(aten.cat.default, ([x, y, (y, value)],), {"where": {"inside": [x, value]}})
    graph.output(([y, value], x))
    lines = write_graph(graph)
    found = read_graph(lines)
    assert nodes_of(found.graph) == nodes_of(graph)


def test_nodes_within_slices_and_dictionaries():
    graph = fx.Graph()
    x = graph.placeholder("x")
    graph.call_function(operator.getitem, ((1, 2, 3), slice(None, x, 2)))
    graph.call_function(aten.cat.default, ([x],), {"where": {"key": x}})
    graph.output(x)
    found = read_graph(write_graph(graph))
    place, first, second, _ = found.graph.nodes
    assert first.args[1] == slice(None, place, 2)
    assert second.kwargs["where"] == {"key": place}


def test_what_cannot_be_handed_over():
    held = torch.nn.Module()
    held.number = torch.ones(2)
    constant = fx.Graph()
    constant.output(constant.call_function(aten.neg.default, (constant.get_attr("number"),)))
    method = fx.Graph()
    method.output(method.call_method("neg", (method.placeholder("x"),)))
    function = fx.Graph()
    function.output(function.call_function(torch.sin, (function.placeholder("x"),)))
    for graph, named in ((constant, "number"), (method, "neg"), (function, "sin")):
        with pytest.raises(NoGraph, match=f"^a graph with '.*{named}.*' cannot be handed to another process$"):
            write_graph(graph)


# ---- the process


def small() -> tuple[fx.GraphModule, list[Tensor]]:
    """A graph with a constant, and its inputs."""
    table = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)

    def function(place: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        place.add_(x.sum())
        return (place * 2 + (x * table).sum(),)

    inputs = [torch.ones((), dtype=torch.float64), torch.arange(3, dtype=torch.float64)]
    return graph_of(function, *inputs), inputs


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))


def waited(done: Callable[[], bool], seconds: float = 120.0) -> None:
    last = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < last, "it takes too long"
        time.sleep(0.01)


def folder_of(one: Background) -> Path:
    return Path(one._folder.name)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_a_graph_is_compiled_for_this_process(monkeypatch):
    graph, inputs = small()
    assert not is_kept(graph, inputs)
    made = Background(graph, inputs)
    folder = folder_of(made)
    assert folder.is_dir()
    assert not made.ended()
    waited(made.ended)
    assert made.result() == ""
    assert not folder.exists()
    assert is_kept(graph, inputs)

    def fail(*_: Any) -> Any:
        raise AssertionError("this must not be compiled")

    monkeypatch.setattr(inductor, "_compile", fail)
    place, x = inputs
    (found,) = compile_graph(graph, inputs)([place, x])
    assert (float(found), float(place)) == (2 * 4 + 10, 4)
    another = graph_of(lambda x: (x + 1,), x)
    with pytest.raises(NoGraph, match="must not be compiled"):
        compile_graph(another, [x])


@pytest.mark.slow
@pytest.mark.usefixtures("fresh")
def test_the_process_has_the_settings_of_this_one():
    """Its code is found under them, and not without them."""
    graph, inputs = small()
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("high")
        torch.set_num_threads(2)
        torch.use_deterministic_algorithms(True, warn_only=True)
        assert Background(graph, inputs).result() == ""
        assert is_kept(graph, inputs)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_default_dtype(before[0])
        torch.set_float32_matmul_precision(before[1])
        torch.set_num_threads(before[2])
    assert not is_kept(graph, inputs)


@pytest.mark.slow
def test_a_process_that_fails_says_why():
    """Here by an operation that only this process knows."""
    library = torch.library.Library("toys_of_background", "DEF")
    library.define("doubled(Tensor x) -> Tensor")
    library.impl("doubled", lambda x: 2 * x, "CompositeExplicitAutograd")
    graph = fx.Graph()
    graph.output((graph.call_function(torch.ops.toys_of_background.doubled.default, (graph.placeholder("x"),)),))
    made = Background(fx.GraphModule(torch.nn.Module(), graph), [torch.ones(2)])
    folder = folder_of(made)
    why = made.result()
    assert why.startswith("AttributeError: ") and "doubled" in why and "\n" not in why
    assert made.ended()
    assert not folder.exists()


STARTED = """#!/bin/sh
sleep 1000 &
echo $$ $! > "$TOLD.half"
mv "$TOLD.half" "$TOLD"
wait
"""


def stands_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> Path:
    """Let a shell script stand in for Python; return the file in which it tells something."""
    program, told = tmp_path / "python", tmp_path / "told"
    program.write_text(script)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("TOLD", str(told))
    monkeypatch.setattr(background, "sys", SimpleNamespace(executable=str(program)))
    return told


def runs(number: int) -> bool:
    """True if a process runs; one that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


on_linux = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


@on_linux
@pytest.mark.parametrize("by", ["stop", "garbage"])
def test_the_process_ends_with_what_it_has_started(tmp_path, monkeypatch, by):
    told = stands_in(tmp_path, monkeypatch, STARTED)
    made = Background(*small())
    folder = folder_of(made)
    waited(told.exists)
    numbers = [int(number) for number in told.read_text().split()]
    assert len(numbers) == 2 and all(map(runs, numbers))
    assert not made.ended() and folder.is_dir()
    if by == "stop":
        made.stop()
        made.stop()  # once more does nothing
        assert made.ended()
    del made
    gc.collect()
    waited(lambda: not any(map(runs, numbers)), 10.0)
    assert not folder.exists()


@on_linux
def test_a_process_that_is_killed(tmp_path, monkeypatch):
    """Such as by the system, for want of memory; what it has started does not go on."""
    told = stands_in(tmp_path, monkeypatch, STARTED)
    made = Background(*small())
    waited(told.exists)
    numbers = [int(number) for number in told.read_text().split()]
    os.kill(numbers[0], signal.SIGKILL)
    waited(made.ended, 10.0)
    assert made.result() == "the compiler's process died"
    waited(lambda: not any(map(runs, numbers)), 10.0)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo first; echo; echo 'the last one '; exit 1", "the last one"),
        ("exit 3", "the compiler's process died"),
        ("echo much; exit 0", ""),
    ],
)
def test_what_the_process_says(tmp_path, monkeypatch, script, why):
    stands_in(tmp_path, monkeypatch, f"#!/bin/sh\n{script}\n")
    made = Background(*small())
    folder = folder_of(made)
    assert made.result() == why
    assert made.ended() and not folder.exists()


def test_a_process_that_cannot_be_started(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "sys", SimpleNamespace(executable=str(tmp_path / "none")))
    made: list[Any] = []
    folders = background.tempfile.TemporaryDirectory

    def noted(**options: Any) -> Any:
        made.append(folders(**options))
        return made[0]

    monkeypatch.setattr(background, "tempfile", SimpleNamespace(TemporaryDirectory=noted))
    with pytest.raises(NoGraph, match=r"^no process to compile in: .*No such file") as caught:
        Background(*small())
    assert "\n" not in str(caught.value)
    assert not Path(made[0].name).exists()


def test_nothing_is_begun_for_another_device():
    graph, inputs = small()
    with pytest.raises(NoGraph, match=r"^compiled code for a GPU is not kept on disk$"):
        Background(graph, [value.to("meta") for value in inputs])


# ---- fits


class Killed(BaseException):
    """An error that ends a fit between two steps, as a signal would."""


@pytest.fixture
def switching(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let fits with ``compile="auto"`` begin in the background after their first step, and switch after a given step."""

    def at(step: int) -> None:
        is_kept = Pending.is_kept
        calls: dict[int, int] = {}

        def ended(self: Pending) -> bool:  # asked once after each step, from the first on
            calls[id(self)] = calls.get(id(self), 0) + 1
            return calls[id(self)] == step

        monkeypatch.setattr(Pending, "ended", ended)
        # An earlier test may have left the code on disk.
        monkeypatch.setattr(Pending, "is_kept", lambda self: self._background is not None and is_kept(self))
        monkeypatch.setattr(choice, "processors", lambda: 2)
        monkeypatch.setattr(choice, "timed", lambda run: run() and 0.0)
        for name, seconds in {"capture": 0.0, "captured": 0.0, "switch": -1e12, "several": 1.2e-5}.items():
            monkeypatch.setitem(SECONDS, name, seconds)

    return at


STEPS, SWITCH = 400, 101
PLAIN: dict[str, Any] = {"schedule": "constant"}
VARYING: dict[str, Any] = {
    "schedule": "cosine",
    "warmup": 2 * SWITCH,
}  # rate and weight of the KL change at the switch, too


def fitted(out: Path | None = None, compile: Any = "auto", **options: Any) -> Run:
    """A fit in float64 with two lengths of batches, of which the more frequent one may be compiled."""
    given = {"steps": STEPS, "batch_size": 8, "lr": 0.01, "check": False, "seed": 3, "compile": compile, "out": out}
    return quick(LINEAR, DIAGONAL, load(columns(44), heldout=0.0), **{**given, **options})


NOTE = rf"^compiled steps from step {SWITCH + 1} on; compiled in the background in [0-9.]+ s$"


@pytest.mark.slow
@pytest.mark.parametrize("options", [PLAIN, VARYING], ids=["plain", "varying"])
def test_a_fit_that_switches_is_the_eager_one(switching, options):
    """To rounding; and it has the same bits if it switches at the same step."""
    switching(SWITCH)
    eager = fitted(compile=False, **options)
    found = fitted(**options)
    assert re.match(NOTE, found.choice.note)
    assert found.choice.record() == {"lengths": [8], "together": [8], "captured": [4], "coming": []}
    assert len(found.history) == len(eager.history) > 100
    for one, two in zip(found.history, eager.history, strict=True):
        for key in ("step", "loss", "elbo", "reconstruction", "kl", "grad_norm", "lr", "beta"):
            assert one[key] == pytest.approx(two[key], rel=1e-9, abs=1e-9), (key, one["step"])
    for name, value in eager.pair.state_dict().items():
        torch.testing.assert_close(found.pair.state_dict()[name], value, rtol=1e-9, atol=1e-9)
    assert same_fit(found, fitted(**options))


@pytest.mark.slow
@pytest.mark.parametrize(("options", "later"), [(PLAIN, 1), (VARYING, 15)], ids=["plain", "varying"])
def test_a_fit_that_is_killed_after_the_switch(switching, tmp_path, options, later):
    """It goes on from the checkpoint at the switch, with the same bits."""
    switching(SWITCH)
    whole = fitted(tmp_path / "whole", **options)
    assert re.match(NOTE, whole.choice.note)

    def kill(record: Any) -> None:
        if record["step"] > SWITCH + later:
            raise Killed

    with pytest.raises(Killed):
        fitted(tmp_path / "killed", callbacks=[kill], **options)
    state = torch.load(tmp_path / "killed" / "checkpoint.pt", weights_only=True)
    assert state["position"]["step"] == SWITCH
    assert state["compiled"] == whole.choice.record()
    resumed = fitted(tmp_path / "killed", resume=True, **options)
    assert resumed.choice.record() == whole.choice.record()
    assert same_fit(resumed, whole)


@pytest.mark.slow
def test_a_fit_that_ends_before_the_switch(switching, monkeypatch):
    """It takes captured steps to the end, and the compiler is stopped."""
    switching(10**9)
    made: list[Background] = []
    begin = Background.__init__

    def noted(self: Background, *arguments: Any) -> None:
        begin(self, *arguments)
        made.append(self)

    monkeypatch.setattr(Background, "__init__", noted)
    found, captured = fitted(), fitted(compile="captured")
    assert found.choice.record() == {"lengths": [], "together": [], "captured": [8, 4], "coming": [8]}
    assert found.choice.note.endswith("; the compiler works in the background")
    assert len(made) == 1 and made[0].ended() and not folder_of(made[0]).exists()
    assert same_fit(found, captured)


@pytest.mark.slow
def test_a_fit_whose_code_never_comes(switching, tmp_path, monkeypatch):
    switching(SWITCH)
    stands_in(tmp_path, monkeypatch, "#!/bin/sh\necho 'CppError: no such header'; exit 1\n")
    found, captured = fitted(), fitted(compile="captured")
    assert found.choice.record() == {"lengths": [], "together": [], "captured": [8, 4], "coming": []}
    assert found.choice.note.endswith("; not compiled: CppError: no such header")
    assert same_fit(found, captured)


def test_nothing_comes_once_compiled_steps_are_given_up(tmp_path, monkeypatch):
    """As one of them raised: those of another length that are being compiled are not waited for."""
    stands_in(tmp_path, monkeypatch, "#!/bin/sh\nexec sleep 1000\n")
    pending, steps = object.__new__(Pending), object.__new__(Steps)
    pending._background = Background(*small())
    steps.choice = Choice((4,), "", 0.0, captured=(8,), coming=(8,))
    steps._chosen, steps._compiled, steps._captured = Chosen(steps.choice, pending=pending), None, None
    steps.position = Position(step=6)
    assert not steps.ready()
    assert steps._go_eager("the compiled step raised (no)") == (
        "eager steps from step 7 on: the compiled step raised (no)"
    )
    assert pending.ended() and not steps.ready()
    assert steps.choice.record() == {"lengths": [], "together": [], "captured": [8], "coming": []}

"""A flat graph of tensor operations as compiled code.

* `compile_graph` turns a function of tensors, which may also change some of its arguments, into one call of machine code:
  Inductor with its C++ wrapper on the CPU, with Triton on a GPU. What it has compiled is found again by other processes, in
  Inductor's cache on disk.
* `why_not` says what is missing on this machine, so that nobody waits for a compiler that is not there.

Inductor is called below `torch.compile`: the graph is already flat, so that what stands between the two (guards on Python
state, the handling of autograd) has nothing to do, and costs 20 to 40 microseconds in each call.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch.func import functionalize

from pyro_vi.compiling.decompositions import table
from pyro_vi.compiling.products import multiplying
from pyro_vi.errors import NoGraph, kind_and_line
from pyro_vi.support import torch_internals
from pyro_vi.support.torch_internals import make_fx

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]
"""Called with all arguments in a list, which it empties."""


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Compile a graph for inputs of these shapes; in-place changes of inputs are kept.

    Random operations are the ones of torch and take from its generator what they take uncompiled, in the same order.

    Raises:
        NoGraph: with the first line of what the compiler says.
    """
    on_cpu = all(value.device.type == "cpu" for value in inputs)
    settings: dict[str, Any] = {
        "fallback_random": True,
        "cpp_wrapper": on_cpu,
        # Read from torch otherwise, and then no part of the key under which the result is cached.
        "cpp.threads": torch.get_num_threads(),
        # One piece of memory for all that a call needs, and not forty: 3 to 7 % of a small step.
        "memory_planning": on_cpu,
        # Would change the order of random operations, and with it the draws.
        "reorder_for_peak_memory": False,
        # Worker processes import torch anew: one graph is compiled sooner without them.
        "compile_threads": 1,
        # Inductor tries the compiler on every set of instructions that the processor has: 10 seconds the first time.
        "cpp.vec_isa_ok": True,
    }
    graph, constants = _lifted(graph)
    with _quiet():
        try:
            try:
                compiled = _compile(graph, [*inputs, *constants], settings)
            except NoGraph:
                raise
            except Exception:  # an old compiler may not know all instructions
                plain = {**settings, "cpp.vec_isa_ok": None, "memory_planning": False}
                compiled = _compile(graph, [*inputs, *constants], plain)
        except NoGraph:
            raise
        except Exception as error:
            raise NoGraph(f"{kind_and_line(error)}") from error
    return (lambda arguments: compiled([*arguments, *constants])) if constants else compiled


def _lifted(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """The graph with the tensors that it holds as its last inputs: held, they cannot be followed with fake values."""
    held = {str(node.target): getattr(graph, str(node.target)) for node in graph.graph.nodes if node.op == "get_attr"}
    held = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    lifted, at = fx.Graph(), {}
    places = [node for node in graph.graph.nodes if node.op == "placeholder"]
    for node in places:
        at[node] = lifted.node_copy(node)
    constants = {name: lifted.placeholder(f"held_{i}") for i, name in enumerate(held)}
    for node in graph.graph.nodes:
        if node.op == "get_attr" and node.target in constants:
            at[node] = constants[node.target]
        elif node.op != "placeholder":
            at[node] = lifted.node_copy(node, at.__getitem__)
    return fx.GraphModule(graph, lifted), [value.detach() for value in held.values()]


def _compile(graph: fx.GraphModule, inputs: Sequence[Tensor], settings: dict[str, Any]) -> Compiled:
    parts = torch_internals.inductor()
    with parts.config.patch(settings), torch.no_grad():
        decompositions = table(parts.decompositions())
        flat = make_fx(functionalize(graph), decomposition_table=decompositions, tracing_mode="fake")(*inputs)
        with mock.patch.object(parts.tables, "rand_ops", _random(flat)):
            flat.graph = parts.common(flat.graph)
        flat.recompile()
        fakes = [node.meta["val"] for node in flat.graph.nodes if node.op == "placeholder"]
        mode = fakes[0].fake_mode
        with parts.tracing(parts.context(mode)), parts.virtualized.set_fake_mode(mode), multiplying():
            compiled: Any = parts.compile(flat, fakes, is_inference=True, cpp_wrapper=parts.config.cpp_wrapper)
    # What stands around the call is for profilers and CUDA graph trees.
    inner: Compiled = getattr(compiled, "current_callable", None) or compiled
    return inner


def _random(graph: fx.GraphModule) -> set[Any]:
    # torch's own list of what must not become one operation lacks many: two draws of one distribution would be equal.
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    return {t.overloadpacket for t in targets if torch.Tag.nondeterministic_seeded in getattr(t, "tags", ())}


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block the compiler says nothing of its own code; but what was asked for (TORCH_LOGS)."""
    log = logging.getLogger("torch._inductor")
    before = log.level
    if log.getEffectiveLevel() == logging.WARNING:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(before)


def why_not(device: torch.device) -> str:
    """What this machine or this torch lacks to compile, with the remedy; empty where nothing is missing."""
    if device.type not in ("cpu", "cuda"):
        return f"there is no compiler for device '{device.type}'; use device='cpu' or 'cuda'"
    try:
        torch_internals.inductor()
        if device.type == "cpu":
            return _no_compiler()
        return "" if torch_internals.has_triton() else "there is no Triton for this GPU; pip install triton"
    except NoGraph as error:
        return str(error)


@cache
def _no_compiler() -> str:
    look = torch_internals.cpp_compiler()
    try:
        look()  # asks it for its version
    except Exception:
        return "there is no C++ compiler that works; install g++ (or set CXX to a C++ compiler)"
    return ""


def replayed(compiled: Compiled, kept: Sequence[Tensor], source: Sequence[Tensor]) -> Compiled:
    """A compiled step as a CUDA graph: launched at once, for inputs at fixed places, into which sources are copied.

    It is called as ``compiled`` is, with ``kept`` (changed in place) and a source of the same shapes. The generator's state
    moves on at each replay, so that draws are fresh.

    Raises:
        NoGraph: it cannot be recorded.
    """
    places = [value.clone() for value in source]
    stream = torch.cuda.Stream()
    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # what a kernel sets up at its first launches cannot be recorded
                compiled([*kept, *places])
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            results = compiled([*kept, *places])
    except Exception as error:
        raise NoGraph(f"{kind_and_line(error)}") from error

    last: list[Any] = [None] * len(places)

    def replay(inputs: list[Tensor]) -> Sequence[Tensor]:
        for i, value in enumerate(inputs[len(kept) :]):
            if value is not last[i]:  # the rows of a batch are new at each step, the data once in an epoch at most
                places[i].copy_(value)
                last[i] = value
        graph.replay()
        return [result.clone() for result in results]

    return replay

"""Compilation of a flat graph of tensor operations to machine code.

* `compile_graph` turns a graph, which may change some of its inputs in place, into one call of machine code: by Inductor with
  its C++ wrapper on the CPU, and with Triton on a GPU. Inductor's cache on disk lets other processes reuse the result.
* `why_not` names what is missing on this machine, before any work is done.
* `replayed` records a compiled step as a CUDA graph.

Inductor is called directly, without `torch.compile`. The graph is already flat, so guards on Python state and the handling of
autograd would do nothing, and would take 20 to 40 microseconds in each call.
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
"""A compiled function. It takes all arguments in one list, and empties the list."""


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Compile a graph for inputs of these shapes; the compiled call changes the inputs in place as the graph does.

    Random operations are those of torch. They draw the same numbers from its generator, in the same order, as in eager mode.

    Raises:
        NoGraph: the graph cannot be compiled; the message has the first line of the compiler's error.
    """
    on_cpu = all(value.device.type == "cpu" for value in inputs)
    settings: dict[str, Any] = {
        "fallback_random": True,
        "cpp_wrapper": on_cpu,
        # Without this, Inductor asks torch, and the number of threads is not part of the cache's key.
        "cpp.threads": torch.get_num_threads(),
        # One allocation per call instead of about forty; this saves 3 to 7 % of a small step.
        "memory_planning": on_cpu,
        # Reordering would change the order of random operations, and with it the draws.
        "reorder_for_peak_memory": False,
        # Worker processes would import torch first; one graph compiles faster without them.
        "compile_threads": 1,
        # Skips a test compilation for every instruction set of the processor, which takes 10 seconds the first time.
        "cpp.vec_isa_ok": True,
    }
    graph, constants = _lifted(graph)
    with _quiet():
        try:
            try:
                compiled = _compile(graph, [*inputs, *constants], settings)
            except NoGraph:
                raise
            except Exception:  # an old compiler may not support all instruction sets
                plain = {**settings, "cpp.vec_isa_ok": None, "memory_planning": False}
                compiled = _compile(graph, [*inputs, *constants], plain)
        except NoGraph:
            raise
        except Exception as error:
            raise NoGraph(f"{kind_and_line(error)}") from error
    return (lambda arguments: compiled([*arguments, *constants])) if constants else compiled


def is_kept(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> bool:
    """True if the compiled code of a graph is on disk, so that `compile_graph` only loads it."""
    return False


def _lifted(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return the graph with its constant tensors as further inputs at the end, and these tensors.

    The compiler traces the graph with fake tensors, and a constant would be a real one.
    """
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
    # The code around the inner call serves only profilers and CUDA graph trees.
    inner: Compiled = getattr(compiled, "current_callable", None) or compiled
    return inner


def _random(graph: fx.GraphModule) -> set[Any]:
    # If two random operations were merged, two draws of one distribution would be equal. torch's own list of operations that
    # must not be merged lacks many.
    targets = {node.target for node in graph.graph.nodes if node.op == "call_function"}
    return {t.overloadpacket for t in targets if torch.Tag.nondeterministic_seeded in getattr(t, "tags", ())}


@contextmanager
def _quiet() -> Iterator[None]:
    """Within the block, silence the compiler's warnings, except those that the user requested with TORCH_LOGS."""
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
    """Return what this machine or this torch lacks to compile, with the remedy; empty if nothing is missing."""
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
    """Return a compiled step as a CUDA graph, which launches all kernels at once and reads its inputs from fixed memory.

    It is called as ``compiled`` is, with ``kept`` (changed in place) and a source of the same shapes, which is copied to the
    fixed memory. The generator's state advances at each replay, so that draws are new.

    Raises:
        NoGraph: the step cannot be recorded.
    """
    places = [value.clone() for value in source]
    stream = torch.cuda.Stream()
    try:
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # kernels set themselves up in their first launches, which cannot be recorded
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
            if value is not last[i]:  # row numbers are new in each step, the data at most once per epoch
                places[i].copy_(value)
                last[i] = value
        graph.replay()
        return [result.clone() for result in results]

    return replay

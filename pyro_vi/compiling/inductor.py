"""Compilation of a flat graph of tensor operations to machine code.

* `compile_graph` turns a graph, which may change some of its inputs in place, into one call of machine code: by Inductor with
  its C++ wrapper on the CPU, and with Triton on a GPU. Inductor's cache on disk lets other processes reuse the result.
* `why_not` names what is missing on this machine, before any work is done.
* `replayed` records a compiled step as a CUDA graph.

Inductor is called directly, without `torch.compile`. The graph is already flat, so guards on Python state and the handling of
autograd would do nothing, and would take 20 to 40 microseconds in each call.
"""

import gc
import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch.func import functionalize

from pyro_vi.compiling.decompositions import table
from pyro_vi.compiling.kept import description, find, keep
from pyro_vi.compiling.native import Code, Library, Native, building, prepare_headers
from pyro_vi.compiling.products import multiplying
from pyro_vi.errors import NoGraph, kind_and_line
from pyro_vi.support import inductor_internals
from pyro_vi.support.torch_internals import make_fx

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]
"""A compiled function. It takes all arguments in one list, and empties the list."""


def compile_graph(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Compiled:
    """Compile a graph for inputs of these shapes; the compiled call changes the inputs in place as the graph does.

    Random operations are those of torch. They draw the same numbers from its generator, in the same order, as in eager mode.

    Raises:
        NoGraph: the graph cannot be compiled; the message has the first line of the compiler's error.
    """
    settings = _settings(inputs)
    graph, constants = lift(graph)
    own = _own(inputs)
    # An old compiler may not support all instruction sets.
    tries = [*([] if own is None else [own]), settings, {**settings, "cpp.vec_isa_ok": None, "memory_planning": False}]
    text = _description(graph, [*inputs, *constants])
    if library := find(text):
        with suppress(RuntimeError, NoGraph):
            return Native(library.load(), constants)
    with _quiet(), collecting_later():
        for i, each in enumerate(tries):
            try:
                compiled = _compile(graph, [*inputs, *constants], each)
                if isinstance(compiled, Library):
                    native = Native(compiled.load(), constants)
                    keep(text, compiled)
                    return native
                break
            except Exception as error:
                if i < len(tries) - 1:
                    continue
                if isinstance(error, NoGraph):
                    raise
                raise NoGraph(f"{kind_and_line(error)}") from error
    return (lambda arguments: compiled([*arguments, *constants])) if constants else compiled


def _settings(inputs: Sequence[Tensor]) -> dict[str, Any]:
    """Return Inductor's settings."""
    on_cpu = all(value.device.type == "cpu" for value in inputs)
    return {
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


def _own(inputs: Sequence[Tensor]) -> dict[str, Any] | None:
    """Return the settings for a library of our own; None where there is none."""
    if sys.platform != "linux" or any(value.device.type != "cpu" for value in inputs):
        return None
    return {**_settings(inputs), "cpp_wrapper_build_separate": True, "fx_graph_cache": False}


def _description(lifted: fx.GraphModule, inputs: Sequence[Tensor]) -> str:
    """Return what the library of a graph depends on; empty if there is no such library."""
    own = _own(inputs)
    return "" if own is None else description(lifted, inputs, own)


def is_kept(graph: fx.GraphModule, inputs: Sequence[Tensor]) -> bool:
    """True if the compiled code of a graph is on disk, so that `compile_graph` only loads it."""
    lifted, constants = lift(graph)
    return find(_description(lifted, [*inputs, *constants])) is not None


def lift(graph: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """Return the graph with its constant tensors as further inputs at the end, and these tensors, without marks for profilers.

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
        elif node.op != "placeholder" and getattr(node.target, "namespace", "") != "profiler":
            at[node] = lifted.node_copy(node, at.__getitem__)
    return fx.GraphModule(graph, lifted), [value.detach() for value in held.values()]


def _compile(graph: fx.GraphModule, inputs: Sequence[Tensor], settings: dict[str, Any]) -> Any:
    """Compile a graph by Inductor: to a library, if the settings separate the calls from the loops, or to a function."""
    parts, code = inductor_internals.inductor(), list[Code]()
    own = bool(settings.get("cpp_wrapper_build_separate"))
    with parts.config.patch(settings), torch.no_grad(), building(code) if own else nullcontext():
        if own:
            prepare_headers()
        decompositions = table(parts.decompositions())
        flat = make_fx(functionalize(graph), decomposition_table=decompositions, tracing_mode="fake")(*inputs)
        with mock.patch.object(parts.tables, "rand_ops", _random(flat)):
            flat.graph = parts.common(flat.graph)
        flat.recompile()
        fakes = [node.meta["val"] for node in flat.graph.nodes if node.op == "placeholder"]
        mode = fakes[0].fake_mode
        with (
            parts.tracing(parts.context(mode)),
            parts.virtualized.set_fake_mode(mode),
            multiplying(),
            inductor_internals.made_once(),
        ):
            compiled: Any = parts.compile(flat, fakes, is_inference=True, cpp_wrapper=parts.config.cpp_wrapper)
        if own:
            (results,) = [node.args[0] for node in flat.graph.nodes if node.op == "output"]
            tensors = all(isinstance(node, fx.Node) for node in results)
            if len(code) != 1 or code[0].inputs != len(inputs) or compiled.constants or not tensors:
                raise ValueError("the code has an unknown form")
            return code[0].library(len(results))
    # The code around the inner call serves only profilers and CUDA graph trees.
    inner: Compiled = getattr(compiled, "current_callable", None) or compiled
    return inner


@contextmanager
def collecting_later() -> Iterator[None]:
    """Within the block, leave garbage where it is: to look for it takes an eighth of the time to trace and to compile."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


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
    """Return what this machine or this torch lacks to compile, with the remedy; empty if nothing is missing.

    Inductor is not looked for, as a graph that was compiled before does not need it; `compile_graph` reports what it lacks.
    """
    if device.type not in ("cpu", "cuda"):
        return f"there is no compiler for device '{device.type}'; use device='cpu' or 'cuda'"
    try:
        if device.type == "cpu":
            return _no_compiler()
        inductor_internals.inductor()
        return "" if inductor_internals.has_triton() else "there is no Triton for this GPU; pip install triton"
    except NoGraph as error:
        return str(error)


@cache
def _no_compiler() -> str:
    # Inductor would find the same one, but its import takes two seconds, and kept code does not need it.
    unloaded = sys.platform == "linux" and "torch._inductor" not in sys.modules
    if unloaded and _answers(os.environ.get("CXX", "g++")):
        return ""
    look = inductor_internals.cpp_compiler()
    try:
        look()  # asks it for its version
    except Exception:
        return "there is no C++ compiler that works; install g++ (or set CXX to a C++ compiler)"
    return ""


def _answers(command: str) -> bool:
    try:
        return subprocess.run([command, "--version"], capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


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

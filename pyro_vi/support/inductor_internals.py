"""The private parts of torch that compile a graph: Inductor, its C++ builder, and oneDNN's products; see `torch_internals`.

Each part is looked up on use, and `pyro_vi.support.private.Missing` is raised if torch lacks it.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, fx

from pyro_vi.support.private import Missing, attribute, part

_part = partial(part, "torch")
_attribute = partial(attribute, "torch")


# Inductor.


class Inductor(NamedTuple):
    """The parts of torch that compile a flat graph.

    Attributes:
        compile: the compiler of a graph and its inputs.
        config: its settings.
        decompositions: returns its table of operations that are replaced by others.
        common: removes repeated computations from a graph.
        tables: the module of ``common``, with its list of random operations.
        tracing, context: make the compiler's state for one graph.
        virtualized: gives access to the compiler's state.
    """

    compile: Callable[..., Any]
    config: Any
    decompositions: Callable[[], dict[Any, Any]]
    common: Callable[[fx.Graph], fx.Graph]
    tables: Any
    tracing: Callable[[Any], AbstractContextManager[Any]]
    context: Callable[[Any], Any]
    virtualized: Any


def inductor() -> Inductor:
    """Return the compiler of flat graphs that `torch.compile` uses; the first call takes a second or two."""
    _part("torch._functorch.compile_utils", "rand_ops")
    return Inductor(
        compile=_part("torch._inductor.compile_fx", "compile_fx_inner"),
        config=_part("torch._inductor.config"),
        decompositions=_part("torch._inductor.decomposition", "select_decomp_table"),
        common=_part("torch._functorch.compile_utils", "fx_graph_cse"),
        tables=_part("torch._functorch.compile_utils"),
        tracing=_part("torch._guards", "tracing"),
        context=_part("torch._guards", "TracingContext"),
        virtualized=_part("torch._inductor.virtualized", "V"),
    )


def changed_settings() -> dict[str, str]:
    """Return the settings of Inductor that differ from their defaults, as text; none if Inductor is not loaded.

    Inductor's own list of them also has settings that were changed and put back.
    """
    config = sys.modules.get("torch._inductor.config")
    if config is None:
        return {}
    entries = _attribute(config, "_config", "torch._inductor.config._config")
    now = config.get_config_copy()
    return {k: repr(v) for k, v in sorted(now.items()) if k in entries and repr(v) != repr(entries[k].default)}


def cpp_compiler() -> Callable[[], str]:
    """Return Inductor's lookup of a C++ compiler, which runs the compiler to read its version."""
    look: Callable[[], str] = _part("torch._inductor.cpp_builder", "get_cpp_compiler")
    return look


def wrapper_cache() -> Any:
    """Return Inductor's class whose method ``load_pybinding`` takes the C++ code of a graph, and builds and loads it."""
    return _part("torch._inductor.codecache", "CppWrapperCodeCache")


def compile_command(*, vectors: bool) -> str:
    """Return Inductor's command that compiles a file ``i`` of C++ code to ``o.o``, with or without vector instructions."""
    options = _part("torch._inductor.cpp_builder", "CppTorchDeviceOptions")
    pick, none = (
        _part("torch._inductor.cpu_vec_isa", "pick_vec_isa"),
        _part("torch._inductor.cpu_vec_isa", "invalid_vec_isa"),
    )
    chosen = options(
        vec_isa=pick() if vectors else none, device_type="cpu", shared=True, include_pytorch=True, compile_only=True
    )
    line: str = _part("torch._inductor.cpp_builder", "CppBuilder")(
        name="o", sources="i", BuildOption=chosen
    ).get_command_line()
    return line


@contextmanager
def trusted_isa() -> Iterator[None]:
    """Within the block, believe what the processor says of its vector instructions: Inductor compiles three programs to try.

    The belief ends with the block.
    """
    listed = _part("torch._inductor.cpu_vec_isa", "valid_vec_isa_list")
    if listed.cache_info().currsize:  # tried before
        yield
        return
    classes = (
        _part("torch._inductor.cpu_vec_isa", "VecAVX512"),
        _part("torch._inductor.cpu_vec_isa", "VecAVX512VNNI"),
        _part("torch._inductor.cpu_vec_isa", "VecAMX"),
    )
    with mock.patch.object(_part("torch._inductor.cpu_vec_isa", "VecISA"), "check_build", lambda *_: True):
        try:
            yield
        finally:
            listed.cache_clear()
            for one in classes:
                one.__bool__.cache_clear()


@contextmanager
def made_once() -> Iterator[None]:
    """Within the block, Inductor makes the object that knows the dtypes of results once, and not for each operation."""
    try:
        kind = _part("torch._inductor.codegen.common", "DtypePropagationOpsHandler")
    except Missing:
        yield
        return
    with mock.patch("torch._inductor.codegen.common.DtypePropagationOpsHandler", cache(kind)):
        yield


def handles() -> tuple[Callable[[list[Tensor]], list[Any]], Callable[[list[Any]], list[Tensor]]]:
    """Return the functions that make handles of tensors for C++ code, and tensors of handles."""
    make = _part("torch._C._aoti", "unsafe_alloc_void_ptrs_from_tensors")
    return make, _part("torch._C._aoti", "alloc_tensors_by_stealing_from_void_ptrs")


def has_triton() -> bool:
    """True if Triton can compile for the GPU."""
    return bool(_part("torch.utils._triton", "has_triton")())


# Products of matrices.


class Lowering(NamedTuple):
    """Parts with which Inductor can call oneDNN: its table of operations, its nodes, and the node of oneDNN's product."""

    table: dict[Any, Any]
    nodes: Any
    product: Callable[..., Any]


def has_onednn_product() -> bool:
    """True if this torch has oneDNN's matrix product."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_product(one: Tensor, two: Tensor) -> Tensor:
    """Return oneDNN's product of two matrices: to time it."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(one, two.t(), None, "none", [-1], "")
    return result


def onednn_layer() -> Any:
    """Return the operation of a linear layer in oneDNN, with its activation, for graphs that are replayed; None without it."""
    return torch.ops.mkldnn._linear_pointwise.default if has_onednn_product() else None


def lowering() -> Lowering | None:
    """Return the parts with which Inductor calls oneDNN for a product; None if torch lacks them and uses its own product."""
    try:
        return Lowering(
            _part("torch._inductor.lowering", "lowerings"),
            _part("torch._inductor.ir"),
            _part("torch._inductor.mkldnn_ir", "LinearUnary"),
        )
    except Missing:
        return None


def contiguous_rows() -> Callable[[Tensor, tuple[int, int]], Tensor] | None:
    """Return Inductor's operation that gives a matrix other strides, for loops along its rows; None if it has none."""
    try:
        operation: Callable[[Tensor, tuple[int, int]], Tensor] = _part(
            "torch._inductor.inductor_prims", "force_stride_order"
        )
    except Missing:
        return None
    return operation

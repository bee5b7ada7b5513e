"""The private and experimental parts of torch that pyro_vi uses, each as a function that says what it is used for.

Each part is imported where it is used, so that a torch without it breaks nothing else. All functions raise
`pyro_vi.support.private.Missing` where torch lacks their part: fits, audits and the evidence then go on eagerly and say so.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, fx, nn

from pyro_vi.support.private import Missing, attribute, part

_part = partial(part, "torch")
_attribute = partial(attribute, "torch")


# Programs and optimizers.


def tensors_of(module: nn.Module) -> tuple[dict[str, Tensor | None], dict[str, Tensor | None]]:
    """The dictionaries in which a module holds its own parameters and buffers: to put other tensors in their places."""
    parameters = _attribute(module, "_parameters", "torch.nn.Module._parameters")
    return parameters, _attribute(module, "_buffers", "torch.nn.Module._buffers")


def hooks_of(module: nn.Module) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    """The hooks that run before and after a module: they may hold state that a graph would freeze."""
    before = _attribute(module, "_forward_pre_hooks", "torch.nn.Module._forward_pre_hooks")
    return before, _attribute(module, "_forward_hooks", "torch.nn.Module._forward_hooks")


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Whether hooks run before or after an optimizer's step: a graph would leave them out."""
    before = _attribute(optimizer, "_optimizer_step_pre_hooks", "torch.optim.Optimizer._optimizer_step_pre_hooks")
    after = _attribute(optimizer, "_optimizer_step_post_hooks", "torch.optim.Optimizer._optimizer_step_post_hooks")
    return bool(before or after)


def times_changed(tensor: Tensor) -> int:
    """How often a tensor was changed in place: a change that a graph would miss."""
    count: int = _attribute(tensor, "_version", "torch.Tensor._version")
    return count


# Tracing.


def make_fx(function: Callable[..., Any], **options: Any) -> Callable[..., fx.GraphModule]:
    """A function that gives the flat graph of another one, as that runs on some inputs."""
    made: Callable[..., fx.GraphModule] = _part("torch.fx.experimental.proxy_tensor", "make_fx")(function, **options)
    return made


def graph_in_the_making() -> fx.Graph | None:
    """The graph that is being traced, if one is: to count and refuse operations in it."""
    mode = _part("torch.fx.experimental.proxy_tensor", "get_proxy_mode")()
    graph: fx.Graph | None = None if mode is None else mode.tracer.graph
    return graph


def varies(value: Tensor) -> bool:
    """Whether a tensor is the result of an operation that is being traced, and no constant: Python must not read it."""
    mode = _part("torch.fx.experimental.proxy_tensor", "get_proxy_mode")()
    slot = _part("torch.fx.experimental.proxy_tensor", "get_proxy_slot")
    proxy = None if mode is None else slot(value, mode.tracer, None)
    return proxy is not None and proxy.constant is None


def untraced() -> AbstractContextManager[Any]:
    """Within the block operations are not traced: to compare tensors as they are now."""
    context: AbstractContextManager[Any] = _part("torch.utils._python_dispatch", "_disable_current_modes")()
    return context


def each_operation(handle: Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]) -> AbstractContextManager[Any]:
    """Within the block ``handle(operation, arguments, keywords)`` carries out each tensor operation: to time it."""
    base: Any = _part("torch.utils._python_dispatch", "TorchDispatchMode")

    class Handled(base):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return handle(func, args, kwargs or {})

    context: AbstractContextManager[Any] = Handled()
    return context


@contextmanager
def as_compiling() -> Iterator[None]:
    """Within the block torch's optimizers keep step counts and rates as tensors, as they do under `torch.compile`."""
    _part("torch.compiler", "_is_compiling_flag")
    with mock.patch.object(torch.compiler, "_is_compiling_flag", True):
        yield


@cache
def schema(operation: Any) -> Any:
    """The arguments of an operation in a graph, and which of them it writes into or returns views of."""
    return _attribute(operation, "_schema", "torch._ops.OpOverload._schema")


# Inductor.


class Inductor(NamedTuple):
    """The parts of torch that compile a flat graph.

    Attributes:
        compile: the compiler of a graph and its inputs.
        config: its settings.
        decompositions: gives its table of operations that are replaced by others.
        common: removes what a graph computes twice.
        tables: the module of ``common``, with its list of operations that draw.
        tracing, context: make the compiler's state of one graph.
        virtualized: what the compiler finds that state by.
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
    """All that compiles a flat graph, below `torch.compile`; the first call takes a second or two."""
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


def cpp_compiler() -> Callable[[], str]:
    """Inductor's look-up of a C++ compiler, which asks it for its version."""
    look: Callable[[], str] = _part("torch._inductor.cpp_builder", "get_cpp_compiler")
    return look


def has_triton() -> bool:
    """Whether Triton can compile for the GPU."""
    return bool(_part("torch.utils._triton", "has_triton")())


# Products of matrices.


class Lowering(NamedTuple):
    """What makes Inductor call oneDNN: its table of operations, its nodes, and the node of oneDNN's product."""

    table: dict[Any, Any]
    nodes: Any
    product: Callable[..., Any]


def has_onednn_product() -> bool:
    """Whether this torch has oneDNN's product of matrices."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def lowering() -> Lowering | None:
    """What makes Inductor call oneDNN for a product; None where it cannot be asked to, and multiplies in its own way."""
    try:
        return Lowering(
            _part("torch._inductor.lowering", "lowerings"),
            _part("torch._inductor.ir"),
            _part("torch._inductor.mkldnn_ir", "LinearUnary"),
        )
    except Missing:
        return None


def contiguous_rows() -> Callable[[Tensor, tuple[int, int]], Tensor] | None:
    """Inductor's operation that lays a matrix out with given strides, for loops along its rows; None where it has none."""
    try:
        operation: Callable[[Tensor, tuple[int, int]], Tensor] = _part(
            "torch._inductor.inductor_prims", "force_stride_order"
        )
    except Missing:
        return None
    return operation


# Memory.


def allocations(call: Callable[[], Any]) -> list[int]:
    """Bytes by which memory on the CPU grows or shrinks, one number for each allocation and each release of a call.

    These are the records of the allocator itself. The public profiler takes a second to set up, and writes to stderr.
    """
    config = _part("torch._C._profiler", "ProfilerConfig")
    on_cpu = _part("torch._C._profiler", "ProfilerState.CPU")
    options = (False, True, False, False, False, _part("torch._C._profiler", "_ExperimentalConfig")())
    start = _part("torch.autograd", "_enable_profiler_legacy")
    stop = _part("torch.autograd", "_disable_profiler_legacy")
    start(config(on_cpu, *options))
    try:
        call()
    finally:
        threads = stop()
    return [record.cpu_memory_usage() for one in threads for record in one if record.kind() == "memory_alloc"]

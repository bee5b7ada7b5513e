"""The private and experimental parts of torch that pyro_vi uses, each as a function whose docstring says why it is needed.

Each part is looked up on use, so that a version of torch without it breaks nothing else. A function raises
`pyro_vi.support.private.Missing` if torch lacks its part: fits, audits and the evidence then continue eagerly and report it.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
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
    """Return the dictionaries of a module's own parameters and buffers, in which other tensors can be put in their place."""
    parameters = _attribute(module, "_parameters", "torch.nn.Module._parameters")
    return parameters, _attribute(module, "_buffers", "torch.nn.Module._buffers")


def hooks_of(module: nn.Module) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    """Return the hooks that run before and after a module; they may hold state that a graph would freeze."""
    before = _attribute(module, "_forward_pre_hooks", "torch.nn.Module._forward_pre_hooks")
    return before, _attribute(module, "_forward_hooks", "torch.nn.Module._forward_hooks")


def hooks_of_tensor(tensor: Tensor, other: Tensor) -> list[tuple[Callable[[Any], Any], Any]]:
    """Return the hooks of a tensor's gradient, each with the function that registers it on ``other``: copies lose them."""
    kinds = (
        (lambda: _attribute(tensor, "_backward_hooks", "torch.Tensor._backward_hooks"), other.register_hook),
        (
            lambda: _attribute(tensor, "_post_accumulate_grad_hooks", "torch.Tensor._post_accumulate_grad_hooks"),
            other.register_post_accumulate_grad_hook,
        ),
    )
    found = []
    for hooks, register in kinds:
        with suppress(Missing):
            found += [(register, hook) for hook in (hooks() or {}).values()]
    return found


def has_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """True if hooks run before or after an optimizer's step; a graph would omit them."""
    before = _attribute(optimizer, "_optimizer_step_pre_hooks", "torch.optim.Optimizer._optimizer_step_pre_hooks")
    after = _attribute(optimizer, "_optimizer_step_post_hooks", "torch.optim.Optimizer._optimizer_step_post_hooks")
    return bool(before or after)


def has_gradient_hooks(parameter: Tensor) -> bool:
    """True if hooks run on the gradient of a parameter; a graph would omit them."""
    on_gradient = _attribute(parameter, "_backward_hooks", "torch.Tensor._backward_hooks")
    after = _attribute(parameter, "_post_accumulate_grad_hooks", "torch.Tensor._post_accumulate_grad_hooks")
    return bool(on_gradient or after)


def stepped_by_scheduler(optimizer: torch.optim.Optimizer) -> bool:
    """True if a scheduler counts an optimizer's steps; it replaces the method for that, which changes no step."""
    return bool(getattr(optimizer.step, "_wrapped_by_lr_sched", False))


def fused_adam(decoupled: bool) -> Callable[..., Any]:
    """Return the kernel of a step of Adam, or of AdamW, on lists of tensors; ``step()`` calls it with ``fused=True``."""
    kernel: Callable[..., Any] = _part("torch", "_fused_adamw_") if decoupled else _part("torch", "_fused_adam_")
    return kernel


def add_to_each() -> Callable[[list[Tensor], float], Any]:
    """Return the operation that adds a number to each tensor of a list; ``step()`` counts the steps of parameters with it."""
    operation: Callable[[list[Tensor], float], Any] = _part("torch", "_foreach_add_")
    return operation


def memory(value: Tensor) -> int:
    """Return a number that two tensors share if and only if they share memory, as long as both exist."""
    return int(_attribute(value.untyped_storage(), "_cdata", "torch.UntypedStorage._cdata"))


def times_changed(tensor: Tensor) -> int:
    """Return the number of in-place changes of a tensor; a graph would miss them."""
    count: int = _attribute(tensor, "_version", "torch.Tensor._version")
    return count


def validates(distribution: torch.distributions.Distribution) -> bool:
    """True if a distribution checks its values; false, where validation is on, for one made with ``validate_args=False``."""
    checks = _attribute(distribution, "_validate_args", "torch.distributions.Distribution._validate_args")
    return checks is not False


# Tracing.


def make_fx(function: Callable[..., Any], **options: Any) -> Callable[..., fx.GraphModule]:
    """Return a function that traces ``function`` on its inputs and returns the flat graph."""
    made: Callable[..., fx.GraphModule] = _part("torch.fx.experimental.proxy_tensor", "make_fx")(function, **options)
    return made


class Looks(NamedTuple):
    """What a node of a graph says of its tensor.

    Attributes:
        dtype: its dtype.
        device: its device.
    """

    dtype: torch.dtype
    device: torch.device

    def is_floating_point(self) -> bool:
        """True if the tensor has a floating-point dtype."""
        return self.dtype.is_floating_point


def noting_little() -> AbstractContextManager[Any]:
    """Within the block, a trace notes of each tensor what `Looks` has, as ``meta["val"]`` of its node.

    `make_fx` would make a fake tensor for each value, which takes two thirds of the time of a trace on real tensors.
    """
    try:
        original = _part("torch.fx.experimental.proxy_tensor", "extract_val")
    except Missing:  # a trace takes its time
        return nullcontext()

    def noted(value: Any, include_real: bool = False) -> Any:
        if type(value) in (Tensor, nn.Parameter):
            return Looks(value.dtype, value.device)
        if isinstance(value, (list, tuple)):
            return type(value)([noted(part) for part in value])
        return original(value, include_real=include_real)

    module = sys.modules[original.__module__]
    context: AbstractContextManager[Any] = mock.patch.object(module, original.__name__, noted)
    return context


def graph_in_the_making() -> fx.Graph | None:
    """Return the graph that is being traced, or None; operations in it are counted and some are rejected."""
    mode = _part("torch.fx.experimental.proxy_tensor", "get_proxy_mode")()
    graph: fx.Graph | None = None if mode is None else mode.tracer.graph
    return graph


def varies(value: Tensor) -> bool:
    """True if a tensor is the result of a traced operation and not a constant, so that Python must not read its value."""
    mode = _part("torch.fx.experimental.proxy_tensor", "get_proxy_mode")()
    slot = _part("torch.fx.experimental.proxy_tensor", "get_proxy_slot")
    proxy = None if mode is None else slot(value, mode.tracer, None)
    return proxy is not None and proxy.constant is None


def untraced() -> AbstractContextManager[Any]:
    """Within the block, do not trace operations, so that current values of tensors can be compared."""
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
    """Within the block, torch's optimizers keep step counts and learning rates as tensors, as under `torch.compile`."""
    _part("torch.compiler", "_is_compiling_flag")
    with mock.patch.object(torch.compiler, "_is_compiling_flag", True):
        yield


@cache
def schema(operation: Any) -> Any:
    """Return the schema of an operation in a graph: its arguments, and those that it writes to or returns views of."""
    return _attribute(operation, "_schema", "torch._ops.OpOverload._schema")


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


# Memory.


def allocations(call: Callable[[], Any]) -> list[int]:
    """Return the bytes of each allocation (positive) and each release (negative) of CPU memory during a call, in order.

    The numbers are the allocator's own records. The public profiler takes a second to set up, and writes to stderr.
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

"""The private and experimental parts of torch that pyro_vi uses, each as a function whose docstring says why it is needed.

Each part is looked up on use, so that a version of torch without it breaks nothing else. A function raises
`pyro_vi.support.private.Missing` if torch lacks its part: fits, audits and the evidence then continue eagerly and report it.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from types import FunctionType
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor, fx, nn

from pyro_vi.support.private import Missing, attribute, part

_part = partial(part, "torch")
_attribute = partial(attribute, "torch")

COMPILER = "torch._dynamo"
"""The part of torch's compiler whose import takes a second."""


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
    step: Any = vars(optimizer).get("step")
    # A scheduler also wraps a method that a user has put there, and a user's wrapper may keep the mark of a scheduler.
    own = getattr(step, "__wrapped__", None) is type(optimizer).step
    return own and bool(getattr(step, "_wrapped_by_lr_sched", False))


def take_step(optimizer: torch.optim.Optimizer) -> None:
    """Take a step of an optimizer, as ``optimizer.step()`` does, but without the import of torch's compiler.

    That method begins with the import, which takes a second, to have the compiler leave it alone.
    """
    bare = None if COMPILER in sys.modules else bare_step(optimizer)
    if bare is None:
        optimizer.step()
        return
    if stepped_by_scheduler(optimizer):
        optimizer._opt_called = True  # type: ignore[attr-defined]  # else the scheduler warns that no step came before it
    with torch.no_grad():
        bare(optimizer)


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[Any], Any] | None:
    """Return the function that computes the step of a class of torch, without torch's wrappers; None if they are needed.

    They are needed for hooks, for gradients through the step, and under a profiler. A method that a user has put in the place
    of ``step``, or around it, is never left out.
    """
    kind, module = type(optimizer), sys.modules[torch.optim.Optimizer.__module__]
    if kind.__module__.partition(".")[0] != "torch" or optimizer.defaults.get("differentiable", True):
        return None
    if "step" in vars(optimizer) and not stepped_by_scheduler(optimizer):
        return None
    everywhere = [getattr(module, f"_global_optimizer_{when}_hooks", None) for when in ("pre", "post")]
    try:
        if has_step_hooks(optimizer) or _part("torch.autograd", "_profiler_enabled")():
            return None
    except Missing:
        return None
    if any(hooks is None or hooks for hooks in everywhere):
        return None
    one: Any = kind.step
    while isinstance(one, FunctionType) and one.__globals__ is vars(module):
        within: Any = getattr(one, "__wrapped__", None)
        if one.__code__.co_name == "_use_grad":
            bare: Callable[[Any], Any] | None = within
            return bare
        one = within
    return None


@contextmanager
def without_compiler() -> Iterator[None]:
    """Within the block, the other methods of torch's optimizers do not import torch's compiler either.

    Their wrapper imports it to have the compiler leave them alone, unless it finds on the method what the compiler would
    make of it. That is the method itself as long as nothing is compiled.
    """
    methods = [
        one for one in vars(torch.optim.Optimizer).values() if inspect.isfunction(one) and hasattr(one, "__wrapped__")
    ]
    bare: list[Any] = [one.__wrapped__ for one in methods if one.__module__ == torch.optim.Optimizer.__module__]
    changed = [] if COMPILER in sys.modules else [one for one in bare if not hasattr(one, "__dynamo_disable")]
    for one in changed:
        setattr(one, "__dynamo_disable", one)
    try:
        yield
    finally:
        for one in changed:
            with suppress(AttributeError):  # another thread was faster
                delattr(one, "__dynamo_disable")


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
    """Dtype and device of the tensor of a node, which are all that a trace notes of it.

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
        @classmethod
        def _should_skip_dynamo(cls) -> bool:
            # If true, torch wraps the method below so that the compiler leaves it alone; for that it imports the compiler.
            return COMPILER in sys.modules

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

"""Pyro functions as modules that own their parameters.

A Pyro program may be a plain function, whose parameters come from ``pyro.param`` and ``pyro.module`` statements and live in
the global parameter store. `bind` runs such a function once in an empty store, copies the parameters that it finds, and
returns a `FunctionProgram`: an ``nn.Module`` that owns the copies and gives them to the function's statements. After that,
pyro_vi handles modules only, two fits cannot affect each other, and the networks that the function closes over never change.

* `swapped` replaces tensors of a module within a block; `FunctionProgram` uses it; `bind` makes a `FunctionProgram`.
* `_Recorder` records the parameters of the one run; `_Answer` supplies their copies in every later call.
"""

import copy
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import attrgetter
from types import FrameType
from typing import Any

import pyro
import torch
from pyro.nn import PyroModule
from pyro.params.param_store import normalize_param_name
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import constraints, transform_to

from pyro_vi.errors import InputError
from pyro_vi.programs.isolation import Program, evaluating, kept_buffers, modules_of, ready
from pyro_vi.support import kept_generators
from pyro_vi.support.pyro_internals import context_of, name_of
from pyro_vi.support.torch_internals import tensors_of

Shared = dict[int | str, nn.Parameter]


@contextmanager
def swapped(program: nn.Module, values: Mapping[int, torch.Tensor]) -> Iterator[Callable[[int], torch.Tensor]]:
    """Within the block, replace each tensor of ``program`` whose ``id`` is a key of ``values`` by the value.

    Tensors are matched by identity and not by name, because one parameter may have several names: in networks with tied
    weights, or in a guide that holds its model (where `torch.func.functional_call` leaves a wrong tensor behind).

    The block receives a function from a key to the tensor that is in its place now: the value, or another tensor if the
    program has assigned one.
    """
    places = [
        (held, name, value)
        for module in program.modules()
        for held in tensors_of(module)
        for name, value in held.items()
        if value is not None and id(value) in values
    ]
    for held, name, value in places:
        held[name] = values[id(value)]

    def now(key: int) -> torch.Tensor:
        return next(held[name] for held, name, value in places if id(value) == key)  # type: ignore[return-value]

    try:
        yield now
    finally:
        for held, name, value in places:
            held[name] = value


class FunctionProgram(nn.Module):
    """A Pyro function as a module that owns its parameters, made by `bind`.

    Parameters are named as in Pyro's store, with ``.`` for ``$$$``. A constrained parameter is stored unconstrained, as in
    Pyro's store.
    """

    def __init__(self, function: Program, networks: dict[str, nn.Module]) -> None:
        super().__init__()
        self._hidden = (function, networks)  # in a tuple, so that they do not become submodules
        self._constraints: dict[str, constraints.Constraint] = {}
        self._swaps: dict[str, dict[int, str]] = {name: {} for name in networks}  # id of an original -> own name

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        function, networks = self._hidden
        with ExitStack() as stack:
            for name, network in networks.items():
                stack.enter_context(swapped(network, {key: _get(self, own) for key, own in self._swaps[name].items()}))
                if not self.training:  # in training each network keeps the mode that its owner set
                    stack.enter_context(evaluating(network))
            stack.enter_context(_Answer(self))
            return function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FunctionProgram":
        # Copies share the function and its networks, because a closure cannot be copied. Each copy has its own parameters,
        # so copies can be fitted independently.
        clone = FunctionProgram(*self._hidden)
        memo[id(self)] = clone
        clone._constraints, clone._swaps = dict(self._constraints), self._swaps
        for held, copied in zip(tensors_of(self), tensors_of(clone), strict=True):
            copied.update(copy.deepcopy(held, memo))
        for name, module in self.named_children():
            clone.add_module(name, copy.deepcopy(module, memo))
        clone.training = self.training
        return clone

    def extra_repr(self) -> str:
        return getattr(self._hidden[0], "__qualname__", repr(self._hidden[0]))

    def _add(self, name: str, value: torch.Tensor) -> str:
        name = normalize_param_name(name)
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            if not isinstance(getattr(owner, part, None), nn.Module):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        if isinstance(value, nn.Parameter):
            owner.register_parameter(leaf, value)
        else:
            owner.register_buffer(leaf, value)
        return name


def bind(program: Program, args: tuple[Any, ...], shared: Shared | None = None) -> nn.Module:
    """Return `program` as a module that owns its parameters, which are found by running it once on ``args``.

    A module without ``pyro.param`` or ``pyro.module`` statements is returned unchanged. Otherwise the parameters are
    copies: neither the global parameter store nor the function's own networks change, now or later.

    Args:
        program: a Pyro function, bound method or module.
        args: one batch to call it with.
        shared: parameters that the other program of the pair owns already, by name in the store or ``id`` of the original.
            A parameter found there is shared, as it would be through Pyro's store. New parameters are added to it.

    Raises:
        InputError: the names of two parameters conflict, as ``"a"`` and ``"a.b"`` do.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def guide(x):
        ...     scale = pyro.param("scale", torch.tensor(2.0), constraint=dist.constraints.positive)
        ...     return pyro.sample("z", dist.Normal(0.0, scale))
        >>> [name for name, _ in bind(guide, (torch.zeros(3),)).named_parameters()]
        ['scale']
        >>> len(pyro.get_param_store())
        0
    """
    shared = {} if shared is None else shared
    ready(program)
    # Pyro's validation is off because it rejects a `pyro.param` statement in a PyroModule. `bind` supports such statements.
    settings = pyro.settings.context(module_local_params=True, validate_poutine=False)
    with (
        pyro.get_param_store().scope(),
        settings,
        kept_buffers(program),
        _kept_states(program),
        torch.no_grad(),
        kept_generators(),
        _Recorder(program) as recorder,
    ):
        program(*args)
    found = {name: value for name, (value, _) in recorder.params.items()}
    if isinstance(program, nn.Module):
        if not found and all(network is program or _within(network, program) for network in recorder.networks.values()):
            return program
        recorder.networks = {"": program}
    bound = FunctionProgram(program, recorder.networks)
    try:
        for name in found:
            bound._constraints[name] = recorder.params[name][1]
            bound._add(name, shared.setdefault(name, nn.Parameter(found[name])))
        for name, network in recorder.networks.items():
            prefix = f"{name}." if name else ""
            for inner, original in network.named_parameters():
                if original.requires_grad:
                    copied = nn.Parameter(original.detach().clone())
                    own = bound._add(prefix + inner, shared.setdefault(id(original), copied))
                    bound._swaps[name][id(original)] = own
            for inner, buffer in network.named_buffers():
                bound._swaps[name][id(buffer)] = bound._add(prefix + inner, buffer.detach().clone())
    except (KeyError, AttributeError) as error:
        raise InputError(f"a parameter's name conflicts with another's ({error}); rename one of them") from error
    return bound


class _Recorder(Messenger):
    """Record the parameters of one run: their initial values, their constraints, and the networks that they belong to."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.networks: dict[str, nn.Module] = {}
        self.params: dict[str, tuple[torch.Tensor, constraints.Constraint]] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        frame = sys._getframe()
        name, network = _pyro_module_call(frame) or ("", None)
        if network is None and _read_from_pyromodule(frame):
            network = _outermost_pyromodule(frame)
            if network is None or network is self.program or any(network is known for known in self.networks.values()):
                return
            name = name_of(network)
            name = type(network).__name__ if name in self.networks else name
        if network is None:
            value = msg["value"]
            value = value.unconstrained() if hasattr(value, "unconstrained") else value
            constraint = msg["kwargs"].get("constraint", constraints.real)
            self.params.setdefault(msg["name"], (value.detach().clone(), constraint))
        elif name not in self.networks:
            self.networks[name] = network


class _Answer(Messenger):
    """Give the param statements of a function the parameters of its `FunctionProgram` as values."""

    def __init__(self, program: "FunctionProgram") -> None:
        super().__init__()
        self.program = program

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.program._constraints:
            unconstrained = _get(self.program, normalize_param_name(name))
            value = transform_to(self.program._constraints[name])(unconstrained)
            value.unconstrained = weakref.ref(unconstrained)  # as on a value from the parameter store
            msg["value"], msg["done"] = value, True
        elif _pyro_module_call(sys._getframe()) is not None:
            msg["value"], msg["done"] = msg["args"][1], True  # the network already holds the copies
        elif _read_from_pyromodule(sys._getframe()):
            pass  # so does the PyroModule
        else:
            raise InputError(
                f"parameter '{name}' is created only after the first call; "
                "create every parameter on every path of the program"
            )


def _pyro_module_call(frame: FrameType | None) -> tuple[str, nn.Module] | None:
    # `pyro.module` sends no message of its own, so the network is visible only in the stack frame of the call. This works
    # however the caller imported `pyro.module`, and patches nothing.
    while frame is not None:
        if frame.f_code is pyro.module.__code__:
            return frame.f_locals["name"], frame.f_locals["nn_module"]
        frame = frame.f_back
    return None


def _read_from_pyromodule(frame: FrameType | None) -> bool:
    # A PyroModule issues a param statement for each parameter that is read from it, with a value that it already owns.
    while frame is not None and frame.f_code is not PyroModule.__call__.__code__:
        if frame.f_code is PyroModule.__getattr__.__code__:
            return True
        frame = frame.f_back
    return False


def _outermost_pyromodule(frame: FrameType | None) -> Any:
    network = None
    while frame is not None:
        if frame.f_code is PyroModule.__call__.__code__:
            network = frame.f_locals["self"]
        frame = frame.f_back
    return network


def _get(module: nn.Module, name: str) -> torch.Tensor:
    value: torch.Tensor = attrgetter(name)(module)
    return value


@contextmanager
def _kept_states(program: Program) -> Iterator[None]:
    # State that a PyroModule stores besides its parameters must not outlive the run.
    contexts = [c for c in map(context_of, modules_of(program)) if c is not None]
    before = [context.param_state for context in contexts]
    for context in contexts:
        context.param_state = {"params": {}, "constraints": {}}
    try:
        yield
    finally:
        for context, state in zip(contexts, before, strict=True):
            context.param_state = state


def _within(network: nn.Module, program: nn.Module) -> bool:
    return any(network is module for module in program.modules())

"""Pyro functions as modules that own their parameters.

A Pyro program may be a plain function: its parameters come from ``pyro.param`` and ``pyro.module`` statements and live in
the global parameter store. `bind` runs such a function once in an empty store, copies what it finds there, and gives back
a `FunctionProgram`: an ``nn.Module`` that owns the copies and answers the function's statements with them. From there on
the engine knows modules only, two fits cannot see each other, and the networks that the function closes over are never
changed.

* `_Recorder` watches the one run; `FunctionProgram` holds what was found; `_Answer` serves it in every later call.
* `ready` makes a program's PyroModules fit to run apart from the global store; `kept_buffers` undoes what a run does to
  running statistics.
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
    """Within the block, tensors of ``program`` whose ``id`` is a key of ``values`` are those values, wherever they stand.

    By identity and not by name, as one parameter may have several names: in networks with tied weights, or in a guide that
    holds its model. `torch.func.functional_call` leaves a wrong tensor behind in the latter. The function that is given says
    what stands in the place of a key now: another tensor than the given one where a program has assigned one.
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


class _Recorder(Messenger):
    """Watch the parameters of one run: their initial values, constraints, and the networks that they belong to."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.networks: dict[str, nn.Module] = {}
        self.params: dict[str, tuple[torch.Tensor, constraints.Constraint]] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        frame = sys._getframe()
        name, network = _registering(frame) or ("", None)
        if network is None and _own_statement(frame):
            network = _outermost(frame)
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


def _registering(frame: FrameType | None) -> tuple[str, nn.Module] | None:
    # `pyro.module` is not a message of its own, so the network can only be seen in its stack frame. This works however
    # the caller imported `pyro.module`, and patches nothing.
    while frame is not None:
        if frame.f_code is pyro.module.__code__:
            return frame.f_locals["name"], frame.f_locals["nn_module"]
        frame = frame.f_back
    return None


def _own_statement(frame: FrameType | None) -> bool:
    # A PyroModule states each parameter that is read from it; the value is already its own.
    while frame is not None and frame.f_code is not PyroModule.__call__.__code__:
        if frame.f_code is PyroModule.__getattr__.__code__:
            return True
        frame = frame.f_back
    return False


def _outermost(frame: FrameType | None) -> Any:
    network = None
    while frame is not None:
        if frame.f_code is PyroModule.__call__.__code__:
            network = frame.f_locals["self"]
        frame = frame.f_back
    return network


class _Answer(Messenger):
    """Answer the param statements of a function with the parameters of its `FunctionProgram`."""

    def __init__(self, program: "FunctionProgram") -> None:
        super().__init__()
        self.program = program

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.program._constraints:
            unconstrained = _get(self.program, normalize_param_name(name))
            value = transform_to(self.program._constraints[name])(unconstrained)
            value.unconstrained = weakref.ref(unconstrained)  # what plates and users of the store look for
            msg["value"], msg["done"] = value, True
        elif _registering(sys._getframe()) is not None:
            msg["value"], msg["done"] = msg["args"][1], True  # the network already holds our parameters
        elif _own_statement(sys._getframe()):
            pass  # and so does the PyroModule
        else:
            raise InputError(
                f"parameter '{name}' is created only after the first call; "
                "create every parameter on every path of the program"
            )


class FunctionProgram(nn.Module):
    """A Pyro function as a module that owns its parameters.

    The parameters are named as in Pyro's store, with ``.`` for ``$$$``; a constrained parameter is held unconstrained, as
    in the store. Made by `bind`.
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
                if not self.training:  # in training each network has the mode that its owner gave it
                    stack.enter_context(evaluating(network))
            stack.enter_context(_Answer(self))
            return function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FunctionProgram":
        # The function and its networks stay: a closure cannot be copied. What is owned is copied, so copies fit apart.
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

    def _own(self, name: str, value: torch.Tensor) -> str:
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


def _get(module: nn.Module, name: str) -> torch.Tensor:
    value: torch.Tensor = attrgetter(name)(module)
    return value


def bind(program: Program, args: tuple[Any, ...], shared: Shared | None = None) -> nn.Module:
    """Give back `program` as a module that owns its parameters, found by running it once on ``args``.

    A module without ``pyro.param`` or ``pyro.module`` statements is given back as it is. Otherwise the parameters are
    copies: neither the global parameter store nor the function's own networks change, now or later.

    Args:
        program: a Pyro function, bound method or module.
        args: one batch to call it with.
        shared: parameters already owned by the other program of the pair, by name in the store or ``id`` of the original;
            a parameter found there is shared, as it is through Pyro's store. New ones are added to it.

    Raises:
        InputError: two of its parameters have names that cannot stand side by side (``"a"`` and ``"a.b"``).

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
    # Without Pyro's validation: it refuses a `pyro.param` in a PyroModule, which is answered from the second run on.
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
            bound._own(name, shared.setdefault(name, nn.Parameter(found[name])))
        for name, network in recorder.networks.items():
            prefix = f"{name}." if name else ""
            for inner, original in network.named_parameters():
                if original.requires_grad:
                    copied = nn.Parameter(original.detach().clone())
                    own = bound._own(prefix + inner, shared.setdefault(id(original), copied))
                    bound._swaps[name][id(original)] = own
            for inner, buffer in network.named_buffers():
                bound._swaps[name][id(buffer)] = bound._own(prefix + inner, buffer.detach().clone())
    except (KeyError, AttributeError) as error:
        raise InputError(f"a parameter's name hides another's ({error}); rename one of them") from error
    return bound


@contextmanager
def _kept_states(program: Any) -> Iterator[None]:
    # What a PyroModule stores besides its parameters must not outlive the run.
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

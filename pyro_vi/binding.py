"""Pyro functions as modules that own their parameters.

A Pyro program may be a plain function: its parameters come from ``pyro.param`` and ``pyro.module`` statements and live in
the global parameter store. `bind` runs such a function once in an empty store, copies what it finds there, and gives back
a `FunctionProgram`: an ``nn.Module`` that owns the copies and answers the function's statements with them. From there on
the engine knows modules only, two fits cannot see each other, and the networks that the function closes over are never
changed.

* `_Recorder` watches the one run; `FunctionProgram` holds what was found; `_Answer` serves it in every later call.
"""

import copy
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import pyro
import torch
from pyro.params.param_store import normalize_param_name
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import constraints, transform_to
from torch.nn.utils.stateless import _reparametrize_module

from pyro_vi.errors import InputError

Program = Callable[..., Any]
Shared = dict[int | str, nn.Parameter]


class _Recorder(Messenger):
    """Watch the parameters of one run: their initial values, constraints, and the networks that they belong to."""

    def __init__(self) -> None:
        super().__init__()
        self.networks: dict[str, nn.Module] = {}
        self.params: dict[str, constraints.Constraint] = {}

    def _pyro_post_param(self, msg: Any) -> None:
        name = msg["name"]
        network = _registering(sys._getframe())
        if network is None:
            self.params.setdefault(name, msg["kwargs"].get("constraint", constraints.real))
        else:
            self.networks.setdefault(*network)


def _registering(frame: FrameType | None) -> tuple[str, nn.Module] | None:
    # `pyro.module` is not a message of its own, so the network can only be seen in its stack frame. This works however
    # the caller imported `pyro.module`, and patches nothing.
    while frame is not None:
        if frame.f_code is pyro.module.__code__:
            return frame.f_locals["name"], frame.f_locals["nn_module"]
        frame = frame.f_back
    return None


class _Answer(Messenger):
    """Answer the param statements of a function with the parameters of its `FunctionProgram`."""

    def __init__(self, program: "FunctionProgram") -> None:
        super().__init__()
        self.program = program

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.program._constraints:
            unconstrained = self.program.get_parameter(normalize_param_name(name))
            value = transform_to(self.program._constraints[name])(unconstrained)
            value.unconstrained = weakref.ref(unconstrained)  # what plates and users of the store look for
            msg["value"], msg["done"] = value, True
        elif _registering(sys._getframe()) is not None:
            msg["value"], msg["done"] = msg["args"][1], True  # the network already holds our parameters
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
        self._swaps: dict[str, dict[str, str]] = {name: {} for name in networks}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        function, networks = self._hidden
        with ExitStack() as stack:
            for name, network in networks.items():
                swap = {inner: _get(self, outer) for inner, outer in self._swaps[name].items()}
                stack.enter_context(_reparametrize_module(network, swap))
                stack.enter_context(_mode(network, self.training))
            stack.enter_context(_Answer(self))
            return function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FunctionProgram":
        # The function and its networks stay: a closure cannot be copied. What is owned is copied, so copies fit apart.
        clone = FunctionProgram(*self._hidden)
        memo[id(self)] = clone
        clone._constraints, clone._swaps = dict(self._constraints), self._swaps
        for kind in ("_parameters", "_buffers", "_modules"):
            setattr(clone, kind, copy.deepcopy(getattr(self, kind), memo))
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
    *path, leaf = name.split(".")
    for part in path:
        module = module._modules[part]  # type: ignore[assignment]
    value = module._parameters.get(leaf)
    return module._buffers[leaf] if value is None else value  # type: ignore[return-value]


@contextmanager
def _mode(network: nn.Module, training: bool) -> Iterator[None]:
    if network.training == training:
        yield
        return
    before = {module: module.training for module in network.modules()}
    network.train(training)
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


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
    store = pyro.get_param_store()
    with store.scope(), pyro.settings.context(module_local_params=True), torch.no_grad(), torch.random.fork_rng():
        with _Recorder() as recorder:
            program(*args)
        found = {name: store._params[name].detach().clone() for name in recorder.params if name in store}
    if isinstance(program, nn.Module):
        recorder.params = {n: c for n, c in recorder.params.items() if n in found}
        if not found and all(network is program or _within(network, program) for network in recorder.networks.values()):
            return program
        recorder.networks = {"": program}
    bound = FunctionProgram(program, recorder.networks)
    try:
        for name in found:
            bound._constraints[name] = recorder.params[name]
            bound._own(name, shared.setdefault(name, nn.Parameter(found[name])))
        for name, network in recorder.networks.items():
            prefix = f"{name}." if name else ""
            for inner, original in network.named_parameters():
                if original.requires_grad:
                    copied = nn.Parameter(original.detach().clone())
                    bound._swaps[name][inner] = bound._own(prefix + inner, shared.setdefault(id(original), copied))
            for inner, buffer in network.named_buffers():
                bound._swaps[name][inner] = bound._own(prefix + inner, buffer.detach().clone())
    except (KeyError, AttributeError) as error:
        raise InputError(f"a parameter's name hides another's ({error}); rename one of them") from error
    return bound


def _within(network: nn.Module, program: nn.Module) -> bool:
    return any(network is module for module in program.modules())

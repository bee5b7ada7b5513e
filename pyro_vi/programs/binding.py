"""Pyro functions as modules that own their parameters.

A Pyro program may be a plain function, whose parameters come from ``pyro.param`` and ``pyro.module`` statements and live in
the global parameter store. `bind` runs a model and a guide once in an empty store and finds their parameters. A function
becomes a `FunctionProgram`: an ``nn.Module`` that owns the parameters and gives them to the function's statements. After that,
pyro_vi handles modules only. The programs are copies (`pyro_vi.programs.copying`), so the originals never change.

* `draw` runs a model on the draws of a guide; `bind` finds the parameters of both.
* `_Recorder` records the parameters of the one run; `_Answer` supplies them in every later call.
"""

import sys
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext, suppress
from operator import attrgetter
from types import FrameType
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.params.param_store import normalize_param_name
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.messenger import Messenger
from torch import nn
from torch.distributions import constraints, transform_to

from pyro_vi.data import fresh
from pyro_vi.errors import InputError
from pyro_vi.programs.copying import Copies, Uncopied
from pyro_vi.programs.isolation import ALONE, Program, evaluating, kept_buffers
from pyro_vi.programs.swapping import swapped
from pyro_vi.support import kept_generators
from pyro_vi.support.pyro_internals import name_of
from pyro_vi.support.torch_internals import tensors_of

MOST_PLATES = 4
"""Most plates to the right of an enumeration that `draw` tries."""


class FunctionProgram(nn.Module):
    """A Pyro function as a module that owns its parameters, made by `bind`.

    Parameters are named as in Pyro's store, with ``.`` for ``$$$``. A constrained parameter is stored unconstrained, as in
    Pyro's store. Networks that the function registers are submodules.
    """

    def __init__(self, function: Program) -> None:
        super().__init__()
        self._hidden = (function,)  # in a tuple, so that a module does not become a submodule
        self._constraints: dict[str, constraints.Constraint] = {}
        self._is_bound = False
        self._recorder: _Recorder | None = None
        # Networks of the original program that its copy could not replace: (network, {id of a tensor: own name}).
        self._outside: list[tuple[Uncopied, dict[int, str]]] = []

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        function = self._hidden[0]
        if not self._is_bound:  # parameters are made in whatever store is in force
            with nullcontext() if self._recorder is None else self._recorder:
                return function(*args, **kwargs)
        with ExitStack() as stack:
            for network, names in ((held.network, names) for held, names in self._outside):
                stack.enter_context(swapped(network, {key: _get(self, own) for key, own in names.items()}))
                if not self.training:  # in training each network keeps the mode that its owner set
                    stack.enter_context(evaluating(network))
            stack.enter_context(_Answer(self))
            return function(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FunctionProgram":
        copied: FunctionProgram = Copies(memo).of(self)
        return copied

    def extra_repr(self) -> str:
        return getattr(self._hidden[0], "__qualname__", repr(self._hidden[0]))

    def own(self, name: str, value: nn.Module | torch.Tensor) -> str:
        """Take a module, parameter or buffer as one's own, under a name in the parameter store; return its name here."""
        name = normalize_param_name(name)
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            if not isinstance(getattr(owner, part, None), nn.Module):
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        if isinstance(value, nn.Module):
            owner.add_module(leaf, value)
        elif value.requires_grad:
            # Not `register_parameter`, which refuses a leaf of another class; it must stay the tensor that the program reads.
            if hasattr(owner, leaf):
                raise KeyError(f"attribute '{leaf}' already exists")
            tensors_of(owner)[0][leaf] = value
        else:
            owner.register_buffer(leaf, value)
        return name


def bind(model: nn.Module, guide: nn.Module, args: tuple[Any, ...], copies: Copies) -> tuple[nn.Module, nn.Module]:
    """Return a model and a guide as modules that own their parameters, found in one run on ``args``.

    The guide runs first and the model is replayed on its draws, as under `pyro.infer.SVI`: a model need not run from its prior.
    A module without ``pyro.param`` or ``pyro.module`` statements is returned as it is. A parameter with one name in both
    programs is shared, as it is through Pyro's store.

    Args:
        model: a module, or a function as a `FunctionProgram` without parameters.
        guide: the same.
        args: one batch to call both with.
        copies: the copies that the programs are, if they are copies.

    Raises:
        InputError: the names of two parameters conflict, as ``"a"`` and ``"a.b"`` do.
    """
    first: dict[str, constraints.Constraint] = {}
    recorders = [_Recorder(program, other, copies, first) for program, other in ((model, guide), (guide, model))]
    run = [p if isinstance(p, FunctionProgram) and not p._is_bound else FunctionProgram(p) for p in (model, guide)]
    # Pyro's validation is off because it rejects a `pyro.param` statement in a PyroModule. `bind` supports such statements.
    # What it says of values, `check` tells with its cause.
    settings, unchecked = pyro.settings.context(module_local_params=True), pyro.validation_enabled(False)
    with ExitStack() as stack:
        for context in (ALONE, pyro.get_param_store().scope(), settings, unchecked, torch.no_grad(), kept_generators()):
            stack.enter_context(context)
        for module in (model, guide, *copies.outermost(nn.Module)):
            stack.enter_context(kept_buffers(module))
        try:
            with poutine.block():  # a guide that observes would warn outside of any handler
                run[1](*fresh(args))  # an AutoGuide is set up in its first call, in which it runs the model
            for program, recorder in zip(run, recorders, strict=True):
                program._recorder = recorder
            draw(run[0], run[1], args)
        finally:
            for program in run:
                program._recorder = None
    shared: dict[str, torch.Tensor] = {}
    bound = [_bound(*both, shared) for both in zip((model, guide), run, recorders, strict=True)]
    for parameter in {p for program in bound for p in program.parameters()}:
        # A parameter that a program made of a tensor shares its memory and strides; Pyro's store makes it a tensor of its own.
        parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)
    return bound[0], bound[1]


def trace_of_guide(guide: Program, args: tuple[Any, ...]) -> Any:
    """Trace a guide.

    Pyro's messenger guides run the model, and so meet its data; Pyro's estimators leave these sites out of the guide.
    """
    trace = poutine.trace(guide).get_trace(*args)
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        for name in [n for n, node in trace.nodes.items() if node["type"] == "sample" and node["is_observed"]]:
            trace.remove_node(name)
    return trace


def draw(model: Program, guide: Program, args: tuple[Any, ...]) -> tuple[Any, Any]:
    """Trace the guide, and the model on its draws; return both traces.

    A model that fails so may need the shapes of an enumeration: then its discrete sites are enumerated to the left of the
    fewest plates with which it runs.
    """
    args = fresh(args)
    guide_trace = trace_of_guide(guide, args)
    try:
        return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args), guide_trace
    except Exception:
        for nesting in range(MOST_PLATES):
            with suppress(Exception):
                enumerated = poutine.enum(poutine.replay(model, trace=guide_trace), first_available_dim=-1 - nesting)
                return poutine.trace(enumerated).get_trace(*args), guide_trace
        raise


def _bound(
    program: nn.Module, run: FunctionProgram, recorder: "_Recorder", shared: dict[str, torch.Tensor]
) -> nn.Module:
    """Give a program the parameters and networks that its recorder found."""
    try:
        if program is not run:  # a module: what it holds is its own already
            if not recorder.params and not recorder.networks:
                return program
            for name, child in program.named_children():
                run.own(name, child)
            for held in tensors_of(program):
                for name, tensor in held.items():
                    if tensor is not None:
                        run.own(name, tensor)
        for name, (leaf, constraint) in recorder.params.items():
            run._constraints[name] = constraint
            run.own(name, shared.setdefault(name, leaf))
        for name, network in recorder.networks.items():
            if recorder.copied(network):
                run.own(name, network)
                continue
            names = {}
            twin = recorder.copies.memo.get(id(network))  # the other program may have a copy of it
            copies = {} if twin is None else {**dict(twin.named_parameters()), **dict(twin.named_buffers())}
            for inner, original in (*network.named_parameters(), *network.named_buffers()):
                if original.requires_grad or not isinstance(original, nn.Parameter):
                    like = copies[inner] if inner in copies else _like(original)
                    kept = shared.setdefault(f"{name}$$${inner}", like)
                    names[id(original)] = run.own(f"{name}.{inner}", kept)
            run._outside.append((Uncopied(network), names))
        run._is_bound = True
    except (KeyError, AttributeError) as error:
        raise InputError(f"a parameter's name conflicts with another's ({error}); rename one of them") from error
    return run


def _like(original: torch.Tensor) -> torch.Tensor:
    copied = original.detach().clone()
    return nn.Parameter(copied) if original.requires_grad else copied


class _Recorder(Messenger):
    """Record the parameters of one program in one run: their values, their constraints, and the networks that hold them.

    ``first`` holds the constraints of the first statements, by name; the recorders of both programs share it.
    """

    def __init__(
        self, program: nn.Module, other: nn.Module, copies: Copies, first: dict[str, constraints.Constraint]
    ) -> None:
        super().__init__()
        self.program, self.other, self.copies, self.first = program, other, copies, first
        self.networks: dict[str, nn.Module] = {}
        self.params: dict[str, tuple[torch.Tensor, constraints.Constraint]] = {}
        self.owned = {id(p) for p in program.parameters()}

    def copied(self, network: nn.Module) -> bool:
        """True if a network is a copy that the program itself reaches."""
        return id(network) in self.copies.modules

    def _pyro_param(self, msg: Any) -> None:
        msg.setdefault("_pyro_vi_program", self.program)  # the innermost program: a guide may run its model

    def _pyro_post_param(self, msg: Any) -> None:
        if msg.get("_pyro_vi_program") is not self.program:
            return
        frame = sys._getframe()
        value = msg["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        name, network = _pyro_module_call(frame) or ("", None)
        if network is None:
            holder = _pyromodule_access(frame)
            if holder is not None:
                network = self._outermost(holder)
                name = name_of(network) or type(network).__name__
        if network is not None:
            known = network is self.program or any(network is module for module in self._known())
            if not known and not _within(network, self.program) and not _within(network, self.other):
                self.networks[f"{name}_{len(self.networks)}" if name in self.networks else name] = network
        elif id(leaf) not in self.owned:
            if id(leaf) not in self.copies.leaves:
                leaf = nn.Parameter(leaf.detach().clone())
            # A statement without a value, or a later one, has the constraint of the first statement of either program.
            given = msg["kwargs"].get("constraint", constraints.real)
            self.params.setdefault(msg["name"], (leaf, self.first.setdefault(msg["name"], given)))

    def _known(self) -> Iterator[nn.Module]:
        """Yield the networks that are recorded, and those that a bound program has parameters for."""
        yield from self.networks.values()
        for part in self.program.modules():
            if isinstance(part, FunctionProgram):
                yield from (held.network for held, _ in part._outside)

    def _outermost(self, module: nn.Module) -> nn.Module:
        """Return the outermost PyroModule among the copies that holds a module, or the module itself."""
        for root in self.copies.outermost(PyroModule):
            if _within(module, root):
                return root
        return module


class _Answer(Messenger):
    """Give the param statements of a function the parameters of its `FunctionProgram` as values."""

    def __init__(self, program: "FunctionProgram") -> None:
        super().__init__()
        self.program = program

    def _pyro_param(self, msg: Any) -> None:
        name = msg["name"]
        if msg["done"]:
            return
        if name in self.program._constraints:
            unconstrained = _get(self.program, normalize_param_name(name))
            value = transform_to(self.program._constraints[name])(unconstrained)
            value.unconstrained = weakref.ref(unconstrained)  # as on a value from the parameter store
            msg["value"], msg["done"] = value, True
        elif _pyro_module_call(sys._getframe()) is not None:
            msg["value"], msg["done"] = msg["args"][1], True  # the network already holds the copies
        elif _pyromodule_access(sys._getframe()) is None:  # a PyroModule holds its own
            raise InputError(
                f"parameter '{name}' is created only after the first call; "
                "create every parameter on every path of the program"
            )


def _pyro_module_call(frame: FrameType | None) -> tuple[str, nn.Module] | None:
    # `pyro.module` sends no message of its own, so the network is visible only in the stack frame of the call. This works
    # however the caller imported `pyro.module`, and patches nothing.
    while frame is not None and not _is_forward(frame):
        if frame.f_code is pyro.module.__code__:
            return frame.f_locals["name"], frame.f_locals["nn_module"]
        frame = frame.f_back
    return None


def _pyromodule_access(frame: FrameType | None) -> Any:
    # A PyroModule issues a param statement for each parameter that is read from it or set, with a value that it owns.
    while frame is not None and frame.f_code is not PyroModule.__call__.__code__ and not _is_forward(frame):
        if frame.f_code in (PyroModule.__getattr__.__code__, PyroModule.__setattr__.__code__):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def _is_forward(frame: FrameType) -> bool:
    """True in a call of a `FunctionProgram`, beyond which frames belong to another program."""
    return frame.f_code.co_name == "forward" and frame.f_code.co_filename == __file__


def _get(module: nn.Module, name: str) -> torch.Tensor:
    value: torch.Tensor = attrgetter(name)(module)
    return value


def _within(network: nn.Module, program: nn.Module) -> bool:
    return any(network is module for module in program.modules())

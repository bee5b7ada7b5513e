"""One optimisation step as a pure function: loss, gradients, clipping, schedule and optimizer in one flat graph.

* `WholeStep` holds the tensors that a step changes (parameters, optimizer states, buffers), and records the step for a batch of
  one length. The graph changes these tensors in place, and returns the loss and the norm of the gradient.

The optimizer's own code is recorded. This works for every `torch.optim` optimizer whose update consists of tensor operations.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vi.compiling.losses import Losses, LossGraph
from pyro_vi.errors import NoGraph
from pyro_vi.support.torch_internals import as_compiling, has_step_hooks, stepped_by_scheduler, take_step, untraced
from pyro_vi.tracing import Recording, flat, reason, without_values
from pyro_vi.tracing.reach import Walk

Optimizer = torch.optim.Optimizer
AVERAGE = "average"
"""Key of an optimizer's state whose value is an average of the parameter."""
MANY = 32
"""Most steps in a call, where a call takes several. With more, a call saves little more."""


class WholeStep:
    """A step of a fit, for an optimizer that has taken its first step; before that, it has no state.

    Args:
        losses: the graphs of loss and gradients.
        optimizer: holds the parameters; ``initial_lr`` of its groups is the learning rate of the first step.
        clip_norm: limit on the joint norm of the gradients.
        rate: learning rate as a fraction of the first; None if it changes from step to step.
        summed: the optimizer steps on the sum of the loss over all data, and not on the loss per datum.

    Attributes:
        tensors: the tensors that a step changes, in the order of the graph's first inputs.
        count: number of steps that the optimizer has taken, if it is the same for all parameters.
        averages: the positions in ``tensors`` of averages, each with that of its parameter.
        going: false after a loss or a gradient that is not finite; from then on, steps change nothing.
        control: weight and rate of each of the next steps, of shape ``(MANY, 2)``.

    Raises:
        NoGraph: the optimizer's state is not a tensor, or the optimizer or the gradients have hooks.
    """

    def __init__(
        self, losses: Losses, optimizer: Optimizer, clip_norm: float | None, rate: float | None, *, summed: bool = False
    ) -> None:
        self.losses, self.optimizer, self.clip_norm = losses, optimizer, clip_norm
        self.objective, self.weight, self.rate, self.summed = losses.objective, losses.weight, rate, summed
        self.parameters, self.buffers = losses.held.parameters, losses.held.buffers
        self.adopt = losses.held.adopt
        self.states = _states(optimizer, self.parameters)
        device = self.parameters[0].device
        counts = [float(state["step"]) for _, state in self.states if "step" in state]
        # Double precision, because 1 − β₂ᵗ in single precision is off by 6e-5 at the first step.
        self.count = torch.tensor(counts[0] if counts else 0.0, dtype=torch.float64, device=device)
        self.counted = bool(counts) and len(set(counts)) == 1
        self.going = torch.tensor(True, device=device)
        self.control = torch.ones(MANY, 2, dtype=torch.float64, device=device)
        # Writing to an array takes a tenth of the time of writing to a tensor.
        self._view: Any = self.control.numpy() if device.type == "cpu" else self.control
        self._taken: Any = self.count.numpy() if device.type == "cpu" else self.count
        self._went: Any = self.going.numpy() if device.type == "cpu" else self.going
        self.tensors = [*self.parameters, *self._state_tensors(), *self.buffers, self.count, self.going]
        places = {id(p): i for i, p in enumerate(self.parameters)}
        keys = [(key, places[id(p)]) for p, state in self.states for key in self._keys(state)]
        self.averages = {len(places) + i: place for i, (key, place) in enumerate(keys) if key == AVERAGE}

    def set(self, controls: Sequence[tuple[float, float]]) -> None:
        """Set the weight of the KL and the learning rate, as a fraction of the first, for each of the next steps."""
        self.adopt()
        if self.weight is None or self.rate is None:
            for i, (weight, rate) in enumerate(controls):
                self._view[i, 0], self._view[i, 1] = weight, rate

    def taken(self) -> float:
        """Return the number of steps that were taken, of those that changed something."""
        return float(self._taken)

    def stopped(self) -> bool:
        """True after a loss or a gradient that is not finite, until `restart`."""
        return not bool(self._went)

    def restart(self) -> None:
        """Let the next step change something again, from the optimizer's present state."""
        if self.counted:
            self.count.fill_(next(float(state["step"]) for _, state in self.states if "step" in state))
        self.going.fill_(True)

    def _state_tensors(self) -> list[Tensor]:
        return [state[key] for _, state in self.states for key in self._keys(state)]

    def _keys(self, state: dict[str, Any]) -> list[str]:
        return [k for k, value in state.items() if isinstance(value, Tensor) and not (self.counted and k == "step")]

    def synchronize(self) -> None:
        """Write the number of steps taken into the optimizer's state."""
        self.adopt()
        if self.counted:
            for _, state in self.states:
                if "step" in state:
                    state["step"].fill_(float(self.count))

    def trace(self, losses: LossGraph, source: Sequence[Tensor]) -> Recording:
        """Return the graph of a step as a function of ``(*tensors, control, *source)``.

        The graph returns the loss and the norm of the gradient.

        Args:
            losses: the graph of loss and gradients, for batches of the source's length.
            source: what a batch is made from.

        Raises:
            NoGraph: the optimizer cannot be traced.
        """
        inputs = [*(t.detach().clone() for t in self.tensors), self.control.clone(), *source]
        # Only torch's generator is restored: `watched` must see draws from those of NumPy and Python.
        with torch.random.fork_rng(devices=sorted({t.get_device() for t in inputs if t.is_cuda})):
            for foreach in (False, True):
                try:
                    found = flat(self._function(losses, foreach), *inputs, state=len(self.tensors))
                    without_values(found.graph)
                    return found
                except Exception as error:
                    # Some optimizers accept a tensor as the learning rate in only one of these two implementations.
                    if foreach or isinstance(error, NoGraph):
                        raise NoGraph(reason(error)) from error
        raise AssertionError

    def _function(self, losses: LossGraph, foreach: bool) -> Callable[..., tuple[Tensor, ...]]:
        many, states, buffers = len(self.parameters), self._state_tensors(), len(self.buffers)

        def step(*inputs: Tensor) -> tuple[Tensor, ...]:
            split = iter(inputs)
            old = [next(split) for _ in range(many)]
            old_states = [next(split) for _ in states]
            old_buffers = [next(split) for _ in range(buffers)]
            count, going, control, *source = split
            rate = control[0, 1] if self.rate is None else self.rate
            weight = control[0, 0].to(old[0].dtype)
            loss, gradients, new_buffers = losses.split(losses.module(*old, *old_buffers, weight, *source))
            found: list[Tensor | None] = [None] * many
            norm = _norm(gradients)
            if self.clip_norm is not None:
                shrink = (self.clip_norm / (norm + 1e-6 / (losses.size if self.summed else 1))).clamp(max=1.0)
                gradients = [g * shrink for g in gradients]
                norm = norm * shrink
            for i, gradient in zip(losses.fitted, gradients, strict=True):
                found[i] = gradient * losses.size if self.summed else gradient
            fresh, fresh_states = self._update(old, found, old_states, count, rate, foreach)
            # A step whose loss or gradient is not finite changes nothing, so that the cause can be found.
            good = going & loss.isfinite() & norm.isfinite()
            pairs = [*zip(old, fresh, strict=True), *zip(old_states, fresh_states, strict=True)]
            for before, after in [*pairs, (count, count + 1)]:
                before.copy_(torch.where(good, after, before))
            going.copy_(good)
            for i, after in zip(losses.changed, new_buffers, strict=True):
                old_buffers[i].copy_(torch.where(good, after, old_buffers[i]))
            return loss, norm

        return step

    def _update(
        self,
        old: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        old_states: Sequence[Tensor],
        count: Tensor,
        rate: float | Tensor,
        foreach: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Let a copy of the optimizer take its step on copies of the parameters, and return these and the new states."""
        copies = [value.detach().clone() for value in old]
        by_id = {id(p): copied for p, copied in zip(self.parameters, copies, strict=True)}
        for copied, gradient in zip(copies, gradients, strict=True):
            copied.grad = None if gradient is None else gradient.clone()  # some optimizers change it in place
        twin: Any = object.__new__(type(self.optimizer))
        twin.__dict__.update({k: v for k, v in vars(self.optimizer).items() if k != "step"})  # a scheduler's is bound
        twin.param_groups = [
            {
                **group,
                "params": [by_id[id(p)] for p in group["params"]],
                **({"lr": group["initial_lr"] * rate} if "lr" in group else {}),
                **{k: v for k, v in {"foreach": foreach, "fused": False, "capturable": True}.items() if k in group},
            }
            for group in self.optimizer.param_groups
        ]
        twin.state = defaultdict(dict)
        values = iter(old_states)
        for parameter, state in self.states:
            filled = {key: _wide(next(values), parameter) for key in self._keys(state)}
            if self.counted and "step" in state:
                filled["step"] = count.clone()
            twin.state[by_id[id(parameter)]] = {**state, **filled}
        known = {key: set(state) for key, state in twin.state.items()}
        held, rates = _numbers(twin), [group.get("lr") for group in twin.param_groups]
        with untraced():
            own = Walk(twin)
        try:
            with as_compiling():
                take_step(twin)
        finally:
            with untraced():
                changed = own.changed()
                own.put_back()
        if any(set(state) - known.get(key, set()) for key, state in twin.state.items()):
            raise NoGraph("the optimizer has no state yet for a parameter that this step changes")
        changed = changed or ("" if held == _numbers(twin) else "a number in its groups")
        if changed:
            raise NoGraph(
                f"the optimizer changes {changed}, which a graph would freeze; keep a tensor in its state instead"
            )
        if any(_changed(lr, group.get("lr")) for lr, group in zip(rates, twin.param_groups, strict=True)):
            raise NoGraph("the optimizer changes its learning rate, which a graph would freeze; leave that to schedule")
        fresh = [twin.state[by_id[id(p)]][key] for p, state in self.states for key in self._keys(state)]
        return copies, fresh


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Return the joint norm of tensors, summed row by row: so the compiler fuses it with the optimizer's loop over them."""
    return torch.stack([gradient.square().sum(-1).sum() for gradient in gradients]).sum().sqrt()


def _states(optimizer: Optimizer, parameters: Sequence[Tensor]) -> list[tuple[Tensor, dict[str, Any]]]:
    """Return each parameter that has optimizer state, with its state, in the order of the parameters."""
    if has_step_hooks(optimizer):
        raise NoGraph("the optimizer has hooks, which a graph would leave out")
    if "step" in vars(optimizer) and not stepped_by_scheduler(optimizer):
        raise NoGraph("the optimizer's step is replaced, which a graph would leave out")
    states = [(p, optimizer.state[p]) for p in parameters if p in optimizer.state]
    for _, state in states:
        for key, value in state.items():
            if value is not None and not isinstance(value, Tensor):
                raise NoGraph(
                    f"the optimizer's state '{key}' is no tensor, so a graph would freeze it; keep a tensor instead"
                )
    return states


def _changed(before: Any, after: Any) -> bool:
    return after is not before and (isinstance(before, Tensor) or isinstance(after, Tensor) or after != before)


def _wide(state: Tensor, parameter: Tensor) -> Tensor:
    # A scalar stored in single precision; eager optimizers convert it to a Python number and compute in double precision.
    number = state.dim() == 0 and state.dtype == torch.float32 and parameter.dtype == torch.float64
    return state.double() if number else state.clone()


def _numbers(optimizer: Any) -> list[Any]:
    """Return the values in an optimizer's groups that are not tensors, as text."""
    groups = [{k: v for k, v in group.items() if k not in ("params", "lr")} for group in optimizer.param_groups]
    return [repr({k: v for k, v in group.items() if not isinstance(v, Tensor)}) for group in groups]

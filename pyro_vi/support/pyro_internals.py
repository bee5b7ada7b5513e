"""The private and undocumented parts of Pyro that pyro_vi uses, each as a function whose docstring says why it is needed.

Each part is looked up on use, so that a version of Pyro without it breaks nothing else. A function raises
`pyro_vi.support.private.Missing` if Pyro lacks its part, unless it has a substitute.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pyro
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vi.support.private import attribute, part

_part = partial(part, "pyro-ppl")
_attribute = partial(attribute, "pyro-ppl")


def is_context(value: Any) -> bool:
    """True for the object in which a PyroModule keeps state during a call."""
    return isinstance(value, _context_class() or ())


@cache
def _context_class() -> Any:
    context = vars(PyroModule()).get("_pyro_context")
    return None if context is None else type(context)


def local_context() -> Any:
    """Return such an object whose calls run in a parameter store of their own, so that no other store changes the module.

    Pyro's own object does so only while a setting is on; else the module takes the values that the global store has under
    its name, and loses its own.
    """
    return _local_context_class()()


@cache
def _local_context_class() -> type:
    class LocalContext(_context_class()):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.param_state: dict[str, Any] = {"params": {}, "constraints": {}}

        def __enter__(self) -> None:
            if not self.active:
                self._scope = pyro.get_param_store().scope(state={"params": {}, "constraints": {}})
                self._scope.__enter__()
            self.active += 1
            self.used = True

        def __exit__(self, *error: Any) -> None:
            self.active -= 1
            if not self.active:
                self.cache.clear()
                self._scope.__exit__(*error)

        def __reduce__(self) -> Any:
            return local_context, ()

    return LocalContext


def name_of(module: nn.Module) -> str:
    """Return the name of a PyroModule in the parameter store, or the name of its class if Pyro gives it none."""
    return str(getattr(module, "_pyro_name", type(module).__name__))


def params_of(module: nn.Module) -> dict[str, Any]:
    """Return the constrained parameters that a PyroModule itself holds, by name, each with its constraint."""
    return {name: constraint for name, (constraint, *_) in getattr(module, "_pyro_params", {}).items()}


def dims_of(factor: Tensor) -> str:
    """Return the symbols of the dimensions of a packed factor, one a letter, which say over which states it is summed."""
    dims: str = _attribute(factor, "_pyro_dims", "pyro.ops.packed._pyro_dims")
    return dims


def mask_of(masked: Any) -> Any:
    """Return the mask of a MaskedDistribution, which a closed form of its KL needs."""
    return _attribute(masked, "_mask", "pyro.distributions.MaskedDistribution._mask")


def loss_and_surrogate(elbo: Any) -> Callable[..., tuple[Any, Tensor]]:
    """Return TraceGraph_ELBO's method for its loss and its surrogate loss, because it has no `differentiable_loss`."""
    found: Callable[..., tuple[Any, Tensor]]
    found = _attribute(elbo, "_loss_and_surrogate_loss", "pyro.infer.TraceGraph_ELBO._loss_and_surrogate_loss")
    return found


def waiting_state(optimizer: Any) -> dict[str, Any]:
    """Return the state that was loaded into one of Pyro's optimizers, and that no parameter has taken yet."""
    found: dict[str, Any]
    found = _attribute(optimizer, "_state_waiting_to_be_consumed", "pyro.optim.PyroOptim._state_waiting_to_be_consumed")
    return found


LOOKS = (
    ("item", "pyro.infer.trace_elbo", "torch_item"),
    ("warning", "pyro.infer.trace_elbo", "warn_if_nan"),
    ("item", "pyro.infer.trace_mean_field_elbo", "torch_item"),
    ("warning", "pyro.infer.trace_mean_field_elbo", "warn_if_nan"),
    ("warning", "pyro.infer.traceenum_elbo", "warn_if_nan"),
    ("warning", "pyro.infer.tracetmc_elbo", "warn_if_nan"),
    ("expectation", "pyro.infer.util", "Dice.compute_expectation"),
    ("dot", "pyro.infer.util", "_fulldot"),
    ("scale", "pyro.infer.traceenum_elbo", "_get_common_scale"),
    ("support", "torch.distributions", "Binomial.enumerate_support"),
    ("support", "pyro.distributions", "BetaBinomial.enumerate_support"),
)
"""Functions with which Pyro's estimators read the values of tensors: purpose, module, and name in the module."""


def looks_at_values() -> list[tuple[str, Any, str, Callable[..., Any]]]:
    """Return the functions of `LOOKS`, which a trace replaces: purpose, owner, name in the owner, and function."""
    found = []
    for purpose, module, name in LOOKS:
        owner, _, last = name.rpartition(".")
        found.append((purpose, _part(module, owner), last, _part(module, name)))
    return found

"""The private and undocumented parts of Pyro that pyro_vi uses, each as a function that says what it is used for.

Each part is imported where it is used, so that a Pyro without it breaks nothing else. Functions raise
`pyro_vi.support.private.Missing` where Pyro lacks their part, but for those that can do without.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from pyro_vi.support.private import attribute, part

_part = partial(part, "pyro-ppl")
_attribute = partial(attribute, "pyro-ppl")


def context_of(module: nn.Module) -> Any:
    """What a PyroModule keeps its state of a call in, or None: to let it run apart from the global parameter store."""
    return vars(module).get("_pyro_context")


def name_of(module: nn.Module) -> str:
    """The name that a PyroModule goes by in the parameter store; its class's where Pyro gives none."""
    return str(getattr(module, "_pyro_name", type(module).__name__))


def mask_of(masked: Any) -> Any:
    """The mask of a MaskedDistribution: a closed form of its KL has to mind it."""
    return _attribute(masked, "_mask", "pyro.distributions.MaskedDistribution._mask")


def loss_and_surrogate(elbo: Any) -> Callable[..., tuple[Any, Tensor]]:
    """TraceGraph_ELBO's loss and what its gradient is taken of: it has no `differentiable_loss`."""
    found: Callable[..., tuple[Any, Tensor]]
    found = _attribute(elbo, "_loss_and_surrogate_loss", "pyro.infer.TraceGraph_ELBO._loss_and_surrogate_loss")
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
"""Where Pyro's estimators look at the values of tensors: for what, the module, and the name there."""


def looks_at_values() -> list[tuple[str, Any, str, Callable[..., Any]]]:
    """The functions of `LOOKS`, which a trace replaces: for what, the owner, the name there, and the function."""
    found = []
    for purpose, module, name in LOOKS:
        owner, _, last = name.rpartition(".")
        found.append((purpose, _part(module, owner), last, _part(module, name)))
    return found

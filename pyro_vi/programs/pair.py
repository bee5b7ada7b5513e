"""`Pair`: a model and a guide that share their latent sites, as one module."""

from typing import Any

import torch
from pyro import poutine
from torch import nn

from pyro_vi.data import Batch
from pyro_vi.programs.isolation import isolated, ready
from pyro_vi.programs.layout import Prototype, prototype


class Pair(nn.Module):
    """A model and a guide as one module.

    Args:
        model: the generative program p(x, z), a module called with a batch.
        guide: the variational program q(z | x), a module called with the same batch.
    """

    def __init__(self, model: nn.Module, guide: nn.Module) -> None:
        super().__init__()
        self.model, self.guide = model, guide
        self._layouts: dict[Any, tuple[Prototype, Prototype]] = {}
        ready(self)

    def layouts(self, args: Batch) -> tuple[Prototype, Prototype]:
        """Return the prototypes of model and guide on a batch; the programs run only for a new shape of the batch."""
        shapes = tuple(tuple(a.shape) if isinstance(a, torch.Tensor) else None for a in args)
        if shapes not in self._layouts:
            self._layouts[shapes] = prototype(self.model, args), prototype(self.guide, args)
        return self._layouts[shapes]

    def owned(self, args: Batch | None = None) -> dict[str, tuple[str, nn.Parameter]]:
        """Return the trainable parameters by name, each with its owner: ``"model"`` or ``"guide"``.

        A parameter is named as in its program; if both programs have that name, the guide's is ``guide.<name>``.

        A parameter that both programs hold (a network registered in both, an exact guide that reads the model) belongs to
        the model if log p(x, z) at a fixed z depends on it, and else to the guide. The batch ``args`` is used to find out;
        without it, such a parameter belongs to the model.
        """
        held = {id(p) for p in self.guide.parameters()} & {id(p) for p in self.model.parameters() if p.requires_grad}
        only_guide = self._unused_by_model(args, held) if held and args is not None else set()
        result: dict[str, tuple[str, nn.Parameter]] = {}
        seen: set[int] = set()
        for owner, program in (("model", self.model), ("guide", self.guide)):
            for name, parameter in program.named_parameters():
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    part = "guide" if id(parameter) in only_guide else owner
                    result[f"{owner}.{name}" if name in result else name] = (part, parameter)
        return result

    def _unused_by_model(self, args: Batch, held: set[int]) -> set[int]:
        with isolated(seed=0):
            with torch.no_grad():
                guide_trace = poutine.trace(self.guide).get_trace(*args)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*args)
            log_p = torch.as_tensor(trace.log_prob_sum())
        shared = [p for p in self.model.parameters() if id(p) in held]
        gradients = (
            torch.autograd.grad(log_p, shared, allow_unused=True) if log_p.requires_grad else [None] * len(shared)
        )
        return {id(p) for p, g in zip(shared, gradients, strict=True) if g is None}

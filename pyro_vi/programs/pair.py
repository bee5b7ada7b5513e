"""`Pair`: a model and a guide that share their latent sites, as one module."""

from collections.abc import Iterator
from operator import attrgetter
from typing import Any

import torch
from pyro import poutine
from pyro.params.param_store import normalize_param_name
from torch import nn
from torch.distributions import constraints, transform_to

from pyro_vi.data import Batch, evenly, fresh, length_of, part
from pyro_vi.errors import InputError
from pyro_vi.programs.binding import FunctionProgram, draw, trace_of_guide
from pyro_vi.programs.copying import Copies
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.layout import Prototype, key_of, layout_of
from pyro_vi.programs.messages import running
from pyro_vi.programs.numbering import takes_row_numbers
from pyro_vi.support.pyro_internals import params_of


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

    def __deepcopy__(self, memo: dict[int, Any]) -> "Pair":
        copied: Pair = Copies(memo).of(self)
        return copied

    def layouts(self, args: Batch) -> tuple[Prototype, Prototype]:
        """Return the prototypes of model and guide on a batch; the programs run only for a new shape of the batch.

        Raises:
            InputError: a program fails on the batch.
        """
        key = key_of(args), self.training
        if key not in self._layouts:
            with running(self, args):
                traces = draw(self.model, self.guide, args)
            self._layouts[key] = layout_of(traces[0]), layout_of(traces[1])
        return self._layouts[key]

    def rows(self, args: Batch) -> tuple[int, int]:
        """Return the number of rows B of a batch, and the number of data N that it stands for.

        They are the length and the full size of the data plate; without a data plate, both are the length of the first column.
        """
        return self.layouts(args)[0].rows(length_of(args))

    def separable(self, args: Batch, rows: int) -> bool:
        """True if some rows of a batch can be taken by themselves: each has its own latents and no parameters of its own."""
        length = length_of(args)
        # A guide that takes row numbers finds the parameters of a row in any batch.
        programs = [self.model] if takes_row_numbers(self.guide) else [self.model, self.guide]
        if any(length > 1 and length in p.shape for program in programs for p in program.parameters()):
            return False
        try:
            layout = self.layouts(part(args, 0, rows))[0]
        except InputError:  # the programs take whole data only
            return False
        plate = layout.data_plate
        return plate is not None and not layout.shared and plate.length == min(rows, length)

    def evenly(self, args: Batch, rows: int) -> tuple[Batch, list[int]]:
        """Return at most ``rows`` evenly spaced rows and their numbers; all, if rows cannot be taken by themselves."""
        length = length_of(args)
        return evenly(args, rows if rows < length and self.separable(args, rows) else length)

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

    def values(self) -> dict[str, torch.Tensor]:
        """Return the values of the parameters by name, constrained as the programs see them, without gradients."""
        found: dict[str, torch.Tensor] = {}
        for name, parameter, constraint in self.held():
            if name not in found:
                found[name] = transform_to(constraint)(parameter).detach()
        return found

    def held(self) -> Iterator[tuple[str, nn.Parameter, constraints.Constraint]]:
        """Yield the parameters of both programs: the name in Pyro, the unconstrained parameter, and its constraint.

        The containers of a program may yield a parameter again; the first time is the right one.
        """
        for program in (self.model, self.guide):
            for prefix, module in program.named_modules():
                for name, parameter, constraint in _held(module):
                    yield f"{prefix}.{name}".lstrip("."), parameter, constraint

    def _unused_by_model(self, args: Batch, held: set[int]) -> set[int]:
        with isolated(seed=0), torch.enable_grad():
            with torch.no_grad():
                args = fresh(args)
                guide_trace = trace_of_guide(self.guide, args)
            trace = poutine.trace(poutine.replay(self.model, trace=guide_trace)).get_trace(*args)
            log_p = torch.as_tensor(trace.log_prob_sum())
        shared = [p for p in self.model.parameters() if id(p) in held]
        gradients = (
            torch.autograd.grad(log_p, shared, allow_unused=True) if log_p.requires_grad else [None] * len(shared)
        )
        return {id(p) for p, g in zip(shared, gradients, strict=True) if g is None}


def _held(module: nn.Module) -> Iterator[tuple[str, nn.Parameter, constraints.Constraint]]:
    """Yield the parameters that a module itself holds, as `Pair.held`."""
    of_function = module._constraints if isinstance(module, FunctionProgram) else {}
    for name, constraint in of_function.items():
        name = normalize_param_name(name)
        yield name, attrgetter(name)(module), constraint
    of_module = params_of(module)
    names = {f"{name}_unconstrained": name for name in of_module}
    for name, parameter in module.named_parameters(recurse=False):
        if name in names:
            yield names[name], parameter, of_module[names[name]]
        elif name not in of_function:
            yield name, parameter, constraints.real

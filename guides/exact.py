"""The exact posterior as a guide, for models that have it in closed form."""

from contextlib import nullcontext
from typing import Any

import pyro
from torch import Tensor, nn
from torch.distributions import Distribution

from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs import ModelPlate, prototype, title

ENUMERATED = {"enumerate": "parallel"}


class Exact(nn.Module):
    """Exact posterior: q(z | x) = p(z | x), taken from the model's ``posterior(x)``.

    It has no parameters of its own. It depends on the model's, with gradients: the ELBO of every draw then equals log p(x),
    and the gradient of the ELBO equals that of log p(x). Discrete sites are marked for enumeration, which the estimator
    ``enum`` follows.

    Args:
        model: a module whose ``posterior(x)`` returns a distribution for each latent site, or a function that gives it from
            the draws of the sites before, by name.
        batch: an example batch.

    Raises:
        InputError: the model has no ``posterior(x)``, or it lacks a latent site.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> import torch
        >>> model = LinearGaussian(DataSpec("x", 4, (3,), "real", torch.float32, "made up"), latent_dim=2)
        >>> Exact(model, (torch.zeros(4, 3),))(torch.zeros(4, 3))["z"].shape
        torch.Size([4, 2])
    """

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        if not callable(getattr(model, "posterior", None)):
            raise InputError(
                f"guide 'exact' needs a model with a closed form, a method posterior(x); {_why_not(model)}"
            )
        layout = prototype(model, batch)
        self.model, self.shared = model, set(layout.shared)
        self.plate = ModelPlate(model, layout, batch) if layout.data_plate is not None else None
        missing = set(layout.latents) - set(model.posterior(*batch))  # type: ignore[operator]
        if missing:
            listed = ", ".join(sorted(missing))
            raise InputError(
                f"the model's posterior(x) lacks its latent sites {listed}; return a distribution for each"
            )

    def forward(self, *args: Tensor) -> dict[str, Any]:
        """Draw every latent site from the posterior of the batch."""
        draws: dict[str, Any] = {}
        plate = nullcontext() if self.plate is None else self.plate(args)
        for name, found in self.model.posterior(*args).items():  # type: ignore[operator]
            distribution: Any = found if isinstance(found, Distribution) else found(draws)
            infer: Any = ENUMERATED if distribution.has_enumerate_support else {}
            with nullcontext() if name in self.shared else plate:
                draws[name] = pyro.sample(name, distribution, infer=infer)
        return draws


def _why_not(model: nn.Module) -> str:
    """Why a model has no ``posterior``: one that has it under some options only says so in the error of a property."""
    found = getattr(type(model), "posterior", None)
    if isinstance(found, property) and found.fget is not None:
        try:
            found.fget(model)
        except AttributeError as error:
            return f"{str(error).removeprefix('posterior: ')}: use guide 'diag_normal' otherwise"
    return f"{title(model)} has none: use guide 'diag_normal', or model 'linear_gaussian'"

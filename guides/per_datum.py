"""The guide with free parameters for each datum: no encoder stands between a datum and its posterior."""

import inspect
from typing import Any, ClassVar

from torch import Tensor, nn

from pyro_vi.amortized import AmortizedGuide
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.programs import resolve


class PerDatum(nn.Module):
    """Guide with free parameters for each datum: q_n(z) of row n, without an encoder (Hoffman et al. 2013, arXiv:1206.7051).

    For a given model, a fit maximises the ELBO of each datum over the family by itself, without an amortization gap. A
    row's parameters belong to its number, so that shuffled minibatches are right. Rows that were not fitted have none:
    nothing is held out, and pixels that a data set redraws in each epoch are drawn once.

    A row that is not in the batch has gradient 0. SGD leaves its parameters as they are; Adam moves them on by their momentum,
    for some ten steps. The gradient is right on average over batches, and both converge to the same values. Under Adam, a row
    that is visited once in N/B steps moves by up to 20 √(N/B) times the learning rate at each visit, in units of the prior's
    standard deviation. Each row needs some hundred visits. A step costs O(N) however small the batch is.

    Args:
        model: the generative program.
        batch: an example batch, without row numbers.
        num_data: number of rows.
        family: the guide of this shelf that gives q_n, with its options, such as ``"low_rank_normal(rank=2)"``.
        init_scale: initial standard deviations, on the unconstrained scale; by default a tenth of the prior's, at most 0.1.

    Raises:
        InputError: the family is not one that an encoder could give, or does not serve the model.

    Example:
        >>> import torch
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = PerDatum(VAE(digits.spec, latent_dim=2), digits.example(4), digits.spec.num_data)
        >>> guide(*digits.example(4), torch.tensor([3, 0, 2, 1]))["z"].shape
        torch.Size([4, 2])
    """

    row_numbers: ClassVar[bool] = True

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        num_data: int,
        *,
        family: str = "diag_normal",
        init_scale: float | None = None,
    ) -> None:
        super().__init__()
        found: Any
        found, options = resolve(family, "guide")
        if not (isinstance(found, type) and issubclass(found, AmortizedGuide) and _takes_numbers(found)):
            raise InputError(
                f"family {family!r} of guide 'per_datum' cannot have parameters for each row; use 'diag_normal'"
            )
        given = {"init_scale": init_scale, **options, "amortized": False, "numbered": num_data}
        self.family: AmortizedGuide = found(model, batch, **given)

    def forward(self, *args: Any) -> dict[str, Tensor]:
        """Draw every latent site for the rows whose numbers are the last argument; return the draws by site."""
        drawn: dict[str, Tensor] = self.family(*args)
        return drawn

    def describe(self) -> dict[str, str]:
        """Where the numbers of q come from at each site, in one phrase."""
        return self.family.describe()


def _takes_numbers(family: type) -> bool:
    """True for a guide that hands on what it does not know itself, such as the number of rows."""
    return any(p.kind is p.VAR_KEYWORD or p.name == "numbered" for p in inspect.signature(family).parameters.values())

"""The prior guide: nothing is learned; the baseline of each comparison."""

from typing import Any

from pyro import poutine
from torch import Tensor, nn

from pyro_vi.data import Batch, fresh
from pyro_vi.errors import InputError
from pyro_vi.programs import prototype


class Prior(nn.Module):
    """Prior guide: q(z | x) = p(z), so that KL = 0 and the ELBO is E_p(z)[log p(x | z)].

    It has no parameters and does not look at the datum. A draw says nothing about its datum, so that a fit rewards a model
    that does without its latents. Sites are drawn from the model's own distributions, with their gradients: those of one
    site may depend on the draws of another. Sites that the model marks for enumeration are left to the estimator.

    Args:
        model: the generative program.
        batch: an example batch.

    Raises:
        InputError: the model has no latent site, or a latent site that depends on one that is marked for enumeration.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> Prior(VAE(digits.spec, latent_dim=2), digits.example(4))(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "prior"

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        super().__init__()
        layout = prototype(model, batch)
        latents = layout.latents
        if not latents:
            raise InputError(
                "the model has no latent site, so there is nothing for a guide to do; use a guide without sites"
            )
        self.sites = [name for name, site in latents.items() if not (site.enumerated and site.support.is_discrete)]
        left = [name for name in latents if name not in self.sites]
        order = list(latents)
        after = [name for name in self.sites if left and order.index(name) > order.index(left[0])]
        if after:
            raise InputError(
                f"guide 'prior' cannot draw site '{after[0]}' after site '{left[0]}', which the model marks for enumeration; "
                "use guide 'diag_normal'"
            )
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent site from the model; return the draws by site."""

        def hidden(site: Any) -> bool:
            # The plates of the model stay visible: their subsamples belong to both programs.
            return site["type"] != "sample" or not (site["name"] in self.sites or _subsample(site))

        with poutine.block(hide_fn=hidden), poutine.trace() as traced:
            self.model(*fresh(args), **kwargs)
        draws: dict[str, Any] = {name: traced.trace.nodes[name]["value"] for name in self.sites}
        return draws


def _subsample(site: Any) -> bool:
    return type(site["fn"]).__name__ == "_Subsample"

"""The prior of a model as a guide: importance sampling and annealing start from it on request.

`prior_pair` pairs a model with it.
"""

from typing import Any

from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import nn

from pyro_vi.data import Batch, fresh
from pyro_vi.diagnostics.simulating import refuse_wrong_draws
from pyro_vi.elbo import one_run
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair


class FromPrior(nn.Module):
    """Draws the latent sites of a model from the model's own distributions: q(z | x) = p(z).

    Args:
        model: the generative program.
        sites: names of the latent sites to draw; the others are left to enumeration.
    """

    def __init__(self, model: nn.Module, sites: list[str]) -> None:
        super().__init__()
        self.model, self.sites = model, sites

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """Draw the sites; what the model observes, computes or adds is not seen outside."""

        def hidden(site: Any) -> bool:
            # The plates of the model stay visible: their subsamples belong to both programs.
            return site["type"] != "sample" or not (site["name"] in self.sites or site_is_subsample(site))

        with poutine.block(hide_fn=hidden):
            self.model(*fresh(args), **kwargs)


def prior_pair(pair: Pair, args: Batch, moved: bool) -> Pair:
    """Return the model of a pair with its prior as the guide.

    Discrete sites that the model marks for enumeration are summed, unless a latent site comes after them: it may depend on
    their draws, and all latents are drawn then.

    Args:
        pair: model and guide.
        args: the batch.
        moved: the draws will be moved along gradients, which discrete ones do not have.

    Raises:
        InputError: the draws will be moved, and one of them is discrete; or torch does not draw a site from its density.
    """
    refuse_wrong_draws(one_run(pair, args, False).model_trace)
    latents = pair.layouts(args)[0].latents
    names = list(latents)
    marked = [name for name, site in latents.items() if site.enumerated and site.support.is_discrete]
    last = max((i for i, name in enumerate(names) if name not in marked), default=-1)
    summed = marked if marked and names.index(marked[0]) > last else []
    drawn = [name for name in names if name not in summed]
    discrete = [name for name in drawn if latents[name].support.is_discrete]
    if moved and discrete:
        raise InputError(
            f"site '{discrete[0]}' is discrete and drawn from the prior: Hamiltonian moves need a gradient; use start='guide' "
            "with a guide that leaves it to enumeration, or method='prior'"
        )
    return Pair(pair.model, FromPrior(pair.model, drawn))

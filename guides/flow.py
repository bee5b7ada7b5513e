"""The flow guide: a full normal whose noise is a normalizing flow, conditional on the datum."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pyro_vi.amortized import FLOWS, Block, Call, Pushforward, flow_layers, joined, whole
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.guides.full_normal import FullNormal
from pyro_vi.networks import widths_of


class Flow(FullNormal):
    """Flow guide: z = μ(x) + L(x) T(ε; x) with ε ~ N(0, I), T a normalizing flow from zuko, conditional on the encoder.

    With T the identity it is ``full_normal``; T starts near the identity. T maps noise to draws in one pass, as an inverse
    autoregressive flow (Kingma et al. 2016, arXiv:1606.04934); the density of a value that it has not drawn itself takes D
    passes. Over several sites it is a chain: the flow of z_2 is conditional on z_1. Constrained sites are mapped to their
    support by a bijection. No KL of it has a closed form.

    Args:
        kind: ``"spline"``, autoregressive rational-quadratic splines (Durkan et al. 2019, arXiv:1906.04032); ``"affine"``,
            autoregressive shift and scale (Papamakarios et al. 2017, arXiv:1705.07057); ``"coupling"``, the same splines of one
            half of the numbers given the other, whose inverse takes two passes.
        transforms: number of transforms; each one reverses the order of the numbers of the one before. A site of a single
            number has one transform.
        flow_hidden: widths of the hidden layers of each transform.
        bins: bins of a spline.

    Other arguments and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = Flow(VAE(digits.spec, latent_dim=2), digits.example(4), transforms=1)
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "flow"

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        kind: str = "spline",
        transforms: int = 2,
        flow_hidden: tuple[int, ...] = (64,),
        bins: int = 8,
        **options: Any,
    ) -> None:
        if kind not in FLOWS:
            raise InputError(f"kind must be one of {', '.join(FLOWS)}, not {kind!r}")
        counts = whole("transforms", transforms, 1), whole("bins", bins, 2)
        self._settings: tuple[Any, ...] = (kind, counts[0], widths_of(flow_hidden, "flow_hidden"), counts[1])
        super().__init__(model, batch, **options)

    def extra(self, block: Block, width: int) -> nn.Module:
        """The transforms of each site of the block, conditional on the features and on the noise of the sites before it."""
        flows = nn.ModuleList()
        context = width
        for size in block.sizes:
            flows.append(flow_layers(size, context, *self._settings))
            context += size
        return flows

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """z_k = μ_k + L_k,<k ε_<k + L_kk T_k(n), n ~ N(0, I)."""
        chain = self.chain(block, numbers)
        noise = chain.noise(self.drawn(block, name, call))
        normal = chain.given(noise, block.slice(name))
        context = [part for part in (numbers.get("features"), noise) if part is not None]
        given = joined([part.expand(*normal.batch_shape, part.shape[-1]) for part in context])
        assert isinstance(block.extra, nn.ModuleList)
        layers = block.extra[block.sites.index(name)]
        assert isinstance(layers, nn.ModuleList)
        return Pushforward(normal.loc, normal.scale_tril, [layer(given) for layer in layers])

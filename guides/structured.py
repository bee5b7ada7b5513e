"""The structured guide: normals that keep the dependency between the sites of the model."""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.amortized import AmortizedGuide, Block, Call, NormalPath, Parent, Part, aligned, labelled, parents_of
from pyro_vi.data import Batch
from pyro_vi.networks import mlp

MOST = 2**20
"""Most weights from parents to the numbers of a site with free parameters; a site that needs more gets no parents."""


class Structured(AmortizedGuide):
    """Structured guide: q(z | x) = Π_k q(z_k | parents(z_k), x), each a diagonal normal (arXiv:1404.4114).

    The parents of a site are those of its prior, and the sites before it with which it shares a child: given the data,
    these depend on each other (Webb et al. 2018, arXiv:1712.00287). For a site with free parameters, μ and log σ are linear
    in its parents, which is exact where the posterior has this form, as in a funnel. For an encoded site they come from a
    network of the features and the parents, so that a local site depends on global ones. All steps of a sequence share one
    network: z_t depends on z_{t−1} and z_{t−2} where the model says so, and on the features of step t, which a
    bidirectional encoder makes from the past and the future of x (Krishnan et al. 2017, arXiv:1609.09869). Where a single
    site holds the path, as in ``deep_markov``, z_t depends on z_{t−1}. A parent in a plate that the site is not in enters by
    its mean over that plate. Constrained sites are mapped to their support by a bijection. The KL against a normal prior is
    analytic given the parents.

    Args and errors: see `pyro_vi.amortized.AmortizedGuide`.

    Example:
        >>> from pyro_vi.data import load
        >>> from pyro_vi.models.vae import VAE
        >>> digits = load("digits")
        >>> guide = Structured(VAE(digits.spec, latent_dim=2), digits.example(4))
        >>> guide(*digits.example(4))["z"].shape
        torch.Size([4, 2])
    """

    name = "structured"

    def prepare(self, model: nn.Module, batch: Batch) -> None:
        """Find the parents of each site."""
        found = parents_of(self.frame, model, batch)
        self._parents: dict[str, dict[Parent, int]] = {}
        for name, parents in found.items():
            own = self._parents.setdefault(self.key(name), {})
            own.update({parent: self.frame.shapes[other].numel for other, parent in parents.items()})

    def parts(self, block: Block) -> dict[str, Part]:
        """μ and log σ of each number, where the parents are at the centre of their prior."""
        return {"loc": Part(torch.zeros(block.dim)), "log_scale": Part(self.log_scale(block))}

    def extra(self, block: Block, width: int) -> nn.Module | None:
        """The network of the parents, small at the start."""
        site = block.sites[0]
        size = sum(self._parents[self.key(site)].values()) + (block.dim if self._path(site) else 0)
        if not size or (not width and size * block.dim > MOST):
            return None
        if not width:
            net: nn.Module = nn.Linear(size, 2 * block.dim, bias=False)
        else:
            net = mlp(width + size, self.hidden, 2 * block.dim, self.activation)
        last = [part for part in net.modules() if isinstance(part, nn.Linear)][-1]
        with torch.no_grad():
            last.weight.mul_(0.1)
        return net

    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """N(μ + m, σ² e^{2 s}) with m and s from the parents."""
        loc, log_scale = numbers["loc"], numbers["log_scale"]
        if block.extra is not None:
            given = self.given(name, block, call)
            if "features" in numbers:
                features = numbers["features"]
                wide = torch.broadcast_shapes(given.shape[:-1], features.shape[:-1])
                given = torch.cat([v.expand(*wide, v.shape[-1]) for v in (features, given)], -1)
            if self._path(name):
                assert isinstance(block.extra, nn.Sequential)
                wide = (*given.shape[:-1], block.dim)
                return NormalPath(loc.expand(wide), log_scale.expand(wide), given, block.extra)
            shift, stretch = block.extra(given).chunk(2, -1)
            loc, log_scale = loc + shift, log_scale + stretch
        return dist.Normal(loc, log_scale.exp())

    def _path(self, name: str) -> bool:
        """True for a site that holds all steps of encoded sequences."""
        site = self.frame.sites.get(name)
        return (
            site is not None
            and bool(site.chain)
            and self.frame.encoded(site)
            and self.frame.rows(site)[-1] == site.chain
        )

    def given(self, name: str, block: Block, call: Call) -> Tensor:
        """The parents' vectors at the rows of a site, (*particles, *rows, P); 0 for a parent before the first step."""
        rows = self.frame.rows(call.sites[name])
        lengths = [call.plates[plate].subsample_size for plate in rows]
        drawn = {
            labelled(self.frame, name, other): aligned(value, self.frame.rows(call.sites[other]), rows)
            for other, value in call.vectors.items()
        }
        parts = []
        for parent, size in self._parents[self.key(name)].items():
            value = drawn.get(parent)
            parts.append(block.start.new_zeros(*lengths, size) if value is None else value)
        if not parts:
            return block.start.new_zeros(*lengths, 0)
        wide = torch.broadcast_shapes(*(part.shape[:-1] for part in parts), tuple(lengths))
        return torch.cat([part.expand(*wide, part.shape[-1]) for part in parts], -1)

    def chained(self, name: str, block: Block) -> bool:
        """Every site may be a parent."""
        return True

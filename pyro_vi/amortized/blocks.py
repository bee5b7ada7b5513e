"""`Block`: the numbers of q for one or several sites, from an encoder's features or from free parameters."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Part:
    """One kind of number in a block, such as the loc.

    Attributes:
        start: the values at the start, of the shape that one row has.
        gain: how much the features move them at the start, relative to torch's default; 0 for not at all.
    """

    start: Tensor
    gain: float = 1.0


@dataclass(frozen=True)
class Mode:
    """A local maximum of the ELBO of independent normals: loc and log_scale in units of a start, (D,), and the ELBO there."""

    loc: Tensor
    log_scale: Tensor
    bound: float


class Block(nn.Module):
    """The numbers of q for sites that share them: those of one site, of a series, or of all sites of a level.

    Vectors are in units of the prior, or of a fitted start: u = start + spread · v on the unconstrained scale, so that one
    learning rate suits parameters of any size.

    Args:
        sites: names of the sites, in the order of the model.
        sizes: length of each site's vector.
        rows: the plates whose rows have numbers of their own.
        lengths: the full sizes of these plates if the numbers are free parameters; None if an encoder gives them.
        start: centre of the prior or of a fitted start, all sites' vectors in one.
        spread: the standard deviation there.
        rate: free parameters are stored in units of ``rate``, so that a step of an optimizer such as Adam moves the numbers by
            ``rate`` times its learning rate.

    Attributes:
        fitted: the units are those of a fitted start (`pyro_vi.amortized.starts`).
        root: Cholesky factor of its covariance in these units, (D, D); None where it has no correlations.
        modes: the different normals that the search for it has found, the best first, in these units.
    """

    start: Tensor
    spread: Tensor
    root: Tensor | None

    def __init__(
        self,
        sites: Sequence[str],
        sizes: Sequence[int],
        rows: tuple[str, ...],
        lengths: Sequence[int] | None,
        start: Tensor,
        spread: Tensor,
        rate: float = 1.0,
    ) -> None:
        super().__init__()
        self.sites, self.sizes, self.rows, self.lengths, self.rate = tuple(sites), tuple(sizes), rows, lengths, rate
        self.register_buffer("start", start)
        self.register_buffer("spread", spread)
        self.register_buffer("root", None)
        self.fitted = False
        self.modes: tuple[Mode, ...] = ()
        self.shapes: dict[str, torch.Size] = {}
        self.head: nn.Linear | None = None
        self.extra: nn.Module | None = None

    @property
    def dim(self) -> int:
        """Length of the vector of all sites."""
        return sum(self.sizes)

    @property
    def encoded(self) -> bool:
        """True if an encoder gives the numbers."""
        return self.lengths is None

    def slice(self, site: str) -> slice:
        """The place of a site's vector in that of the block."""
        i = self.sites.index(site)
        return slice(sum(self.sizes[:i]), sum(self.sizes[: i + 1]))

    def units(self, site: str) -> tuple[Tensor, Tensor]:
        """The centre and spread of the units at a site, (D,) each."""
        place = self.slice(site if site in self.sites else self.sites[0])
        # Copies: buffers are written back after a run that is to leave no trace, which spoils gradients of what they are in.
        return self.start[place].clone(), self.spread[place].clone()

    def set_fitted(self, root: Tensor | None, modes: tuple[Mode, ...] = ()) -> None:
        """Take the units as those of a fitted start, with its correlations and modes."""
        self.fitted, self.modes = True, modes
        self.root = None if root is None else root.to(self.spread.dtype)

    def correlated(self, loc: Tensor, tril: Tensor) -> tuple[Tensor, Tensor]:
        """Return loc, (*rows, D), and Cholesky factor, (*rows, D, D), of v = root · w from those of w; v = w without root."""
        if self.root is None:
            return loc, tril
        root = self.root.clone()  # as in `units`
        return (root @ loc.unsqueeze(-1)).squeeze(-1), root @ tril

    def make(self, parts: Mapping[str, Part], width: int) -> None:
        """Make the parameters: a linear layer on ``width`` features, or free parameters, with the given start."""
        self.shapes = {name: part.start.shape for name, part in parts.items()}
        if self.lengths is not None:
            for name, part in parts.items():
                wide = part.start.expand((*self.lengths, *part.start.shape)) / self.rate
                if wide.numel():
                    self.register_parameter(name, nn.Parameter(wide))
                else:  # such as what is below the diagonal of a single number: nothing is to be learned
                    self.register_buffer(name, wide, persistent=False)
            return
        if not parts:
            return
        self.head = nn.Linear(width, sum(shape.numel() for shape in self.shapes.values()))
        with torch.no_grad():
            self.head.bias.copy_(torch.cat([part.start.flatten() for part in parts.values()]))
            gains = [torch.full((part.start.numel(),), part.gain) for part in parts.values()]
            self.head.weight.mul_(torch.cat(gains).unsqueeze(-1))

    def forward(self, features: Tensor | None, index: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the numbers by part, (*rows, *shape).

        Args:
            features: of the rows, (*rows, width); None for free parameters.
            index: the rows of each addressed plate.
        """
        if self.head is not None:
            assert features is not None
            flat = self.head(features).split([shape.numel() for shape in self.shapes.values()], -1)
            return {
                name: part.unflatten(-1, shape) if shape else part.squeeze(-1)
                for part, (name, shape) in zip(flat, self.shapes.items(), strict=True)
            }
        found = {}
        for name in self.shapes:
            value = getattr(self, name)
            for dim, plate in enumerate(self.rows):
                if plate in index:
                    value = value.index_select(dim, index[plate])
            found[name] = value if self.rate == 1 else value * self.rate
        return found


def lower_triangle(log_scale: Tensor, lower: Tensor) -> Tensor:
    """Return the Cholesky factor L = diag(σ) (I + A), A strictly lower triangular: (…, D, D) from (…, D) and (…, D(D−1)/2)."""
    dim = log_scale.shape[-1]
    row, column = torch.tril_indices(dim, dim, -1, device=lower.device)
    unit = torch.eye(dim, dtype=lower.dtype, device=lower.device).expand(*lower.shape[:-1], dim, dim).clone()
    unit[..., row, column] = lower
    return log_scale.exp().unsqueeze(-1) * unit


def key_of(text: str, taken: Iterable[str]) -> str:
    """Return a key in a module container: a name without dots, and unlike any attribute of the container."""
    key, container, others = text.replace(".", "__"), nn.ModuleDict(), set(taken)
    while key in others or hasattr(container, key):
        key += "_"
    return key

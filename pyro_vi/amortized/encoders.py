"""Encoder networks: from the columns of a batch to features of each datum.

* `Encoder` standardises the columns (`Standard`), encodes each element with a network for its shape, and gives `Features` for
  each level: for every row of data, every element within a row, and every step of a sequence.
* The network of an element is an MLP for vectors, a convolutional one for images, and a recurrent one for sequences; elements
  that may change places are pooled (Zaheer et al. 2017, arXiv:1703.06114). `kind_of` chooses by the shape of the data.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from pyro.distributions.util import broadcast_shape
from torch import Tensor, nn

from pyro_vi.amortized.columns import Column
from pyro_vi.amortized.recurrent import Chained
from pyro_vi.amortized.standard import Standard
from pyro_vi.errors import InputError, of_program
from pyro_vi.networks import ACTIVATIONS, activation_of, mlp_body, widths_of
from pyro_vi.support import unknown

KINDS = ("auto", "mlp", "conv", "recurrent", "set")
"""The encoders that can be asked for by name."""
PIXELS = 8
"""Least height and width of what is taken for an image."""

Level = tuple[str, ...]
"""The plates whose rows have features of their own: the data plate, then plates of elements."""


@dataclass(frozen=True)
class Features:
    """Features by level, each (*rows, width), and those of each step of a sequence, (rows, steps, width), or None."""

    levels: dict[Level, Tensor]
    steps: Tensor | None = None


def kind_of(columns: Sequence[Column], chain: str = "") -> str:
    """Return the encoder that suits the shapes of columns: ``"mlp"``, ``"conv"``, ``"recurrent"`` or ``"set"``.

    ``chain`` is the plate whose elements are the steps of a sequence.
    """
    if chain and max((column.plates for column in columns), key=len)[1:] == (chain,):
        return "recurrent"
    if any(len(column.plates) > 1 for column in columns):
        return "set"
    if any(column.steps for column in columns):
        return "recurrent"
    return "conv" if any(_image(column.shape) for column in columns) else "mlp"


class Encoder(nn.Module):
    """Features of the columns of a batch.

    Args:
        columns: the columns.
        examples: their values in the example batch, as `Column.of` gives them.
        present: which of these count; None for all of a column.
        levels: the levels that features are wanted for.
        kind: one of `KINDS`, or a module: it is called with the standardised columns, (rows, *elements, *shape), and returns
            features (rows, *elements, width).
        hidden: widths of the hidden layers; the last one is the width of the features.
        activation: as in `pyro_vi.networks.mlp_body`.
        dtype: floating dtype of the parameters.
        chain: the plate of elements that are the steps of a sequence; they are not pooled, but read in their order.

    Raises:
        InputError: an unknown kind, or one that does not suit the columns.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        examples: Sequence[Tensor],
        present: Sequence[Tensor | None],
        levels: Sequence[Level],
        *,
        kind: str | nn.Module = "auto",
        hidden: tuple[int, ...] | int = (64,),
        activation: str = "tanh",
        dtype: torch.dtype = torch.float32,
        chain: str = "",
    ) -> None:
        super().__init__()
        if isinstance(kind, str) and kind not in KINDS:
            raise unknown("encoder", kind, KINDS)
        if not isinstance(kind, str | nn.Module):
            raise InputError(f"encoder must be one of {', '.join(KINDS)} or a module of torch, not {kind!r}")
        widths, mixed = widths_of(hidden), activation_of(activation)
        self.columns = tuple(columns)
        self.standard = nn.ModuleList(
            Standard(c, value, seen, dtype) for c, value, seen in zip(columns, examples, present, strict=True)
        )
        self.plates = max((column.plates for column in columns), key=len)
        self.given = not isinstance(kind, str)
        self.kind = kind_of(columns, chain) if kind == "auto" else "yours" if self.given else str(kind)
        self.chained = self.kind == "recurrent" and self.plates[1:] == (chain,)
        self._refuse()
        self.network: nn.Module
        if isinstance(kind, nn.Module):
            self.network = kind
        else:
            channels = [part.channels for part in self._parts()]
            self.network = _network("chain" if self.chained else self._inner, columns, channels, widths, activation)
        self.to(dtype)
        self.width = self._tried(self._inputs(examples, present))
        joined = {level: self.width * (1 if level == self.plates[:1] else 2) for level in levels}
        self.mixes = nn.ModuleDict()
        if len(self.plates) > 1 and not self.chained:
            for level, inputs in joined.items():
                self.mixes[_key(level)] = nn.Sequential(nn.Linear(inputs, self.width), mixed())
        self.levels = tuple(levels)
        self.to(dtype)

    def forward(self, values: Sequence[Tensor], present: Sequence[Tensor | None]) -> Features:
        """Return the features of columns, as `Column.of` gives them."""
        if self.chained:
            steps, summary = self.network(self._inputs(values, present), self._seen(present))
            return Features({self.plates: steps, self.plates[:1]: summary})
        found = self.network(*self._inputs(values, present))
        if self._inner == "recurrent":
            return Features({self.plates: found.summary}, found.steps)
        if len(self.plates) == 1:
            return Features({self.plates: found})
        weight = self._weight(present, found)
        summary = _pooled(found, weight, range(1, len(self.plates)))
        levels = {}
        for level in self.levels:
            mine = summary
            if level != self.plates[:1]:
                away = [i for i, name in enumerate(self.plates) if name not in level]
                own = _pooled(found, weight, away)
                wide = summary.reshape(len(summary), *(1 for _ in level[1:]), self.width)
                mine = torch.cat([own, wide.expand(*own.shape[:-1], self.width)], -1)
            levels[level] = self.mixes[_key(level)](mine)
        return Features(levels)

    def describe(self) -> str:
        """The encoder in one phrase."""
        names = {
            "mlp": "MLP",
            "conv": "convolutional network",
            "recurrent": "bidirectional GRU",
            "yours": "your network",
        }
        inputs = " and ".join(c.site or f"argument {c.position}" for c in self.columns)
        within = ""
        if self.chained:
            within = f" along '{self.plates[1]}'"
        elif len(self.plates) > 1:
            within = f" for each row of {' and '.join(self.plates[1:])}, pooled over the others"
        return f"{names[self._inner if self._inner in names else 'mlp']} of {inputs}{within}, {self.width} features"

    def _tried(self, inputs: list[Tensor]) -> int:
        """The width of the features that the network returns for the example."""
        if isinstance(self.network, Chained):
            return self.network.width
        try:
            with torch.no_grad():
                found = self.network(*inputs)
        except Exception as error:
            if not self.given:
                raise
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs)
            raise InputError(f"the encoder fails on columns of shape {shapes}: {of_program(error)}") from error
        tensor = found.summary if isinstance(found, _Steps) else found
        wanted = inputs[0].shape[: len(self.plates)]
        if not isinstance(tensor, Tensor) or tensor.shape[:-1] != wanted:
            shape = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(found).__name__
            dims = ", ".join(map(str, wanted))
            raise InputError(f"the encoder must return features of shape ({dims}, width) here, not {shape}")
        return tensor.shape[-1]

    @property
    def _inner(self) -> str:
        if self.kind != "set":
            return self.kind
        return "conv" if any(_image(column.shape) for column in self.columns) else "mlp"

    def _parts(self) -> list[Standard]:
        return [part for part in self.standard if isinstance(part, Standard)]

    def _inputs(self, values: Sequence[Tensor], present: Sequence[Tensor | None]) -> list[Tensor]:
        """The standardised columns with the plates of all columns, (rows, *elements, *shape)."""
        inputs = []
        parts = list(zip(self._parts(), values, present, strict=True))
        wide = max((v.shape[: len(p.column.plates)] for p, v, _ in parts), key=len)
        for part, value, seen in parts:
            for x in part(value, seen):
                plates, shape = part.column.plates, x.shape[len(part.column.plates) :]
                lead = [n if name in plates else 1 for name, n in zip(self.plates, wide, strict=True)]
                inputs.append(x.reshape(*lead, *shape).expand(*wide, *shape))
        return inputs

    def _seen(self, present: Sequence[Tensor | None]) -> Tensor | None:
        """Which elements count, (rows, *elements), for any column; None for all."""
        found = [p for c, p in zip(self.columns, present, strict=True) if p is not None and c.plates == self.plates]
        wide = broadcast_shape(*(p.shape for p in found))
        return torch.stack([p.expand(wide) for p in found]).any(0) if found else None

    def _weight(self, present: Sequence[Tensor | None], found: Tensor) -> Tensor | None:
        """Weights of the elements in a mean: 0 for those of which all is masked."""
        seen = [p for c, p in zip(self.columns, present, strict=True) if p is not None and c.plates == self.plates]
        if not seen:
            return None
        return torch.stack([p.expand(found.shape[:-1]) for p in seen]).any(0).to(found.dtype).unsqueeze(-1)

    def _refuse(self) -> None:
        if self.kind == "set" and len(self.plates) == 1:
            raise InputError("encoder 'set' needs a plate of elements within each datum; use 'mlp'")
        if self.kind == "recurrent" and not self.chained and not any(c.steps or len(c.shape) > 1 for c in self.columns):
            raise InputError("encoder 'recurrent' needs a column of shape (rows, steps, …); use 'mlp'")
        if self.kind == "conv" and not any(len(c.shape) in (2, 3) for c in self.columns):
            raise InputError("encoder 'conv' needs images, of shape (rows, height, width) or with channels; use 'mlp'")
        if self.kind == "recurrent" and len(self.plates) > 1 and not self.chained:
            raise InputError("encoder 'recurrent' takes no plate of elements within a datum; use 'set'")


def _key(level: Level) -> str:
    return "__".join(name.replace(".", "_") for name in level)


def _pooled(value: Tensor, weight: Tensor | None, dims: Sequence[int]) -> Tensor:
    """Mean over plates of elements, weighted; (*rows, width)."""
    dims = list(dims)
    if not dims:
        return value
    if weight is None:
        return value.mean(dims)
    return (value * weight).sum(dims) / weight.sum(dims).clamp(min=1)


def _image(shape: tuple[int, ...]) -> bool:
    return len(shape) in (2, 3) and min(shape[-2:]) >= PIXELS and (len(shape) == 2 or shape[0] <= 4)


def _network(
    kind: str, columns: Sequence[Column], channels: Sequence[int], hidden: tuple[int, ...], activation: str
) -> nn.Module:
    shapes = [column.shape for column, count in zip(columns, channels, strict=True) for _ in range(count)]
    if kind == "chain":
        return Chained(shapes, hidden)
    if kind == "conv":
        return _Conv(shapes, hidden, activation)
    if kind == "recurrent":
        steps = [c.steps or len(c.shape) > 1 for c, n in zip(columns, channels, strict=True) for _ in range(n)]
        return _Recurrent(shapes, steps, hidden)
    return _Flat(shapes, hidden, activation)


class _Flat(nn.Module):
    """An MLP of all numbers of an element."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], hidden: tuple[int, ...], activation: str) -> None:
        super().__init__()
        self.dims = [len(shape) for shape in shapes]
        self.body = mlp_body(sum(math.prod(shape) for shape in shapes), hidden, activation)

    def forward(self, *inputs: Tensor) -> Tensor:
        flat = [_flat(x, d) for x, d in zip(inputs, self.dims, strict=True)]
        value: Tensor = self.body(torch.cat(flat, -1) if len(flat) > 1 else flat[0])  # one is not copied
        return value


class _Conv(nn.Module):
    """Two strided convolutions of the images; an MLP of what they give and of all other numbers."""

    def __init__(self, shapes: Sequence[tuple[int, ...]], hidden: tuple[int, ...], activation: str) -> None:
        super().__init__()
        self.shapes = shapes
        self.images = [i for i, shape in enumerate(shapes) if len(shape) in (2, 3)]
        first = shapes[self.images[0]][-2:]
        self.images = [i for i in self.images if shapes[i][-2:] == first]
        channels = sum(shapes[i][0] if len(shapes[i]) == 3 else 1 for i in self.images)
        act = ACTIVATIONS[activation]
        self.filters = nn.Sequential(
            nn.Conv2d(channels, 16, 3, stride=2, padding=1), act(), nn.Conv2d(16, 32, 3, stride=2, padding=1), act()
        )
        height, width = (math.ceil(math.ceil(n / 2) / 2) for n in first)
        others = sum(math.prod(shape) for i, shape in enumerate(shapes) if i not in self.images)
        self.body = mlp_body(32 * height * width + others, hidden, activation)

    def forward(self, *inputs: Tensor) -> Tensor:
        lead = inputs[0].shape[: inputs[0].dim() - len(self.shapes[0])]
        images = [inputs[i].flatten(0, len(lead) - 1) for i in self.images]
        pixels = torch.cat(
            [x if len(self.shapes[i]) == 3 else x.unsqueeze(1) for i, x in zip(self.images, images, strict=True)], 1
        )
        parts = [self.filters(pixels).flatten(1).unflatten(0, lead)]
        parts += [_flat(x, len(self.shapes[i])) for i, x in enumerate(inputs) if i not in self.images]
        value: Tensor = self.body(torch.cat(parts, -1))
        return value


@dataclass(frozen=True)
class _Steps:
    """Features of each step, (rows, steps, width), and of the whole sequence, (rows, width)."""

    steps: Tensor
    summary: Tensor


class _Recurrent(nn.Module):
    """A bidirectional GRU (arXiv:1406.1078) over the steps; other numbers are repeated at each step.

    The features of a step know the past and the future; the summary is the last state of both directions.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], steps: Sequence[bool], hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.shapes, self.steps = shapes, steps
        inputs = sum(math.prod(shape[1:] if along else shape) for shape, along in zip(shapes, steps, strict=True))
        layers = len(hidden) if hidden else 1
        self.width = hidden[-1] if hidden else 64
        self.recurrent = nn.GRU(inputs, self.width, layers, batch_first=True, bidirectional=True)

    def forward(self, *inputs: Tensor) -> _Steps:
        length = next(x.shape[1] for x, along in zip(inputs, self.steps, strict=True) if along)
        parts = []
        for x, shape, along in zip(inputs, self.shapes, self.steps, strict=True):
            flat = _flat(x, len(shape) - along)
            parts.append(flat if along else flat.unsqueeze(1).expand(-1, length, -1))
        steps, _ = self.recurrent(torch.cat(parts, -1))
        return _Steps(steps, torch.cat([steps[:, -1, : self.width], steps[:, 0, self.width :]], -1))


def _flat(value: Tensor, dims: int) -> Tensor:
    """Gather the last ``dims`` dimensions in one."""
    return value.flatten(value.dim() - dims) if dims else value.unsqueeze(-1)

"""The columns of a batch as an encoder reads them: rows of data first, then the elements of each row, then the numbers.

* `columns_of` finds the arguments that have a row for each datum, and the plates along their dimensions. An observed value
  has the plates of its site; an argument that is not observed (a covariate, a label) has its rows in the first dimension.
* A plate inside of a row holds *elements*: members of a group. They are encoded one by one and pooled if the model has latents
  for them, or if log p(x) stays the same when they change places. All other dimensions are features.
* `read_apart` tells which elements may change places.
* A dimension of *steps* is one whose slices are observed one after another: a sequence.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from torch import Tensor

from pyro_vi.amortized.series import NUMBERED
from pyro_vi.data import Batch, fresh
from pyro_vi.programs import Datum, Latent, LatentPlate, Reading, isolated, kept_buffers, moved_parameters

Run = Callable[[Batch], Reading]


@dataclass(frozen=True)
class Column:
    """An argument with a row for each datum.

    Attributes:
        position: its place among the arguments.
        plates: the plates along its first dimensions, in the encoder's order: the data plate, then those of elements.
        order: the dimensions of the argument in that order, the others last.
        shape: the shape of one element.
        site: the observed site whose value it is, if there is one.
        steps: the first dimension of ``shape`` counts the steps of a sequence.
        observed: of a sequence, the observed site of each step by the number of the step.
    """

    position: int
    plates: tuple[str, ...]
    order: tuple[int, ...]
    shape: tuple[int, ...]
    site: str | None = None
    steps: bool = False
    observed: tuple[tuple[int, str], ...] = ()

    def of(self, values: Sequence[Any]) -> Tensor:
        """Return the argument with its plates first: (rows, *elements, *shape)."""
        value: Tensor = values[self.position].permute(self.order)
        return value

    def observed_at(self, step: int) -> str:
        """The observed site of a step, which a longer sequence than the example may have too; "" for none."""
        last, name = self.observed[-1]
        if step <= last:
            return dict(self.observed).get(step, "")
        match = NUMBERED.match(name)
        return "" if match is None else f"{match[1]}{int(match[2]) + step - last}{match[3]}"

    def like(self, datum: Datum, value: Tensor) -> Tensor:
        """Return numbers of the observed site, such as its mask, as (rows, *elements), or as (1, …) where they are shared."""
        while value.dim() < max(-dim for dim in datum.plates.values()):
            value = value.unsqueeze(0)
        places = [value.dim() + datum.plates[name] for name in self.plates]
        rest = [i for i in range(value.dim()) if i not in places]
        # Along a plate whose rows are features, an element counts as present if any of them is.
        moved = value.permute(*places, *rest)
        return moved.flatten(len(places)).any(-1) if rest else moved

    def present(self, data: Mapping[str, Datum], value: Tensor) -> Tensor | None:
        """Return which entries of a batch's column count, by the masks of the observed sites; None if none has a mask."""
        if self.site is not None:
            datum = data.get(self.site)
            if datum is None or not isinstance(datum.mask, Tensor):
                return None
            return self.like(datum, datum.mask)
        steps = value.shape[len(self.plates)] if self.observed else 0
        found = [data.get(self.observed_at(step)) for step in range(steps)]
        if not any(datum is not None and isinstance(datum.mask, Tensor) for datum in found):
            return None
        seen = []
        for datum in found:
            mask = torch.tensor(True) if datum is None or datum.mask is None else torch.as_tensor(datum.mask)
            seen.append(mask.reshape((1,) * len(self.plates)) if datum is None else self.like(datum, mask))
        device = next(datum.value.device for datum in found if datum is not None)
        wide = broadcast_shape(*(mask.shape for mask in seen))
        return torch.stack([mask.to(device).expand(wide) for mask in seen], len(self.plates))


@dataclass
class _Place:
    """Where the plates lie in one argument, and along which dimension the steps of a sequence."""

    plates: dict[str, int]
    site: str | None = None
    steps: int | None = None
    observed: tuple[tuple[int, str], ...] = ()
    lengths: dict[str, int] = field(default_factory=dict)


def columns_of(batch: Batch, read: Reading, data: str, run: Run) -> list[Column]:
    """Return the columns of a batch.

    Args:
        batch: the arguments of the model.
        read: a run of the model on them.
        data: the name of the data plate.
        run: reads the model on other arguments, each time with the same latents and parameters.
    """
    plate = read.plates[data]
    rows = plate.size if plate.drawn else plate.length
    inside = [datum for datum in read.data.values() if data in datum.plates]
    places: dict[int, _Place] = {}
    for position, value in enumerate(batch):
        if isinstance(value, Tensor) and value.dim():
            place = _observed(value, inside, read.plates)
            if place is not None and data in place.plates:
                place.lengths = {name: value.shape[p] for name, p in place.plates.items()}
                places[position] = place
    for position, value in enumerate(batch):
        if isinstance(value, Tensor) and value.dim() and len(value) == rows and position not in places:
            places[position] = _Place({data: 0, **_covariate(value, list(places.values()), data)})
    elements = _elements(batch, read, data, places, run)
    columns = []
    for position, place in sorted(places.items()):
        plates = (data, *(name for name in elements if name in place.plates))
        first = [place.plates[name] for name in plates]
        steps = [] if place.steps is None else [place.steps]
        last = [*steps, *(i for i in range(batch[position].dim()) if i not in first and i not in steps)]
        shape = tuple(batch[position].shape[i] for i in last)
        columns.append(Column(position, plates, (*first, *last), shape, place.site, bool(steps), place.observed))
    return columns


def _observed(value: Tensor, inside: list[Datum], plates: Mapping[str, LatentPlate]) -> _Place | None:
    """The place of the plates in an argument that is observed, whole or slice by slice; None if it is not."""
    for datum in inside:
        if same(value, datum.value):
            return _Place(_positions(datum, plates), datum.name)
    for axis in range(value.dim()):
        found = _slices(value, axis, inside)
        if found:
            datum = next(d for d in inside if d.name == found[0][1])
            shifted = {name: p + (p >= axis) for name, p in _positions(datum, plates).items()}
            return _Place(shifted, None, axis, found)
    return None


def _slices(value: Tensor, axis: int, inside: list[Datum]) -> tuple[tuple[int, str], ...]:
    """The observed sites that are slices of a value along a dimension, each with the number of its slice, in order.

    A single one is the step of a sequence if the value has no other, and the name of the site a number.
    """
    shape = value.shape[:axis] + value.shape[axis + 1 :]
    parts, step, found = value.unbind(axis), 0, []
    for datum in inside:
        if datum.value.shape == shape:
            place = next((i for i in range(step, len(parts)) if same(parts[i], datum.value)), None)
            if place is not None:
                found.append((place, datum.name))
                step = place + 1
    alone = len(found) == len(parts) == 1 and NUMBERED.match(found[0][1])
    return tuple(found) if len(found) > 1 or alone else ()


def same(value: Tensor, other: Tensor) -> bool:
    """True for equal tensors; missing values are equal."""
    if value.shape != other.shape or value.device != other.device:
        return False
    equal = value == other
    return bool((equal | (value.isnan() & other.isnan())).all() if value.is_floating_point() else equal.all())


def _positions(datum: Datum, plates: Mapping[str, LatentPlate]) -> dict[str, int]:
    """The dimension of the value along each plate."""
    value, last = datum.value, datum.event_dim
    places = {name: value.dim() - last + dim for name, dim in datum.plates.items()}
    return {name: p for name, p in places.items() if p >= 0 and value.shape[p] == plates[name].length}


def _covariate(value: Tensor, observed: Iterable[_Place], data: str) -> dict[str, int]:
    """The plates of an argument that is not observed: those of an observed one, if its first dimensions are as long."""
    for place in observed:
        first = sorted(place.plates.items(), key=lambda item: item[1])
        if [p for _, p in first] == list(range(len(first))) and first and first[0][0] == data and not place.steps:
            lengths = tuple(place.lengths.get(name, 0) for name, _ in first)
            if value.shape[: len(first)] == lengths:
                return dict(first)
    return {}


def _elements(batch: Batch, read: Reading, data: str, places: Mapping[int, _Place], run: Run) -> list[str]:
    """The plates inside of a row that hold elements, the outermost first."""
    found = {name for place in places.values() for name in place.plates if name != data}
    local = {name for site in read.latents.values() if data in site.plates for name in site.plates}
    names = sorted(found, key=lambda name: read.plates[name].dim)
    return [name for name in names if name in local or _exchangeable(batch, read, name, places, run)]


def read_apart(model: Any, sites: Mapping[str, Latent], args: Batch) -> Reading:
    """Read a model away from its start, on any arguments at the same latents and parameters.

    Elements of a plate may be exchangeable at the start and not later, as pixels are under a decoder at z = 0.
    """
    noise = torch.Generator().manual_seed(0)
    values = {
        name: site.start + site.spread * torch.randn(site.start.shape, generator=noise).to(site.start)
        for name, site in sites.items()
        if site.bijection is not None
    }
    kept = (torch.no_grad(), isolated(0, validation=False), kept_buffers(model), moved_parameters(model, noise))
    with ExitStack() as stack:
        for block in (*kept, poutine.block()):
            stack.enter_context(block)
        read = stack.enter_context(Reading(values))
        model(*fresh(tuple(args)))
    return read


def _exchangeable(batch: Batch, read: Reading, name: str, places: Mapping[int, _Place], run: Run) -> bool:
    """True if log p(x) of each row is the same when the elements along a plate change places."""
    order = torch.randperm(read.plates[name].length, generator=torch.Generator().manual_seed(0))
    if len(order) > 1 and bool((order == torch.arange(len(order))).all()):
        order = order.roll(1)
    moved = list(batch)
    for position, place in places.items():
        if name in place.plates:
            moved[position] = moved[position].index_select(place.plates[name], order.to(moved[position].device))
    if all(same(moved[position], batch[position]) for position in places):
        return False
    try:
        read, now = run(batch), run(tuple(moved))
    except Exception:  # whatever a program does away from its start
        return False
    for datum in read.data.values():
        other, dim = now.data.get(datum.name), datum.plates.get(name)
        if other is None or dim is None:
            continue
        terms = [d.fn.log_prob(d.value) for d in (datum, other)]
        sums = [term.sum(dim) if term.dim() >= -dim else term for term in terms]
        if sums[0].shape != sums[1].shape or not torch.allclose(sums[0], sums[1], rtol=1e-4, atol=1e-4):
            return False
    return True

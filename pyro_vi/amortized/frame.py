"""The latent sites of a model as a guide serves them: rows, plates, columns, masks and supports.

`Frame` reads them once from a run on the example batch. For each batch it gives a `Call`: the plates to enter, the columns for
the encoder, and the sites with the masks and bounds that they have on this batch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from pyro_vi.amortized.columns import Column, columns_of, read_apart
from pyro_vi.amortized.discrete import one_hot
from pyro_vi.amortized.series import Step, steps_of
from pyro_vi.amortized.shapes import Shape
from pyro_vi.amortized.unserved import refuse_unserved
from pyro_vi.data import Batch, fresh, length_of, tensors_in
from pyro_vi.errors import InputError
from pyro_vi.programs import Latent, LatentPlate, Reading, kept_buffers, prototype


@dataclass
class Call:
    """A guide's view of one batch.

    Attributes:
        args: the arguments, keyword arguments last.
        plates: the plates to enter, by name.
        index: the rows of each plate that the model or the batch chooses from all rows.
        sites: the latent sites on this batch.
        columns: the encoder's columns.
        present: which of their values count; None for all.
        seen: all plates of the model on this batch; empty where the model was not run again.
        vectors: what has been drawn, by site, as vectors in units of the prior.
        draws: what has been drawn, by site.
    """

    args: Batch
    plates: dict[str, Any]
    index: dict[str, Tensor]
    sites: Mapping[str, Latent]
    columns: list[Tensor]
    present: list[Tensor | None]
    seen: Mapping[str, LatentPlate] = field(default_factory=dict)
    vectors: dict[str, Tensor] = field(default_factory=dict)
    draws: dict[str, Tensor] = field(default_factory=dict)


class Frame:
    """The latent sites of a model.

    Args:
        model: the generative program.
        batch: an example batch.
        guide: name of the guide in messages.
        amortized: encode the columns; otherwise no site is encoded.
        numbered: the number of all rows, if the guide addresses them by row numbers in the last argument. The example batch
            has no such argument.
        whole: the rows are those of the data plate alone, also where other plates are inside of it.

    Raises:
        InputError: the model has no latent site, or one that no guide of this kind serves.
    """

    def __init__(
        self,
        model: Any,
        batch: Batch,
        guide: str,
        *,
        amortized: bool = True,
        numbered: int | None = None,
        whole: bool = False,
    ) -> None:
        self.guide, self.numbered, self.whole, self.taken = guide, numbered, whole, len(batch)
        self.model = (model,)  # in a tuple, so that the guide that holds it does not own the model's parameters
        with Reading() as read:
            layout = prototype(model, batch)
        if not layout.latents:
            raise InputError(
                "the model has no latent site, so there is nothing for a guide to do; use a guide without sites"
            )
        # Sites that are marked for enumeration are left to the estimator.
        self.sites = {
            name: read.latents[name]
            for name in layout.latents
            if not (read.latents[name].enumerated and read.latents[name].support.is_discrete)
        }
        self.plates = {
            name: plate for name, plate in read.plates.items() if any(name in s.plates for s in self.sites.values())
        }
        self.data = layout.data if layout.data in self.plates else None
        plate = self.plates.get(self.data or "")
        # A plate of another length than the batch, or one that draws its rows, does not hold the rows of the batch.
        held = plate is not None and not plate.drawn and plate.length == length_of(batch)
        self.total = numbered if held else None
        self.nesting = max(
            [-plate.dim for plate in read.plates.values()] + [len(s.batch_shape) for s in self.sites.values()]
        )
        self.dtype = self._dtype(batch, read)
        self.columns: list[Column] = []
        if amortized and self.data is not None:
            self.columns = columns_of(batch, read, self.data, partial(read_apart, model, self.sites))
        self.steps: dict[str, Step] = {}
        self.shifts: dict[str, int] = {}
        if self.columns:
            self._find_steps()
        self.shapes = {name: self.shape(site) for name, site in self.sites.items()}
        self._sizes: dict[tuple[str, int], int] = {}
        self._lengths: dict[tuple[int, ...], Mapping[str, Latent]] = {}
        masked = {datum.name for datum in read.data.values() if datum.mask is not None}
        self._masked = any(c.site in masked or any(name in masked for _, name in c.observed) for c in self.columns)
        refuse_unserved(self, batch)
        self._follows = (
            whole
            or self._masked
            or any(site.mask is not None or site.scale != 1 or self._varies(site) for site in self.sites.values())
        )

    def _dtype(self, batch: Batch, read: Reading) -> torch.dtype:
        """The floating dtype of q: that of the continuous latents; without them, that of the data."""
        continuous = [site.dtype for site in self.sites.values() if site.bijection is not None]
        data = [datum.value.dtype for datum in read.data.values()] + [value.dtype for value in tensors_in(batch)]
        floating = [dtype for dtype in (*reversed(continuous), *data) if dtype.is_floating_point]
        return floating[0] if floating else torch.get_default_dtype()

    @property
    def chain(self) -> str:
        """The plate of the encoder whose elements are the steps of a sequence; empty if there is none."""
        return next((name for name in self.elements[1:] if any(s.chain == name for s in self.sites.values())), "")

    @property
    def elements(self) -> tuple[str, ...]:
        """The data plate and the plates of elements within a row, as the encoder has them."""
        found = max((column.plates for column in self.columns), key=len, default=())
        return found[:1] if self.whole else found

    def rows(self, site: Latent) -> tuple[str, ...]:
        """The plates whose rows have numbers of their own at a site: those of the encoder, or those that are addressed."""
        if self.whole:
            return tuple(name for name in site.plates if name == self.data)
        if self.encoded(site):
            return tuple(name for name in self.elements if name in site.plates)
        return tuple(name for name in site.plates if self.addressed(name))

    def encoded(self, site: Latent) -> bool:
        """True for a site whose numbers an encoder gives."""
        return bool(self.columns) and self.data in site.plates

    def addressed(self, plate: str) -> bool:
        """True for a plate of which a run sees some rows, identified by their numbers."""
        return self.plates[plate].drawn or (self.total is not None and plate == self.data)

    def count(self, plate: str) -> int:
        """The number of rows of a plate, of which a run may see some."""
        return self.total if self.total is not None and plate == self.data else self.plates[plate].size

    def shape(self, site: Latent) -> Shape:
        """The shape of a site as vectors."""
        event = site.event_shape[:-1] if one_hot(site) else site.event_shape
        if site.bijection is not None:
            event = tuple(site.start.shape[len(site.batch_shape) :])
        rows = tuple(self.plates[name].dim for name in self.rows(site))
        return Shape(self.nesting, rows, site.batch_shape, event)

    def centre(self, name: str) -> tuple[Tensor, Tensor]:
        """The prior's centre and spread at a site, for the vector of one row: (D,) each, means over the rows."""
        site, shape = self.sites[name], self.shapes[name]
        if site.bijection is None:
            return torch.zeros(shape.numel), torch.ones(shape.numel)
        return tuple(  # type: ignore[return-value]
            shape.to_vector(value.expand((*shape.batch, *shape.event))).reshape(-1, shape.numel).mean(0)
            for value in (site.start, site.spread)
        )

    def call(self, args: Batch, kwargs: Mapping[str, Any], *, every: bool = False) -> Call:
        """Return the view of a batch; with ``every``, of all its rows, also where the model draws a minibatch of them."""
        values = (*args, *kwargs.values())
        numbers = None
        if self.numbered is not None:
            numbers = None if self.total is None else self._numbers(values)
            args, kwargs = values[: self.taken], {}
            values = args
        columns = [column.of(values) for column in self.columns]
        if any(len(column) != len(columns[0]) for column in columns):
            raise InputError(
                f"the columns of the batch have {', '.join(str(len(c)) for c in columns)} rows; "
                "give all columns the same number of rows"
            )
        lengths = self._rows(columns)
        if numbers is not None and self.data is not None:
            lengths[self.data] = len(numbers)
        plates = {name: self._plate(plate, lengths.get(name), args, kwargs) for name, plate in self.plates.items()}
        drawn = {name: plates[name].indices for name, plate in self.plates.items() if plate.drawn and not every}
        index = dict(drawn)
        if numbers is not None and self.data is not None:
            index[self.data] = numbers
        elif self.data in index:
            columns = [column.index_select(0, index[self.data]) for column in columns]
        read = self.read(args, kwargs, columns, drawn, numbers) if self._follows else None
        sites = self._of_length(args, kwargs, columns) if read is None else self._served(read)
        present: list[Tensor | None] = [None] * len(columns)
        if read is not None and self._masked:
            present = [column.present(read.data, value) for column, value in zip(self.columns, columns, strict=True)]
        return Call(values, plates, index, sites, columns, present, {} if read is None else read.plates)

    def _numbers(self, values: Batch) -> Tensor:
        """The row numbers of a batch."""
        numbers = values[-1] if len(values) == self.taken + 1 else None
        if isinstance(numbers, Tensor) and numbers.dim() == 1 and not numbers.is_floating_point():
            return numbers.long()
        raise InputError(
            f"guide '{self.guide}' has parameters for each of the {self.numbered} rows that it is fitted to, and none for "
            f"others: give the numbers of the rows as a last argument (argument {self.taken}), such as "
            f"torch.arange({self.numbered}) with all rows in the order of the fit"
        )

    def present(self, batch: Batch) -> list[Tensor | None]:
        """Which values of the columns of the example count; None for all."""
        if not self._masked:
            return [None] * len(self.columns)
        read = self.read(batch, {}, {})
        return [column.present(read.data, column.of(batch)) for column in self.columns]

    def read(
        self,
        args: Batch,
        kwargs: Mapping[str, Any],
        columns: Any,
        drawn: Mapping[str, Tensor] | None = None,
        numbers: Tensor | None = None,
    ) -> Reading:
        """Read the model on a batch, and on rows of its plates that are drawn already, without a trace of it elsewhere."""
        (model,) = self.model
        model = poutine.condition(model, data=dict(drawn)) if drawn else model
        values = self._held(columns, numbers) if columns or numbers is not None else {}
        with torch.no_grad(), kept_buffers(self.model[0]), poutine.block(), Reading(values) as read:
            model(*fresh(tuple(args)), **kwargs)
        return read

    def _find_steps(self) -> None:
        """Find the series of sites whose steps are those of a column."""
        steps = steps_of({name: site for name, site in self.sites.items() if self.encoded(site)})
        counts = {step.stem: 0 for step in steps.values()}
        for step in steps.values():
            counts[step.stem] += 1
        lengths = set(counts.values())
        if len(self.elements) == 1 and not any(column.steps for column in self.columns):
            # The sequence may be observed as a whole.
            self.columns = [
                replace(c, steps=True) if len(c.shape) > 1 and c.shape[0] in lengths else c for c in self.columns
            ]
        # A series may have a start before the first step of the data, or only what happens between two steps.
        lengths = {column.shape[0] for column in self.columns if column.steps}
        for stem, count in counts.items():
            for length in sorted(lengths, key=lambda n: abs(n - count)):
                if length == count or (abs(length - count) == 1 and count > 2):
                    self.shifts.setdefault(stem, length - count)
        self.steps = {name: step for name, step in steps.items() if step.stem in self.shifts}

    def _served(self, read: Reading) -> Mapping[str, Latent]:
        sites = {n: s for n, s in read.latents.items() if not (s.enumerated and s.support.is_discrete)}
        if self.steps and not sites.keys() <= self.sites.keys():
            # A longer sequence than the example has further steps of the same series.
            stems = {step.stem for step in self.steps.values()}
            self.steps.update({n: step for n, step in steps_of(sites).items() if step.stem in stems})
        return sites

    def _of_length(self, args: Batch, kwargs: Mapping[str, Any], columns: list[Tensor]) -> Mapping[str, Latent]:
        """The sites on a batch of sequences, which may have other steps than the example."""
        lengths = tuple(value.shape[len(c.plates)] for c, value in zip(self.columns, columns, strict=True) if c.steps)
        if not self.steps or lengths == tuple(c.shape[0] for c in self.columns if c.steps):
            return self.sites
        if lengths not in self._lengths:
            self._lengths[lengths] = self._served(self.read(args, kwargs, columns))
        return self._lengths[lengths]

    def _held(self, columns: list[Tensor], numbers: Tensor | None) -> dict[str, Tensor]:
        """The centre of each site in a batch of other rows; the model is held there while it is read."""
        found = {}
        device = columns[0].device if numbers is None else numbers.device
        for name, site in self.sites.items():
            if site.bijection is not None and self.encoded(site):
                wide = max((c.shape[: len(k.plates)] for c, k in zip(columns, self.columns, strict=True)), key=len)
                rows = [wide[self.elements.index(plate)] for plate in self.rows(site)]
            elif site.bijection is not None and numbers is not None and self.rows(site) == (self.data,):
                rows = [len(numbers)]
            elif site.bijection is not None:
                found[name] = site.start.to(device)
                continue
            else:
                continue
            centre, _ = self.centre(name)
            found[name] = self.shapes[name].to_site(centre.to(device).expand(*rows, len(centre)))
        return found

    def _rows(self, columns: list[Tensor]) -> dict[str, int]:
        """The rows of the data plate and of the plates of elements in a batch."""
        found = zip(self.columns, columns, strict=True)
        return {name: n for column, value in found for name, n in zip(column.plates, value.shape, strict=False)}

    def _plate(self, plate: LatentPlate, length: int | None, args: Any, kwargs: Any) -> Any:
        if length is None or plate.drawn:
            drawn = plate.length if plate.drawn else None
            return pyro.plate(plate.name, plate.size, subsample_size=drawn, dim=plate.dim)
        size = plate.size
        if length != plate.length and plate.size == plate.length:
            # Its size may be the length of any batch, or of all data; the model knows.
            if (plate.name, length) not in self._sizes:
                self._sizes[plate.name, length] = self.read(args, kwargs, {}).plates[plate.name].size
            size = self._sizes[plate.name, length]
        if size <= length:
            return pyro.plate(plate.name, length, dim=plate.dim)
        # The row numbers do not matter: the batch is passed as values, and the scale depends on the number of rows only.
        device = next((value.device for value in args if isinstance(value, Tensor)), None)
        return pyro.plate(plate.name, size, subsample=torch.arange(length, device=device), dim=plate.dim)

    def _varies(self, site: Latent) -> bool:
        """True if the bounds of the site's support differ from row to row, and other batches may have other rows."""
        if self.data is None or self.data not in site.plates or not (self.encoded(site) or self.addressed(self.data)):
            return False
        dim = self.plates[self.data].dim - len(site.event_shape)
        return any(bound.dim() >= -dim and bool((bound != bound.narrow(dim, 0, 1)).any()) for bound in site.bounds)

    def step(self, name: str) -> Step | None:
        """The step of a site in its series; None for a site by itself."""
        return self.steps.get(name)

"""The rows of a fit: how many in each step, in which order, and how many are held out.

A model whose latent sites all belong to data, as a VAE, is fitted in shuffled minibatches, and part of the data is held out.
Other pairs see all rows in each step, in the given order, and nothing is held out: those with latents that all data share, with
parameters that have a row for each datum, with rows that are no plate (as in time series), or that cannot take fewer rows.

A guide that takes row numbers (`pyro_vi.programs.numbering`) has parameters for each row and is fitted in minibatches all the
same. Held-out rows have no parameters, so nothing is held out for it.

* `plan` builds the pair and decides, unless the options say otherwise; `Plan.note` says what was decided.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pyro.infer.autoguide import AutoGuide

from pyro_vi.amortized import without_starts
from pyro_vi.data import Data, length_of, load, numbered
from pyro_vi.data.registered import DATASETS
from pyro_vi.errors import InputError, UsageError
from pyro_vi.programs import Pair, Source, build_pair, name_of, takes_row_numbers, with_options
from pyro_vi.support import fitting_threads

MINIBATCH = 128
"""Rows of a batch where minibatches are right."""
SMALL = 5000
"""Most rows on which a pair is built as a whole to find out what its rows are; of more data, a minibatch is tried first."""
ROW_EACH = "has parameters for each row"
"""Part of the reason of a guide whose parameters are those of the rows that it is fitted to."""


@dataclass(frozen=True)
class Plan:
    """A pair, its data, and the number of rows in a batch.

    Attributes:
        reason: why all rows are in each batch; empty for minibatches.
        whole: number of rows that were handed over.
        left_out: number of held-out rows that came with the data and are not used.
    """

    pair: Pair
    data: Data
    batch_size: int
    reason: str
    whole: int
    left_out: int = 0

    @property
    def note(self) -> str:
        """The decision in one line."""
        rows, held = self.data.spec.num_data, self.data.num_heldout
        if not self.data.columns:
            return "the programs hold their data themselves"
        out = f"{held} held out" if held else "none held out"
        if self.left_out:
            out = f"{self.left_out} others left out, as the guide has parameters for the rows that it is fitted to only"
        if self.batch_size < rows:
            order = "shuffled" if self.data.shuffle else "in the given order"
            return f"{rows} rows in batches of {self.batch_size}, {order}; {out}"
        why = f" ({self.reason})" if self.reason else ""
        if rows == 1:
            return f"the one row in each step{why}; {out}"
        return f"all {rows} rows in each step, in the given order{why}; {out}"


def plan(
    model: Source,
    guide: Source,
    given: Any,
    *,
    batch_size: int | None = None,
    heldout: float | None = None,
    shuffle: bool | None = None,
    drop_last: bool = False,
    seed: int = 0,
    initial: int | None = None,
) -> Plan:
    """Build a pair for data, and decide on the rows of its fit; None leaves a decision open.

    Args:
        model: see `pyro_vi.programs.build.build_pair`.
        guide: the same.
        given: see `pyro_vi.data.loading.load`.
        batch_size: rows of a batch.
        heldout: fraction of the rows to hold out.
        shuffle: order of minibatches: shuffled in each epoch, or as given.
        drop_last: leave out a last batch with fewer rows.
        seed: seed of the split, the order and the initial parameters.
        initial: another seed for the initial parameters.

    Raises:
        UsageError: an unknown name or option.
        InputError: data or programs that cannot be used.
    """
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size {batch_size} is out of range; it must be at least 1, or None for the default")
    # A class is built from the description of the data, which counts the rows that are fitted.
    made = isinstance(with_options(model, "model")[0], type)
    numbers = takes_row_numbers(guide)
    if numbers:
        _refuse_unfitted(guide, heldout, shuffle, drop_last)
        own = isinstance(given, Data) or _registered(given)  # split already, for every guide in the same way
        heldout = heldout if own else 0.0
    split = heldout is not None or isinstance(given, Data) or _registered(given)

    def loaded(fraction: float | None) -> Data:
        found = load(given, seed=seed, heldout=fraction, integers=None if made else True)
        found = replace(found, shuffle=shuffle is not False, drop_last=drop_last)
        return numbered(found) if numbers else found

    def built(data: Data, rows: int) -> Pair:
        return build_pair(model, guide, data, seed=seed if initial is None else initial, rows=rows)

    data = loaded(heldout if split or made else 0.0)
    rows = data.spec.num_data
    size = min(rows, batch_size or (rows if rows <= SMALL else MINIBATCH))
    reason = ""
    # Which rows a pair takes does not depend on where its parameters start, and the search for a start may take seconds.
    with without_starts() as searching:
        try:
            pair = built(data, size)
            reason = _why_whole(pair, data, size) or _row_each(pair, size, rows, lambda other: built(data, other))
        except InputError as error:
            if batch_size is not None or size == rows:
                raise
            reason = f"the pair cannot take {size} rows: {error}"
        if reason and batch_size is None and size < rows:
            size = rows
            pair = built(data, size)
        elif not reason and batch_size is None and size != MINIBATCH and rows > MINIBATCH:
            reason = _why_not_minibatches(pair, data)
        if not split and bool(data.num_heldout) == bool(reason):
            data = loaded(0.0 if reason else None)
            if made:
                rows = data.spec.num_data
                size = rows if reason and batch_size is None else min(size, rows)
                pair = built(data, size)
    if searching:
        pair = built(data, size)
    if batch_size is None:
        batch_size = data.spec.num_data if reason else min(MINIBATCH, data.spec.num_data)
    left_out = load(given, seed=seed, heldout=heldout).num_heldout if numbers and own else 0
    whole = data.spec.num_data + data.num_heldout
    if batch_size >= data.spec.num_data:
        data = replace(data, shuffle=False)
    return Plan(pair, data, min(batch_size, data.spec.num_data), reason, whole, left_out)


def _refuse_unfitted(guide: Source, heldout: float | None, shuffle: bool | None, drop_last: bool) -> None:
    """Raise UsageError for options that leave rows without a fit, if the guide has parameters for each row."""
    said = f"guide '{name_of(guide)}' has parameters for the rows that it is fitted to, and none for others"
    if heldout:
        raise UsageError(f"{said}; leave heldout out")
    if drop_last and shuffle is False:
        raise UsageError(f"{said}; with shuffle=False, leave drop_last out, which drops the same rows in each epoch")


def _registered(given: object) -> bool:
    return isinstance(given, str) and given.split("(")[0].strip() in DATASETS


def _why_whole(pair: Pair, data: Data, size: int) -> str:
    """Return why a pair needs all rows in each step; empty if it does not."""
    args = data.example(size)
    with fitting_threads(pair, args):
        layout, _ = pair.layouts(args)
    plate = layout.data_plate
    if layout.shared:
        names = ", ".join(f"'{name}'" for name in layout.shared[:3]) + ", …" * (len(layout.shared) > 3)
        return f"all data share {names}"
    if plate is None:
        return "the model has no plate of data"
    if plate.length != length_of(args):
        return f"plate '{plate.name}' holds {plate.length} of {length_of(args)} rows"
    if isinstance(pair.guide, AutoGuide):
        return f"{type(pair.guide).__name__} {ROW_EACH}"
    return ""


def _row_each(pair: Pair, size: int, rows: int, built: Callable[[int], Pair]) -> str:
    """Return the reason for a parameter with a row for each datum; it has another shape on other rows, as no network has."""
    # One vector may hold some numbers for each row.
    owned = {name: p.shape for name, (_, p) in pair.owned().items()}
    shapes = {name: shape for name, shape in owned.items() if any(n and n % size == 0 for n in shape)}
    if rows < 2 or not shapes:
        return ""
    try:
        others = {name: p.shape for name, (_, p) in built(size - 1 or 2).owned().items()}
    except InputError:  # the pair takes these rows only
        others = {}
    each = next((name for name, shape in shapes.items() if others.get(name) != shape), None)
    return f"parameter '{each}' has a row for each datum" if each else ""


def _why_not_minibatches(pair: Pair, data: Data) -> str:
    """Return why a pair that takes all rows cannot take some of them; empty if it can."""
    args = data.example(MINIBATCH)
    try:
        with fitting_threads(pair, args):
            plate = pair.layouts(args)[0].data_plate
    except InputError as error:
        return f"the pair cannot take {MINIBATCH} rows: {error}"
    if plate is None or plate.length != length_of(args):
        return f"the pair cannot take {MINIBATCH} rows"
    return ""

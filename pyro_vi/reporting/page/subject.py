"""`Subject`: the fit that a page is about, and the rows that its numbers are of."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vi.comparing import Comparison
from pyro_vi.data import Batch, length_of
from pyro_vi.elbo import Evaluation
from pyro_vi.fitting import Run
from pyro_vi.reporting.page import drawing
from pyro_vi.reporting.page.parts import Cell, Column, Shown, Table, number


@dataclass
class Subject:
    """A fit and the rows that the page's numbers are of, by name of the rows: ``"held-out"``, ``"training"``.

    Attributes:
        run: the fit.
        comparison: the fit as a comparison, as pictures take it.
        args: the rows that the diagnostics see.
        numbers: for each of these rows its number in the data as the user handed them over.
        counts: how many rows of each name there are.
        bounds: the ELBO of these rows.
        counted: what ``numbers`` count: "the data" or "the held-out rows".
        kept: what a diagnostic kept for its pictures, by its name.
    """

    run: Run
    comparison: Comparison
    args: Mapping[str, Batch] = field(default_factory=dict)
    numbers: Mapping[str, np.ndarray] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    bounds: dict[str, Evaluation] = field(default_factory=dict)
    counted: Mapping[str, str] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def rows_in_words(self) -> dict[str, str]:
        """For each name of rows, how many of them the numbers rest on."""
        found = {}
        for name, args in self.args.items():
            some, every = length_of(args), self.counts.get(name, 0)
            first = name == "training" and "held-out" in self.args
            part = f"the first {some:,} of {every:,}" if first else f"{some:,} of {every:,}, evenly spaced,"
            found[name] = f"all {every:,} {name} rows" if some == every else f"{part} {name} rows"
        return found

    def numbers_of(self, rows: str, places: Any) -> list[int]:
        """The user's numbers of some of the rows that the diagnostics saw."""
        index = np.asarray(places).astype(int)
        known = self.numbers.get(rows)
        return [
            int(n) for n in (index if known is None or not len(index) or index.max() >= len(known) else known[index])
        ]

    def data_shown(
        self, rows: str, places: Any, labels: Sequence[int], texts: Sequence[str], most: int
    ) -> tuple[Shown | None, Table | None]:
        """Return some rows of the data: images with ``texts`` above them, or a table with at most ``most`` numbers of each."""
        args, index = self.args.get(rows), np.asarray(places).astype(int)
        x = args[0] if args else None
        if not isinstance(x, Tensor) or not x.dim() or not len(index) or index.max() >= len(x):
            return None, None
        values = x[torch.as_tensor(index, device=x.device)].detach().cpu()
        spec = self.run.data.spec
        flat = values.reshape(len(values), -1)
        if spec.image_shape is not None and flat.shape[1] % math.prod(spec.image_shape) == 0:
            figure = drawing.worst_images(flat.double().numpy(), texts, self.comparison)
            caption = "The data with the largest k-hat: number of the row, and k-hat"
            return drawing.shown(
                figure, caption, f"Images of the data with the largest k-hat: {', '.join(texts)}"
            ), None
        shown = self.run.data.in_units(values).reshape(len(values), -1)[:, :most]
        names = list(spec.features[: shown.shape[1]])
        names += [f"number {i}" for i in range(len(names), shown.shape[1])]
        heads = (Column("row", "row"), *(Column(str(name)) for name in names))
        cells = tuple(
            (Cell(str(label), float(label)), *map(number, row))
            for label, row in zip(labels, shown.tolist(), strict=True)
        )
        rest = f", their first {most} of {flat.shape[1]} numbers" if flat.shape[1] > most else ""
        return None, Table(
            f"The {rows} data with the largest k-hat themselves{rest}, in the units of the data", heads, cells
        )

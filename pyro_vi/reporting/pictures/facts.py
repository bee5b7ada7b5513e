"""Facts about a fitted pair and its data, by which pictures are chosen: `Facts`, made by `facts_of`.

A picture applies to any model that has the facts that it needs, by whatever name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vi.comparing import Comparison
from pyro_vi.data import Batch, Data, DataSpec, length_of
from pyro_vi.programs import Pair, Prototype, Site
from pyro_vi.reporting.of_pairs import rows_of

MOST_ROWS = 2000
"""Most data that pictures evaluate, where rows can be left out."""


@dataclass(frozen=True)
class Facts:
    """Facts about one fitted pair, its data, and the rows that pictures show.

    Attributes:
        pair: the fitted pair.
        data: all data.
        on: the data that are shown: ``"held-out"`` or ``"training"``.
        args: the rows that are shown, as the programs are called.
    """

    pair: Pair
    data: Data
    on: str
    args: Batch

    @property
    def model(self) -> nn.Module:
        """The fitted model."""
        return self.pair.model

    @property
    def spec(self) -> DataSpec:
        """The description of the data."""
        return self.data.spec

    @property
    def rows(self) -> int:
        """Number of rows that are shown."""
        return length_of(self.args)

    @cached_property
    def layout(self) -> Prototype:
        """Sites and plates of the model on these rows."""
        return self.pair.layouts(self.args)[0]

    def method(self, name: str) -> Callable[..., Any] | None:
        """A public method of the model, or None if it has none of that name."""
        found = getattr(self.model, name, None)
        return found if callable(found) else None

    @cached_property
    def local(self) -> dict[str, Site]:
        """Latent sites inside the data plate."""
        return {n: s for n, s in self.layout.latents.items() if n not in self.layout.shared}

    @cached_property
    def shared(self) -> dict[str, Site]:
        """Latent sites that all data share, with at least one number."""
        return {n: s for n, s in self.layout.latents.items() if n in self.layout.shared and s.numel}

    @cached_property
    def vectors(self) -> dict[str, Site]:
        """Local latent sites that are one real vector, or one real number, for each datum."""
        return {
            n: s for n, s in self.local.items() if s.batch_shape == (self.rows,) and len(s.event_shape) < 2 and real(s)
        }

    @cached_property
    def assigned(self) -> dict[str, Site]:
        """Local latent sites that are one discrete number for each datum."""
        return {
            n: s for n, s in self.local.items() if s.batch_shape == (self.rows,) and not s.event_shape and discrete(s)
        }

    @cached_property
    def columns(self) -> dict[str, Tensor]:
        """Further columns of the batch by what they are: ``"label"``, ``"target"``, ``"lengths"`` or ``"group"``."""
        columns = [a for a in self.args[1:] if isinstance(a, Tensor) and a.dim() and len(a) == self.rows]
        return {one.name: column for one, column in zip(self.spec.others, columns, strict=False)}

    @cached_property
    def target(self) -> Tensor | None:
        """The values that a regression predicts, one for each row: the column of targets, or of labels.

        None without latents that are shared, or with some that belong to single data.
        """
        found = self.columns.get("target", self.columns.get("label"))
        return found if found is not None and found.dim() == 1 and self.shared and not self.local else None

    @cached_property
    def labels(self) -> tuple[Tensor, tuple[str, ...]] | None:
        """Label of each row as a whole number, −1 if it is not known, and the names of the classes; None without labels.

        Labels that are kept apart go first, as those in the batch may be known of few rows.
        """
        apart = self.data.heldout_labels if self.on == "held-out" else self.data.labels
        column = next((one for one in self.spec.others if one.name == "label"), None)
        if apart is None and column is None:
            return None
        values = (self.columns["label"] if apart is None else apart)[: self.rows].long().cpu()
        names = self.data.classes or (column.classes if column is not None else ())
        return values, tuple(names) or tuple(str(k) for k in range(int(values.max()) + 1))

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Names of the columns of a table, if it has names."""
        return self.spec.features

    @cached_property
    def image(self) -> tuple[int, int] | None:
        """Height and width, if a datum is an image."""
        return self.spec.image_shape

    @property
    def sequences(self) -> bool:
        """True if a datum is a sequence whose length is a column of its own."""
        return "lengths" in self.columns

    @property
    def words(self) -> bool:
        """True if a model can say which words its topics prefer."""
        return self.method("top_words") is not None


def facts_of(comparison: Comparison) -> Facts:
    """Return the facts about the first pair of a comparison, on the rows that its pictures show.

    Raises:
        InputError: the model fails on these rows.
    """
    run = next(iter(comparison.results.values())).run
    on, args = comparison.pictured()
    if length_of(args) > MOST_ROWS and run.pair.separable(args, MOST_ROWS):
        args = rows_of(args, range(MOST_ROWS))
    return Facts(run.pair, comparison.data, on, args)


def real(site: Site) -> bool:
    """True for a site of real numbers or vectors."""
    return isinstance(_base(site), type(constraints.real))


def discrete(site: Site) -> bool:
    """True for a site of whole numbers or truth values."""
    return bool(getattr(site.support, "is_discrete", False))


def _base(site: Site) -> Any:
    support: Any = site.support
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support

"""`AmortizedGuide`: the guide of any model, from the numbers of a family of distributions.

A family says which numbers it needs for a vector of D numbers (`AmortizedGuide.parts`), and which distribution they give
(`AmortizedGuide.conditional`). Everything else is the same for all: the encoder of a datum, the rows, the plates, the masks,
the supports, and discrete sites.

A joint family over several sites is a chain q(z_1) q(z_2 | z_1) …: each site has a density of its own, so that terms and KL are
per site.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

import pyro
import torch
from pyro import poutine
from torch import Tensor, nn

from pyro_vi.amortized.blocks import Block, Part, key_of
from pyro_vi.amortized.chain import joined
from pyro_vi.amortized.discrete import distribution_of, infer_of, parts_of
from pyro_vi.amortized.encoders import KINDS, Encoder, Features
from pyro_vi.amortized.frame import Call, Frame
from pyro_vi.amortized.placing import OfVectors, placed
from pyro_vi.amortized.series import Step
from pyro_vi.amortized.shapes import Shape
from pyro_vi.amortized.starts import NARROW, Start, start_of
from pyro_vi.data import Batch
from pyro_vi.errors import InputError
from pyro_vi.networks import widths_of
from pyro_vi.programs import Latent
from pyro_vi.support import unknown

STARTS = ("fit", "prior")
"""Where free parameters start."""

ROW_RATE = 20.0
"""Rate of parameters of numbered rows (see `Block`). A row is in one batch of an epoch, and the weights of a network are in
every one: at the learning rate of a network, a row would need thousands of epochs."""


class AmortizedGuide(nn.Module, ABC):
    """A guide made from a model: an encoder for sites in the data plate, free parameters for the others.

    Args:
        model: the generative program; its latent sites, supports and shapes are read from a run on the batch.
        batch: an example batch. The encoder reads its columns that have a row for each datum, standardised by their moments.
        encoder: ``"auto"`` chooses by the shape of the data: an MLP, a convolutional network for images, a recurrent one for
            sequences, a set encoder for plates of elements within a datum. ``"mlp"``, ``"conv"``, ``"recurrent"`` and
            ``"set"`` ask for one. Or a module, which is called with the standardised columns, (rows, …), and returns features,
            (rows, width).
        hidden: widths of the encoder's hidden layers.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        init_scale: initial standard deviations, on the unconstrained scale. By default those of the prior for encoded sites,
            and for free parameters those of ``start``.
        start: start of a guide all of whose numbers are free parameters. ``"fit"``: the best normal for fixed draws, found
            from the prior's median, which is the unit of the parameters too (see `pyro_vi.amortized.starts`). ``"prior"``: the
            prior's median, and a tenth of its standard deviations, at most 0.1, as a wider start takes thousands of steps to
            become narrow. Where ``"fit"`` does not apply, and with ``init_scale``, the start is at the prior.
        amortized: False gives local sites free parameters for each row too; the batch must then be all data in one order,
            unless the rows are numbered.
        numbered: the number of all rows, if the guide is called with row numbers as a further, last argument: parameters of a
            row then belong to its number, and a batch may have any rows.

    Raises:
        InputError: the model has no latent site, or one that the family cannot serve; an argument is out of range.
    """

    name: ClassVar[str]
    """Name of the family in messages."""
    joint: ClassVar[bool] = False
    """True if one distribution covers all sites of a level."""
    rooted: ClassVar[bool] = False
    """True if the numbers of the family are in units of a start with correlations: see `Block.correlated`."""
    modes: int = 1
    """Number of modes of the posterior that a start is to look for."""
    whole: ClassVar[bool] = False
    """True for a family without parameters, which finds one vector for each datum, or one for everything, at each call."""

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        *,
        encoder: str | nn.Module = "auto",
        hidden: tuple[int, ...] | int = (64,),
        activation: str = "tanh",
        init_scale: float | None = None,
        start: str = "fit",
        amortized: bool = True,
        numbered: int | None = None,
    ) -> None:
        super().__init__()
        if init_scale is not None and not (isinstance(init_scale, int | float) and init_scale > 0):
            raise InputError(f"init_scale is a standard deviation and must be positive, not {init_scale!r}")
        if start not in STARTS:
            raise InputError(f"start must be 'fit' or 'prior', not {start!r}")
        self.init_scale = init_scale
        self.frame = Frame(model, batch, self.name, amortized=amortized, numbered=numbered, whole=self.whole)
        for name, site in self.frame.sites.items():
            self.refuse(name, site)
        if isinstance(encoder, str) and encoder not in KINDS:
            raise unknown("encoder", encoder, KINDS)
        dtype = self.frame.dtype
        self.encoder: Encoder | None = None
        if not self.whole and self.frame.columns and any(map(self.frame.encoded, self.frame.sites.values())):
            self.encoder = Encoder(
                self.frame.columns,
                [column.of(batch) for column in self.frame.columns],
                self.frame.present(batch),
                sorted({self.frame.rows(s) for s in self.frame.sites.values() if self.frame.encoded(s)}),
                kind=encoder,
                hidden=hidden,
                activation=activation,
                dtype=dtype,
                chain=self.frame.chain,
            )
        self.blocks = self._grouped()
        self.hidden, self.activation = widths_of(hidden), activation
        self.prepare(model, batch)
        found = None
        if start == "fit" and init_scale is None:
            found = start_of(self.frame, batch, rooted=self.rooted, modes=self.modes)
        self.fitted = found is not None
        self.q = nn.ModuleDict({key: block for key, block in self._made(dtype, found)})
        self.to(dtype)

    # What a family is.

    @abstractmethod
    def parts(self, block: Block) -> dict[str, Part]:
        """Return the numbers that the family needs for the vector of a block, by name, with their start."""

    @abstractmethod
    def conditional(self, name: str, block: Block, numbers: Mapping[str, Tensor], call: Call) -> Any:
        """Return q(v | what is drawn) of the vector of a site, with batch shape (*particles, *rows).

        It is a distribution of vectors, event shape (D,), or of D independent numbers in the last batch dimension.
        """

    def prepare(self, model: nn.Module, batch: Batch) -> None:
        """Find out what the family needs to know of the model; called once, before the parameters are made."""
        return

    def extra(self, block: Block, width: int) -> nn.Module | None:
        """Return a network that the family needs besides the numbers, for features of that width; None for none.

        For encoded sites, ``numbers["features"]`` then holds the features.
        """
        return None

    def refuse(self, name: str, site: Latent) -> None:
        """Raise InputError for a site that the family cannot serve."""
        if not self.joint or site.mask is None:
            return
        shape = self.frame.shapes[name]
        if shape.along_plates > 1 and isinstance(site.mask, Tensor) and site.mask.numel() > 1:
            raise InputError(
                f"guide '{self.name}' has one density for all of site '{name}', and the model masks some of it; use guide "
                "'diag_normal', 'student' or 'structured'"
            )

    # The program.

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw every latent site for the batch; return the draws by site, each (*particles, *batch, *event)."""
        call = self.frame.call(args, kwargs)
        draws = call.draws
        for name, numbers in self.numbers(call):
            site, block = call.sites[name], self.block(name)
            distribution, infer = self._distribution(name, site, block, numbers, call)
            with ExitStack() as stack:
                for plate in site.plates:
                    stack.enter_context(call.plates[plate])
                if site.mask is not None:
                    stack.enter_context(poutine.mask(mask=site.mask))
                if site.scale != 1:
                    stack.enter_context(poutine.scale(scale=site.scale))
                draws[name] = pyro.sample(name, distribution, infer=infer)  # type: ignore[arg-type]
            if site.states is None and self.chained(name, block):
                call.vectors[name] = self._vector(name, site, draws[name], distribution, block)
        return draws

    def numbers(self, call: Call) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the sites of a batch in the order of the model, each with the numbers of its block."""
        features = None if self.encoder is None else self.encoder(call.columns, call.present)
        found: dict[str, dict[str, Tensor]] = {}
        for name in call.sites:
            key, block = self.key(name), self.block(name)
            if key not in found or self.own_step(name) is not None:
                given = self.features(name, block, features)
                found[key] = block(given, call.index)
                if block.extra is not None and given is not None:
                    found[key]["features"] = given
            yield name, found[key]

    def chained(self, name: str, block: Block) -> bool:
        """True if a later site depends on what is drawn here."""
        return self.joint and name != block.sites[-1]

    def drawn(self, block: Block, name: str, call: Call) -> Tensor | None:
        """The vectors of the sites of a block before a site, as one, (*particles, *rows, D); None for the first site."""
        return joined([call.vectors[other] for other in block.sites[: block.sites.index(name)]])

    def describe(self) -> dict[str, str]:
        """Where the numbers of q come from at each site, in one phrase."""
        found = {}
        for name, site in self.frame.sites.items():
            if self.frame.encoded(site) and self.encoder is not None:
                found[name] = self.encoder.describe()
            elif self.frame.rows(site):
                found[name] = f"free parameters for each row of {' and '.join(self.frame.rows(site))}"
            else:
                found[name] = "free parameters"
                if site.states is None:
                    found[name] += (
                        ", from the best normal for fixed draws" if self.fitted else ", from the prior's centre"
                    )
        return found

    # Blocks.

    def key(self, name: str) -> str:
        """The key of a site's block."""
        step = self.own_step(name)
        if step is None:
            if name not in self.blocks:
                raise InputError(
                    f"guide '{self.name}' was made without site '{name}', which the model has on this batch; build it on "
                    "a batch that has all sites, or use guide 'diag_normal' or 'structured' for sequences of any length"
                )
            return self.blocks[name]
        # A longer sequence than the example has further steps of the same series.
        return self.blocks.get(name) or next(
            self.blocks[other] for other, found in self.frame.steps.items() if found.stem == step.stem
        )

    def own_step(self, name: str) -> Step | None:
        """The step of a site in a series with one block for all steps; None for a site by itself or of a joint family."""
        step = self.frame.step(name)
        if step is None or not self.joint:
            return step
        first = next(other for other, found in self.frame.steps.items() if found.stem == step.stem)
        return None if self.frame.sites[first].states is None else step

    def block(self, name: str) -> Block:
        """The block of a site."""
        block = self.q[self.key(name)]
        assert isinstance(block, Block)
        return block

    def features(self, name: str, block: Block, features: Features | None) -> Tensor | None:
        """The features of a site's rows: those of its step in a sequence, or of its level."""
        if not block.encoded or features is None:
            return None
        step = self.own_step(name)
        if step is not None and features.steps is not None:
            last = features.steps.shape[1] - 1
            return features.steps[:, min(max(step.step + self.frame.shifts[step.stem], 0), last)]
        return features.levels[block.rows]

    def _grouped(self) -> dict[str, str]:
        """The key of the block of each site."""
        labels = {name: self._label(name, site) for name, site in self.frame.sites.items()}
        members = list(labels.values())
        texts = {
            name: name
            if members.count(label) == 1
            else label.strip("_.[] ")
            if isinstance(label, str)
            else "_".join(label) or "shared"
            for name, label in labels.items()
        }
        keys: dict[Any, str] = {}
        for name, label in labels.items():
            if label not in keys:
                keys[label] = key_of(texts[name], keys.values())
        return {name: keys[label] for name, label in labels.items()}

    def _label(self, name: str, site: Latent) -> str | tuple[str, ...]:
        """The sites of one label share a block."""
        if self.joint and site.states is None:
            return self.frame.rows(site)
        step = self.frame.step(name)
        return name if step is None else step.stem

    def _made(self, dtype: torch.dtype, found: Start | None) -> Iterator[tuple[str, Block]]:
        """The blocks with their parameters."""
        width = 0 if self.encoder is None else self.encoder.width
        for key in dict.fromkeys(self.blocks.values()):
            names = [name for name, k in self.blocks.items() if k == key]
            if self.own_step(names[0]) is not None:
                names = names[:1]  # the steps of a series have one vector each
            site = self.frame.sites[names[0]]
            rows = self.frame.rows(site)
            free = None if self.frame.encoded(site) else [self.frame.count(plate) for plate in rows]
            sizes = [self.frame.shapes[name].numel for name in names]
            units = [self.frame.centre(name) if found is None else found.units[name] for name in names]
            start, spread = (torch.cat(values).to(dtype) for values in zip(*units, strict=True))
            numbered = self.frame.total is not None and self.frame.data in rows
            block = Block(names, sizes, rows, free, start, spread, ROW_RATE if numbered else 1.0)
            if found is not None:
                block.set_fitted(found.root, found.modes)
            if site.states is not None:
                block.make(parts_of(site, block.dim), width)
            else:
                block.extra = self.extra(block, width if block.encoded else 0)
                block.make(self.parts(block), width)
            yield key, block

    def log_scale(self, block: Block) -> Tensor:
        """The logarithms of the standard deviations at the start, in units of the prior: (D,)."""
        if self.init_scale is not None:
            return (self.init_scale / block.spread).log()
        if block.encoded or block.fitted:
            return torch.zeros_like(block.spread)
        return (NARROW * (1 / block.spread).clamp(max=1.0)).log()

    # Distributions.

    def shape(self, name: str, site: Latent) -> Shape:
        """The shape of a site on a batch."""
        return self.frame.shapes.get(name) or self.frame.shape(site)

    def _distribution(
        self, name: str, site: Latent, block: Block, numbers: Mapping[str, Tensor], call: Call
    ) -> tuple[Any, dict[str, Any]]:
        shape = self.shape(name, site)
        if site.states is not None:
            return distribution_of(site, shape, numbers["logits"]), infer_of(shape)
        vectors = self.conditional(name, block, numbers, call)
        return self.placed(vectors, name, site, shape, block), {}

    def placed(self, vectors: Any, name: str, site: Latent, shape: Shape, block: Block) -> Any:
        """The distribution of a site from that of its vectors."""
        return placed(vectors, site, shape, *self.units(name, site, block))

    def units(self, name: str, site: Latent, block: Block) -> tuple[Tensor, Tensor]:
        """The prior's centre and spread for the vector of a site, (D,) each."""
        return block.units(name)

    def _vector(self, name: str, site: Latent, value: Tensor, distribution: Any, block: Block) -> Tensor:
        """The draw of a site as vectors, in units of the prior: (*particles, *rows, D)."""
        if isinstance(distribution, OfVectors):
            return distribution.vector(value)
        start, spread = self.units(name, site, block)
        u = self.shape(name, site).to_vector(site.bijection_on(value.device).inv(value))
        return (u - start) / spread

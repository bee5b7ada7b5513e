"""The sites of a model as they are exported: their group, shape, dimensions and masks, and draws of them.

`Exported` describes a site; `exported` reads all of them from one run of a pair.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch.distributions import constraints

from pyro_vi.data import Batch
from pyro_vi.elbo import Facts, entry_mask, one_run, own_scale, site_mask
from pyro_vi.elbo.traces import PARTICLES
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair, role_of, support_of

RESERVED = ("chain", "draw", "sample")
"""Dimensions that have a meaning for ArviZ, so that a plate of that name is renamed."""


@dataclass(frozen=True)
class Exported:
    """A site as it is exported.

    Attributes:
        name: name of the site.
        label: name of the variable: the site's, with '.' for '/'.
        kind: ``"latent"``, ``"deterministic"`` or ``"data"``.
        shape: shape of one value, ``rank`` of its dimensions being those of the batch.
        rank: number of batch dimensions.
        dims: names of all dimensions.
        mask: entries of the batch that are part of the model, or None if all are.
        entries: entries of the value that are part of the model, with masks inside its event, or None if all are.
        scale: the site's own scale, or 1.
        boolean: true if the values are 0 and 1 only.
    """

    name: str
    label: str
    kind: Literal["latent", "deterministic", "data"]
    shape: tuple[int, ...]
    rank: int
    dims: tuple[str, ...]
    mask: np.ndarray | None
    entries: np.ndarray | None
    scale: float
    boolean: bool

    def values(self, value: Any, count: int | None, *, event: bool = True) -> np.ndarray:
        """A value as an array of the site's shape, with the draws first if there is a ``count`` of them.

        Without ``event`` the value is a log-density, which has batch dimensions only.
        """
        shape = self.shape if event else self.shape[: self.rank]
        many = () if count is None else (count,)
        # The plate of particles is leftmost; dimensions of size 1 between it and those of the site are dropped.
        value = torch.as_tensor(value)
        if value.dim() <= len(shape):
            value = value.broadcast_to((*many, *shape))
        array: np.ndarray = value.reshape((*many, *shape)).detach().cpu().numpy()
        return array.astype(np.int8) if event and self.boolean else array

    def masked(self, array: np.ndarray) -> np.ndarray:
        """The array, NaN where an entry is no part of the model; its last dimensions are the site's."""
        if self.entries is None:
            return array
        floating = array.astype(np.result_type(array.dtype, np.float32))
        return np.where(self.entries, floating, np.nan)

    def seen(self, array: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Log-densities of the entries that are part of the model, in one dimension, and the indices of each entry."""
        assert self.mask is not None
        index = np.nonzero(self.mask)
        names = (f"{self.label}_{dim}" for dim in self.dims[: self.rank])
        return array[..., self.mask], dict(zip(names, index, strict=True))


def exported(trace: Any) -> dict[str, Exported]:
    """Return the exported sites by name, from a trace of the model; a `pyro.factor` is none of them."""
    nodes = {n: node for n, node in trace.nodes.items() if node["type"] == "sample"}
    labels = unique({name: name.replace("/", ".") for name in nodes})
    sizes: dict[str, int] = {}
    found = {}
    for name, node in nodes.items():
        fn, value = node["fn"], torch.as_tensor(node["value"])
        role = role_of(node)
        if role == "factor":
            continue
        deterministic = role == "deterministic"
        shape, rank = (*fn.batch_shape, *fn.event_shape), len(fn.batch_shape)
        if deterministic:
            # Without event_dim, Pyro takes all dimensions for the event, also those of plates.
            shape, rank = tuple(value.shape), value.dim() - (0 if fn.event_dim >= value.dim() else fn.event_dim)
        plates = {f.dim: f for f in node["cond_indep_stack"] if f.vectorized and f.name != PARTICLES}
        dims = []
        for i in range(rank):
            frame = plates.get(i - rank)
            default = f"{labels[name]}_{'dim' if deterministic else 'batch'}_{i}"
            if frame is not None and frame.size in (shape[i], -1):
                dims.append(_plate(frame.name, shape[i], labels.values(), sizes))
            else:
                dims.append(default)
        offset = rank if deterministic else 0
        dims += [f"{labels[name]}_dim_{i + offset}" for i in range(len(shape) - rank)]
        kind: Any = "deterministic" if deterministic else ("data" if role == "observed" else "latent")
        mask = None if deterministic else site_mask(node)
        part = None if mask is None or bool(mask.all()) else mask.expand(shape[:rank]).cpu().numpy()
        within = None if deterministic else entry_mask(node)
        entries = None if within is None or bool(within.all()) else within.expand(shape).cpu().numpy()
        scale = torch.as_tensor(own_scale(node)).double().mean().item()
        found[name] = Exported(name, labels[name], kind, shape, rank, tuple(dims), part, entries, scale, _boolean(fn))
    return found


def unique(names: Mapping[str, str]) -> dict[str, str]:
    """Return the names, with underscores at the end where two would be the same."""
    taken: set[str] = set()
    result = {}
    for name, label in names.items():
        while label in taken:
            label += "_"
        taken.add(label)
        result[name] = label
    return result


def refuse_changing_rows(pair: Pair, args: Batch, facts: Facts) -> None:
    """Raise InputError if the programs draw their own minibatch: a row of the export would be other data in each draw."""
    one, two = (one_run(pair, args, bool(facts.summed), seed) for seed in (0, 1))
    for name, value in one.subsamples.items():
        if name not in two.subsamples or not torch.equal(value, two.subsamples[name]):
            raise InputError(
                f"plate '{name}' draws {len(value)} rows of its own in each run, so that the sites or rows differ from draw to "
                "draw; for the export, let the program take all rows"
            )


def _plate(name: str, size: int, labels: Iterable[str], sizes: dict[str, int]) -> str:
    label = name.replace("/", ".")
    if label in RESERVED or label in labels:
        label += "_plate"
    if sizes.setdefault(label, size) != size:  # a plate may have another length each time it is entered
        label = f"{label}_{size}"
    return label


def _boolean(fn: Any) -> bool:
    support: Any = support_of(fn)
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return isinstance(support, type(constraints.boolean))

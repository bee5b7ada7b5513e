"""Data drawn from the model itself, in the shape of a batch, together with the latents that made them.

`simulated` draws (z, x) from p(z) p(x | z) at the other inputs of the batch, and puts x in the place of the observed columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import broadcast_shape
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor
from torch.distributions import LKJCholesky, TransformedDistribution

from pyro_vi.data import Batch, changed, fresh, tensors_in
from pyro_vi.elbo import entry_mask, one_run
from pyro_vi.errors import InputError, first_line
from pyro_vi.programs import Give, Pair, bare, role_of


@dataclass(frozen=True)
class Simulated:
    """A draw of data and latents from a model.

    Attributes:
        args: the batch with the drawn data in the place of the observed ones.
        values: the latents that made them, by site.
    """

    args: Batch
    values: Mapping[str, Tensor]


def simulated(
    pair: Pair,
    args: Batch,
    given: Mapping[str, Tensor] | None = None,
    places: "Mapping[str, tuple[int, Tensor]] | None" = None,
) -> Simulated:
    """Draw z ~ p(z) and x ~ p(x | z) once, at the other inputs of the batch.

    Uses the generators as they are, and the mode of the programs; call it within `pyro_vi.programs.isolated` and `evaluating`.
    Entries of a column that the model masks or does not observe, such as the padding of sequences, stay as they are.

    Args:
        pair: model and guide.
        args: the batch, whose observed columns are replaced.
        given: latents that are not drawn, by site, such as those that all data share.
        places: the `observed_entries` of the batch, if they are known from an earlier draw.

    Raises:
        InputError: the model observes nothing, observes numbers that are no entries of the batch, does not run without its
            observations, or reads data that it also observes (looked for unless ``places`` is given).
    """
    known, places = places is not None, observed_entries(pair, args) if places is None else places
    try:
        with torch.no_grad(), Give(dict(given or {})):
            trace: Any = poutine.trace(poutine.uncondition(pair.model)).get_trace(*fresh(args))
    except Exception as error:
        raise InputError(
            f"the model does not run without its observations, so that no data can be drawn from it: {first_line(error)}"
        ) from error
    nodes: Any = prune_subsample_sites(trace).nodes
    refuse_wrong_draws(trace)
    columns = [column.clone() for column in tensors_in(args)]
    for name, (column, index) in places.items():
        node, flat = nodes[name], columns[column].reshape(-1)
        value = node["value"].expand(broadcast_shape(node["value"].shape, index.shape))
        if value.shape != index.shape:
            raise InputError(
                f"site '{name}' has shape {tuple(value.shape)} where it is drawn, and {tuple(index.shape)} where observed; "
                "let the model draw what it observes"
            )
        mask = entry_mask(node).expand(value.shape)
        flat[index[mask]] = value[mask].to(flat.dtype)
        columns[column] = flat.reshape(columns[column].shape)
    following = iter(columns)
    made = Simulated(
        changed(args, lambda _: next(following)),
        {
            name: node["value"]
            for name, node in nodes.items()
            if node["type"] == "sample" and name not in places and role_of(node) == "latent"
        },
    )
    if not known:
        _refuse_read_data(pair, made, trace)
    return made


def refuse_wrong_draws(trace: Any) -> None:
    """Raise InputError for a site that torch does not draw from its density.

    Row i of a Cholesky factor needs y ~ Beta(i / 2, …) in the onion method (Lewandowski, Kurowicka and Joe 2009); torch has
    Beta(i − 1/2, …), which is another distribution from the third row on. Its density is right.
    """
    for name, node in trace.nodes.items():
        fn = bare(node["fn"]) if node["type"] == "sample" else None
        while isinstance(fn, TransformedDistribution):
            fn = bare(fn.base_dist)
        if isinstance(fn, LKJCholesky) and fn.dim > 2:
            raise InputError(
                f"site '{name}' cannot be drawn from its prior: torch draws LKJCholesky in {fn.dim} dimensions from another "
                "distribution than its density; use method='iw' or 'ais' from the guide, which score given values"
            )


def _refuse_read_data(pair: Pair, made: Simulated, drawn: Any) -> None:
    """Raise InputError if a site has another density at the data than it had when they were drawn.

    It reads the observed column as an input too, as a model that looks up the last step in the data, or labels in a column that
    it also observes: what was drawn was drawn at the old column.
    """
    # Plates that draw their rows take the same ones again.
    kept = {
        n: node["value"] for n, node in drawn.nodes.items() if node["type"] == "sample" and role_of(node) == "subsample"
    }
    with torch.no_grad(), Give({**kept, **made.values}):
        scored: Any = prune_subsample_sites(poutine.trace(pair.model).get_trace(*fresh(made.args)))
    drawn = prune_subsample_sites(drawn)
    for trace in (drawn, scored):
        trace.compute_log_prob()
    for name, node in drawn.nodes.items():
        if node["type"] != "sample" or role_of(node) == "deterministic" or name not in scored.nodes:
            continue
        one, two = (trace.nodes[name]["log_prob"].double() for trace in (drawn, scored))
        if one.shape != two.shape or not torch.allclose(one, two, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise InputError(
                f"site '{name}' has another density at the drawn data than where they were drawn: the model reads data that it "
                "also observes, so that none can be drawn from it; let it use what pyro.sample returns, not the column"
            )


def observed_entries(pair: Pair, args: Batch) -> dict[str, tuple[int, Tensor]]:
    """Return where the values of each observed site are in the batch: the number of the column, and the indices of the entries.

    The index has the shape of the observed value, and counts the entries of the flattened column. A column that the model reads
    in another order, in slices or in another shape is found by a run on the numbers of its entries.

    Raises:
        InputError: the model observes nothing, or numbers that are no entries of the batch.
    """
    nodes = _observed(pair, args)
    if not nodes:
        raise InputError("the model has no observed site, so that no data can be drawn from it; add one with obs=")
    columns = list(tensors_in(args))
    found: dict[str, tuple[int, Tensor]] = {}
    for number, column in enumerate(columns):
        if column.is_floating_point():
            missing = {name: value for name, value in nodes.items() if name not in found}
            found |= _numbered(pair, args, number, column, missing) if missing else {}
    for name in nodes.keys() - found.keys():
        for number, column in enumerate(columns):
            value = nodes[name]
            if value.numel() == column.numel() and _equal(value.reshape(-1), column.reshape(-1)):
                index = torch.arange(column.numel(), device=column.device)
                found.setdefault(name, (number, index.reshape(value.shape)))
    lacking = sorted(nodes.keys() - found.keys())
    if lacking:
        raise InputError(
            f"site '{lacking[0]}' observes numbers that are no entries of the batch, so that the guide cannot be given data "
            "drawn from the model; let the model observe a column as it is"
        )
    return {name: found[name] for name in nodes}


def _numbered(
    pair: Pair, args: Batch, number: int, column: Tensor, missing: Mapping[str, Tensor]
) -> dict[str, tuple[int, Tensor]]:
    """Find sites whose values are entries of a column, by a run in which the column holds the numbers of its entries."""
    indices = torch.arange(column.numel(), dtype=torch.float64, device=column.device)
    if column.dtype != torch.float64 and column.numel() > 2**24:  # float32 cannot tell further numbers apart
        return {}
    position = iter(range(10**9))
    numbers = indices.to(column.dtype).reshape(column.shape)
    try:
        seen = _observed(pair, changed(args, lambda t: numbers if next(position) == number else t))
    except Exception:  # the model may not run on such numbers
        return {}
    found = {}
    for name, value in missing.items():
        index = seen[name].double().round().long() if name in seen and seen[name].shape == value.shape else None
        if index is None or index.numel() == 0 or int(index.min()) < 0 or int(index.max()) >= column.numel():
            continue
        if bool((index.double() == seen[name].double()).all()) and _equal(column.reshape(-1)[index], value):
            found[name] = (number, index)
    return found


def _observed(pair: Pair, args: Batch) -> dict[str, Tensor]:
    nodes: Any = prune_subsample_sites(one_run(pair, args, False).model_trace).nodes
    return {n: v["value"] for n, v in nodes.items() if v["type"] == "sample" and role_of(v) == "observed"}


def _equal(value: Tensor, column: Tensor) -> bool:
    return torch.equal(value.double().nan_to_num(), column.double().nan_to_num())

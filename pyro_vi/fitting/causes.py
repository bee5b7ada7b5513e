"""The cause of a loss or a gradient that is not finite: site, datum, parameter, and the values that led there.

* `of_loss` repeats the draw of a loss, and looks at the terms of each site and each datum.
* `of_gradient` repeats a gradient on batches in which a sound row takes the place of others, until one datum is left. The terms
  of single data would not tell: the product of 0 and an infinite derivative is NaN for the other rows too.

Both draw from the generators as they are, and change nothing else if the caller keeps the buffers.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import kl_divergence

from pyro_vi.data import Batch, length_of
from pyro_vi.elbo import Run, SiteTerms, draw_traces, from_run, unwrapped
from pyro_vi.estimators.objective import Objective
from pyro_vi.estimators.traits import traits_of
from pyro_vi.fitting.stepping import values_of
from pyro_vi.programs import data_plate_of, describe
from pyro_vi.support import generators, set_generators

DRAWS = 32
"""An estimator may make several draws: so many are looked at."""
SOUND = 8
"""Rows that are tried in place of others."""
NAMED = 3
"""Data that are looked for."""


def of_loss(objective: Objective, rows: Tensor, batch: Batch) -> str:
    """Name the first site whose term is not finite, with its data and their values; an empty string if there is none.

    Args:
        objective: the pair and its estimator.
        rows: row numbers of the batch in the data as they were handed over.
        batch: the batch.
    """
    for _ in range(DRAWS):
        with torch.no_grad():
            run = draw_traces(objective.pair.model, objective.pair.guide, batch)
        for name, site in from_run(run, length_of(batch), kl=traits_of(objective.elbo).kl).sites.items():
            for what, part in _parts(site):
                if not bool(part.isfinite().all()):
                    bad = (~part.isfinite()).nonzero()[:, -1].tolist() if site.local else []
                    of = f" for data {_listed(rows[bad].tolist(), 5)}" if bad else ""
                    values = _values(run, name, what, bad[0] if bad else None)
                    return f"{what} of site '{name}' is not finite{of}{values}"
    return ""


def of_gradient(
    objective: Objective,
    weight: float,
    factor: float,
    parameters: Mapping[str, Tensor],
    rows: Tensor,
    batch: Batch,
) -> tuple[str, str]:
    """Name the parameters whose gradient is not finite, and how that came about.

    Args:
        objective: the pair and its estimator.
        weight: weight of the KL.
        factor: of the loss.
        parameters: the parameters by name.
        rows: row numbers of the batch in the data as they were handed over.
        batch: the batch.

    Returns:
        The parameters, and the sites and data with their values; each an empty string if it cannot be told.
    """
    start = generators()

    def bad(args: Batch) -> list[str]:
        set_generators(start)
        loss = objective(args, weight) * factor
        return _not_finite(torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), parameters)

    names = bad(batch)
    if not names:
        return "", ""
    found, alone = _data(bad, batch, len(rows))
    set_generators(start)
    with torch.enable_grad():
        run = draw_traces(objective.pair.model, objective.pair.guide, alone)
        terms = from_run(run, length_of(alone), kl=traits_of(objective.elbo).kl)
    guilty = []
    for name, site in terms.sites.items():
        for what, part in _parts(site):
            if part.requires_grad:
                some = torch.autograd.grad(part.sum(), list(parameters.values()), retain_graph=True, allow_unused=True)
                guilty += [(name, what)] if _not_finite(some, parameters) else []
    through = " and ".join(f"{what} of site '{name}'" for name, what in guilty[:NAMED])
    told = f"through {through}" if through else ""
    if found:
        first = int(rows[found[0]])
        told += f"{' ' if told else ''}for data {_listed(rows[found].tolist(), NAMED)}"
        told += f"; datum {first} is {' and '.join(_few(c[found[0]]) for c in _columns(batch))}"
    if guilty:
        told += _values(run, *guilty[0], found[0] if found else None)
    return _parameters(names, parameters), told


def _parts(site: SiteTerms) -> list[tuple[str, Tensor]]:
    """The terms of a site that the ELBO consists of."""
    if site.kl is not None:
        return [("KL", site.kl)]
    return [(what, part) for what, part in (("log p", site.log_p), ("log q", site.log_q)) if part is not None]


def _not_finite(gradients: Sequence[Tensor | None], parameters: Mapping[str, Tensor]) -> list[str]:
    return [
        name
        for name, gradient in zip(parameters, gradients, strict=True)
        if gradient is not None and not bool(values_of(gradient).isfinite().all())
    ]


def _parameters(names: Sequence[str], parameters: Mapping[str, Tensor]) -> str:
    first = parameters[names[0]]
    if len(names) == 1:
        return f"parameter '{names[0]}'" + (f", which is {_few(first)}," if first.numel() <= NAMED else "")
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"parameters {', '.join(map(repr, names[:NAMED]))}{more}"


def _data(bad: Callable[[Batch], list[str]], batch: Batch, count: int) -> tuple[list[int], Batch]:
    """Return the first rows with which a gradient is not finite, and a batch that has only the first of them."""
    columns = _columns(batch)
    if count < 2 or not columns or any(len(column) != count for column in columns):
        return [0] if count == 1 and columns else [], batch

    def only(some: Sequence[int], sound: int) -> Batch:
        index = torch.full((count,), sound)
        index[list(some)] = torch.tensor(some, dtype=torch.long)
        taken: Batch = _map(batch, lambda column: column[index.to(column.device)] if column.dim() else column)
        return taken

    tried = sorted({round(i * (count - 1) / (SOUND - 1)) for i in range(SOUND)})
    sound = next((row for row in tried if not bad(only([], row))), None)
    if sound is None:
        return [], batch
    found: list[int] = []
    left = list(range(count))
    while len(found) <= NAMED and bad(only(left, sound)):
        some = left
        while len(some) > 1:
            half = some[: len(some) // 2]
            some = half if bad(only(half, sound)) else some[len(some) // 2 :]
        if not bad(only(some, sound)):  # it takes several rows together
            break
        found += some
        left.remove(some[0])
    return found, only(found[:1], sound) if found else batch


def _columns(batch: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map(batch, lambda column: found.append(column) if column.dim() else None)
    return found


def _map(value: Any, of: Callable[[Tensor], Any]) -> Any:
    if isinstance(value, Tensor):
        return of(value)
    if isinstance(value, (tuple, list)):
        return type(value)(_map(item, of) for item in value)
    return {key: _map(item, of) for key, item in value.items()} if isinstance(value, dict) else value


def _values(run: Run, name: str, what: str, row: int | None) -> str:
    """Return the value of a site at a row, and the parameters of its distributions there; empty if they cannot be told."""
    try:
        return _told(run, name, what, row)
    except Exception:  # of a distribution that is like no other; the cause is told without values
        return ""


def _told(run: Run, name: str, what: str, row: int | None) -> str:
    own, there = name.removeprefix("guide."), "; there" if row is not None else ";"
    model, guide = run.model_trace.nodes.get(own), run.guide_trace.nodes.get(own)
    node = model if what == "log p" else guide
    fn = node["fn"]
    shape, value = fn.batch_shape + fn.event_shape, node["value"].detach()
    if what == "KL":
        terms = kl_divergence(unwrapped(guide["fn"]), unwrapped(model["fn"]))
    else:
        terms = unwrapped(fn).log_prob(value.expand(shape))
    dim = _dim(run, node, row)
    element, said = None, f"'{own}'"
    if terms.shape == shape:
        bad = (~_at(terms.detach(), dim, row).isfinite()).nonzero()
        if len(bad) and bad.shape[1]:
            element = tuple(bad[0].tolist())
            said = f"element {element[0] if len(element) == 1 else element} of '{own}'"

    def law(node: Any) -> str:
        base = unwrapped(node["fn"])
        found = []
        for key in base.arg_constraints:
            if key in vars(base) or isinstance(inspect.getattr_static(type(base), key, None), property):
                parameter = _at(_wide(getattr(base, key).detach(), shape), _dim(run, node, row), row)
                if element is not None and parameter.dim() == len(element):
                    parameter = parameter[element]
                found.append(f"{key} {_few(parameter)}")
        return f"{describe(base)}({', '.join(found)})"

    if what == "KL":
        where = "" if element is None else f" at {said}"
        return f"{there} q is {law(guide)} and p is {law(model)}{where}"
    value = _at(value.expand(shape), dim, row)
    return f"{there} {said} is {_few(value if element is None else value[element])} under {law(node)}"


def _dim(run: Run, node: Any, row: int | None) -> int | None:
    """The dimension of the data's plate in the value of a site, counted from the left; None if the site is not in it."""
    plate = data_plate_of(run.model_trace)
    found = [f.dim for f in node["cond_indep_stack"] if plate is not None and f.name == plate.name]
    return len(node["fn"].batch_shape) + found[0] if found and row is not None else None


def _at(value: Tensor, dim: int | None, row: int | None) -> Tensor:
    return value if dim is None or row is None else value.select(dim, row)


def _wide(parameter: Tensor, shape: torch.Size) -> Tensor:
    """A parameter in the shape of the values, or with one more dimension, such as that of the classes."""
    try:
        return parameter.expand(shape)
    except RuntimeError:
        return parameter.expand(shape + parameter.shape[-1:])


def _few(values: Tensor, most: int = NAMED) -> str:
    numbers = [f"{number:.4g}" for number in values.detach().flatten()[: most + 1].tolist()]
    return numbers[0] if len(numbers) == 1 else f"({', '.join(numbers[:most])}{', …' if len(numbers) > most else ''})"


def _listed(numbers: list[int], most: int) -> str:
    return ", ".join(map(str, numbers[:most])) + (" …" if len(numbers) > most else "")

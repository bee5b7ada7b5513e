"""Layouts and shelves as tables for a terminal, 80 columns wide or more.

`layout_tables` shows a `pyro_vi.overview.Layout`, `match_tables` which pairs go together, and `described_tables` one name.
"""

from collections.abc import Callable, Iterable, Iterator

from rich.console import RenderableType
from rich.text import Text

from pyro_vi.overview.layouts import LaidSite, Layout
from pyro_vi.overview.shelves import Described, Match
from pyro_vi.overview.tabular import Row, folded, table

MOST = 12
"""Most parameters of an owner that are shown one by one."""


def layout_tables(layout: Layout) -> Iterator[RenderableType]:
    """Yield the parts of a layout in the order in which they are printed."""
    model, guide = (name.rpartition("<locals>.")[2] for name in (layout.model, layout.guide))
    yield Text(f"{model} with guide {guide} on {layout.data}, estimator {layout.elbo}", style="bold")
    yield from map(Text, _rows(layout))
    if layout.plates:
        rows = [
            (
                name,
                str(plate.dim),
                str(plate.size),
                str(plate.length),
                "the rows of data" if name == layout.rows.plate else "",
            )
            for name, plate in layout.plates.items()
        ]
        yield table("plates", ("plate", "dim", "size", "in a step", "holds"), rows, right=(1, 2, 3))
    sites = [
        (
            name,
            f"{site.role}, enumerated" if site.enumerated else site.role,
            ", ".join(site.plates) or "-",
            f"{_shape(site.batch_shape)} | {_shape(site.event_shape)}",
            site.support,
            site.model,
        )
        for name, site in layout.sites.items()
        if site.model is not None
    ]
    columns = ("site", "role", "plates", "shape", "support", "distribution")
    shown = table("sites of the model", columns, sites)
    shown.caption = "shape: that of the batch | that of an event; -: a single number"
    yield shown
    yield from _latents(layout)
    yield from _parameters(layout)
    if layout.refused:
        yield Text(f"{layout.elbo} cannot serve this pair: {layout.refused}")
    # Whole, whatever the width of the terminal: a path and a command are copied.
    notes = (*layout.pictures, *([layout.picture_note] if layout.picture_note else []))
    yield from notes


def _rows(layout: Layout) -> Iterator[str]:
    rows = layout.rows
    aside = f" ({rows.why})"
    yield f"rows: {rows.note}" + (aside if rows.why and aside not in rows.note else "")
    if rows.plate is None:
        yield "data plate: none; the numbers of a fit are per row of the first column"
    else:
        yield f"data plate: '{rows.plate}'; a datum is one row of it, and the numbers of a fit are per datum"


def _latents(layout: Layout) -> Iterator[RenderableType]:
    latents = {name: site for name, site in layout.sites.items() if "latent" in site.role or site.kl is not None}
    if not latents:
        return
    columns: dict[str, Callable[[LaidSite], str]] = {
        "in the guide": lambda site: site.guide or ("left to the estimator" if site.enumerated else "not in the guide"),
        "made from": lambda site: site.encoder or "-",
        "KL": lambda site: site.kl or "-",
        "why": lambda site: site.why,
    }
    left_out = {"made from": not any(site.encoder for site in latents.values())}
    left_out |= dict.fromkeys(("KL", "why"), bool(layout.refused))
    columns = {title: cell for title, cell in columns.items() if not left_out.get(title)}
    rows = [(name, *(cell(site) for cell in columns.values())) for name, site in latents.items()]
    yield table("latent sites" if layout.refused else f"latent sites under {layout.elbo}", ("site", *columns), rows)


def _parameters(layout: Layout) -> Iterator[RenderableType]:
    if not layout.parameters:
        yield Text("parameters: none, so there is nothing to fit")
        return
    rows: list[Row] = []
    totals = []
    for owner in ("model", "guide"):
        own = {name: one for name, one in layout.parameters.items() if one.owner == owner}
        total = sum(one.count for one in own.values())
        totals.append(f"{owner} {total:,}")
        found = folded([(n, owner, _shape(p.shape), f"{p.count:,}", p.constraint) for n, p in own.items()])
        rows += found[:MOST]
        if len(found) > MOST:
            left = total - sum(own[name].count for name, *_ in found[:MOST] if name in own)
            rows.append((f"{len(found) - MOST} more", owner, "", f"{left:,}", ""))
    shown = table("parameters", ("parameter", "owner", "shape", "numbers", "constraint"), rows, right=(3,))
    shown.caption = f"numbers in all: {', '.join(totals)}"
    yield shown
    if layout.fixed:
        yield Text(f"{layout.fixed:,} more numbers are not fitted, as their requires_grad is False")


def match_tables(found: Iterable[Match]) -> Iterator[RenderableType]:
    """Yield which guides go with which models, and the reasons of those that do not."""
    models: dict[tuple[str, str], list[str]] = {}
    refused: dict[tuple[str, str], list[str]] = {}
    for match in found:
        good = models.setdefault((match.model, match.data), [])
        if match.reason:
            refused.setdefault((match.model, match.reason), []).append(match.guide)
        else:
            good.append(match.guide)
    rows = [(model, data, ", ".join(guides) or "none") for (model, data), guides in models.items()]
    yield table("pairs that go together", ("model", "tried on", "guides"), rows)
    if refused:
        lines = [(model, ", ".join(guides), reason) for (model, reason), guides in refused.items()]
        yield table("pairs that do not", ("model", "guides", "why"), lines)


def described_tables(found: Described) -> Iterator[RenderableType]:
    """Yield the description of an entry, its options, and the pairs in which it was tried."""
    yield Text(f"{found.kind} {found.name}", style="bold")
    yield Text(found.about)
    if found.options:
        rows = [(name, one.type, one.default, one.help) for name, one in found.options.items()]
        yield table("options", ("option", "type", "default", "what it is"), rows)
    else:
        yield Text("It has no options.")
    if found.example:
        yield Text(f"Options are given in parentheses: {found.example}")
    other = "guide" if found.kind == "model" else "model"
    if found.pairs:
        good = [getattr(match, other) for match in found.pairs if not match.reason]
        yield Text(f"It goes with the {other}s: {', '.join(good) or 'none'}")
    refused = [(getattr(match, other), match.reason) for match in found.pairs if match.reason]
    if refused:
        yield table("It does not go with", (other, "why"), refused)


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "-"

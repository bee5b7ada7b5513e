"""The shelves: every name that a command takes, the options of each, and which guides go with which models.

* `described` describes the entry of one name, with its options; `pyro_vi.overview.written.names` lists the names.
* `matches` tries each model with each guide on a few made-up rows that suit the model: `EXAMPLES`.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer import autoguide

from pyro_vi import estimators
from pyro_vi.data import Data, fresh, load, numbered
from pyro_vi.data.registered import DATASETS, said
from pyro_vi.errors import InputError, of_program
from pyro_vi.overview.options import Option, about, options_from
from pyro_vi.overview.written import names
from pyro_vi.programs import Pair, Source, build_pair, isolated, takes_row_numbers
from pyro_vi.programs.build import options_of
from pyro_vi.programs.lookup import AUTOGUIDES, Kind, available, resolve
from pyro_vi.support import parse, unknown


def _made(values: Callable[[torch.Generator], Any], image: tuple[int, int] | None = None) -> Callable[[], Data]:
    def make() -> Data:
        data = load(values(torch.Generator().manual_seed(0)), heldout=0.0)
        return replace(data, spec=replace(data.spec, image_shape=image))

    return make


EXAMPLES: dict[str, Callable[[], Data]] = {
    "no data": _made(lambda _: None),
    "0/1 images": _made(lambda g: (torch.rand(8, 64, generator=g) < 0.5).float(), (8, 8)),
    "real vectors": _made(lambda g: torch.randn(8, 5, generator=g)),
    "counts": _made(lambda g: torch.poisson(torch.full((8, 5), 3.0), generator=g).long()),
    "real series": _made(lambda g: torch.randn(8, 6, 2, generator=g)),
    "real numbers": _made(lambda g: torch.randn(8, generator=g)),
    "0/1 vectors with classes": _made(lambda g: ((torch.rand(8, 6, generator=g) < 0.5).float(), torch.arange(8) % 2)),
    "real vectors with a target": _made(lambda g: (torch.randn(8, 3, generator=g), torch.randn(8, generator=g))),
}
"""Small data sets on which pairs are tried: a model takes the first that it has a density for."""


@dataclass(frozen=True)
class Match:
    """A model and a guide that were tried together on an example of data; ``reason`` says why they do not go together."""

    model: str
    guide: str
    data: str
    reason: str = ""


@dataclass(frozen=True)
class Described:
    """An entry of a table: its kind (model, guide, data set, estimator), a description, its options, and an example command.

    ``pairs`` are the pairs that a model or a guide was tried in.
    """

    kind: str
    name: str
    about: str
    options: Mapping[str, Option]
    example: str = ""
    pairs: tuple[Match, ...] = ()


def matches(models: Iterable[str] | None = None, guides: Iterable[str] | None = None) -> Iterator[Match]:
    """Try models with guides, by default all of them: a pair goes together if it can be built and has a finite ELBO.

    Each pair is built on a few rows of one of `EXAMPLES`, and evaluated once; nothing is fitted.

    Example:
        >>> [match.reason for match in matches(["linear_gaussian"], ["exact"])]
        ['']
    """
    guides = list(available("guide") if guides is None else guides)
    for model in available("model") if models is None else models:
        name, data, reason = _suiting(model)
        for guide in guides:
            yield Match(model, guide, name, reason if data is None else _tried(model, guide, data))


def _suiting(model: str) -> tuple[str, Data | None, str]:
    """The first example that a model can be built for and has a density at."""
    reason = ""
    for name, make in EXAMPLES.items():
        data = make()
        reason = _tried(model, _nothing, data)
        if not reason:
            return name, data, ""
    return "", None, f"the model takes none of the examples: {reason}"


def _nothing(*_: Any) -> None:
    """The guide of a model by itself."""


def _tried(model: Source, guide: Source, data: Data) -> str:
    """Why a pair does not go together; empty if it does."""
    try:
        with warnings.catch_warnings(), isolated(seed=0, validation=True):
            warnings.simplefilter("ignore")
            rows = data.spec.num_data
            data = numbered(data) if takes_row_numbers(guide) else data
            value = _loss(build_pair(model, guide, data, rows=rows), data.example(rows))
    except InputError as error:
        return str(error)
    except Exception as error:  # of a program that does not say what it refuses
        return of_program(error)
    return "" if math.isfinite(value) else f"its ELBO is {-value}"


def _loss(pair: Pair, args: Any) -> float:
    layouts = pair.layouts(args)
    estimator: Any = estimators.get("trace")
    if any(site.enumerated for layout in layouts for site in layout.latents.values()):
        # Pyro would guess the same number, and write so to stderr.
        estimator = estimators.get("enum", max_plate_nesting=max(layout.max_plate_nesting for layout in layouts))
    return float(estimator.loss(pair.model, pair.guide, *fresh(args)))


def described(text: str) -> list[Described]:
    """Return the entries of a name, one for each table that has it.

    Raises:
        UsageError: no table has the name.

    Example:
        >>> [(found.kind, list(found.options)) for found in described("exact")]
        [('guide', [])]
    """
    name, _ = parse(text)
    found: list[Described] = []
    every = names()
    if name in every["models"]:
        found.append(_program(name, "model", tuple(matches(models=[name]))))
    if name in every["guides"] or isinstance(getattr(autoguide, AUTOGUIDES.get(name, name), None), type):
        found.append(_program(name, "guide", tuple(matches(guides=[name]))))
    if name in DATASETS:
        entry = DATASETS[name]
        keywords = [p for p in inspect.signature(entry.read).parameters.values() if p.kind is p.KEYWORD_ONLY]
        options = {
            option: replace(one, type=said(entry.options[option]))
            for option, one in options_from(entry.read, keywords).items()
        }
        found.append(Described("data set", name, every["data"][name], options, _command("--data", name, options)))
    if name in estimators.TABLE:
        cls = estimators.TABLE[name].cls
        options = options_from(cls, inspect.signature(cls).parameters.values())
        found.append(
            Described("estimator", name, every["estimators"][name], options, _command("--elbo", name, options))
        )
    if not found:
        raise unknown("model, guide, data set or estimator", name, dict.fromkeys(n for k in every.values() for n in k))
    return found


def _program(name: str, kind: Kind, pairs: tuple[Match, ...]) -> Described:
    program, _ = resolve(name, kind)
    options = options_from(program, options_of(program, kind)) if isinstance(program, type) else {}
    models = [match.model for match in pairs if not match.reason] or [pairs[0].model]
    command = _command(name if kind == "model" else models[0], name, options)
    return Described(kind, name, about(program), options, command, pairs)


def _command(before: str, name: str, options: Mapping[str, Option]) -> str:
    """A command that gives the first option with a value; empty if there is none."""
    key = next((key for key, one in options.items() if one.default not in ("None", "required")), None)
    if key is None:
        return ""
    given = f"{name}({key}={options[key].default})"
    return f'pyro-vi fit "{given}"' if before == name else f'pyro-vi fit {before} "{given}"'

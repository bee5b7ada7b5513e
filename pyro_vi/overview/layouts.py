"""The layout of a pair: what pyro_vi takes a model, a guide and data for, before any step of a fit.

* `show` makes the `Layout` of a pair; `show_pair` that of a pair which is planned already.
* `Layout` has the `Rows` of the fit, the plates, and a `LaidSite` and a `LaidParameter` for each site and parameter.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pyro.infer import ELBO
from torch.distributions import constraints, transform_to

from pyro_vi.data import Batch
from pyro_vi.elbo import KLSource
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators import estimator_of, get, named
from pyro_vi.fitting import Options, plan_of
from pyro_vi.fitting.plan import Plan
from pyro_vi.overview.pictures import draw_pictures
from pyro_vi.programs import Pair, Plate, Prototype, Site, Source, isolated, name_of, words_of
from pyro_vi.support import Real, Whole, make_folder, write_json

Role = Literal["local latent", "global latent", "observed", "deterministic", "factor", "auxiliary", "subsample"]


@dataclass(frozen=True)
class Rows:
    """The rows of a fit, as `pyro_vi.fit` would take them.

    Attributes:
        num_data: rows that are fitted.
        batch_size: rows of a step.
        shuffled: minibatches are in a new order in each epoch.
        heldout: rows that are held out.
        plate: name of the data plate; None if the model has none.
        note: the decision in one line.
        why: the reason for minibatches or for all rows in each step.
    """

    num_data: int
    batch_size: int
    shuffled: bool
    heldout: int
    plate: str | None
    note: str
    why: str


@dataclass(frozen=True)
class LaidSite:
    """A site of a pair.

    Attributes:
        role: its part; a latent is local if it is in the data plate, and global otherwise.
        plates: names of its plates, the outermost first.
        batch_shape: shape of its batch dimensions on the first batch of a fit.
        event_shape: shape of one event.
        support: the values that it has under the model, in words.
        enumerated: it is marked for enumeration, in the model or in the guide.
        model: its distribution in the model; None if the model has no such site.
        guide: its distribution in the guide; None if the guide does not draw it.
        encoder: where its distribution in the guide comes from, in the guide's own words; None if the guide does not say.
        kl: the source of its KL under the estimator: analytic, sampled or enumerated; None if it has none.
        why: the reason for this source.
    """

    role: Role
    plates: tuple[str, ...]
    batch_shape: tuple[int, ...]
    event_shape: tuple[int, ...]
    support: str
    enumerated: bool
    model: str | None
    guide: str | None
    encoder: str | None = None
    kl: Literal["analytic", "sampled", "enumerated"] | None = None
    why: str = ""


@dataclass(frozen=True)
class LaidParameter:
    """A parameter of a pair: its owner, the shape that the program sees, how many numbers are fitted, and its constraint."""

    owner: str
    shape: tuple[int, ...]
    count: int
    constraint: str


@dataclass(frozen=True)
class Layout:
    """Everything that pyro_vi takes a pair for; ``print(layout)`` gives the tables of ``pyro-vi show``.

    Attributes:
        model, guide, data, elbo: names.
        rows: the rows of a fit.
        sites: by name, those of the model in its order, then those that only the guide has.
        plates: by name; ``length`` is the number of rows in one step, ``size`` the full size.
        parameters: those that a fit changes, by name; a name that both programs have is ``guide.<name>`` in the guide.
        fixed: how many numbers of parameters a fit leaves as they are (``requires_grad=False``).
        refused: why the estimator cannot serve the pair; empty if it can.
        pictures: the pictures that were written.
        picture_note: why a picture is missing; empty if none is, or none was asked for.
    """

    model: str
    guide: str
    data: str
    elbo: str
    rows: Rows
    sites: Mapping[str, LaidSite]
    plates: Mapping[str, Plate]
    parameters: Mapping[str, LaidParameter]
    fixed: int = 0
    refused: str = ""
    pictures: tuple[str, ...] = ()
    picture_note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the layout as plain values, as ``pyro-vi show --json`` prints it."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        from pyro_vi.overview.tables import layout_tables  # which needs this class
        from pyro_vi.overview.tabular import text_of

        return text_of(layout_tables(self))


def show(
    model: Source,
    guide: Source,
    data: Any,
    *,
    elbo: str | ELBO = "mean_field",
    batch_size: Whole | None = Options.batch_size,
    shuffle: bool | None = Options.shuffle,
    drop_last: bool = Options.drop_last,
    heldout: Real | None = Options.heldout,
    seed: Whole = Options.seed,
    out: str | Path | None = None,
) -> Layout:
    """Return what pyro_vi takes a pair for: rows, data plate, sites, plates, parameters, and the source of each KL.

    Nothing is fitted: the programs run on one batch, and nothing in them changes.

    Args:
        model: as in `pyro_vi.fit`.
        guide: the same.
        data: the same.
        elbo: the estimator whose KL is shown.
        batch_size, shuffle, drop_last, heldout, seed: as in `pyro_vi.fit`.
        out: folder for ``layout.json`` and, where graphviz is installed, the pictures ``model.png`` and ``guide.png`` of
            `pyro.render_model`.

    Raises:
        UsageError: an unknown name or option.
        InputError: data or programs that cannot be used.

    Example:
        >>> layout = show("vae(latent_dim=2)", "diag_normal", "digits")
        >>> layout.sites["z"].role, layout.sites["z"].kl, layout.rows.note
        ('local latent', 'analytic', '1498 rows in batches of 128, shuffled; 299 held out')
    """
    (name, estimator), *rest = named(elbo).items()
    if rest:
        raise UsageError("show takes one estimator; give it as elbo='analytic'")
    options = Options(batch_size=batch_size, shuffle=shuffle, drop_last=drop_last, heldout=heldout, seed=seed)
    planned = plan_of(model, guide, data, options)
    source = str(data) if isinstance(data, str | Path) else planned.data.spec.name
    return show_pair(planned, (name_of(model), name_of(guide), source), name, estimator, out=out)


def show_pair(
    planned: Plan,
    names: tuple[str, str, str],
    elbo: str,
    estimator: ELBO,
    *,
    out: str | Path | None = None,
) -> Layout:
    """`show` for a pair that is planned already.

    Args:
        planned: the pair, its data and the size of a batch.
        names: of model, guide and data.
        elbo: name of the estimator.
        estimator: the estimator.
        out: see `show`.
    """
    pair, args = planned.pair, planned.data.example(planned.batch_size)
    ours, theirs = pair.layouts(args)
    sources, refused = _sources(estimator, pair, args)
    closed = _sources(get("analytic"), pair, args)[0] if estimator_of(estimator).traits.target == "elbo" else {}
    encoders = _encoders(pair)
    sites = {}
    for name in (*ours.sites, *(name for name in theirs.sites if name not in ours.sites)):
        site = _laid(name, ours, theirs, encoders.get(name))
        source = sources.get(name)
        if source is not None:
            why = source.reason or _why(source.kind, elbo, site, name in closed and closed[name].kind == "analytic")
            site = dataclasses.replace(site, kl=source.kind, why=why)
        sites[name] = site
    found = Layout(
        *names,
        elbo,
        rows=_rows(planned, ours),
        sites=sites,
        plates={**theirs.plates, **ours.plates},
        parameters=_parameters(pair, args),
        fixed=sum({id(p): p.numel() for p in pair.parameters() if not p.requires_grad}.values()),
        refused=refused,
    )
    if out is None:
        return found
    folder = make_folder(out)
    pictures, note = draw_pictures(pair, args, folder)
    found = dataclasses.replace(found, pictures=tuple(map(str, pictures)), picture_note=note)
    write_json(folder / "layout.json", found.to_dict())
    return found


def _rows(planned: Plan, layout: Prototype) -> Rows:
    data, size = planned.data, planned.batch_size
    why = planned.reason
    if why and size < data.spec.num_data:
        why = "the batch size was given"
    elif not why and layout.latents and data.columns:
        why = "every latent site belongs to a row"
    return Rows(data.spec.num_data, size, data.shuffle, data.num_heldout, layout.data, planned.note, why)


def _laid(name: str, ours: Prototype, theirs: Prototype, encoder: str | None) -> LaidSite:
    in_model, in_guide = ours.sites.get(name), theirs.sites.get(name)
    site = in_model or in_guide
    assert site is not None
    role: Any = site.role
    if role == "latent":
        role = "local latent" if ours.data is not None and ours.data in site.plates else "global latent"
    return LaidSite(
        role=role,
        plates=site.plates,
        batch_shape=site.batch_shape,
        event_shape=site.event_shape,
        support=words_of(site.support),
        enumerated=any(one.enumerated for one in (in_model, in_guide) if one is not None),
        model=_distribution(in_model),
        guide=_distribution(in_guide),
        encoder=encoder,
    )


def _distribution(site: Site | None) -> str | None:
    if site is None:
        return None
    name, masked = site.distribution, ""
    while name.startswith(("Independent(", "MaskedDistribution(")):  # the event shape says what `to_event` did
        masked = masked or (", masked" if name.startswith("Masked") else "")
        name = name.partition("(")[2].removesuffix(")")
    return f"{name}{masked}"


def _sources(estimator: ELBO, pair: Pair, args: Batch) -> tuple[Mapping[str, KLSource], str]:
    """The source of each site's KL, or why the estimator refuses the pair."""
    try:
        with isolated(seed=0, validation=False):
            return estimator_of(estimator).sources_of_pair(pair, args), ""
    except InputError as error:
        return {}, str(error)


def _why(kind: str, elbo: str, site: LaidSite, closed: bool) -> str:
    if kind == "enumerated":
        return f"the site is marked for enumeration, and {elbo} sums over its values"
    if kind == "analytic":
        return f"KL({site.guide} || {site.model}) has a closed form"
    drawn = f"{elbo} takes log q - log p of the draw"
    return f"{drawn}; analytic would use the closed form" if closed else drawn


def _encoders(pair: Pair) -> dict[str, str]:
    """The encoder of each site, by the guide's own ``describe()``, if it has such a method and not another of that name."""
    describe = getattr(getattr(pair.guide, "program", pair.guide), "describe", None)
    if not callable(describe):
        return {}
    try:
        with isolated(seed=0):
            found = describe()
    except Exception:  # a person's own method, which needs something else
        return {}
    good = isinstance(found, Mapping) and all(isinstance(text, str) for item in found.items() for text in item)
    return dict(found) if good else {}


def _parameters(pair: Pair, args: Batch) -> dict[str, LaidParameter]:
    seen: dict[int, Any] = {}
    for _, parameter, constraint in pair.held():
        seen.setdefault(id(parameter), constraint)
    result = {}
    for name, (owner, parameter) in pair.owned(args).items():
        constraint = seen.get(id(parameter), constraints.real)
        shape = tuple(transform_to(constraint)(parameter.detach()).shape)
        own = name if constraint is constraints.real else name.removesuffix("_unconstrained")
        result[own] = LaidParameter(owner, shape, parameter.numel(), words_of(constraint))
    return result

"""Choice and writing of pictures: `plot`, and `PICTURES`, the table of all of them.

A picture is a function from a comparison to a figure. Its entry says which facts of the model and the data it needs; no entry
asks for a name.
"""

import io
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from pyro_vi.comparing import Comparison, Result
from pyro_vi.elbo import Evaluation
from pyro_vi.errors import InputError, UsageError, kind_and_line
from pyro_vi.fitting import Run, config_of
from pyro_vi.programs import name_of
from pyro_vi.reporting import plots_of_draws as draws
from pyro_vi.reporting import plots_of_fits as fits
from pyro_vi.reporting.pictures.classes import by_class, samples_by_class
from pyro_vi.reporting.pictures.components import components
from pyro_vi.reporting.pictures.densities import density, in_plane
from pyro_vi.reporting.pictures.facts import Facts, facts_of
from pyro_vi.reporting.pictures.globals import coefficients, coefficients_of, marginals, reference_of
from pyro_vi.reporting.pictures.latents import latent_means
from pyro_vi.reporting.pictures.predictions import has_target, predictions
from pyro_vi.reporting.pictures.sequences import piano_roll, rolls
from pyro_vi.reporting.pictures.series import bands, in_plane_of_series, is_series, paths
from pyro_vi.reporting.pictures.words import top_words
from pyro_vi.reporting.plots_of_standings import behind_the_best
from pyro_vi.support import html_block, make_folder, shown, unknown, write_through

FORMATS = ("png", "svg", "pdf")


@dataclass(frozen=True)
class Picture:
    """A picture and what it needs.

    Attributes:
        draw: makes the figure; its name is that of the picture.
        of_fits: it needs measurements of the fits, which are asked for here; None if it needs none.
        of_facts: it needs facts about the model and the data; None if it needs none.
        may_refuse: it may still find that it does not apply, and raise InputError; it is then left out.
    """

    draw: Callable[[Comparison], Figure]
    of_fits: Callable[[Comparison], bool] | None = None
    of_facts: Callable[[Facts], Any] | None = None
    may_refuse: bool = False

    @property
    def name(self) -> str:
        """The name of the picture, of its file, and in ``only``."""
        return self.draw.__name__


def _plain(facts: Facts) -> bool:
    """Rows are best shown as they are: no series, sequences or targets, which have pictures of their own, and no words."""
    plain = bool(facts.layout.observed) and bool(facts.args) and not facts.sequences and not facts.words
    return plain and not is_series(facts) and facts.target is None


def _shares_numbers(facts: Facts) -> bool:
    """All data share a few numbers: the weights of a network have no meaning one by one."""
    few = sum(site.numel for site in facts.shared.values()) <= 60
    return bool(facts.shared) and (bool(reference_of(facts)) or (few and not is_series(facts)))


PICTURES = (
    Picture(fits.training_curves, of_fits=lambda made: any(one.run.history for one in made.results.values())),
    Picture(fits.terms_by_site, of_fits=fits.has_several_sites),
    Picture(behind_the_best, of_fits=lambda made: made.across == "guides" or bool(made.repeats), may_refuse=True),
    Picture(fits.gradient_variance, of_fits=lambda made: bool(made.audits)),
    Picture(fits.value_against_gradient, of_fits=lambda made: bool(made.audits)),
    Picture(draws.reconstructions, of_facts=_plain, may_refuse=True),
    Picture(draws.prior_samples, of_facts=_plain, may_refuse=True),
    Picture(draws.latent_traversal, of_facts=_plain, may_refuse=True),
    Picture(samples_by_class, of_facts=by_class),
    Picture(latent_means, of_facts=lambda facts: facts.vectors and facts.rows > 1 and not is_series(facts)),
    Picture(components, of_facts=lambda facts: facts.assigned and facts.rows > 1),
    Picture(piano_roll, of_facts=rolls),
    Picture(bands, of_facts=is_series),
    Picture(paths, of_facts=in_plane_of_series),
    Picture(top_words, of_facts=lambda facts: facts.words),
    Picture(predictions, of_facts=has_target),
    Picture(coefficients, of_facts=coefficients_of),
    Picture(marginals, of_facts=_shares_numbers),
    Picture(density, of_facts=in_plane),
)
"""All pictures, in reading order."""


class Figures(dict[str, Figure]):
    """Figures by name; a notebook shows all of them, or one that ends a cell, without further imports."""

    def __setitem__(self, name: str, figure: Figure) -> None:
        setattr(figure, "_repr_png_", partial(_png, figure))  # noqa: B010  (it is no attribute of the class)
        super().__setitem__(name, figure)

    def _repr_html_(self) -> str:
        return html_block(", ".join(self), pictures=[_png(figure) for figure in self.values()], width=480)


def plot(
    fitted: Run | Comparison,
    *,
    out: str | Path | None = None,
    format: str = "png",
    only: str | Iterable[str] = (),
) -> Figures:
    """Draw every picture that the model, the guide and the data of a fit or a comparison have, and write them if asked.

    Which pictures apply depends on facts: images, labels, names of columns, lengths of sequences, latents that all data share,
    and methods of the model (``log_density``, ``top_words``, …). A model of your own gets them as well. A picture that fails
    is left out, with a warning of one line.

    Args:
        fitted: what `fit` or `compare` returns.
        out: folder to write to; by default nothing is written.
        format: ``"png"``, ``"svg"`` or ``"pdf"``.
        only: names of the pictures to draw, such as ``"latent_means"``; by default all that apply.

    Returns:
        The figures by name, of matplotlib; a notebook shows all of them, or one that ends a cell.

    Raises:
        UsageError: an unknown format or picture.
        InputError: a picture of ``only`` does not apply, or the folder cannot be written.

    Example:
        >>> import pyro_vi
        >>> run = pyro_vi.fit("linear_gaussian(latent_dim=2)", "exact", torch.randn(50, 3), steps=2, progress=False)
        >>> list(plot(run, only="latent_means"))
        ['latent_means']
    """
    return drawn(fitted, out=out, format=format, only=only)[0]


def drawn(
    fitted: Run | Comparison,
    *,
    out: str | Path | None = None,
    format: str = "png",
    only: str | Iterable[str] = (),
) -> tuple[Figures, list[Path]]:
    """Return the figures of `plot`, and the files that were written, in the same order."""
    if format not in FORMATS:
        raise UsageError(f"format must be one of {', '.join(FORMATS)}, not {shown(format)}")
    wanted = [only] if isinstance(only, str) else list(only)
    for name in wanted:
        if name not in (known := [one.name for one in PICTURES]):
            raise unknown("picture", name, known)
    comparison = fitted if isinstance(fitted, Comparison) else comparison_of(fitted)
    folder = None if out is None else make_folder(out)
    figures, paths = Figures(), []
    for picture in chosen(comparison, wanted):
        try:
            figure = picture.draw(comparison)
            if folder is not None:
                path = folder / f"{picture.name}.{format}"
                paths.append(write_through(path, lambda temporary: _write(figure, temporary, format)))  # noqa: B023
            figures[picture.name] = figure
        except Exception as error:  # a picture is never a reason to lose a fit
            if wanted:
                raise
            if not (picture.may_refuse and isinstance(error, InputError)):
                warnings.warn(f"no picture {picture.name}: {kind_and_line(error)}", stacklevel=3)
    return figures, paths


def chosen(comparison: Comparison, only: Iterable[str] = ()) -> list[Picture]:
    """Return the pictures that apply, in reading order.

    Args:
        comparison: fitted pairs and their data.
        only: names of the pictures that are wanted; by default all.

    Raises:
        InputError: one of ``only`` does not apply.
    """
    wanted = set(only)
    facts, why = None, ""
    try:
        facts = facts_of(comparison)
    except Exception as error:
        why = kind_and_line(error)
        warnings.warn(f"no pictures of model and data: {why}", stacklevel=4)
    found = []
    for picture in PICTURES:
        if wanted and picture.name not in wanted:
            continue
        try:
            applies = picture.of_fits is None or picture.of_fits(comparison)
            applies = applies and (picture.of_facts is None or (facts is not None and bool(picture.of_facts(facts))))
        except Exception as error:
            warnings.warn(f"no picture {picture.name}: {kind_and_line(error)}", stacklevel=4)
            applies = False
        if applies:
            found.append(picture)
        elif wanted:
            raise InputError(
                f"picture '{picture.name}' does not apply to this model and these data{why and f' ({why})'}; leave it out of "
                "only"
            )
    return found


def comparison_of(run: Run, model: str = "", guide: str = "", seed: int = 0) -> Comparison:
    """Return a fit as a comparison of one, for functions that draw comparisons.

    Args:
        run: the fit.
        model: name of the model in headings; by default that in the run's folder, or its class.
        guide: the same of the guide.
        seed: seed of the fit.
    """
    config: dict[str, Any] = {}
    if run.out is not None and not (model and guide):
        try:
            config = config_of(run.out)
        except InputError:  # the folder is gone
            config = {}
    model = model or config.get("model") or name_of(run.model)
    guide = guide or config.get("guide") or name_of(run.guide)
    nothing = Evaluation(torch.full((1,), float("nan")), torch.full((1,), float("nan")))
    result = Result(run, "", "", run.kl_source, nothing, None)
    on: Any = "held-out" if run.data.num_heldout else "training"
    return Comparison(model, guide, run.data, seed, {run.elbo: result}, {}, on=on)


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _write(figure: Figure, path: Path, format: str) -> None:
    # Dates and random names in the file would make two pictures of one fit differ.
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": {}}[format]
    with matplotlib.rc_context({"svg.hashsalt": "pyro_vi"}):
        write_through(path, lambda temporary: figure.savefig(temporary, format=format, dpi=150, metadata=metadata))

"""The shelf as its contract test sees it: models in the forms that people write, and the guides that serve each.

* `COLUMNS` are models with data: the registered ones, and programs, most of them from the catalogues of other tests.
* `SHELF` says of each guide by name which columns it refuses, and why: a `Refusal`.
* `matrix` is the text of `docs/guides_matrix.md`; ``python tests/shelf_catalogue.py`` writes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import catalogue
import pyro
import pyro.distributions as dist
import torch
from differential import autoguides, idioms, mixtures, regressions, sequences, vaes
from differential.harness import Program, made
from torch import Tensor, nn

from pyro_vi import guides

MATRIX = Path(__file__).parents[1] / "docs" / "guides_matrix.md"


@dataclass(frozen=True)
class Column:
    """A model with its data.

    Attributes:
        about: the form of its latents, in a few words.
        make: gives a model and its data, as `pyro_vi.fit` takes them.
        discrete: it has discrete sites, so that the estimator is ``enum``.
        nesting: dimensions of its plates.
        learns: it has parameters of its own.
        idle: pattern of those of its parameters that belong to the guide of its author.
    """

    about: str
    make: Callable[[], tuple[Any, Any]]
    discrete: bool = False
    nesting: int = 1
    learns: bool = False
    idle: str = ""


def _of(make: Callable[[], Program], *args: Any) -> Callable[[], tuple[Any, Any]]:
    """The model of a program, with other arguments if there are some."""

    def found() -> tuple[Any, Any]:
        program = made(make)
        return program.model, args or dict(program.kwargs) or program.args

    return found


def _steps(make: Callable[[], Program], count: int) -> Callable[[], tuple[Any, Any]]:
    """The model of a program of sequences, with their first steps only."""

    def found() -> tuple[Any, Any]:
        program = made(make)
        cut = (v[:, :count] if isinstance(v, Tensor) and v.dim() > 1 else v for v in program.args)
        return program.model, tuple(cut)

    return found


def _vectors(model: str, boolean: bool = False) -> Callable[[], tuple[Any, Any]]:
    rows = catalogue.columns(12)
    return lambda: (model, (rows > 0).double() if boolean else rows)


def _given(model: str, values: Any) -> Callable[[], tuple[Any, Any]]:
    return lambda: (model, values)


def _bits(*shape: int) -> Tensor:
    return (torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5).double()


def _nested() -> tuple[Any, Any]:
    model, _ = catalogue.nested_pair(-2)()
    return model, catalogue.columns(catalogue.NUM_DATA)


def _bernoulli() -> tuple[Any, Any]:
    model, _ = catalogue.discrete_pair()
    return model, catalogue.scalars()


def _images() -> Program:
    decoder = nn.Linear(2, 64)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z).unflatten(-1, (8, 8))).to_event(2), obs=x)

    return Program(model, lambda x: None, ((torch.rand(8, 8, 8) < 0.3).double(),))


def _series() -> Program:
    def model(x: Tensor) -> None:
        noise = pyro.sample("noise", dist.LogNormal(0.0, 0.5))
        with pyro.plate("series", len(x)):
            z: Tensor | float = 0.0
            for t in range(x.shape[1]):
                z = pyro.sample(f"z_{t}", dist.Normal(z, 1.0))
                pyro.sample(f"x_{t}", dist.Normal(z, noise), obs=x[:, t])

    return Program(model, lambda x: None, (torch.randn(8, 3).cumsum(1),))


COLUMNS = {
    "vae": Column("a vector for each row", _vectors("vae(latent_dim=2, hidden=(4,))", True), learns=True),
    "linear_gaussian": Column(
        "a vector for each row, with a closed form", _vectors("linear_gaussian(latent_dim=2)"), learns=True
    ),
    "conv_vae": Column(
        "a vector for each image",
        _given("conv_vae(latent_dim=2, channels=(2,), activation='softplus')", _bits(4, 8, 8)),
        learns=True,
    ),
    "hierarchical_vae": Column(
        "two layers of latents", _vectors("hierarchical_vae(latent_dims=(2, 1), hidden=(4,))", True), learns=True
    ),
    "conditional_vae": Column(
        "a vector for each row, classes given",
        _given("conditional_vae(latent_dim=2, hidden=(4,))", (_bits(12, 4), torch.arange(12) % 3)),
        learns=True,
    ),
    "semi_supervised_vae": Column(
        "a vector for each row, and a class where it is not known",
        _given("semi_supervised_vae(latent_dim=2, hidden=(4,))", (_bits(12, 4), torch.arange(12) % 4 - 1)),
        True,
        learns=True,
    ),
    "mixture_vae": Column(
        "a class and a vector for each row",
        _vectors("mixture_vae(components=2, latent_dim=2, hidden=(4,))", True),
        True,
        learns=True,
    ),
    "ppca": Column("probabilistic principal components", _vectors("ppca(latent_dim=2)"), learns=True),
    "factor_analysis": Column("factor analysis", _vectors("factor_analysis(latent_dim=2)"), learns=True),
    "mixture": Column("a class for each row, with a closed form", _vectors("mixture(components=2)"), True, learns=True),
    "state_space": Column(
        "a path for a series, with a closed form", _given("state_space", catalogue.scalars(6).cumsum(0)), learns=True
    ),
    "deep_markov": Column(
        "a path for each padded sequence",
        _given(
            "deep_markov(latent_dim=2, transition_dim=8, hidden=(4,))", (_bits(4, 3, 2), torch.tensor([3, 2, 3, 1]))
        ),
        learns=True,
    ),
    "topic": Column(
        "shares of topics for each document", _given("topic(topics=3)", (2 * _bits(12, 6)).long()), learns=True
    ),
    "regression": Column(
        "weights and a scale that all rows share", _given("regression", (catalogue.columns(12), catalogue.scalars(12)))
    ),
    "bayesian_network": Column(
        "weights of a network that all rows share",
        _given("bayesian_network(hidden=(3,))", (catalogue.columns(12), catalogue.scalars(12))),
    ),
    "funnel": Column("a target without data, whose scale varies", _given("funnel", None)),
    "noisy_cone": Column("a target without data, on a ring", _given("noisy_cone", None)),
    "two_moons": Column("a target without data, with two parts", _given("two_moons", None)),
    "matrices": Column("weights that all rows share, as matrices", _of(regressions.bayesian_network)),
    "radon": Column("groups under a common prior, three columns of data", _of(regressions.radon)),
    "eight_schools": Column("a program that holds its data itself", _of(regressions.eight_schools)),
    "nested": Column("nested plates: groups and their members", _nested, nesting=2),
    "baseball": Column("a share of each row under a common prior, whole-number data", _of(regressions.baseball)),
    "bounded": Column("intervals and a simplex", _of(autoguides.auto_normal_from_uniform)),
    "gmm": Column("a mixture whose assignments the model marks for enumeration", _of(mixtures.gmm_mean_field), True),
    "assignments": Column("a mixture with discrete assignments", _of(mixtures.gmm_assignments_in_the_guide), True),
    "bernoulli": Column("a discrete site of each row and nothing else", _bernoulli, True),
    "unlabelled": Column(
        "one-hot labels beside a vector, a plate without a size",
        *(_of(vaes.semi_supervised_none), True),
        learns=True,
        idle="encoder",
    ),
    "masked": Column("masked rows", _of(regressions.missing_by_mask)),
    "obs_mask": Column("data observed in part, by `obs_mask`", _of(regressions.missing_by_obs_mask)),
    "own_minibatch": Column("a plate that draws rows itself", _of(regressions.own_minibatch_of_both)),
    "lda": Column("the same, with words in documents", _of(mixtures.lda), True, 2),
    "series": Column("sequences in a loop", _of(_series)),
    "masked_series": Column(
        "masked sequences", _steps(sequences.deep_markov, 2), learns=True, idle="rnn|combine|z_q_0"
    ),
    "hmm": Column("a chain of states that the model marks", _steps(sequences.hmm_vectorised, 2), True),
    "local_level": Column("a series without a plate", _of(sequences.local_level), learns=True),
    "factor": Column("factors and deterministic sites", _of(idioms.deterministic_and_factor)),
    "keywords": Column("keyword arguments", _of(idioms.keyword_arguments)),
    "images": Column("images", _of(_images), learns=True),
}
"""Models by name: those of the table of models, then one for each form."""


@dataclass(frozen=True)
class Refusal:
    """A reason for which a guide refuses a model: as the matrix has it, and as a pattern of the message."""

    why: str
    words: str


@dataclass(frozen=True)
class Guide:
    """A guide of the shelf in the test: its options, the columns that it refuses, and if it has parameters of its own.

    ``idle`` is a pattern of parameters that need no gradient, ``rate`` the learning rate, and ``eager`` a pattern of the reason
    why its steps have no graph.
    """

    options: str = ""
    refused: Mapping[str, Refusal] = field(default_factory=dict)
    learns: bool = True
    idle: str = ""
    rate: float = 0.05
    eager: str = ""

    def named(self, name: str) -> str:
        return f"{name}({self.options})" if self.options else name


def _at(why: str, words: str, *columns: str) -> dict[str, Refusal]:
    return dict.fromkeys(columns, Refusal(why, words))


def _but_for(columns: tuple[str, ...], why: str, words: str) -> dict[str, Refusal]:
    return _at(why, words, *(name for name in COLUMNS if name not in columns))


SMALL = "hidden=(8,), start='prior'"
"""From a start that is fitted, no loss would fall."""
DISCRETE = _at(
    "a site is discrete, and the model does not mark it for enumeration; `diag_normal` serves it",
    r"serves continuous sites, and site '(assignment|y|z|component)' \(.*\) is discrete; use guide 'diag_normal'",
    *("assignments", "bernoulli", "unlabelled", "mixture"),
)
PART = {
    **_at(
        "the model masks part of a site, and the guide would count the density of all of it; `diag_normal` masks it too",
        r"the density of all of site '(z|y_unobserved)', and the model masks some of it, .* use guide 'diag_normal'",
        *("masked", "obs_mask", "deep_markov"),
    ),
    **_at(
        "the model scales the density of a site, and the guide would not; `diag_normal` scales it too",
        r"the density of all of site 'z_0', and the model scales its density by 0\.4, .* use guide 'diag_normal'",
        "masked_series",
    ),
}
DRAWN = _at(
    "the model draws some rows in each step, and the guide would take them for the same rows; `diag_normal` tells them apart",
    r"rows of plate '(data|documents)' at site '\w+', and the model draws others .* use guide 'auto_normal' or",
    *("own_minibatch", "lda"),
)
DIFFERENTIABLE = _at(
    "a site is discrete, and the guide needs derivatives; `diag_normal` serves it",
    r"needs derivatives of log p\(x, z\), and site '\w+' \(.*\) is discrete; .* use guide 'diag_normal'",
    *("gmm", "assignments", "bernoulli", "unlabelled", "lda", "hmm", "semi_supervised_vae", "mixture_vae", "mixture"),
)
ENCODED = _at(
    "no site belongs to the rows of the data, so that there is nothing to encode; `diag_normal` has free parameters",
    r"no latent site of the model has a row for each datum; use guide 'diag_normal'",
    *(
        "matrices",
        "radon",
        "eight_schools",
        "bounded",
        "local_level",
        "factor",
        "keywords",
        "state_space",
        "regression",
        "bayesian_network",
        "funnel",
        "noisy_cone",
        "two_moons",
    ),
)
PEAKED = {
    **_at(
        "the search for the mode ends before it is there, in a narrow valley; `full_normal` serves the model",
        r"finds no mode of log p\(x, z\) within \d+ steps: .* use guide 'full_normal'",
        "two_moons",
    ),
    **_at(
        "the model masks part of a site, and the guide has one normal for all of it; `diag_normal` masks it too",
        r"has one density for all of site 'z', and the model masks some of it; use guide 'diag_normal'",
        "deep_markov",
    ),
    **_at(
        "log p(x, z) has no mode: it rises where a scale goes to 0; `full_normal` serves the model",
        r"finds no mode of log p\(x, z\) within \d+ steps: .* use guide 'full_normal'",
        *("radon", "baseball"),
    ),
    **_at(
        "it would need one normal of more than 200 numbers; `low_rank_normal` and `structured` serve the model",
        r"of 203 numbers for .*, and serves 200 at most; use guide 'low_rank_normal' or 'structured'",
        "nested",
    ),
    **_at(
        "it needs all rows in one normal, and the model draws some in each step; `full_normal` serves the model",
        r"has one normal for everything, and sees 4 of the 9 rows of plate 'data'; .* use guide 'full_normal'",
        "own_minibatch",
    ),
}
AUTO, FIXED = Guide(refused=DISCRETE | PART), Guide(refused=DISCRETE | PART | DRAWN)

SHELF: dict[str, Guide] = {
    "diag_normal": Guide(SMALL),
    "full_normal": Guide(SMALL),
    "low_rank_normal": Guide(f"{SMALL}, rank=1"),
    "student": Guide(SMALL, rate=0.02),
    "flow": Guide(f"{SMALL}, flow_hidden=(8,), transforms=1"),
    "mixture": Guide(f"{SMALL}, components=2"),
    "structured": Guide(SMALL),
    "semi_amortized": Guide(f"{SMALL}, steps=2", DIFFERENTIABLE | ENCODED),
    "laplace": Guide(refused=DIFFERENTIABLE | PEAKED, learns=False, eager="decide by a value"),
    "point": Guide(SMALL),
    "prior": Guide(
        refused=_at(
            "a site follows on one that the model marks for enumeration; `diag_normal` serves it",
            r"cannot draw site 'z' after site 'c', which the model marks for enumeration; use guide 'diag_normal'",
            "mixture_vae",
        ),
        learns=False,
    ),
    "per_datum": Guide("family=\"diag_normal(start='prior')\""),
    "exact": Guide(
        refused=_but_for(
            ("linear_gaussian", "ppca", "factor_analysis", "mixture", "state_space"),
            "the model has no closed form: no method `posterior(x)`",
            r"needs a model with a closed form, a method posterior\(x\); .* use guide 'diag_normal'",
        ),
        learns=False,
    ),
    "auto_normal": AUTO,
    "auto_diagonal_normal": FIXED,
    "auto_multivariate_normal": replace(FIXED, idle="scale_tril"),  # of a single number
    "auto_low_rank": FIXED,
    "auto_iaf": replace(FIXED, rate=0.005, idle="_prototype_tensor"),
    "auto_structured": FIXED,
    "auto_gaussian": replace(FIXED, idle="soft_constraint|moons"),  # of a factor, which is no data
    "auto_laplace": Guide(refused=DISCRETE | DRAWN),
    "auto_delta": Guide(refused=DISCRETE),
    "auto_discrete": Guide(
        refused=_but_for(
            ("bernoulli", "mixture"),
            "a site is continuous; `diag_normal` serves both kinds",
            r"serves discrete sites, and site '[\w.]+' \(.*\) is continuous; use guide 'diag_normal'",
        )
    ),
}
"""What each guide serves, and why not the rest; a guide that is not here fails the contract test."""
QUICK = {*guides.TABLE, "auto_normal"}
"""Guides whose cells are in the quick tests, with some models; all refusals are."""
SOME = {
    *(
        "vae",
        "linear_gaussian",
        "nested",
        "bounded",
        "assignments",
        "obs_mask",
        "own_minibatch",
        "series",
        "local_level",
    ),
    "keywords",
}
TRACED = ("vae", "assignments", "obs_mask", "series")
"""Models with which the steps of every guide that serves them are traced; those of ``diag_normal`` are with all models."""


def quick(guide: str, column: str) -> bool:
    """True for a cell that the quick tests try."""
    return isinstance(cell(guide, column), Refusal) or (guide in QUICK and column in SOME)


def traced(guide: str, column: str) -> bool:
    """True for a cell whose steps are traced."""
    columns = (*COLUMNS,) if guide == "diag_normal" else TRACED if guide in QUICK else ("bernoulli", "series")
    return cell(guide, column) == "✓" and column in columns


def cell(guide: str, column: str) -> Refusal | str:
    """What becomes of a guide with a model: a refusal, ``"✓"``, or ``"–"`` where there is nothing to fit."""
    row = SHELF[guide]
    return row.refused.get(column) or ("✓" if row.learns or COLUMNS[column].learns else "–")


def matrix() -> str:
    """Return the document that says which guide serves which model."""
    why = list(dict.fromkeys(found.why for row in SHELF.values() for found in row.refused.values()))
    letters = {text: chr(ord("a") + place) for place, text in enumerate(why)}

    def shown(found: Refusal | str) -> str:
        return found if isinstance(found, str) else letters[found.why]

    def number(column: str) -> str:
        return str(1 + [*COLUMNS].index(column))

    head = ["guide", *(str(place) for place in range(1, len(COLUMNS) + 1))]
    lines = [head, ["---", *[":-:"] * len(COLUMNS)]]
    lines += [[f"`{name}`", *(shown(cell(name, column)) for column in COLUMNS)] for name in SHELF]
    table = ["| " + " | ".join(line) + " |" for line in lines]
    forms = [f"{place}. `{name}`: {column.about}" for place, (name, column) in enumerate(COLUMNS.items(), 1)]
    return "\n".join(
        [
            "# Guides and the models that they serve",
            "",
            "Each guide was tried on each of these models. ✓: it fits, with finite and falling losses and gradients of every",
            "parameter; its draws have the shapes and supports of the model; and it can be saved and loaded. –: it serves the",
            "model, but neither of them has parameters to fit. A letter: it is refused when it is built, for the reason below.",
            "",
            "Compiled steps need a graph. These pairs were traced: `diag_normal` with every model; every",
            f"other guide of pyro_vi and `auto_normal` with models {', '.join(number(name) for name in TRACED)}; Pyro's other",
            f"guides with models {number('bernoulli')} and {number('series')}. All have a graph, except those of `laplace`: it",
            "finds the mode in a loop that depends on values, so that its steps stay eager.",
            "",
            "Written by `python tests/shelf_catalogue.py` from the table that `tests/guides/test_contract.py` checks.",
            "",
            *table,
            "",
            "The models:",
            "",
            *forms,
            "",
            "The reasons, and what serves instead:",
            "",
            *(f"* **{letter}**: {text}" for text, letter in letters.items()),
            "",
        ]
    )


if __name__ == "__main__":
    MATRIX.write_text(matrix(), encoding="utf-8")

"""Comparisons of guides: known gaps, one start and the same batches for all, and a row for each guide that is refused."""

import dataclasses
import json
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, number, scalars
from torch import Tensor, nn

from pyro_vi import Comparison, FitError, InputError, UsageError, fit
from pyro_vi.comparing import compare, standings
from pyro_vi.data.loading import load

WEIGHT = [[1.0, 0.5], [0.3, -0.8], [0.7, 0.2]]
FIXED = f"linear_gaussian(latent_dim=2, weight={WEIGHT}, learn=False)"
LEARNT, DIAGONAL, SMALL = "linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))", "diag_normal(hidden=(3,))"
QUICK: dict[str, Any] = {
    "steps": 6,
    "particles": 20,
    "draws": 10,
    "progress": False,
    "batch_size": 20,
    "compile": False,
}


def posterior(x: Tensor) -> tuple[Tensor, Tensor]:
    """Means and covariance of z given x, with noise of variance 1."""
    weight = torch.tensor(WEIGHT, dtype=x.dtype)
    covariance = torch.linalg.inv(torch.eye(2, dtype=x.dtype) + weight.mT @ weight)
    return x @ weight @ covariance, covariance


def normal_guide(of: Any, name: str) -> Any:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", of(*posterior(x)))

    guide.__qualname__ = name
    return guide


def diagonal(scale: float, shift: float = 0.0) -> Any:
    """The best diagonal normal for scale 1 and shift 0, as its variances are the inverse diagonal of the precision."""

    def of(mean: Tensor, covariance: Tensor) -> Any:
        deviations = torch.linalg.inv(covariance).diagonal().rsqrt()
        return dist.Normal(mean + shift * deviations, scale * deviations).to_event(1)

    return of


BEST, WIDE, SHIFTED = (
    normal_guide(diagonal(*how), name) for how, name in (((1.0,), "best"), ((1.6,), "wide"), ((1.0, 0.5), "shifted"))
)


def gaps() -> dict[str, float]:
    """KL(guide || posterior): of the best diagonal normal, plus -log c + (c² + b² - 1) / 2 for each of two dimensions."""
    _, covariance = posterior(torch.zeros(1, 3).double())
    precision = torch.linalg.inv(covariance)
    best = float(precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    cross = float(precision[0, 1] / precision.diagonal().prod().sqrt()) * 0.5**2  # of the shifts in both dimensions
    return {
        "exact": 0.0,
        "best": best,
        "wide": best + 2 * (-math.log(1.6) + (1.6**2 - 1) / 2),
        "shifted": best + 0.5**2 + cross,
    }


@pytest.fixture(scope="module")
def known() -> Comparison:
    """Guides without parameters, on a model without parameters: nothing is fitted, and every gap is known."""
    options = {**QUICK, "draws": 200, "batch_size": 400}
    return compare(FIXED, [WIDE, "exact", SHIFTED, BEST], load(columns(400), heldout=0.0), **options)


def test_gaps_and_their_differences_are_the_known_ones(known):
    ranked, right = standings(known)["gap"], gaps()
    assert list(ranked.means) == ["exact", "best", "shifted", "wide"] and right["shifted"] < right["wide"]
    for name, difference in ranked.differences.items():
        assert abs(difference.value - right[name]) < 4 * difference.se < 0.1, name
        assert difference.p < 1e-3
    assert ranked.ranks == {"exact": 1, "best": 2, "shifted": 3, "wide": 4}
    assert abs(ranked.means["exact"]) < 0.02
    for name, behind in standings(known)["elbo"].differences.items():
        assert abs(behind.value - ranked.differences[name].value) < 1e-8


def test_a_pair_without_parameters_is_its_own_fit(known):
    result = known.results["exact"]
    assert (result.run.steps, result.run.seconds, result.run.history, result.parameters) == (
        *(0, 0.0, []),
        {"guide": 0, "model": 0},
    )
    assert result.run.kl_source == {"z": "analytic"} and known.estimator == "mean_field"
    with pytest.raises(UsageError, match="no parameters to fit"):  # as before, by itself
        compare(FIXED, "exact", load(columns(40)), **QUICK)


@pytest.mark.slow
def test_the_order_of_the_guides_changes_no_number():
    data = load(columns(60))
    one = compare(LEARNT, [DIAGONAL, "exact", SMALL], data, **QUICK)
    two = compare(LEARNT, (SMALL, DIAGONAL, "exact"), data, **QUICK)
    assert list(two.results) == [SMALL, DIAGONAL, "exact"]
    assert standings(one) == standings(two)
    for name, result in one.results.items():
        assert torch.equal(result.evaluation.elbo_per_datum, two.results[name].evaluation.elbo_per_datum)


@pytest.mark.slow
def test_a_guide_is_fitted_as_by_itself():
    """One of the guides draws random numbers when it is built; a model by name starts as in any fit of this seed."""
    data = load(columns(60))
    found = compare(LEARNT, [DIAGONAL, "exact"], data, **QUICK).results[DIAGONAL]
    alone = fit(LEARNT, DIAGONAL, data, steps=6, batch_size=20, progress=False, compile=False)
    assert all(torch.equal(a, b) for a, b in zip(found.run.pair.parameters(), alone.pair.parameters(), strict=True))
    assert found.parameters == {"guide": 3 * 4 + 4 + 4 * 4 + 4, "model": 3 * 2 + 3 + 1}


def loose(x: Tensor) -> None:
    """A model whose parameters are drawn in its first run, after those of the guide."""
    loc = pyro.param("loc", torch.randn(2).double())
    with pyro.plate("data", 54, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(loc.sum() + z, 1.0), obs=x)


class Greedy(nn.Module):
    """A guide that draws many numbers when it is built."""

    def __init__(self, model: nn.Module, batch: Any, *, size: int = 5) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(size).double())

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 54, subsample=torch.arange(len(x))):
            pyro.sample("z", dist.Normal(self.loc.sum().expand(len(x)), 0.7))


class Greedier(Greedy):
    def __init__(self, model: nn.Module, batch: Any) -> None:
        super().__init__(model, batch, size=11)


@pytest.mark.slow
@pytest.mark.parametrize("order", [[Greedy, Greedier, "diag_normal"], ["diag_normal", Greedier, Greedy]])
def test_all_start_from_the_same_model_on_the_same_batches(order, monkeypatch):
    starts, batches = {}, {}

    def seen(plan, name, elbo, names, options, title):
        starts[title] = {k: v.clone() for k, v in plan.pair.model.state_dict().items()}
        rows = [plan.data.batches(epoch, plan.batch_size) for epoch in (0, 1)]
        batches[title] = torch.cat([index for epoch in rows for index, _ in epoch])
        return dataclasses.replace(fit_pair(plan, name, elbo, names, options, title=title))

    from pyro_vi.comparing import of_guides

    fit_pair = of_guides.fit_pair
    monkeypatch.setattr(of_guides, "_run", seen)
    compare(loose, order, load(scalars(60)), **QUICK)
    torch.manual_seed(0)
    right = torch.randn(2).double()  # what the model draws under the seed if nothing is drawn before
    assert set(starts) == {"Greedy", "Greedier", "diag_normal"}
    for name, start in starts.items():
        assert torch.equal(start["loc"], right), name
        assert torch.equal(batches[name], batches["Greedy"]), name
    assert len(batches["Greedy"]) == 2 * 54


@pytest.mark.slow
def test_if_one_guide_needs_all_rows_all_get_them():
    """By itself, the other guide is fitted in batches of 128, and a tenth is held out."""
    options = {**QUICK, "batch_size": None, "steps": 2}
    found = compare(LEARNT, [DIAGONAL, "AutoNormal"], columns(200), **options)
    assert {result.run.data.spec.num_data for result in found.results.values()} == {200}
    assert (found.on, found.data.num_heldout, found.refused) == ("training", 0, {})
    assert found.note == (
        "Each fit sees all 200 rows in each step, as guide 'AutoNormal' needs them (AutoNormal has parameters for each row)."
    )
    turned = compare(LEARNT, ["AutoNormal", DIAGONAL], columns(200), **options)
    assert standings(turned) == standings(found) and turned.note == found.note


def silent(x: Tensor) -> None:
    """A guide without the site."""


@pytest.mark.slow
def test_a_refused_guide_loses_no_other():
    found = compare("vae(latent_dim=2, hidden=(4,))", [silent, DIAGONAL, "exact"], load(columns(60)), **QUICK)
    assert list(found.results) == [DIAGONAL]
    assert list(found.refused) == ["silent", "exact"]
    assert "no site 'z'" in found.refused["silent"] and "needs a model with a closed form" in found.refused["exact"]


def test_if_all_are_refused_it_is_an_error(tmp_path):
    with pytest.raises(
        InputError, match=r"^no guide can be fitted: silent: .*no site 'z'.*; exact: guide 'exact' needs"
    ):
        compare("vae(latent_dim=2)", [silent, "exact"], load(columns(60)), out=tmp_path / "out", **QUICK)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match=r"^latent_dim must be"):  # one reason for all
        compare("vae(latent_dim=0)", [DIAGONAL, SMALL], load(columns(60)), **QUICK)


def infinite(x: Tensor) -> None:
    loc = pyro.param("loc", number(0.0))
    with pyro.plate("data", 54, subsample=torch.arange(len(x))):
        pyro.sample(
            "z",
            dist.Normal((loc + x.new_zeros(len(x), 2)) / (1 - 10 * loc.detach().abs()).clamp(min=0), 1.0).to_event(1),
        )


@pytest.mark.slow
def test_a_fit_that_fails_loses_no_other():
    """The guide's mean is infinite as soon as a step has moved its parameter by 0.1."""
    found = compare(LEARNT, [infinite, DIAGONAL], load(columns(60)), **{**QUICK, "lr": 0.5})
    assert list(found.results) == [DIAGONAL] and "step" in found.refused["infinite"]
    with pytest.raises(FitError):
        compare(LEARNT, [infinite], load(columns(60)), elbos="mean_field", **{**QUICK, "lr": 0.5})


@pytest.mark.slow
def test_a_guide_that_fails_with_many_draws_loses_no_other():
    """Single draws of the 54 data are fewer numbers than 10 draws of those that are held out, which come after the fit."""

    def few(x: Tensor) -> None:
        with pyro.plate("data", 54, subsample=torch.arange(len(x))):
            z = pyro.sample("z", dist.Normal(pyro.param("loc", number(0.0)) + x.new_zeros(len(x), 2), 1.0).to_event(1))
        if z.numel() > 2 * 54:
            raise ValueError("too many draws")

    found = compare(LEARNT, [few, DIAGONAL], load(columns(60)), **QUICK)
    assert list(found.results) == [DIAGONAL]
    (why,) = found.refused.values()
    assert why.startswith("it was fitted, but its evaluation fails: ValueError: too many draws")


def regression(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(number(0.0), 2.0))
    with pyro.plate("data", 72, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def conjugate(scale: float, name: str) -> Any:
    """The posterior of w, with ``scale`` times its standard deviation."""

    def guide(x: Tensor) -> None:
        precision = 0.25 + len(x)
        pyro.sample("w", dist.Normal(x.sum() / precision, scale / math.sqrt(precision)))

    guide.__qualname__ = name
    return guide


def point(x: Tensor) -> None:
    pyro.sample("w", dist.Delta(pyro.param("at", number(0.3))))


@pytest.mark.slow
def test_of_shared_latents_the_error_is_over_draws():
    """The whole gap is KL / N = (-log c + (c² - 1) / 2) / 72; a point estimate has no place in it."""
    guides = [conjugate(1.0, "right"), conjugate(2.0, "wide"), point]
    found = compare(
        regression, guides, load(scalars(80)), **{**QUICK, "batch_size": None, "draws": 400, "particles": 500}
    )
    assert found.on == "training" and all(result.shared for result in found.results.values())
    ranked = standings(found)
    assert list(ranked["elbo"].means) == ["right", "wide"]
    one = ranked["elbo"].differences["wide"]
    assert one.count == 400 and one.se < 0.01
    assert abs(one.value - (-math.log(2.0) + 1.5) / 72) < 4 * one.se
    assert ranked["gap"].differences["wide"].count == 0
    assert found.results["point"].note.startswith("MAP: no ELBO, no evidence") and found.refused == {}
    assert list(ranked["lpd"].means) == ["right", "wide", "point"] or "point" in ranked["lpd"].means


def marked(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7]).double()), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(k.double(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def linear(x: Tensor) -> None:
    slope = pyro.param("slope", number(0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(slope * x, 0.7))


@pytest.mark.slow
def test_the_estimator_is_one_that_serves_the_guides():
    """`mean_field` cannot sum the site that is left to the estimator."""
    found = compare(marked, [linear, "diag_normal"], load(scalars(40)), **QUICK)
    assert found.estimator == "enum" and list(found.results) == ["linear", "diag_normal"]


def test_names_of_guides():
    guides = [BEST, BEST, normal_guide(diagonal(1.6), "best")]
    found = compare(FIXED, guides, load(columns(40), heldout=0.0), **{**QUICK, "batch_size": None})
    assert list(found.results) == ["best", "best (2)", "best (3)"]
    assert standings(found)["elbo"].ranks["best"] == standings(found)["elbo"].ranks["best (2)"]


@pytest.mark.parametrize(
    ("guides", "options", "text"),
    [
        ([], {}, "name at least one guide"),
        (["exact", "exact"], {}, "guide 'exact' is named twice"),
        (["exact", "diag_norml"], {}, "did you mean 'diag_normal'?"),
        (["exact", DIAGONAL], {"elbos": ("trace", "stl")}, "under one estimator, not under trace, stl; name one"),
        (["exact", DIAGONAL], {"elbos": ()}, "name at least one"),
        (["exact", DIAGONAL], {"seeds": 0}, "seeds must be a whole number of at least 1, not 0"),
    ],
)
def test_what_cannot_be_is_refused(guides, options, text, tmp_path):
    with pytest.raises(UsageError) as caught:
        compare(FIXED, guides, load(columns(60)), out=tmp_path / "out", **{**QUICK, **options})
    assert text in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_comparison_is_resumed(tmp_path):
    """A guide is added by hand to what a comparison wrote: the first one's checkpoint is at its last step already."""
    out, data = tmp_path / "out", load(columns(60))
    one = compare(LEARNT, [DIAGONAL, "exact"], data, out=out, **QUICK)
    assert {path.name for path in out.iterdir()} == {"diag_normal_hidden=_4", "exact"}
    assert one.folder_of(DIAGONAL) == out / "diag_normal_hidden=_4"
    two = compare(LEARNT, [DIAGONAL, "exact"], data, out=out, resume=True, **QUICK)
    assert standings(one) == standings(two)
    config = json.loads((out / "exact" / "config.json").read_text())
    assert (config["guide"], config["elbo"]) == ("exact", "mean_field")
    with pytest.raises(UsageError, match="holds no comparison to resume"):
        compare(LEARNT, [DIAGONAL, "exact"], data, out=tmp_path / "none", resume=True, **QUICK)


@pytest.mark.slow
def test_seeds_repeat_the_comparison(tmp_path):
    """The second of two seeds is what it is alone; each has a folder."""
    data, guides = columns(60), [DIAGONAL, "exact"]
    found = compare(LEARNT, guides, data, seeds=2, seed=3, out=tmp_path / "out", **QUICK)
    alone = compare(LEARNT, guides, data, seed=4, **QUICK)
    assert found.seeds == (3, 4) and found.out == tmp_path / "out"
    for name, result in found.repeats[0].results.items():
        assert torch.equal(result.evaluation.elbo_per_datum, alone.results[name].evaluation.elbo_per_datum)
    assert found.folder_of("exact") == tmp_path / "out" / "seed3" / "exact"
    assert found.repeats[0].folder_of("exact") == tmp_path / "out" / "seed4" / "exact"
    assert all((tmp_path / "out" / f"seed{seed}" / "exact" / "checkpoint.pt").exists() for seed in (3, 4))
    spread = standings(found)["elbo"].differences
    values = [one.results["exact"].elbo_mean - one.results[DIAGONAL].elbo_mean for one in found.every]
    (behind,) = spread.values()
    assert behind.seeds is not None and [abs(v) for v in behind.seeds.values] == pytest.approx([abs(v) for v in values])


@pytest.mark.slow
def test_seeds_of_estimators():
    found = compare(LEARNT, DIAGONAL, columns(60), elbos=("trace", "stl"), seeds=2, audit_draws=0, **QUICK)
    assert (found.seeds, found.across, list(found.repeats[0].results)) == ((0, 1), "estimators", ["trace", "stl"])
    one = compare(LEARNT, [DIAGONAL], columns(60), elbos=("trace", "stl"), seed=1, audit_draws=0, **QUICK)
    assert one.results["stl"].elbo_mean == found.repeats[0].results["stl"].elbo_mean

"""Calibration in one pass, at known coverage, shift and distance of the PIT (oracles: normal guides of a normal posterior)."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, conjugate_model, exact_pair, number, scalars
from pyro import poutine
from scipy import stats
from torch import Tensor

from pyro_vi.data import load
from pyro_vi.diagnostics.ranking.calibrated import LEVELS, width_and_bias
from pyro_vi.diagnostics.ranking.calibrating import calibration, calibration_of_pair
from pyro_vi.errors import InputError
from pyro_vi.programs.build import build_pair
from pyro_vi.programs.layout import data_plate
from pyro_vi.programs.pair import Pair

SD = 0.5**0.5


def normal_guide(ratio: float = 1.0, bias: float = 0.0) -> Callable[[Tensor], None]:
    """The guide of `conjugate_model` with ``ratio`` times the posterior's sd, its mean ``bias`` of these too high."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2 + bias * SD, ratio * SD))

    return guide


def prior_guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))


def _at_z(found: Any, name: str) -> float:
    return float(found[name].sel(quantity="z"))


ORACLE = {
    0.5: ((0.2641, 0.4783, 0.5892, 0.6729), 0.1613),
    0.7071: ((0.3666, 0.6352, 0.7552, 0.8342), 0.0830),
    0.9: ((0.4562, 0.7513, 0.8612, 0.9223), 0.0255),
    1.25: ((0.6008, 0.8908, 0.9602, 0.9857), 0.0538),
}


@pytest.mark.slow
@pytest.mark.parametrize("ratio", ORACLE)
def test_coverage_distance_and_width_of_a_guide_of_another_width(ratio: float) -> None:
    coverage, distance = ORACLE[ratio]
    count = 20_000
    found = calibration(conjugate_model, normal_guide(ratio), scalars(), simulations=count, draws=999, rows=5000)
    z = found.sel(quantity="z")
    assert (abs(z.coverage - coverage) < 4 * z.coverage_se).all()
    assert float(z.coverage_se.max()) < 0.0036
    assert abs(float(z.ks) - distance) < 4 * 0.5 / math.sqrt(count)
    assert abs(float(z.width) - ratio) < 4 * float(z.width_se)
    assert abs(float(z.bias)) < 4 * float(z.bias_se)
    assert float(z.width_se) < 0.02
    assert float(z.p_value) < 1e-6  # power, at a tenth of the standard deviation
    assert float(z.ks_p_value) < 1e-6


@pytest.mark.parametrize("bias", [0.5, -0.3])
def test_the_mean_of_the_pit_of_a_shifted_guide(bias: float) -> None:
    """A guide whose mean is b posterior standard deviations too low has the mean Φ(b / √2)."""
    found = calibration(conjugate_model, normal_guide(1.0, bias), scalars(), simulations=4000)
    z = found.sel(quantity="z")
    assert abs(float(z.mean_pit) - stats.norm.cdf(-bias / 2**0.5)) < 4 * float(z.mean_pit_se)
    assert abs(float(z.bias) - bias) < 4 * float(z.bias_se)
    assert float(z.bias_se) < 0.03
    assert abs(float(z.width) - 1) < 4 * float(z.width_se)
    assert found.attrs["verdict"] == "fail"
    assert f"Values of z are too {'high' if bias > 0 else 'low'} by about" in " ".join(found.attrs["sentences"])


def test_a_narrow_guide_is_named_with_its_coverage_and_width() -> None:
    found = calibration(conjugate_model, normal_guide(0.5), scalars())
    assert found.attrs["verdict"] == "fail"
    text = " ".join(found.attrs["sentences"])
    share, width = 100 * float(found.coverage.sel(quantity="z", level=0.9)), _at_z(found, "width")
    assert f"Intervals for z are too narrow: the 90 % interval holds {share:.1f} ± 1.6 %" in text
    assert f"as if the guide's standard deviation were {width:.2f} ± 0.02 of the right one" in text


def test_the_prior_passes_in_z_and_fails_in_the_likelihood() -> None:
    found = calibration(conjugate_model, prior_guide, scalars())
    assert _at_z(found, "p_value") > 0.01
    assert float(found.p_value.sel(quantity="log p(x | z)")) < 1e-6
    assert found.attrs["verdict"] == "fail"
    assert "takes too little from the data" in " ".join(found.attrs["sentences"])


def test_the_exact_guide_passes_and_repeats_itself() -> None:
    model, guide = exact_pair()
    found, again = (calibration(model, guide, columns(), simulations=400) for _ in range(2))
    assert found.attrs["verdict"] == "pass"
    assert found.attrs["simulations"] == 400
    assert list(found.quantity.values) == ["z[0]", "z[1]", "log p(x | z)", "log p(x, z)"]
    np.testing.assert_array_equal(found["rank"], again["rank"])
    np.testing.assert_array_equal(np.floor(found.pit * 200), found["rank"])
    expected = [(abs(found.pit - 0.5) < level / 2).mean("simulation") for level in LEVELS]
    np.testing.assert_allclose(found.coverage.transpose("level", "quantity"), np.stack(expected), rtol=1e-12)


@pytest.mark.slow
def test_a_right_guide_is_rejected_as_often_as_stated() -> None:
    """200 whole tests at 5 %: the number of false alarms within the 99.9 % interval of the binomial."""
    model, guide = exact_pair()
    pair = Pair(model, guide)
    p = [
        calibration_of_pair(pair, (columns(),), simulations=100, draws=99, seed=seed).attrs["p_value"]
        for seed in range(200)
    ]
    low, high = stats.binom.interval(0.999, 200, 0.05)
    assert low <= sum(value <= 0.05 for value in p) <= high


def test_a_scaled_minibatch_has_the_ranks_of_the_unscaled_one() -> None:
    def model(x: Tensor, size: int | None) -> None:
        with data_plate(size, x):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor, size: int | None) -> None:
        with data_plate(size, x):
            pyro.sample("z", dist.Normal(x / 2, 0.8 * SD))

    found, scaled = (
        calibration(model, guide, (scalars(40), size), simulations=400, draws=39) for size in (None, 10_000)
    )
    np.testing.assert_array_equal(found["rank"], scaled["rank"])


# Discrete latents: k is 0, 1 or 2, x | k ~ N(k, .8²); the posterior is a table.

STATES = torch.arange(3.0, dtype=torch.float64)
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)


def _posterior(x: Tensor, power: float = 1.0) -> Any:
    scores = dist.Normal(STATES, 0.8).log_prob(x.unsqueeze(-1)) + WEIGHTS.log()
    return dist.Categorical(logits=power * scores)


def discrete_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(WEIGHTS), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(STATES[k], 0.8), obs=x)


def discrete_guide(power: float) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", _posterior(x, power))

    return guide


def no_guide(x: Tensor) -> None:
    pass


@pytest.mark.parametrize("guide", [discrete_guide(1.0), no_guide])
def test_ranks_with_ties_are_uniform_under_the_posterior(guide: Callable[[Tensor], None]) -> None:
    """Drawn by the guide, or left to enumeration. The log-densities have three values, and ties up to rounding."""
    found = calibration(discrete_model, guide, scalars(), simulations=5000, draws=19)
    assert list(found.kind.values) == ["discrete", "density", "density"]
    for quantity in found.quantity.values:
        counts = np.bincount(found["rank"].sel(quantity=quantity).values.astype(int), minlength=20)
        assert stats.chisquare(counts).pvalue > 1e-4
        assert float(found.p_value.sel(quantity=quantity)) > 1e-4
    assert found.attrs["verdict"] == "pass"
    assert found.width.isnull().all()


def test_a_discrete_guide_that_is_too_sure_is_found() -> None:
    found = calibration(discrete_model, discrete_guide(3.0), scalars(), simulations=2000)
    assert found.attrs["p_value"] < 1e-6


@pytest.mark.slow
def test_float32_ties_are_ties() -> None:
    """In single precision, log p of one state differs by rounding with the number of draws at once."""
    weights, states = WEIGHTS.float(), STATES.float()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            loc = states[k].unsqueeze(-1).expand(*k.shape, 50).sin()
            pyro.sample("x", dist.Normal(loc, 3.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        scores = dist.Normal(states.sin().unsqueeze(-1), 3.0).log_prob(x.unsqueeze(-2)).sum(-1) + weights.log()
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(logits=scores))

    found = calibration(model, guide, columns(8, 50).float(), simulations=5000, draws=39)
    assert found.attrs["p_value"] > 1e-3


def test_masked_entries_are_no_simulations() -> None:
    lengths = torch.tensor([1, 2, 2, 3])

    def model(x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for t in range(3):
                with poutine.mask(mask=t < lengths):
                    z = pyro.sample(f"z_{t}", dist.Normal(number(0.0), 1.0))
                    pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x: Tensor, lengths: Tensor) -> None:
        with pyro.plate("data", len(x)):
            for t in range(3):
                with poutine.mask(mask=t < lengths):
                    pyro.sample(f"z_{t}", dist.Normal(x[:, t] / 2, SD))

    found = calibration(model, guide, (columns(4), lengths), simulations=800, draws=39)
    assert found.number.sel(quantity=["z_0", "z_1", "z_2"]).values.tolist() == [800, 600, 200]
    assert found["rank"].sel(quantity="z_2").notnull().sum() == 200
    assert found.attrs["verdict"] == "pass"


# Latents that all data share: w ~ N(0, 1), z_n | w ~ N(w, 1), x_n | z_n ~ N(z_n, 1).


def shared_model(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(w, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def shared_guide(ratio: float = 1.0, amortized: bool = False) -> Callable[[Tensor], None]:
    def guide(x: Tensor) -> None:
        precision = 1 + len(x) / 2  # w | x: x_n | w ~ N(w, 2)
        loc = x.sum() / 2 / precision if amortized else pyro.param("loc", number(0.3))
        w = pyro.sample("w", dist.Normal(loc, ratio / precision**0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((w + x) / 2, SD))

    return guide


@pytest.mark.slow
def test_latents_of_data_are_calibrated_given_those_that_the_guide_fitted_to_one_data_set() -> None:
    found = calibration(shared_model, shared_guide(), scalars(), simulations=800)
    assert list(found.quantity.values) == ["z", "log p(x | z)", "log p(x, z)"]
    assert found.attrs["verdict"] == "pass"
    assert found.attrs["per"] == "datum"
    assert "'w' are drawn from the guide and held fixed" in found.attrs["sentences"][-1]


@pytest.mark.slow
def test_shared_latents_are_calibrated_by_whole_data_sets_where_the_guide_depends_on_them() -> None:
    found = calibration(shared_model, shared_guide(1.0, True), scalars())
    assert list(found.quantity.values) == ["w", "z of a datum", "log p(x | z)", "log p(x, z)"]
    assert (found.attrs["verdict"], found.attrs["per"], found.attrs["simulations"]) == ("pass", "data set", 200)
    narrow = calibration(shared_model, shared_guide(0.4, True), scalars())
    assert narrow.attrs["verdict"] == "fail"
    w = narrow.sel(quantity="w")
    assert abs(float(w.width) - 0.4) < 4 * float(w.width_se)


def test_a_guide_that_was_fitted_to_one_data_set_is_not_calibrated_in_one_pass() -> None:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(pyro.param("loc", number(0.0)), 1.0))

    found = calibration(model, guide, scalars())
    assert found.attrs["verdict"] == "none"
    assert "pyro_vi.refitted_calibration" in found.attrs["sentences"][0]


@pytest.mark.parametrize(
    ("model", "guide", "words"),
    [
        ("linear_gaussian(latent_dim=2)", "per_datum", "parameters for each row, which were fitted to these data"),
        ("linear_gaussian(latent_dim=2)", "point", "a point estimate of 'z', which has no intervals"),
    ],
)
def test_guides_without_calibration_are_refused_in_one_line(model: str, guide: str, words: str) -> None:
    data = load(columns(), heldout=0)
    pair = build_pair(model, guide, data)
    args = data.example(8) if guide == "point" else (*data.example(8), torch.arange(8))
    with pytest.raises(InputError, match=words) as raised:
        calibration_of_pair(pair, args)
    assert "\n" not in str(raised.value)


def test_models_that_make_no_data_are_refused() -> None:
    def weighted(x: Tensor) -> None:
        conjugate_model(x)
        pyro.factor("tilt", number(0.5))

    with pytest.raises(InputError, match="the model has a factor 'tilt', so that no data can be drawn"):
        calibration(weighted, normal_guide(), scalars())
    with pytest.raises(InputError, match=r"site 'z' is scaled \(poutine.scale\)"):
        calibration(poutine.scale(conjugate_model, 0.5), poutine.scale(normal_guide(), 0.5), scalars())


def test_a_model_that_reads_what_it_observes_is_refused() -> None:
    """The ranks would be wrong without a word: z is drawn at the old column, and scored at the new one."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.sign(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(InputError, match="site 'z' has another density at the drawn data than where they were drawn"):
        calibration(model, normal_guide(), scalars())
    labels = torch.arange(12) % 4 - 1
    data = load(((columns(12, 4) > 0).double(), labels), heldout=0)
    pair = build_pair("semi_supervised_vae(latent_dim=2, hidden=(4,))", "diag_normal", data)
    with pytest.raises(InputError, match="the model reads data that it also observes"):
        calibration_of_pair(pair, data.example(12))


def test_the_parameters_of_a_model_that_a_guide_holds_are_no_parameters_of_rows() -> None:
    rows = columns(4)
    data = load(rows, heldout=0)
    pair = build_pair("vae(latent_dim=2, hidden=(4,), likelihood='gaussian')", "prior", data)
    assert calibration_of_pair(pair, data.example(4), simulations=52, draws=9).attrs["simulations"] == 52


def test_width_and_bias_of_a_pit_without_error() -> None:
    """The PIT of a normal truth at its quantiles, so that only the grid is inexact."""
    normal = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000)
    for ratio, bias in ((0.5, 0.4), (1.0, 0.0), (1.6, -0.3), (0.1, 0.0)):
        width, _, found, _ = width_and_bias(stats.norm.cdf((normal - bias) / ratio))
        assert width == pytest.approx(ratio, abs=1e-3)
        assert found == pytest.approx(bias, abs=1e-3)
    assert all(math.isnan(value) for value in width_and_bias(np.full(100, 0.999)))


@pytest.mark.parametrize("options", [{"simulations": 0}, {"draws": 2}, {"seed": -1}, {"rows": 0}])
def test_options_out_of_range_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(InputError):
        calibration(conjugate_model, normal_guide(), scalars(), **options)

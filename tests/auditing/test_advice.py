"""Advice from audits written by hand, whose ratios and intervals are known, and from audits of pairs with a known best."""

import math

import numpy as np
import pytest
import xarray as xr
from catalogue import ConjugateGuide, conjugate_model, number

from pyro_vi.auditing.advice import Advice, advise
from pyro_vi.auditing.auditor import audit
from pyro_vi.data.loading import load
from pyro_vi.programs.build import build_pair


def written(names, variance, *, se=0.02, seconds=1e-3, seconds_se=1e-5, targets="elbo", bias_p=math.nan, model=1.0):
    """An audit by hand: the guide's variances, and the model's, which are ``model`` times the guide's."""

    def column(value):
        return np.broadcast_to(np.asarray(value, dtype=float), (len(names),)).copy()

    guide = column(variance)
    var = np.stack([guide * column(model), guide], 1)
    seconds = column(seconds)
    return xr.Dataset(
        {
            "part_grad_var": (("elbo", "part"), var),
            "part_grad_var_se": (("elbo", "part"), var * column(se)[:, None]),
            "part_work_var": (("elbo", "part"), var * seconds[:, None]),
            "seconds": ("elbo", seconds),
            "seconds_iqr": ("elbo", column(seconds_se) * 3),
            "seconds_se": ("elbo", column(seconds_se)),
            "bias_p": (("elbo", "parameter"), np.stack([column(bias_p), column(math.nan)], 1)),
        },
        coords={
            "elbo": list(names),
            "target": ("elbo", np.broadcast_to(targets, (len(names),)).astype(str)),
            "parameter": ["m", "l"],
            "part": ["model", "guide"],
        },
    )


def only(found: list[Advice]) -> Advice:
    (one,) = found
    return one


def test_ratio_and_interval_are_the_formula():
    """Work is 8 · 1 against 2 · 3; squares of relative errors add, of variances (.05, .02) and of times (.01, .01)."""
    made = written(
        ["trace", "stl"], [8.0, 2.0], se=[0.05, 0.02], seconds=[1e-3, 3e-3], seconds_se=[1e-5, 3e-5], model=1.0
    )
    found = only(advise(made))
    error = math.sqrt(0.05**2 + 0.01**2 + 0.02**2 + 0.01**2)
    assert found.elbo == "stl"
    assert found.ratio == pytest.approx(8 / 6, rel=1e-12)
    assert found.low == pytest.approx(8 / 6 * math.exp(-1.959964 * error), rel=1e-6)
    assert found.high == pytest.approx(8 / 6 * math.exp(1.959964 * error), rel=1e-6)
    assert found.text == (
        "stl: 1.33 times less work-normalised variance in the guide than trace, the next best (95 % interval 1.2 to 1.49)."
    )


def test_time_counts_as_much_as_variance():
    """A third of the variance at four times the time is the worse choice."""
    made = written(["trace", "slow"], [3.0, 1.0], seconds=[1e-3, 4e-3])
    assert only(advise(made)).elbo == "trace"
    assert only(advise(made)).ratio == pytest.approx(4 / 3, rel=1e-12)


@pytest.mark.parametrize(("second", "elbo"), [(1.05, None), (1.07, "a")])
def test_no_recommendation_where_the_interval_holds_one(second, elbo):
    """Errors of .02, .02 and .01, .01 of the times make the interval × exp(±1.96 · .0316), that is × 1.064."""
    found = only(advise(written(["a", "b"], [1.0, second])))
    assert found.elbo == elbo
    assert found.ratio == pytest.approx(second, rel=1e-12)
    assert (found.low <= 1) == (elbo is None)
    if elbo is None:
        assert found.text == (
            "no recommendation: a, b do not differ in work-normalised variance in the guide (ratio 1.05, 95 % interval "
            "0.987 to 1.12)."
        )


def test_an_uncertain_time_separates_nothing():
    assert only(advise(written(["a", "b"], [1.0, 1.3], seconds_se=1e-5))).elbo == "a"
    assert only(advise(written(["a", "b"], [1.0, 1.3], seconds_se=3e-4))).elbo is None


def test_several_that_do_not_differ_are_named_together():
    found = only(advise(written(["trace", "mean_field", "analytic"], [5.0, 1.0, 1.01])))
    assert found.elbo == "mean_field"
    assert found.ratio == pytest.approx(5, rel=1e-12)
    assert found.text.startswith(
        "mean_field or analytic: 5 times less work-normalised variance in the guide than trace,"
    )


def test_one_that_ranks_after_a_clear_difference_is_not_named_with_the_best():
    """c is too uncertain to differ from a, but nothing says that it is better than b."""
    found = only(advise(written(["a", "b", "c"], [1.0, 1.5, 2.0], se=[0.02, 0.02, 0.6])))
    assert found.elbo == "a"
    assert found.text.startswith("a: 1.5 times less work-normalised variance in the guide than b,")


def test_trace_is_mentioned_where_it_is_not_the_next_best():
    found = only(advise(written(["trace", "mean_field", "stl"], [40.0, 2.0, 1.0])))
    assert (found.elbo, found.ratio) == ("stl", pytest.approx(2, rel=1e-12))
    assert found.text.endswith(", 40 times less than trace.")
    assert "times less than trace" not in only(advise(written(["trace", "stl"], [2.0, 1.0]))).text


def test_biased_ones_are_left_out_by_name():
    made = written(["score", "relaxed", "mixed"], [5.0, 0.1, 1.0], bias_p=[math.nan, 0.009, 0.5])
    found = only(advise(made))
    assert (found.elbo, found.ratio) == ("mixed", pytest.approx(5, rel=1e-12))
    assert found.text.endswith("; relaxed left out as biased.")
    assert "relaxed" not in only(advise(written(["score", "relaxed"], [5.0, 0.1], bias_p=[math.nan, 0.011]))).text[7:]


def test_one_that_is_left_is_no_choice():
    found = only(advise(written(["score", "relaxed"], [5.0, 0.1], bias_p=[math.nan, 1e-6])))
    assert found.elbo is None
    assert math.isnan(found.ratio)
    assert found.text == "no recommendation: too few to choose from; relaxed left out as biased."


def test_one_estimator_has_no_advice():
    assert advise(written(["trace"], [1.0])) == []


@pytest.mark.parametrize("rounding", [0.0, 1e-30])
def test_a_gradient_without_variance_is_the_best(rounding):
    found = only(advise(written(["trace", "stl", "mean_field"], [2.0, rounding, 1.0])))
    assert (found.elbo, found.ratio, found.low) == ("stl", math.inf, math.inf)
    assert found.text == "stl: the guide gradient does not vary here, that of others does."


def test_two_without_variance_are_named_together():
    found = only(advise(written(["trace", "stl", "dreg"], [2.0, 0.0, 0.0])))
    assert found.elbo == "stl"
    assert found.text == "stl or dreg: the guide gradient does not vary here, that of others does."


def test_where_nothing_varies_there_is_no_advice():
    """As in the model's part of a pair whose model has no parameters."""
    made = written(["trace", "mean_field"], [2.0, 1.0], model=0.0)
    found = only(advise(made, part="model"))
    assert found.elbo is None
    assert found.text.startswith(
        "no recommendation: trace, mean_field do not differ in work-normalised variance in the model"
    )


def test_each_part_has_its_own():
    made = written(["trace", "stl"], [4.0, 1.0], model=[1.0, 40.0])
    assert (only(advise(made)).elbo, only(advise(made, part="guide")).elbo) == ("stl", "stl")
    found = only(advise(made, part="model"))
    assert (found.elbo, found.ratio) == ("trace", pytest.approx(10, rel=1e-12))
    assert "variance in the model than stl" in found.text


def test_each_bound_has_its_own_advice():
    """What estimates another bound is not compared, and a bound with one estimator has nothing to choose."""
    made = written(
        ["iwae", "trace", "renyi", "dreg", "stl"],
        [1.0, 3.0, 0.01, 7.0, 6.0],
        targets=["iwae(5)", "elbo", "renyi(5)", "iwae(5)", "elbo"],
    )
    many, one = advise(made, stage="early")
    assert (many.elbo, many.ratio) == ("iwae", pytest.approx(7, rel=1e-12))
    assert many.text.startswith("early for the iwae(5) bound: iwae: 7 times less")
    assert (one.elbo, one.ratio) == ("trace", pytest.approx(2, rel=1e-12))
    assert one.text.startswith("early: trace: 2 times less")
    assert advise(made)[0].text.startswith("for the iwae(5) bound: iwae: 7 times less")


@pytest.mark.parametrize("second", [1.01, 5.0, math.inf])
def test_stage_stands_before_every_sentence(second):
    made = written(["a", "b"], [0.0 if math.isinf(second) else 1.0, min(second, 10.0)])
    plain, staged = only(advise(made)), only(advise(made, stage="at the end"))
    assert staged.text == f"at the end: {plain.text}"


@pytest.mark.slow
def test_on_digits_at_the_start_the_kl_in_closed_form_wins_by_more_than_ten():
    digits = load("digits")
    pair = build_pair("vae", "diag_normal", digits)
    elbos = ("trace", "mean_field", "analytic")
    made = audit(pair.model, pair.guide, digits.example(64), elbos=elbos, draws=200)
    found = only(advise(made.sel(elbo=["trace", "mean_field"])))
    assert found.elbo == "mean_field"
    assert found.low > 10
    assert only(advise(made.sel(elbo=["trace", "analytic"]))).elbo == "analytic"
    # Under pytest our own estimators are slowed by beartype, Pyro's are not: by the variance alone.
    variance = made.part_grad_var.sel(part="guide")
    assert float(variance.sel(elbo="trace") / variance.sel(elbo="analytic")) > 10
    assert only(advise(made)).elbo in ("mean_field", "analytic")


@pytest.mark.slow
def test_at_the_exact_posterior_sticking_the_landing_wins():
    """Its gradient is exactly 0 there (Roeder et al. 2017): m = x / 2, s² = 1 / 2."""
    guide = ConjugateGuide((0.65, 0.5**0.5))
    found = audit(conjugate_model, guide, number(1.3).reshape(1), elbos=("trace", "mean_field", "stl"), draws=100)
    assert float(found.part_grad_var.sel(elbo="stl", part="guide")) < 1e-25
    assert only(advise(found)).elbo == "stl"
    assert only(advise(found)).ratio == math.inf
    assert only(advise(found, part="model")).elbo is None  # the model has no parameters

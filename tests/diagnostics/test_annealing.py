"""Annealed evidence and sandwiches of pairs whose evidence is known, and what cannot be annealed."""

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import WrongGuide, columns, conjugate_model, linear_gaussian, number, scalars
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal
from torch import Tensor

from pyro_vi.data import DataSpec
from pyro_vi.diagnostics.annealing import chains as annealing
from pyro_vi.diagnostics.annealing.chains import Annealing, bounds
from pyro_vi.diagnostics.estimates import Estimate, of_log_weights, verdict_of
from pyro_vi.diagnostics.log_evidence import evidence
from pyro_vi.diagnostics.prior import prior_pair
from pyro_vi.errors import InputError, UsageError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.state_space import StateSpace
from pyro_vi.programs import evaluating, pair_and_args

QUICK: dict[str, Any] = {"chains": 16, "steps": 5}


def _mixture(x: Tensor) -> None:
    """k ~ Bernoulli(.3), z | k ~ N(3 k, 1), x | z ~ N(z, .5²): x is a mixture of N(0, 1.25) and N(3, 1.25)."""
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(number(0.3)), infer={"enumerate": "parallel"})
        z = pyro.sample("z", dist.Normal(3 * k, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def _of_mixture(x: Tensor) -> Tensor:
    parts = [dist.Normal(m, 1.25**0.5).log_prob(x) + math.log(w) for m, w in ((0.0, 0.7), (3.0, 0.3))]
    return torch.stack(parts).logsumexp(0)


def _wide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.5 * x, 0.8))


def _pair(name: str) -> tuple[Any, Any, Tensor, Any]:
    """A model, a guide that is wrong, data, and the exact evidence of each datum."""
    if name == "linear_gaussian":
        model = linear_gaussian()
        return model, WrongGuide(), columns(24), model.log_evidence
    if name == "mixture":
        return _mixture, _wide, scalars(24), _of_mixture
    x = columns(12, 5)
    spec = DataSpec("made up", 12, (5,), "real", torch.float64, "made up")
    series = StateSpace(spec, state_variance=0.5, noise_variance=0.3, mean=[0.5], variance=[[1.0]])
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return series, DiagNormal(series, (x,), hidden=(5,)), x, series.log_evidence


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("linear_gaussian", "guide"),
        ("linear_gaussian", "prior"),
        ("mixture", "guide"),
        ("state_space", "guide"),
        ("state_space", "prior"),
    ],
)
def test_forward_and_reverse_chains_are_on_both_sides_of_the_exact_evidence(name: str, start: Any) -> None:
    model, guide, x, exact = _pair(name)
    pair, args = pair_and_args(model, guide, x)
    pair = pair if start == "guide" else prior_pair(pair, args, moved=True)
    with evaluating(pair):
        (found,) = bounds(pair, args, False, Annealing(32, 30, start, 3, 1000))
    truth = exact(*found.args).detach()
    low, high = of_log_weights(found.lower, 0), of_log_weights(-found.upper, 0)
    assert found.lower.dtype == torch.float64
    below, above = low.values - truth, -high.values - truth
    error = [float(part.std()) / len(x) ** 0.5 for part in (below, above)]
    assert float(below.mean()) < 3 * error[0] and float(above.mean()) > -3 * error[1]
    assert float((above - below).mean()) < 0.5
    # One chain is a bound by far: K of them are nearly exact. The mean of w is p(x), and that of 1 / w is 1 / p(x).
    single = (found.lower - truth).mean(), (found.upper - truth).mean()
    assert single[0] < 0 < single[1]


@pytest.mark.slow
def test_the_sandwich_of_a_conjugate_pair_is_narrow_and_says_what_importance_sampling_misses() -> None:
    x = scalars(40)
    found = evidence(conjugate_model, _wide, x, method="sandwich", particles=2, data=30, **QUICK)
    assert found.sizes["datum"] == 30 and found.attrs["rows"] == 30
    assert -4 * found.attrs["width_se"] < found.attrs["width"] < 0.1
    np.testing.assert_allclose(found.width, found.upper - found.lower, rtol=1e-12)
    # log of a mean of two weights is too low; the weights are normal with a known variance
    assert found.attrs["missed_least"] > 0 and found.attrs["missed_most"] >= found.attrs["missed_least"] - 0.1
    assert found.attrs["verdict"] == "pass" and "bounds are narrow" in found.attrs["sentences"][-1]
    (said,) = [s for s in found.attrs["sentences"] if "importance sampling with 2 draws" in s]
    assert f"{found.attrs['missed_least']:.3f} ± {found.attrs['missed_least_se']:.3f}" in said


@pytest.mark.slow
def test_annealing_repairs_a_guide_that_is_far_too_narrow() -> None:
    """z ~ N(0, 1), x | z ~ N(z, 1): log N(x; 0, 2). Under q = N(x / 2, .2²) importance weights have no variance."""
    x = scalars()

    def narrow(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.2))

    exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
    found = evidence(conjugate_model, narrow, x, method="ais", chains=200, steps=20, seed=2)
    assert (abs(found.log_evidence - exact) < 4 * found.mc_se).all()
    assert float(found.mc_se.max()) < 0.2
    again = evidence(conjugate_model, narrow, x, method="iw", particles=1000)
    assert again.attrs["verdict"] == "fail" and "k-hat is above 0.7" in again.attrs["sentences"][1]
    assert found.attrs["method"] == "ais" and found.attrs["steps"] == 20


@pytest.mark.slow
@pytest.mark.parametrize("method", ["prior", "ais"])
def test_from_the_prior_the_guide_does_not_count(method: Any) -> None:
    x = scalars()

    def wrong(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + 50, 1e-3))

    exact = dist.Normal(0.0, 2**0.5).log_prob(x).numpy()
    found = evidence(conjugate_model, wrong, x, method=method, particles=20_000, chains=64, steps=20, start="prior")
    assert (abs(found.log_evidence - exact) < 4 * found.mc_se).all() and float(found.mc_se.max()) < 0.1


@pytest.mark.slow
def test_latents_that_all_data_share_are_annealed_with_the_local_ones() -> None:
    """w ~ N(0, 1), z_n ~ N(w, 1), x_n ~ N(z_n, 1): the covariance of x is 2 I + 1."""
    x = scalars(6)

    def model(x: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros_like(x[0]), 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("w", dist.Normal(torch.zeros_like(x[0]), 0.4))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5))

    exact = float(dist.MultivariateNormal(torch.zeros_like(x), 2 * torch.eye(6).double() + 1).log_prob(x))
    found = evidence(model, guide, x, method="ais", chains=64, steps=20)
    assert found.log_evidence.dims == () and found.attrs["per"] == "data set"
    assert abs(found.attrs["total"] - exact) < 4 * float(found.mc_se) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("family", [AutoNormal, AutoDiagonalNormal])
def test_autoguides_start_reverse_chains_at_the_exact_draw(family: Any) -> None:
    """sigma ~ Gamma(3, 2) and w ~ N(0, 1) on all data; the auxiliary sites of the guide follow from them."""
    x = scalars(10)

    def model(x: Tensor) -> None:
        sigma = pyro.sample("sigma", dist.Gamma(number(3.0), 2.0))
        w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, sigma), obs=x)

    found = evidence(model, family(model, init_scale=0.3), x, method="sandwich", particles=100, chains=64, steps=20)
    assert -4 * float(found.width_se) < float(found.width) < 1
    assert "one data set of 10" in found.attrs["sentences"][0]


def test_masked_rows_are_at_rest_and_have_the_evidence_0() -> None:
    x, seen = scalars(2), torch.tensor([True, False])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)), poutine.mask(mask=seen):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = evidence(model, guide, x, method="ais", **QUICK)
    np.testing.assert_allclose(found.log_evidence, [dist.Normal(number(0.0), 2**0.5).log_prob(x[0]), 0], atol=1e-10)


@pytest.mark.slow
def test_the_pilot_run_uses_other_draws_than_the_counted_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The counted run is the same whatever the pilot run drew, if the plan is the same."""
    pilots, plans = [], []
    own = annealing.pilot

    def kept(*args: Any, **kwargs: Any) -> Any:
        pilots.append(torch.get_rng_state())
        plans.append(own(*args, **kwargs))
        return plans[-1]

    monkeypatch.setattr(annealing, "pilot", kept)
    x = scalars()
    found = evidence(conjugate_model, _wide, x, method="ais", **QUICK)
    monkeypatch.setattr(annealing, "pilot", lambda *args, **kwargs: plans[0])
    counted, forward = [], annealing.forward
    monkeypatch.setattr(annealing, "forward", lambda *args: counted.append(torch.get_rng_state()) or forward(*args))
    again = evidence(conjugate_model, _wide, x, method="ais", **QUICK)
    np.testing.assert_array_equal(found.log_evidence, again.log_evidence)
    assert not torch.equal(pilots[0], counted[0])
    other = evidence(conjugate_model, _wide, x, method="ais", seed=1, **QUICK)
    assert not (other.log_evidence == found.log_evidence).all()


def test_programs_of_single_precision_has_weights_in_double_precision() -> None:
    x = scalars().float()
    pair, args = pair_and_args(lambda x: conjugate_model(x.double()), lambda x: _wide(x), x)
    with evaluating(pair):
        weights, _ = annealing.log_weights(pair, args, False, Annealing(8, 5, "guide", 0, 1000))
    assert weights.dtype == torch.float64


def _drawn(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("k", dist.Bernoulli(0.5 + 0 * x))
        pyro.sample("z", dist.Normal(x, 1.0))


def _interval(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0 * x, 1.0))
        u = pyro.sample("u", dist.Uniform(0.0 * x, z))
        pyro.sample("x", dist.Normal(u, 1.0), obs=x)


def _two(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Uniform(0.0 * x, 1.0))
        pyro.sample("u", dist.Uniform(0.0 * x, z))


def _coupled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0 * x, 1.0))
        pyro.sample("x", dist.Normal(z + z.mean(-1, keepdim=True), 1.0), obs=x)


def _noisy(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0 * x, 1.0))
        pyro.sample("x", dist.Normal(z + torch.randn_like(z), 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "guide", "options", "says"),
    [
        (_mixture, _drawn, {}, r"the guide draws 'k' .*, which is discrete: Hamiltonian moves need a gradient"),
        (_mixture, _wide, {"start": "prior"}, "site 'k' is discrete and drawn from the prior"),
        (_interval, _two, {}, "the support of site 'u' depends on other latent sites"),
        (_coupled, _wide, {}, "the density of a datum depends on the latents of other data"),
        (_noisy, _wide, {}, "a program has random numbers that are no sample site"),
        (conjugate_model, _wide, {"chains": 1}, "chains must be"),
        (conjugate_model, _wide, {"steps": 0}, "steps must be"),
    ],
)
def test_what_cannot_be_annealed_is_refused(model: Any, guide: Any, options: Any, says: str) -> None:
    with pytest.raises((InputError, UsageError), match=says):
        evidence(model, guide, scalars(), method="ais", **options)


def test_a_sandwich_without_drawn_latents_is_refused() -> None:
    def nothing(x: Tensor) -> None:
        pass

    def two(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(number(0.3)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(3 * k, 1.0), obs=x)

    with pytest.raises(InputError, match="exact and needs no bounds"):
        evidence(two, nothing, scalars(), method="sandwich")
    assert evidence(two, nothing, scalars(), method="ais").attrs["method"] == "enum"


def test_the_verdict_rests_on_effective_draws_and_khat() -> None:
    values, zero = torch.tensor([-1.0, -2.0]).double(), torch.zeros(2).double()

    def judged(ess: list[float], khat: list[float], **more: Any) -> str:
        found = Estimate(values, zero + 0.1, torch.tensor(ess).double(), torch.tensor(khat).double())
        return verdict_of(found, method="iw", draws=1000, rows=2, whole=False, **more)[0]

    assert judged([500.0, 400.0], [0.1, 0.6]) == "pass"
    assert judged([500.0, 400.0], [0.1, 0.8]) == "fail"
    assert judged([500.0, 3.0], [0.1, 0.2]) == "fail"
    exact = Estimate.exact(values)
    assert verdict_of(exact, method="exact", draws=0, rows=2, whole=False)[0] == "pass"


@pytest.mark.parametrize(("khat", "verdict"), [(0.45, "pass"), (0.62, "care"), (0.75, "fail")])
def test_the_one_estimate_of_a_data_set_is_rough_where_its_weights_have_no_variance(khat: float, verdict: str) -> None:
    one = torch.ones(1).double()
    found = Estimate(-10 * one, 0.05 * one, 200 * one, khat * one)
    said, sentences = verdict_of(found, method="iw", draws=1000, rows=30, whole=True)
    assert said == verdict
    assert ("k-hat is 0.62, above 0.5" in sentences[1]) == (verdict == "care")


def test_a_start_without_annealing_is_refused() -> None:
    x = scalars()
    with pytest.raises(InputError, match="start='prior' is of annealing; take method='ais' with it, or method='prior'"):
        evidence(conjugate_model, AutoNormal(conjugate_model), x, method="iw", start="prior")

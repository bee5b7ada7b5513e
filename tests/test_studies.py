"""The claims of each study hold in the numbers that its `measure` returns."""

import math

import numpy as np
import pytest
from script_files import script

pytestmark = pytest.mark.slow


# Guide's width: q = N(m, s²) where the posterior is N(x / 2, 1 / 2).


@pytest.fixture(scope="module")
def widths():
    module = script("study_guide_width")
    return module, module.measure(draws=2000)


def test_gradient_variances_are_the_closed_forms(widths):
    _, numbers = widths
    assert float((abs(numbers.variance - numbers.exact) / numbers.se).max()) < 4
    assert float((numbers.se / numbers.exact).max()) < 0.15  # else agreement would say little


def test_order_of_estimators_flips_with_the_width(widths):
    module, _ = widths
    narrow = {elbo: module.theory(elbo, 0.65, np.array([0.2])) for elbo in module.ELBOS}
    assert float(narrow["stl"]["m"][0] / narrow["trace"]["m"][0]) == pytest.approx(130, rel=0.02)
    assert float(narrow["mean_field"]["log s"][0]) == pytest.approx(0.0201, abs=1e-4)
    assert float(narrow["trace"]["log s"][0]) == pytest.approx(0.0128, abs=1e-4)
    found = [(round(width, 3), below, above) for width, below, above in module.flips("m", 0.65)]
    assert found == [(0.5, "trace", "stl"), (0.577, "mean_field", "stl"), (1.0, "stl", "mean_field")]


# Many samples: the ratio goes as K^-½ for IWAE (Rainforth et al., 2018) and as K^½ for DReG (Tucker et al., 2019).


@pytest.fixture(scope="module")
def samples():
    module = script("study_many_samples")
    return module, module.measure(rows=500, draws=25)


@pytest.mark.parametrize(("name", "expected"), [("iwae", -0.5), ("dreg", 0.5)])
def test_signal_to_noise_goes_as_a_root_of_the_samples(samples, name, expected):
    module, numbers = samples
    power, error, _ = module.slope(numbers, name)
    assert abs(power - expected) < 0.05
    assert error < 0.02


def test_signal_to_noise_is_the_known_one(samples):
    _, numbers = samples
    for name, known in (("iwae", (0.068, 0.031)), ("dreg", (0.60, 1.16, 2.29, 4.59, 9.17))):
        assert numbers.snr.sel(elbo=name).values[: len(known)] == pytest.approx(known, rel=0.05)


def test_means_of_both_gradients_agree(samples):
    module, numbers = samples
    mean, error = numbers["mean"], numbers.mean_se
    few = numbers.k <= 16  # beyond, the norm of a mean that is all noise is no mean
    distance = abs(mean.sel(elbo="iwae") - mean.sel(elbo="dreg")) / error.sel(elbo="iwae")
    assert float(distance.where(few).max()) < 4
    exact = module.X - 2 * module.M  # with one sample it is the ELBO's
    assert abs(float(mean.sel(elbo="dreg", k=1)) - exact) < 4 * float(error.sel(elbo="dreg", k=1))


def test_bound_rises_from_the_elbo_to_the_evidence(samples):
    module, numbers = samples
    bound, error = numbers.bound.sel(elbo="dreg").values, numbers.bound_se.sel(elbo="dreg").values
    # KL(N(m, s²) ‖ N(x/2, 1/2)) in closed form
    gap = 0.5 * (module.S**2 / 0.5 - 1 - math.log(module.S**2 / 0.5) + (module.M - module.X / 2) ** 2 / 0.5)
    assert abs(bound[0] - (module.EVIDENCE - gap)) < 4 * error[0]
    expected = module.EVIDENCE - module.weight_variance() / (2 * np.array(module.KS))
    assert (abs(bound - expected)[1:] < 4 * error[1:] + 2e-4).all()


# Evidence.


@pytest.fixture(scope="module")
def errors():
    return script("study_evidence").measure(most=3, repetitions=16, rows=4, steps=400)


def test_exact_posterior_gives_the_evidence_from_every_draw(errors):
    assert float(abs(errors.error.sel(proposal="exact posterior")).max()) < 1e-9


def test_evidence_is_estimated_from_below(errors):
    together = errors.error.stack(draw=("repetition", "datum"))
    error = together.std("draw") / math.sqrt(together.sizes["draw"])
    assert bool((together.mean("draw") < 4 * error + 1e-9).all())
    assert bool((together.mean("draw").sel(proposal="prior").diff("k") > 0).all())


def test_draws_needed_grow_with_the_divergence_from_the_posterior(errors):
    mean = errors.error.mean(("repetition", "datum"))
    assert (
        float(errors.kl.sel(latent_dim=8, proposal="prior")) > 10 > float(errors.kl.sel(latent_dim=2, proposal="prior"))
    )
    assert float(mean.sel(latent_dim=8, proposal="prior", k=1000)) < -5
    assert float(mean.sel(latent_dim=8, proposal="fitted guide", k=1000)) > -1
    assert abs(float(mean.sel(latent_dim=2, proposal="fitted guide", k=1000))) < 0.02


# Floor and ceiling.


@pytest.fixture(scope="module")
def courses():
    module = script("study_floor_and_ceiling")
    return module, *module.measure(rounds=3, steps=50)


def test_em_reaches_the_closed_form_maximum(courses):
    _, found, most, _ = courses
    em = found["EM, closed form"]
    assert (np.diff(em.evidence) > -1e-10).all()
    assert em.evidence[-1] == pytest.approx(most, abs=1e-8)


def test_closed_form_maximum_is_that_of_scikit_learn(courses):
    """`PCA` divides its variances by n − 1: with that in place of n the closed form is its score to the last digits."""
    module, _, most, score = courses
    x = module.torch.tensor(module.StandardScaler().fit_transform(module.load_wine().data))
    assert module.maximum(x, len(x) - 1) == pytest.approx(score, abs=1e-10)
    assert 0 < most - score < 2e-4


def test_elbo_is_never_above_the_evidence(courses):
    _, found, most, _ = courses
    for course in found.values():
        assert (course.elbo <= course.evidence + 1e-9).all()
        assert (course.evidence <= most + 1e-9).all()


def test_e_steps_close_the_gap_and_m_steps_raise_the_evidence(courses):
    module, found, most, _ = courses
    course = found["SVI, alternating"]
    guide_ends, model_ends = module.ends(course)
    assert len(guide_ends) == len(model_ends) == 3
    assert ((course.evidence - course.elbo)[guide_ends] < 0.03).all()
    assert (course.evidence[model_ends] > course.evidence[guide_ends]).all()
    assert (np.diff(course.elbo[guide_ends]) > 0).all()
    assert most - course.evidence[-1] < 1.0


def test_joint_steps_come_to_the_same_point(courses):
    _, found, most, _ = courses
    joint = found["SVI, joint"]
    assert most - joint.elbo[-1] < 0.03


# Direction of the KL.


@pytest.fixture(scope="module")
def directions():
    module = script("study_kl_direction")
    return module, module.measure(steps=300)


def test_svi_finds_the_least_reverse_divergence(directions):
    _, numbers = directions
    excess = numbers.svi[2] - numbers.reverse[2]
    assert float(excess.min()) > -1e-6
    assert float(excess.max()) < 5e-3


def test_reverse_seeks_a_mode_and_forward_matches_moments(directions):
    module, numbers = directions
    sd = (1 + module.DISTANCES**2 / 4).sqrt()
    assert bool((numbers.forward[1] == sd).all())
    assert bool((numbers.svi[1] < sd + 0.02).all())  # it underestimates the variance, everywhere
    far = module.DISTANCES >= 6
    assert bool((numbers.svi[1][far] < 1.1).all())
    assert bool((numbers.svi[0][far] > 2.9).all())
    assert float(numbers.svi[2][-1]) == pytest.approx(math.log(2), abs=2e-3)


def test_each_direction_is_best_at_its_own_divergence(directions):
    _, numbers = directions
    assert bool((numbers.reverse[2] <= numbers.forward[2] + 1e-9).all())
    assert bool((numbers.forward[3] <= numbers.reverse[3] + 1e-9).all())


# Discrete latents.


@pytest.fixture(scope="module")
def discrete():
    module = script("study_discrete")
    return module, module.measure_discrete(evaluations=100)


def test_enumeration_is_exact_and_score_unbiased(discrete):
    _, numbers = discrete
    exact, score = numbers.sel(elbo="enum"), numbers.sel(elbo="score")
    assert max(float(exact.bias), float(exact.sd)) < 1e-10
    assert float(score.chance) < 3
    assert float(score.sd) > 0.1


def test_temperature_trades_variance_for_bias(discrete):
    module, numbers = discrete
    relaxed = numbers.sel(elbo=[f"relaxed, {t:g}" for t in module.TEMPERATURES])
    assert bool((relaxed.sd.diff("elbo") < 0).all())
    hot = relaxed.isel(elbo=slice(2, None))
    assert bool((hot.bias.diff("elbo") > 0).all())
    assert bool((hot.bias > 10 * hot.bias_se).all())


def test_score_pays_for_every_dimension_and_the_path_does_not():
    module = script("study_discrete")
    numbers = module.measure_continuous(draws=200, sizes=(3, 30))
    ratio = numbers.part_grad_var.sel(elbo="score") / numbers.part_grad_var.sel(elbo="trace")
    assert float(ratio.sel(size=30)) > 5 > 3 > float(ratio.sel(size=3))
    path = numbers.part_grad_var.sel(elbo="trace")
    assert float(path.max() / path.min()) < 1.3


# Draws.


@pytest.fixture(scope="module")
def kinds():
    return script("study_draws").measure(steps=300, rows=8, replications=100)


def test_sobol_draws_help_everywhere_and_least_under_a_bound_of_many_samples(kinds):
    sobol = kinds.sel(kind="sobol").drop_sel(part="value")
    gain = sobol.gain
    assert bool((gain > 1 + 3 * sobol.gain_se).all())
    assert bool((gain.sel(elbo=["trace", "mean_field"]) > gain.sel(elbo="iwae(num_particles=8)")).all())
    assert float(gain.sel(elbo="trace", part="guide")) > 5


def test_antithetic_draws_help_the_mean_head_and_hurt_the_scale_head(kinds):
    gain, error = kinds.gain.sel(kind="antithetic"), kinds.gain_se.sel(kind="antithetic")
    helped = ["model", "its mean head"]
    assert bool((gain - 3 * error).sel(part=helped).min() > 1)
    assert float((gain + 3 * error).sel(elbo="trace", part="its scale head")) < 1
    assert bool((kinds.gain.sel(kind="independent") == 1).all())


def test_model_gradients_do_not_depend_on_how_the_kl_is_taken(kinds):
    one, two = (kinds.variance.sel(elbo=elbo, part="model") for elbo in ("trace", "mean_field"))
    assert one.values == pytest.approx(two.values, rel=1e-4)


# Collapsed units: free bits below the KL that a unit would have cost nothing, so no unit of the upper layer collapses.


def test_free_bits_keep_the_upper_layer_active():
    module = script("collapsed_units")
    options = {"plain": {}, "free": {"free_bits": 0.1}}
    found = module.measure("hierarchical_vae", "diag_normal", 300, 1e-2, options)
    (plain, elbo), (free, other) = found["plain"], found["free"]
    assert plain["z2"][:2] == (0, 4) and plain["z2"][2] < 0.02
    assert free["z2"][:2] == (4, 4) and free["z2"][2] > 0.4
    assert abs(float((elbo - other).mean())) < 1.0

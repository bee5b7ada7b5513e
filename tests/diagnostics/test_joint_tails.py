"""k-hat against tails of known shape: of each datum, of shared latents, of one site given the others; verdict and sentences."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from arviz_stats.base import array_stats
from catalogue import NUM_DATA, number, scalars
from pyro import poutine
from pyro.infer.autoguide import AutoDelta, AutoNormal
from targets import TARGETS, Target, needs_folder
from torch import Tensor

from pyro_vi import fit
from pyro_vi.diagnostics import reliability
from pyro_vi.errors import InputError
from pyro_vi.programs import data_plate

SHAPES = np.array([0.2, 0.5, 0.7, 0.9])
Program = Callable[..., Any]


def pair_of(
    law: Callable[[Tensor], Any], drawn: Callable[[Tensor], Any], size: int | None = None
) -> tuple[Program, Program]:
    """A model in which x says nothing of z ~ law(x), and a guide z ~ drawn(x)."""

    def model(x: Tensor) -> None:
        with data_plate(size, x):
            pyro.sample("z", law(x))
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with data_plate(size, x):
            pyro.sample("z", drawn(x))

    return model, guide


EXPONENTIAL = pair_of(lambda k: dist.Exponential(1 - k), lambda k: dist.Exponential(torch.ones_like(k)))
"""Target Exp(1 − k), proposal Exp(1): the shape is k = 1 − b / a, the value of the datum."""
NORMAL = pair_of(
    lambda k: dist.Normal(torch.zeros_like(k), 1.0), lambda k: dist.Normal(torch.zeros_like(k), (1 - k).sqrt())
)
"""Target N(0, 1), proposal N(0, s²): the shape is k = 1 − s², the value of the datum."""


def direct(log_weight: np.ndarray) -> np.ndarray:
    """k-hat of ArviZ from log-weights, (rows, draws)."""
    found: np.ndarray = array_stats.psislw(-log_weight)[1]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["exponential", "normal"])
def test_each_datum_has_its_own_known_shape(kind: str) -> None:
    """Each k-hat is within 4 standard errors of k, and the means over data are those of ArviZ on weights without a program.

    The means read low for normals, whose tail is Pareto only in the limit.
    """
    draws, repeats = 100_000, 25
    k = torch.as_tensor(SHAPES).repeat(repeats)
    found = reliability(*(EXPONENTIAL if kind == "exponential" else NORMAL), k, draws=draws, rows=20)
    assert (abs(found.khat - k.numpy()) < 4 * found.khat_se).all()
    generator = np.random.default_rng(5)
    if kind == "exponential":
        weights = k.numpy()[:, None] * generator.exponential(size=(len(k), draws))
    else:
        z = generator.normal(size=(len(k), draws)) * np.sqrt(1 - k.numpy())[:, None]
        weights = z**2 / 2 * (1 / (1 - k.numpy()) - 1)[:, None]
    means = [values.reshape(repeats, 4).mean(0) for values in (found.khat.values, direct(weights))]
    error = found.khat_se.values[:4] * math.sqrt(2 / repeats)
    assert (abs(means[0] - means[1]) < 4 * error).all()
    spread = found.khat.values.reshape(repeats, 4).std(0, ddof=1)
    assert (spread < 1.5 * found.khat_se.values[:4]).all()


def test_a_datum_has_its_own_weight_and_not_that_of_the_batch() -> None:
    """20 data with the shape .3 each: a weight of the whole batch has another tail, and reads as a failure."""
    k = torch.full((20,), 0.3, dtype=torch.float64)
    found = reliability(*NORMAL, k, draws=4000)
    assert float(found.khat.mean()) == pytest.approx(0.3, abs=4 * float(found.khat_se.mean()) / 20**0.5)
    assert found.verdict == "pass"
    assert found.share < 0.05
    z = np.random.default_rng(2).normal(size=(4000, 20)) * 0.7**0.5
    assert direct((z**2 / 2 * (1 / 0.7 - 1)).sum(-1))[()] > 0.5


@pytest.mark.parametrize(("top", "verdict"), [(0.1, "care"), (0.7, "pass"), (1.0, "pass")])
@pytest.mark.parametrize("whole", [False, True])
def test_equal_weights_are_those_of_a_posterior_only_if_all_draws_have_them(
    top: float, verdict: str, whole: bool
) -> None:
    """z ~ U(0, 1) for guide and model, and x = 1 is a thousand times less probable outside a part of it."""

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Uniform(number(0.0), 1.0)) if whole else None
        with data_plate(None, x):
            z = pyro.sample("z", dist.Uniform(number(0.0), 1.0)) if z is None else z
            pyro.sample("x", dist.Bernoulli(0.999 * (z < top) + 0.0005), obs=x)

    def guide(x: Tensor) -> None:
        if whole:
            pyro.sample("z", dist.Uniform(number(0.0), 1.0))
        else:
            with data_plate(None, x):
                pyro.sample("z", dist.Uniform(torch.zeros_like(x), 1.0))

    found = reliability(model, guide, torch.ones(1 if whole else 4, dtype=torch.float64))
    assert found.attrs["verdict"] == verdict
    assert ("exact posterior" in found.attrs["sentences"][0]) == (top == 1.0)


def test_the_threshold_follows_the_number_of_draws() -> None:
    found = reliability(*NORMAL, torch.full((2,), 0.3, dtype=torch.float64), draws=100)
    assert found.threshold == pytest.approx(1 - 1 / 2)
    assert found.draws == 100


def test_rows_are_named_and_the_worst_come_first() -> None:
    k = torch.full((30,), 0.05, dtype=torch.float64)
    k[[7, 20]] = torch.tensor([0.99, 0.99]).double()
    found = reliability(*EXPONENTIAL, k, draws=20_000, rows=7)
    assert found.worst == sorted([7, 20], key=lambda row: -float(found.khat[row]))
    assert found.share == pytest.approx(2 / 30)
    assert found.share_se == pytest.approx(math.sqrt(2 / 30 * 28 / 30 / 30))
    assert found.verdict == "care"
    assert any("rows {}, {}".format(*found.worst) in text for text in found.sentences)
    some = reliability(*EXPONENTIAL, k, draws=200, most=4)
    assert some.datum.values.tolist() == [0, 10, 19, 29]
    assert any("4 of 30, evenly spaced" in text for text in some.sentences)


def two_sites(first: float, second: float, correlation: float = 0.0) -> tuple[Program, Program]:
    """Posterior of (a, b): normal with variances 1 and a correlation; the guide is independent normals."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
            pyro.sample("b", dist.Normal(correlation * a, math.sqrt(1 - correlation**2)))
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("a", dist.Normal(number(0.0), first))
            pyro.sample("b", dist.Normal(number(0.0), second))

    return model, guide


def test_the_wrong_one_of_two_independent_sites_is_named() -> None:
    """N(0, .4²) for N(0, 1) has the shape 1 − .4² = .84; N(0, 1.1²) has bounded weights."""
    found = reliability(*two_sites(0.4, 1.1), scalars(4), draws=20_000)
    wrong, right = found.site_khat.sel(site="a"), found.site_khat.sel(site="b")
    assert (abs(wrong - 0.84) < 4 * found.site_khat_se.sel(site="a")).all()
    assert (right < 0.1).all()
    assert found.verdict == "fail"
    assert any("Site 'a' by itself" in text for text in found.sentences)
    assert not any("Site 'b' by itself" in text for text in found.sentences)


def test_sites_that_fit_one_by_one_and_not_together_lack_their_dependence() -> None:
    """The best independent normals have the conditional variances 1 − ρ²: given the other site, each is right."""
    narrow = math.sqrt(1 - 0.95**2)
    found = reliability(*two_sites(narrow, narrow, 0.95), scalars(4), draws=5000)
    assert float(found.khat.mean()) > found.threshold
    assert (found.site_khat < found.threshold).all()  # given the other, each is only shifted
    assert any("lacks the dependence" in text for text in found.sentences)


def test_a_site_that_another_depends_on_has_no_number_of_its_own() -> None:
    model, _ = two_sites(1.0, 1.0, 0.5)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(number(0.0), 1.0))
            pyro.sample("b", dist.Normal(0.5 * a, math.sqrt(0.75)))

    found = reliability(model, guide, scalars(4), draws=100)
    assert found.site_khat.sel(site="a").isnull().all()
    assert found.verdict == "pass"
    assert any("no k-hat of 'a'" in text for text in found.sentences)
    assert any("equal" in text for text in found.sentences)


def shared(scale: float, own: float) -> tuple[Program, Program]:
    """θ ~ N(0, 1) that x says nothing of, z_n | θ ~ N(θ, 1); the guide has θ ~ N(0, scale²), z_n ~ N(θ, own²)."""

    def model(x: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(t, 1.0))
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        t = pyro.sample("t", dist.Normal(number(0.0), scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(t, own))

    return model, guide


def test_shared_latents_have_one_number_and_the_data_theirs() -> None:
    """With exact z, the weight of θ has the shape 1 − .5² = .75 and no noise; with an exact θ, each datum has 1 − .3²."""
    found = reliability(*shared(0.5, 1.0), scalars(6), draws=20_000, inner=2)
    assert abs(found.shared_khat - 0.75) < 4 * found.shared_khat_se
    assert found.attrs["inner_noise"] == pytest.approx(0, abs=1e-6)
    assert found.khat.isnull().all()
    assert found.verdict == ("fail" if found.shared_khat - found.shared_khat_se > 0.7 else "care")
    found = reliability(*shared(1.0, 0.3), scalars(20), draws=10_000, inner=2)
    assert (abs(found.khat - 0.91) < 4 * found.khat_se).all()
    assert found.attrs["inner_noise"] > 1
    assert any("nothing can be said" in text for text in found.sentences)


def global_only(x: Tensor) -> None:
    pyro.sample("t", dist.Normal(torch.zeros(2).double(), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(torch.zeros(()).double(), 1.0).expand(x.shape).to_event(1), obs=x)


def test_a_model_without_a_data_plate_has_one_number() -> None:
    def guide(x: Tensor) -> None:
        pyro.sample("t", dist.Normal(torch.zeros(2).double(), torch.tensor([0.5, 1.0]).double()).to_event(1))

    found = reliability(global_only, guide, scalars(6), draws=20_000)
    assert abs(found.shared_khat - 0.75) < 4 * found.shared_khat_se
    assert "khat" not in found
    automatic = AutoNormal(global_only, init_scale=0.3)
    found = reliability(global_only, automatic, scalars(6), draws=1000)
    assert found.verdict == "fail"


def test_summed_sites_masks_other_plates_and_minibatches() -> None:
    """c is summed out; z has the shape .84 where the mask keeps it, and equal weights elsewhere."""
    mask = torch.tensor([True, False, True])

    def model(x: Tensor) -> None:
        with data_plate(NUM_DATA, x, dim=-2), poutine.mask(mask=mask.unsqueeze(-1)):
            c = pyro.sample("c", dist.Bernoulli(number(0.3)), infer={"enumerate": "parallel"})
            with pyro.plate("pair", 2, dim=-1):
                pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x.unsqueeze(-1))

    def guide(x: Tensor) -> None:
        with data_plate(NUM_DATA, x, dim=-2), poutine.mask(mask=mask.unsqueeze(-1)), pyro.plate("pair", 2, dim=-1):
            pyro.sample("z", dist.Normal(number(0.0), torch.tensor([0.4, 1.0]).double()))

    found = reliability(model, guide, scalars(3), draws=10_000)
    np.testing.assert_array_equal(found.khat.isnull(), ~mask.numpy())
    kept = found.isel(datum=[0, 2])
    assert (abs(kept.khat - 0.84) < 4 * kept.khat_se).all()


def test_a_pair_that_draws_one_by_one_in_single_precision_and_leaves_all_as_it_was() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            assert z.dim() == 1  # fails for many draws at once
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))
            assert z.dim() == 1

    x = scalars(3).float()
    before = torch.get_rng_state()
    found = reliability(model, guide, x, draws=60)
    assert torch.equal(torch.get_rng_state(), before)
    assert found.verdict == "pass"
    assert (found.ess > 59.99).all()


def test_weights_that_are_no_numbers_fail() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(torch.where(x > 50, math.nan, z), 1.0), obs=x)

    def wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros_like(x), 1.0))

    found = reliability(model, wide, torch.tensor([0.1, 60.0]).double(), draws=50)
    assert found.worst == [1]
    assert found.verdict == "fail"
    assert any("no finite numbers" in text for text in found.sentences)


def test_a_guide_that_is_too_wide_has_a_low_k_hat_and_does_not_pass() -> None:
    """N(0, 5²) for N(0, 1): bounded weights, and √(2 · 25 − 1) / 25 = 28 % effective draws."""
    found = reliability(
        *pair_of(lambda x: dist.Normal(0 * x, 1.0), lambda x: dist.Normal(0 * x, 5.0)), scalars(3), draws=4000
    )
    assert (found.khat < 0.5).all()
    np.testing.assert_allclose(found.ess / 4000, 0.28, atol=0.03)
    assert found.verdict == "care"
    assert any("28 % of them count" in text or "29 % of them" in text or "27 %" in text for text in found.sentences)


def test_pairs_without_weights_are_refused() -> None:
    with pytest.raises(InputError, match="point estimate"):
        reliability(global_only, AutoDelta(global_only), scalars(3))
    with pytest.raises(InputError, match="draws must be a whole number of at least 25"):
        reliability(*NORMAL, scalars(3), draws=3)


KNOWN = {
    "schools": (0.64, 0.62),
    "centred schools": (0.95, 0.92),
    "sblrc": (0.82, 0.47),
    "arK": (1.00, 0.40),
    "kidiq": (0.89, 0.24),
    "mixture": (0.54, 0.20),
}
"""k-hat of the best mean-field and the best full-rank guide, of the joint weight of all latents."""
REPEATS = 4
"""Sets of draws that are averaged: one k-hat has a standard error of about .05, and reads lower from fewer draws."""


@pytest.mark.slow
@needs_folder
@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("full", [False, True])
def test_posteriors_have_the_known_k_hat(name: str, full: bool) -> None:
    target: Target = TARGETS[name]
    draws = 100_000
    guide = "full_normal" if full else "diag_normal"
    run = fit(
        target.model,
        f"{guide}(amortized=False)",
        target.data,
        elbo="stl(num_particles=16, vectorize_particles=True)",
        steps=500,
        lr=0.01,
        compile=False,
        progress=False,
    )
    found = [reliability(run.model, run.guide, target.data, draws=draws, inner=1, seed=seed) for seed in range(REPEATS)]
    k = np.array([float(one.shared_khat) for one in found])
    error = float(np.mean([float(one.shared_khat_se) for one in found]))
    assert abs(k.mean() - KNOWN[name][full]) < 0.08, k
    assert k.std(ddof=1) < 2.4 * error  # χ² of 3: below 2.4 but for 1 in 1600

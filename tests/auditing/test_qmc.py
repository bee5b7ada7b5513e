"""Stacked draws: each is distributed as the programs say, and averages of them have the variances that theory gives."""

import dataclasses
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BATCH, CATALOGUE, NUM_DATA, ConjugateGuide, columns, conjugate_model, number, scalars
from scipy import stats
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

from pyro_vi.auditing.captured import Captured, Draw, capture
from pyro_vi.auditing.evaluator import stacked
from pyro_vi.auditing.qmc import KINDS, noise
from pyro_vi.data.dataset import Batch
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators.table import get
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated

X, CASES = torch.tensor([1.3, -0.4], dtype=torch.float64), ((0.2, 0.9), (0.65, 0.5))
M, S = torch.tensor(CASES, dtype=torch.float64).T


def graph_of(model: Any, guide: Any, args: Batch, elbo: str = "trace") -> tuple[Captured, list[Tensor]]:
    """A captured graph and the parameters that it takes, in the order of the programs."""
    pair = pair_of(model, guide, args)
    parameters = [parameter for _, parameter in pair.owned(args).values()]
    with isolated(0, validation=False):
        return capture(get(elbo), pair, args, parameters), [p.detach() for p in parameters]


@pytest.fixture(scope="module")
def conjugate() -> Any:
    """Of trace on the conjugate pair at (m, s): gradients in m0, l0, m1, l1 for given draws, of shape ``(4, n)``."""
    graph, parameters = graph_of(conjugate_model, ConjugateGuide(*CASES), (X,))

    def gradients(kind: str, count: int, seed: int) -> Tensor:
        return torch.stack(graph.many(parameters, noise(graph, count, kind=kind, seed=seed), (X,))[1:])

    return graph, gradients


def around(make: Any) -> tuple[Any, Any]:
    """A pair on the reals whose guide draws z from ``make(loc)``."""

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.3, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(loc))

    return conjugate_model, guide


def by_hand(*draws: Draw) -> Captured:
    """A graph with draws of our making, which no test runs."""
    graph, _ = graph_of(*around(lambda loc: dist.Normal(loc, 1.0)), (scalars(),))
    return dataclasses.replace(graph, draws=draws)


def uniforms(*shape: int, dtype: torch.dtype = torch.float64) -> Draw:
    def make(device: torch.device | None = None) -> Tensor:
        return torch.rand(shape, dtype=dtype, device=device)

    return Draw(make, None, "aten.rand", ("uniform", 0.0, 1.0), make(torch.device("meta")), torch.device("cpu"))


def variance(values: Tensor) -> tuple[float, float]:
    """Of a sample, with its standard error, for any distribution."""
    square = (values - values.mean()).square() * len(values) / (len(values) - 1)
    return float(square.mean()), float(square.std() / len(values) ** 0.5)


# What is drawn from what.

EPS = {torch.float32: float(torch.finfo(torch.float32).eps), torch.float64: float(torch.finfo(torch.float64).eps)}
STANDARD, UNIT = ("normal", 0.0, 1.0), ("uniform", 0.0, 1.0)
LAWS = {
    "Normal": (lambda loc: dist.Normal(loc, 2.0), "aten.normal_", STANDARD),
    "LogNormal": (lambda loc: dist.LogNormal(loc, 0.5), "aten.normal_", STANDARD),
    "Uniform": (lambda loc: dist.Uniform(loc - 1, loc + 1), "aten.rand", UNIT),
    "Gumbel": (lambda loc: dist.Gumbel(loc, torch.ones_like(loc)), "aten.rand", UNIT),
    "Laplace": (lambda loc: dist.Laplace(loc, 1.0), "aten.uniform_", "(-1, 1)"),
}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", LAWS)
def test_laws_are_read_off_and_all_kinds_have_dtype_shape_and_range(name, dtype):
    make, operation, law = LAWS[name]
    x = scalars().to(dtype)
    graph, parameters = graph_of(*around(make), (x,))
    (draw,) = graph.draws
    law = ("uniform", EPS[dtype] - 1, 1.0) if law == "(-1, 1)" else law
    assert (draw.site, draw.operation, draw.law, draw.device) == ("z", operation, law, x.device)
    for kind in KINDS:
        (values,) = draws = noise(graph, 8, kind=kind, seed=3)
        assert (values.shape, values.dtype) == ((8, BATCH), dtype)
        if law[0] == "uniform":
            assert law[1] < float(values.min()) < float(values.max()) < law[2]
            assert float(values.min()) < law[1] + 0.2 * (law[2] - law[1])
        for result in graph.many(parameters, draws, (x,)):
            assert result.isfinite().all()
    pairs = noise(graph, 8, kind="antithetic", seed=3)[0].reshape(4, 2, BATCH)
    centre = pairs.sum(1) - (2 * law[1] if law[0] == "normal" else law[1] + law[2])
    assert float(centre.abs().max()) <= (0 if law[0] == "normal" else EPS[dtype])


def test_other_means_and_ranges_are_read_off_and_kept():
    class Shifted(dist.Normal):
        def rsample(self, sample_shape: Any = ()) -> Tensor:
            shape = self._extended_shape(sample_shape)
            moved = torch.empty(shape, dtype=self.loc.dtype).normal_(3.0, 0.5)
            wide = torch.empty(shape, dtype=self.loc.dtype).uniform_(-2.0, 4.0)
            return self.loc + moved + wide + torch.normal(1.0, 2.0, shape, dtype=self.loc.dtype)

    graph, _ = graph_of(*around(lambda loc: Shifted(loc, 1.0)), (scalars(),))
    laws = [("normal", 3.0, 0.5), ("uniform", -2.0, 4.0), ("normal", 1.0, 2.0)]
    assert [draw.law for draw in graph.draws] == laws
    moved, wide, free = noise(graph, 256, kind="sobol")
    for values, law in zip(
        (moved, wide, free), (stats.norm(3, 0.5), stats.uniform(-2, 6), stats.norm(1, 2)), strict=True
    ):
        # A Sobol sequence is stratified: one point in each of 256 cells of equal probability, in every coordinate.
        cells = np.sort(np.floor(law.cdf(values.numpy()) * 256), 0)
        assert (cells == np.arange(256)[:, None]).all()
    moved, wide, free = noise(graph, 10, kind="antithetic")
    for values, centre in ((moved, 3.0), (wide, 1.0), (free, 1.0)):
        torch.testing.assert_close(values[::2] + values[1::2], torch.full_like(values[::2], 2 * centre))


def test_a_multivariate_normal_and_its_factor_are_normal_noise():
    graph, _ = graph_of(*CATALOGUE["linear_gaussian_full_rank"].build(), (columns(),))
    assert [draw.law for draw in graph.draws] == [STANDARD]


# Independent draws.


def test_independent_draws_are_those_of_the_generator(conjugate):
    graph, _ = conjugate
    assert torch.equal(noise(graph, 1, seed=7)[0], stacked(graph, [7], (X,))[0])
    five = noise(graph, 5, seed=7)[0]
    assert torch.equal(five[:3], noise(graph, 3, seed=7)[0])
    assert torch.equal(five, noise(graph, 10, kind="antithetic", seed=7)[0][::2])


def test_draws_that_are_neither_normal_nor_uniform_can_be_independent():
    graph, _ = graph_of(*CATALOGUE["inner_subsample"].build(), CATALOGUE["inner_subsample"].batch)
    w, index, z = noise(graph, 6, seed=1)
    assert index.dtype == torch.int64
    assert torch.equal(index.sort(1).values, torch.arange(NUM_DATA).expand(6, -1))
    assert (w.shape, z.shape) == ((6,), (6, BATCH))


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_have_equal_bits_and_others_others(conjugate, kind):
    graph, _ = conjugate
    state = torch.get_rng_state()
    one, again, other = (noise(graph, 8, kind=kind, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(one, again)
    assert not (one == other).any()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_made_on_the_cpu_and_moved_to_where_the_graph_takes_them(kind):
    """torch's device without storage stands for one that this machine may lack; there the draws would have no values."""
    away = torch.device("meta")
    graph = by_hand(dataclasses.replace(uniforms(3), device=away))
    (values,) = noise(graph, 4, kind=kind)
    assert values.device.type == "meta"
    assert values.shape == (4, 3)
    for name in ("Normal", "Gumbel", "Laplace"):
        (draw,) = graph_of(*around(LAWS[name][0]), (scalars(),))[0].draws
        assert draw.make(away).device.type == "meta"
        assert draw.make(torch.device("cpu")).device.type == draw.make().device.type == "cpu"


# Antithetic draws: what is odd in the noise goes, what is even doubles.


def test_antithetic_draws_integrate_odd_functions_exactly(conjugate):
    """∂/∂m of E[(z − x)²/2 + z²/2] is 2 m − x, from any pair: the integrand 2 (m + s ε) − x is odd about it."""
    graph, gradients = conjugate
    (draws,) = noise(graph, 6, kind="antithetic", seed=4)
    assert torch.equal(draws[::2], -draws[1::2])
    assert float(draws.sum(0).abs().max()) == 0
    found = gradients("antithetic", 6, 4)[[0, 2]]
    torch.testing.assert_close(found.mean(1), 2 * M - X, rtol=0, atol=1e-14)
    assert float(found.std(1).min()) > 0.5


@pytest.mark.slow
def test_antithetic_draws_double_what_is_even(conjugate):
    """∂/∂(log s) is −1 + (2 m − x) s ε + 2 s² ε²: variance 16 s⁴ / S in place of ((2 m − x)² s² + 8 s⁴) / S."""
    _, gradients = conjugate
    count = 20000
    plain, pairs = gradients("independent", count, 5)[[1, 3]], gradients("antithetic", 2 * count, 5)[[1, 3]]
    pairs = pairs.reshape(2, count, 2).mean(2)
    for i in range(2):
        found, error = variance(plain[i])
        assert abs(found - float((2 * M - X)[i] ** 2 * S[i] ** 2 + 8 * S[i] ** 4)) < 4 * error
        found, error = variance(pairs[i])
        assert abs(found - float(8 * S[i] ** 4)) < 4 * error  # of a pair, S = 2


def test_the_mirror_image_of_an_end_is_inside():
    """A uniform may be 0; its image is the largest number below 1, not 1, where −log(1 − u) is infinite."""
    for dtype in (torch.float32, torch.float64):
        zero = dataclasses.replace(uniforms(2, dtype=dtype), make=lambda device=None, t=dtype: torch.zeros(2, dtype=t))
        (values,) = noise(by_hand(zero), 2, kind="antithetic")
        assert float(values[0].max()) == 0
        one = torch.ones((), dtype=dtype)
        assert torch.equal(values[1], torch.nextafter(one, 0 * one).expand(2))


# Scrambled Sobol points.


def test_every_scrambled_point_is_uniform():
    """Over scramblings, of the first point and of a later one; 16 coordinates of one point are independent."""
    graph, _ = graph_of(*CATALOGUE["linear_gaussian_wrong"].build(), (columns(),))
    found = torch.stack([noise(graph, 8, kind="sobol", seed=seed)[0].reshape(8, -1) for seed in range(400)])
    for i in (0, 5):
        values = found[:, i].numpy()
        assert stats.kstest(values.ravel(), "norm").pvalue > 1e-3
        count = values.size
        assert abs(values.mean()) < 4 / count**0.5
        assert abs((values**2).mean() - 1) < 4 * (2 / count) ** 0.5
        correlation = np.corrcoef(values.T) - np.eye(values.shape[1])
        assert np.abs(correlation).max() < 4.5 / 400**0.5  # the largest of 120


def stratified(count: int) -> float:
    """Variance of the mean of one normal from each of ``count`` cells of equal probability: the mean of those in the cells."""
    edges = stats.norm.ppf(np.arange(count + 1) / count)
    density = stats.norm.pdf(edges)
    moment = np.where(np.isfinite(edges), edges, 0) * density
    mean, square = -count * np.diff(density), 1 - count * np.diff(moment)
    return float((square - mean**2).sum() / count**2)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "times"), [(16, 45), (64, 256)])
def test_sobol_points_are_stratified_to_the_known_variance(conjugate, count, times):
    """∂/∂m = 2 (m + s ε) − x is linear: 4 s² times the variance of a stratified mean, far below 1 / S."""
    _, gradients = conjugate
    assert stratified(1) == pytest.approx(1, abs=1e-12)
    assert 1 / stratified(count) == pytest.approx(times * count, rel=1e-2)
    found = torch.stack([gradients("sobol", count, seed)[[0, 2]].mean(1) for seed in range(400)], 1)
    for i in range(2):
        spread, error = variance(found[i])
        assert abs(spread - 4 * float(S[i]) ** 2 * stratified(count)) < 4 * error
        assert abs(float(found[i].mean()) - float(2 * M[i] - X[i])) < 4 * (spread / 400) ** 0.5


@pytest.mark.slow
def test_on_a_linear_gaussian_pair_means_are_the_closed_form_and_sobol_varies_least():
    """The loss is quadratic in the noise: sums of functions of one coordinate, which every net stratifies to o(1 / S), and
    products of two of one datum, of which 64 points stratify some. Antithetic draws take the linear part only."""
    (model, guide), x = CATALOGUE["linear_gaussian_wrong"].build(), columns()
    graph, parameters = graph_of(model, guide, (x,))
    q = guide.distribution(x)
    gap = kl_divergence(MultivariateNormal(q.mean, torch.diag_embed(q.variance)), model.posterior(x)["z"])
    exact = float((gap - model.log_evidence(x)).sum().detach()) * NUM_DATA / BATCH
    spread = {}
    for kind in KINDS:
        seeds = range(200)
        losses = [graph.many(parameters, noise(graph, 64, kind=kind, seed=s), (x,))[0].mean() for s in seeds]
        means = torch.stack(losses)
        spread[kind] = float(means.var())
        assert abs(float(means.mean()) - exact) < 4 * (spread[kind] / 200) ** 0.5, kind
    assert spread["independent"] > 8 * spread["sobol"], spread
    assert spread["antithetic"] > 8 * spread["sobol"], spread


def test_the_first_point_has_all_its_digits_and_none_is_0_or_1():
    """torch rounds the first point to the default dtype, where it may become 1: here its last digits are as free as others."""
    graph = by_hand(uniforms(1000))
    (u,) = noise(graph, 4, kind="sobol", seed=2)
    digits = (u * 2**30 - 0.5).long()
    assert torch.equal((digits.double() + 0.5) / 2**30, u)
    for row in digits % 64:
        assert len(row.unique()) == 64


@pytest.mark.slow
def test_elements_beyond_the_sobol_dimensions_get_independent_draws():
    most, count = torch.quasirandom.SobolEngine.MAXDIM, 16
    assert most == 21201
    graph = by_hand(uniforms(7, 3000), uniforms(500))
    first, second = noise(graph, count, kind="sobol", seed=1)
    assert (first.shape, second.shape) == ((count, 7, 3000), (count, 500))
    values = torch.cat([first.reshape(count, -1), second], 1)
    cells = (values * count).floor().sort(0).values
    each = (cells == torch.arange(count, dtype=torch.float64)[:, None]).all(0)
    assert each[:most].all()
    assert each[most:].sum() == 0  # 16! / 16¹⁶ = 1e-6 of all by chance
    rest = values[:, most:].numpy().ravel()
    assert stats.kstest(rest, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(values[:, : 21500 - most].numpy().ravel(), rest)[0, 1]) < 4 / rest.size**0.5
    assert torch.equal(second, noise(graph, count, kind="sobol", seed=1)[1])


def test_sobol_points_are_joint_over_sites():
    """The hierarchy's w and z: one point for both, so that no two coordinates are the same."""
    graph, _ = graph_of(*CATALOGUE["global"].build(), CATALOGUE["global"].batch)
    w, z = noise(graph, 32, kind="sobol")
    together = torch.cat([w[:, None], z], 1)
    assert together.shape == (32, 1 + BATCH)
    assert len(together.T.unique(dim=0)) == 1 + BATCH


# What is refused.


@pytest.mark.parametrize(
    ("count", "kind", "text"),
    [
        (4, "sobl", "no kind of draws named 'sobl'; did you mean 'sobol'?"),
        (0, "independent", "at least 1, not 0"),
        (-2, "antithetic", "at least 1, not -2"),
        (3, "antithetic", "in pairs: ask for 4"),
    ],
)
def test_misuse_is_refused(conjugate, count, kind, text):
    with pytest.raises(UsageError) as caught:
        noise(conjugate[0], count, kind=kind)
    assert text in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["antithetic", "sobol"])
def test_draws_that_are_neither_normal_nor_uniform_are_refused_by_name(kind):
    x = scalars()
    cases = (
        (around(lambda loc: dist.Exponential(loc.exp())), (x,), "site 'z' is made by aten.exponential_"),
        (around(lambda loc: dist.Cauchy(loc, number(1.0))), (x,), "site 'z' is made by aten.cauchy_"),
        (CATALOGUE["inner_subsample"].build(), (scalars(NUM_DATA),), "site 'data' is made by aten.randperm"),
    )
    for pair, args, text in cases:
        with pytest.raises(InputError) as caught:
            noise(graph_of(*pair, args)[0], 4, kind=kind)
        assert text in str(caught.value)
        assert "use kind='independent'" in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_without_draws_takes_none(kind):
    assert noise(by_hand(), 4, kind=kind) == []

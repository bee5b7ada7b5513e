"""Free bits: units, clamped and free gradients against closed forms, refusals, and the records of a fit."""

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, scalars
from pyro import poutine
from small_fits import DIAGONAL, LINEAR, in_main_thread, interrupting, quick, same_fit
from torch import Tensor, nn

from pyro_vi import FitError, compare
from pyro_vi.data.loading import load
from pyro_vi.elbo import draw_traces, from_run, units_of
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators import FreeBits, Objective, get
from pyro_vi.programs import Pair, isolated
from pyro_vi.programs.build import build_pair

ROWS, DIM = 6, 3
SERVED = ("mean_field", "analytic", "trace", "stl")
X = columns(ROWS, DIM)


def wide(value: Any) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64)


class Model(nn.Module):
    """z ~ N(0, I) or a joint normal, x ~ N(w z, 1)."""

    def __init__(self, split: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.w, self.split, self.scale = nn.Parameter(wide(0.7)), split, scale

    def prior(self) -> Any:
        zeros = torch.zeros(DIM, dtype=torch.float64)
        return (
            dist.Normal(zeros, 1.0).to_event(1)
            if self.split
            else dist.MultivariateNormal(zeros, torch.eye(DIM).double())
        )

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 20, subsample=x), poutine.scale(scale=self.scale):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Normal(self.w * z, 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    """z_j ~ N(a_j x_j, s_j²): the KL of each dimension is ½ mean(s² + a² x² − 1) − log s."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.a, self.log_s = nn.Parameter(wide([0.1, 0.9, -0.4])), nn.Parameter(wide([-0.05, -1.0, 0.2]))
        self.scale = scale

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", 20, subsample=x), poutine.scale(scale=self.scale):
            pyro.sample("z", dist.Normal(self.a * x, self.log_s.exp()).to_event(1))

    def kl(self) -> Tensor:
        """The KL of each dimension, averaged over the rows."""
        return (0.5 * ((2 * self.log_s).exp() + (self.a * X).square() - 1) - self.log_s).mean(0)


def pair(split: bool = True, scale: float = 1.0) -> Any:
    return Pair(Model(split, scale), Guide(scale))


def gradients(of: Any, name: str, nats: float | None, weight: float = 1.0) -> tuple[Tensor, list[Tensor]]:
    free = None if nats is None else FreeBits(get(name), nats)
    with isolated(5, validation=False):
        loss = Objective(of, get(name), free_bits=free)((X,), weight)
        return loss.detach(), list(torch.autograd.grad(loss, list(of.parameters())))


def close(one: Any, two: Any) -> None:
    torch.testing.assert_close(one, two, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kl", ["analytic", "sampled"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_units_are_the_dimensions_of_a_diagonal_normal_and_add_up_to_the_site(kl, scale):
    of = pair(scale=scale)
    with isolated(1, validation=False):
        run = draw_traces(of.model, of.guide, (X,))
    terms = from_run(run, ROWS, kl=kl)
    found = units_of(run, terms, "z").kl
    assert found.shape == (DIM,)
    close(found.sum(), terms.sites["z"].divergence.mean())
    close(units_of(run, terms, "z").size, scale * of.guide.kl().detach())
    if kl == "analytic":
        close(found, scale * of.guide.kl())


def test_a_joint_normal_is_one_unit():
    of = pair(split=False)
    with isolated(1, validation=False):
        run = draw_traces(of.model, of.guide, (X,))
    terms = from_run(run, ROWS, kl="sampled")
    found = units_of(run, terms, "z")
    close(found.kl, terms.sites["z"].divergence.mean().unsqueeze(0))
    close(found.size, of.guide.kl().sum().detach().unsqueeze(0))  # in closed form


@pytest.mark.parametrize("mask", [False, True])
def test_units_of_images_within_a_further_plate_and_under_a_mask(mask):
    """z_nkij in plates of data and of 2 copies: a unit is a pixel, summed over the copies; masked rows have no KL."""
    keep = torch.tensor([True, False, True, True, False, True]) if mask else True
    a = wide([[0.3, -0.2], [0.8, 0.1]])

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            with poutine.mask(mask=keep), pyro.plate("copies", 2, dim=-2):
                pyro.sample("z", dist.Normal(torch.zeros(2, 2, dtype=torch.float64), 1.0).to_event(2))
            pyro.sample("x", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), poutine.mask(mask=keep), pyro.plate("copies", 2, dim=-2):
            pyro.sample("z", dist.Normal(a * x[:, :1, None], 1.0).to_event(2))

    with isolated(1, validation=False):
        run = draw_traces(model, guide, (X,))
    terms = from_run(run, ROWS, kl="analytic")
    rows = X[:, :1, None].square() * torch.as_tensor(keep).double().reshape(-1, 1, 1)
    close(units_of(run, terms, "z").kl, (a.square() * rows).mean(0).flatten())  # 2 copies of ½ a² x²
    close(units_of(run, terms, "z").kl.sum(), terms.sites["z"].divergence.mean())


@pytest.mark.parametrize("name", SERVED)
def test_below_every_kl_free_bits_change_nothing(name):
    of = pair()
    plain, free = (gradients(of, name, nats, weight=0.6) for nats in (None, -1e9))  # a sampled KL may be negative
    close(free[0], plain[0])
    close(free[1], plain[1])


@pytest.mark.parametrize("name", SERVED)
def test_a_clamped_unit_has_no_gradient_from_its_kl_and_the_others_have_theirs(name):
    """The three KLs are near .01, 1 and .2 nats; λ = .15 clamps the first one only. The weight multiplies the clamped KL."""
    of, weight, nats = pair(), 0.6, 0.15
    kl = of.guide.kl()
    assert (kl > nats).tolist() == [False, True, True]
    loss, (w, a, log_s) = gradients(of, name, nats, weight)
    plain_loss, plain = gradients(of, name, None, weight)
    _, unweighted = gradients(of, name, None, 0.0)  # the reconstruction alone
    close(w, plain[0])
    for free, whole, alone in ((a, plain[1], unweighted[1]), (log_s, plain[2], unweighted[2])):
        close(free[1:], whole[1:])
        close(free[0], alone[0])
        assert abs(float(whole[0] - alone[0])) > 1e-3
    if name in ("mean_field", "analytic"):
        close(loss - plain_loss, (weight * (nats - kl[0])).detach())
        (slope,) = torch.autograd.grad(kl[1], of.guide.log_s)
        close(log_s[1] - unweighted[2][1], weight * slope[1])


@pytest.mark.parametrize("name", SERVED)
def test_with_every_unit_clamped_the_gradient_is_that_of_the_reconstruction(name):
    of = pair()
    (loss, free), (alone, reconstruction) = gradients(of, name, 50.0, 0.6), gradients(of, name, None, 0.0)
    close(free, reconstruction)
    close(loss - alone, wide(0.6 * 50.0 * DIM))


def apart_from_the_data(first: float) -> tuple[Any, Any]:
    """z ~ N(0, I) says nothing about x; q has the means ``first``, .2 and .3."""

    def model(x: Tensor) -> None:
        w = pyro.param("w", wide(0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(DIM).double(), 1.0, validate_args=False).to_event(1))
            pyro.sample("x", dist.Normal(w, 1.0).expand([DIM]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        m = pyro.param("m", wide([first, 0.2, 0.3]))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(m, 0.9, validate_args=False).to_event(1))

    return model, guide


def test_a_clamped_unit_stays_where_it_is():
    """λ is above every KL: nothing moves, not even by the rounding that Adam would enlarge to a step."""
    run = quick(*apart_from_the_data(0.1), load(columns(20), heldout=0.0), free_bits=5.0, lr=0.1, check=False)
    assert run.params["m"].tolist() == [0.1, 0.2, 0.3]
    assert run.params["w"] != 0.3


@pytest.mark.filterwarnings("ignore:Encountered NaN")
def test_a_kl_that_is_no_number_is_not_clamped():
    with pytest.raises(FitError, match="the loss is nan at step 1"):
        quick(*apart_from_the_data(math.nan), load(columns(20), heldout=0.0), free_bits=5.0, check=False)


def test_records_have_the_plain_elbo():
    run = quick(free_bits=5.0, batch_size=1000, steps=1)
    first = run.history[0]
    assert abs(first["elbo"] - (first["reconstruction"] - first["kl"])) < 1e-10
    assert first["kl"] < 5  # of two dimensions, for which the loss counts 10 nats
    assert -first["loss"] < first["elbo"] - 4


def local_and_shared(discrete: bool = False, auxiliary: bool = False) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(wide(0.0), 1.0))
        with pyro.plate("data", 20, subsample=x):
            z = pyro.sample("z", dist.Bernoulli(wide(0.5)) if discrete else dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        v = pyro.param("v", wide(0.3))
        pyro.sample("m", dist.Normal(v, 0.5))
        with pyro.plate("data", 20, subsample=x):
            if auxiliary:
                pyro.sample("u", dist.Normal(v, 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", dist.Bernoulli(wide(0.4)) if discrete else dist.Normal(0.5 * x, 0.8))

    return model, guide


def test_the_kl_of_shared_latents_is_not_clamped():
    """KL(N(.3, .5²) ‖ N(0, 1)) = .5 (.25 + .09 − 1) + log 2, shared by 20 data; λ is above the KL of z."""
    x = scalars(ROWS)
    of = build_pair(*local_and_shared(), load(x, heldout=0.0), seed=0, rows=ROWS)
    losses = []
    for elbo, free in ((get("mean_field"), FreeBits(get("mean_field"), 9.0)), (get("mean_field"), None)):
        with isolated(3, validation=False):
            weight = 1.0 if free else 0.0
            losses.append(Objective(of, elbo, free_bits=free)((x,), weight).detach())
    shared = 0.5 * (0.25 + 0.09 - 1) + torch.log(wide(2.0))
    close(losses[0] - losses[1], 9.0 + shared / 20)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "many draws": (lambda: quick(elbo="iwae(num_particles=4)", free_bits=0.1), "not for IWAE with 4 draws; use one of"),
    "one draw of a bound": (
        lambda: quick(elbo="iwae(num_particles=1)", free_bits=0.1),
        "not for IWAE; use one of these",
    ),
    "enumeration": (lambda: quick(elbo="enum", free_bits=0.1), "not for TraceEnum_ELBO; use one of these"),
    "two draws": (lambda: quick(elbo="trace(num_particles=2)", free_bits=0.1), "not for Trace_ELBO with 2 draws"),
    "shared latents": (
        lambda: quick("regression", "diag_normal", (columns(30), scalars(30)), elbo="trace", free_bits=0.1),
        "free_bits are nats of each datum's own latents, and the model has none in a plate of data; leave free_bits out",
    ),
    "a point": (
        lambda: quick(LINEAR, "point(hidden=(4,))", elbo="trace", free_bits=0.1),
        "free_bits need a KL at each latent site, and 'z' is at a point in the guide; leave free_bits out",
    ),
    "an auxiliary site": (
        lambda: quick(*local_and_shared(auxiliary=True), load(scalars(20), heldout=0.0), elbo="trace", free_bits=0.1),
        "free_bits need a KL at each latent site, and 'u' is not in the model",
    ),
    "a discrete site": (
        lambda: quick(*local_and_shared(discrete=True), load(scalars(20), heldout=0.0), elbo="trace", free_bits=0.1),
        "the guide's distribution at site 'z' cannot be reparameterised",
    ),
    "nothing": (lambda: quick(free_bits=0.0), "free_bits must be a number above 0, not 0.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_free_bits_is_refused_in_one_line(name):
    call, text = REFUSED[name]
    with pytest.raises((UsageError, InputError)) as caught:
        call()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_comparison_is_refused_before_its_fits(tmp_path):
    with pytest.raises(UsageError, match="not for IWAE"):
        compare(
            LINEAR, DIAGONAL, load(columns(50)), elbos=("trace", "iwae"), free_bits=0.1, steps=4, out=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@in_main_thread
@pytest.mark.slow
@pytest.mark.parametrize("elbo", ["mean_field", "stl"])
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one(elbo, tmp_path):
    options = {"elbo": elbo, "free_bits": 0.2, "batch_size": 10, "steps": 9}
    with pytest.raises(KeyboardInterrupt):
        quick(optimizer=interrupting(4), out=tmp_path / "run", **options)
    resumed = quick(optimizer=interrupting(), out=tmp_path / "run", resume=True, **options)
    assert same_fit(resumed, quick(optimizer=interrupting(), **options))

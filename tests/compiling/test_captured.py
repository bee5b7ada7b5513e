"""Captured steps are the eager ones, over programs, optimizers and failures: bit for bit where no norm is clipped."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from catalogue import CATALOGUE, columns, marked, number, scalars, slope
from estimator_catalogue import SMALL, functions, modules
from small_fits import DIAGONAL, LINEAR, in_main_thread, quick, same_fit
from torch import Tensor, nn

from pyro_vi import FitError, Run
from pyro_vi.compiling.captured import CapturedSteps
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError

KEYS = ("step", "epoch", "loss", "elbo", "reconstruction", "kl", "grad_norm", "lr", "beta")
ROWS, SIZE = 20, 8  # an epoch is 8 + 8 + 4


def taken(model: Any, guide: Any, compile: Any, values: Any = None, **options: Any) -> Run:
    values = load(scalars(ROWS), heldout=0.0) if values is None else values
    options = {"elbo": "trace", "steps": 12, "batch_size": SIZE, "lr": 0.05, "check": False, "seed": 3, **options}
    return quick(model, guide, values, compile=compile, **options)


def assert_same(one: Run, two: Run, digits: float = 1e-12) -> None:
    for name, value in one.pair.state_dict().items():
        torch.testing.assert_close(two.pair.state_dict()[name], value, rtol=digits, atol=digits / 1e3)
    assert len(one.history) == len(two.history)
    for a, b in zip(one.history, two.history, strict=True):
        for key in KEYS:
            assert b[key] == pytest.approx(a[key], rel=digits, abs=digits / 1e2, nan_ok=True), (key, a["step"])


def assert_captured_is_eager(make: Callable[[], Any], lengths: set[int] | None = None, **options: Any) -> Run:
    """The parameters, buffers and states have the bits of eager steps, unless a norm is clipped; records differ by rounding."""
    eager, captured = (taken(*make(), compile, **options) for compile in (False, "captured"))
    assert captured.choice is not None and captured.choice.lengths == ()
    assert set(captured.choice.captured) == ({8, 4} if lengths is None else lengths)
    assert_same(eager, captured)
    if options.get("clip_norm") is None:
        first, second = eager.pair.state_dict(), captured.pair.state_dict()
        assert all(torch.equal(second[name], value) for name, value in first.items())
    return captured


def small(kind: str = "continuous", dtype: torch.dtype = torch.float64) -> Callable[[], Any]:
    return lambda: modules(SMALL[kind], dtype)


# ---- programs


class Own(nn.Module):
    """x ~ N(f(z), 1) by a network of the test's."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net.double()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.net(z), 1.0).to_event(1), obs=x)


class Encoder(nn.Module):
    def __init__(self, law: Callable[[Tensor], Any] | None = None) -> None:
        super().__init__()
        self.net = nn.Linear(3, 6).double()
        self.law = law or (lambda h: dist.Normal(h[:, :3], h[:, 3:].exp()).to_event(1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.law(self.net(x)))


class Tied(nn.Module):
    """The weight of one layer is the transposed weight of the other, and one layer is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(3, 3), nn.Linear(3, 3)
        self.two.weight = self.one.weight

    def forward(self, z: Tensor) -> Tensor:
        return self.two(self.one(z).tanh()) + self.one(z) @ self.two.weight


class Counting(nn.Module):
    """Counts its calls in a buffer, keeps an average in another, and replaces a third."""

    count: Tensor
    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(3))
        self.register_buffer("last", torch.zeros(3))

    def forward(self, z: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.average.mul_(0.9).add_(z.detach().mean(0), alpha=0.1)
            self.last = z.detach()[0].clone()
        return z * self.weight + self.average / self.count.clamp(min=1)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = nn.GRUCell(1, 4), nn.Linear(4, 1)

    def forward(self, z: Tensor) -> Tensor:
        h, found = z.new_zeros(len(z), 4), []
        for i in range(3):
            h = self.cell(z[:, i : i + 1], h)
            found.append(self.out(h))
        return torch.cat(found, 1)


class Convolved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv1d(1, 2, 3, padding=1), nn.ConvTranspose1d(2, 1, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        return self.two(self.one(z[:, None]).relu())[:, 0]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)),
    "dropout": lambda: nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.3), nn.Linear(4, 3)),
    "layer norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.GELU(), nn.Linear(4, 3)),
    "tied weights": Tied,
    "buffers": Counting,
    "recurrent": Recurrent,
    "convolutions": Convolved,
    "a parameter that is not used": lambda: nn.Sequential(nn.Linear(3, 3), Unused()),
}
FEW_NETWORKS = ("batch norm",)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Parameter(torch.ones(2))

    def forward(self, z: Tensor) -> Tensor:
        return z


def mostly_slow(table: Any, *fast: str) -> list[Any]:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in table]


def networks(name: str) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(1)
        return Own(NETWORKS[name]()), Encoder()

    return make


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(NETWORKS, *FEW_NETWORKS))
def test_networks_and_their_buffers(name):
    assert_captured_is_eager(networks(name), values=load(columns(ROWS), heldout=0.0))


LAWS: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Any]]] = {
    "gamma": (lambda x: dist.Gamma(x.exp(), 1.0), lambda x: dist.Gamma(x.exp() + 0.5, 2.0)),
    "dirichlet": (
        lambda x: dist.Dirichlet(x.new_ones(3)),
        lambda x: dist.Dirichlet(torch.stack([x.exp(), 1 + x**2, x.sigmoid() + 1], -1)),
    ),
    "beta": (lambda x: dist.Beta(1.0 + 0 * x, 1.0 + 0 * x), lambda x: dist.Beta(x.exp() + 1, 2.0 + 0 * x)),
    "bernoulli": (lambda x: dist.Bernoulli(logits=0 * x), lambda x: dist.Bernoulli(logits=x)),
    "categorical": (
        lambda x: dist.Categorical(logits=x.new_zeros(3)),
        lambda x: dist.Categorical(logits=torch.stack([x, x * 2, -x], -1)),
    ),
    "poisson": (lambda x: dist.Poisson(1.0 + 0 * x), lambda x: dist.Poisson(x.exp())),
    "student": (lambda x: dist.StudentT(4.0, 0 * x, 1.0), lambda x: dist.Normal(x, 1.0)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(LAWS, "categorical"))
def test_draws(name):
    prior, posterior = LAWS[name]

    def model(x: Tensor) -> None:
        b = pyro.param("b", number(0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior(b + 0 * x))
            z = z if z.shape == x.shape else z[..., 0]
            pyro.sample("x", dist.Normal(z * b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        a = pyro.param("a", number(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", posterior(a * x))

    assert_captured_is_eager(lambda: (model, guide), lr=0.01)


PROGRAMS: dict[str, dict[str, Any]] = {
    "annealed": {"beta": 0.7, "warmup": 5, "schedule": "cosine"},
    "clipped": {"clip_norm": 0.3, "schedule": "linear"},
    "cycles": {"cycles": 2},
    "free bits": {"free_bits": 0.3, "elbo": "mean_field", "warmup": 3},
    "many draws": {"elbo": "iwae"},
    "averaged": {"average": "polynomial"},
    "full batch": {"batch_size": ROWS, "lengths": {ROWS}},
    "one row": {"batch_size": 1, "lengths": {1}},
    "a last row": {"batch_size": 19, "lengths": {19, 1}},
    "accumulated": {"batch_size": 4, "accumulate": 3, "clip_norm": 2.0, "lengths": {12, 8}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(PROGRAMS, "clipped"))
def test_options(name):
    options = {"values": load(columns(ROWS), heldout=0.0), **PROGRAMS[name]}
    assert_captured_is_eager(lambda: (LINEAR, DIAGONAL), **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CATALOGUE))
def test_each_pair_of_the_catalogue(name):
    entry = CATALOGUE[name]
    many = len(entry.batch[0])
    assert_captured_is_eager(entry.build, {many}, values=load(entry.batch, heldout=0.0), batch_size=many, steps=4)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)], ids=str)
def test_the_bits_of_either_precision(dtype):
    values = load(scalars(ROWS).to(dtype), heldout=0.0)
    eager, captured = (taken(*small(dtype=dtype)(), compile, values) for compile in (False, "captured"))
    assert captured.choice is not None and captured.choice.captured
    for name, value in eager.pair.state_dict().items():
        assert value.dtype == dtype
        assert torch.equal(captured.pair.state_dict()[name], value)


@pytest.mark.slow
def test_enumeration():
    assert_captured_is_eager(lambda: functions(SMALL["discrete"], infer={"enumerate": "parallel"}), elbo="enum")


@pytest.mark.slow
def test_data_that_are_read_from_a_file(tmp_path):
    np.save(tmp_path / "rows.npy", columns(ROWS).numpy())
    mapped = load(np.load(tmp_path / "rows.npy", mmap_mode="r"), dtype=torch.float64, heldout=0.0)
    assert mapped.mapped
    one = assert_captured_is_eager(lambda: (LINEAR, DIAGONAL), values=mapped)
    two = taken(LINEAR, DIAGONAL, "captured", load(columns(ROWS), heldout=0.0))
    assert same_fit(one, two)


@pytest.mark.slow
def test_data_that_are_drawn_anew_in_each_epoch():
    values = load("digits", dtype=torch.float64)
    pair = lambda: ("vae(latent_dim=2, hidden=(4,))", "diag_normal(hidden=(4,))")  # noqa: E731
    assert_captured_is_eager(pair, {700, 98}, values=values, batch_size=700, steps=7, lr=1e-3)


# ---- optimizers


class InState(torch.optim.SGD):
    """Counts in a number of its state, and lowers its rate by it."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["calls"] = self.state[p].get("calls", 0) + 1
            group["lr"] = 0.03 / self.state[group["params"][0]]["calls"]
        return super().step(closure)


def hooked(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(parameters, 0.03)

    def doubling(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad.mul_(2)

    optimizer.register_step_pre_hook(doubling)
    return optimizer


ADAM, ADAMW, SGD = torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: partial(ADAM, lr=0.03),
    "Adam, fused": lambda: partial(ADAM, lr=0.03, fused=True),
    "AMSGrad, fused": lambda: partial(ADAM, lr=0.03, fused=True, amsgrad=True, weight_decay=0.1),
    "AdamW, fused": lambda: partial(ADAMW, lr=0.03, fused=True, weight_decay=0.2),
    "SGD, momentum": lambda: partial(SGD, lr=0.03, momentum=0.8, weight_decay=0.1),
    "numbers in the state": lambda: partial(InState, lr=0.03),
    "hooks": lambda: hooked,
    "Pyro's": lambda: pyro.optim.Adam({"lr": 0.02}),
    "Pyro's, clipped": lambda: pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 0.5, "lrd": 0.9}),
    "Pyro's, momentum": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_slow(OPTIMIZERS, "numbers in the state"))
def test_optimizers(name):
    assert_captured_is_eager(small(), optimizer=OPTIMIZERS[name](), schedule="cosine")


class Switching(nn.Module):
    """Uses one of its parameters in batches of full length only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(number(0.5)), nn.Parameter(number(0.3))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.one * z + (self.two if len(x) == SIZE else 0.0), 1.0), obs=x)


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}), marks=pytest.mark.slow),
        lambda: pyro.optim.Adam({"lr": 0.02, "fused": True}),
        pytest.param(lambda: partial(ADAM, lr=0.02, fused=True), marks=pytest.mark.slow),
        pytest.param(lambda: partial(SGD, lr=0.02, momentum=0.9), marks=pytest.mark.slow),
    ],
    ids=["Pyro's momentum", "Pyro's fused Adam", "fused Adam", "momentum"],
)
def test_a_parameter_whose_gradient_vanishes_now_and_then(optimizer):
    """SVI moves it on by its momentum; torch leaves it alone."""
    assert_captured_is_eager(lambda: (Switching(), slope), optimizer=optimizer())


def test_gradient_hooks_are_refused():
    model, guide = small()()
    next(model.parameters()).register_hook(lambda gradient: gradient * 2)
    with pytest.raises(InputError, match=r"^the step cannot be captured: a parameter has a hook on its gradient"):
        taken(model, guide, "captured")


def stepping(x: Tensor) -> None:
    """Moves a parameter itself."""
    a = pyro.param("a", number(0.1))
    with torch.no_grad():
        a.add_(0.01)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(a * x, 1.0))


@pytest.mark.parametrize("guide", [stepping])
def test_a_parameter_that_the_programs_change_is_no_graph_and_stays_right(guide):
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    eager, captured = [], []
    for compile, found in ((False, eager), ("captured", captured)):
        try:
            found.append(taken(model, guide, compile))
        except InputError as error:
            assert compile and "the step cannot be captured" in str(error)
            found.append(None)
    if captured[0] is not None:
        assert same_fit(eager[0], captured[0])


# ---- interruptions


@in_main_thread
@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 6, 7])
def test_a_resumed_captured_fit_has_the_bits_of_an_uninterrupted_one(stop, tmp_path, monkeypatch):
    options: dict[str, Any] = {"clip_norm": 0.5, "warmup": 4, "schedule": "cosine"}

    def run(stop: int | None, out: Path | None, **more: Any) -> Run:
        def interrupt(record: dict[str, Any]) -> None:
            if record["step"] == stop:
                signal.raise_signal(signal.SIGINT)

        return taken(
            *networks("batch norm")(),
            "captured",
            load(columns(ROWS), heldout=0.0),
            out=out,
            callbacks=interrupt,
            **options,
            **more,
        )

    with pytest.raises(KeyboardInterrupt):
        run(stop, tmp_path / "run")
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert sorted(state["compiled"]["captured"]) == [4, 8]
    resumed = run(None, tmp_path / "run", resume=True)
    assert resumed.choice is not None and set(resumed.choice.captured) == {8, 4}
    assert same_fit(resumed, run(None, None))


# ---- what is not finite


def leaving(values: Tensor, policy: str, compile: Any) -> tuple[Any, str]:
    lines: list[str] = []
    try:
        run = taken(marked, slope, compile, load(values, heldout=0.0), nonfinite=policy, steps=30, seed=2)
    except FitError as error:
        return None, str(error)
    return run, "\n".join(lines)


@pytest.mark.parametrize("policy", mostly_slow(("stop", "skip", "restore"), "restore"))
@pytest.mark.parametrize("datum", [10, pytest.param(97, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_is_left_out_as_by_eager_steps(policy, datum):
    values = scalars(100)
    values[datum] = 99.0
    (eager, said), (captured, told) = (leaving(values, policy, compile) for compile in (False, "captured"))
    assert said == told
    assert (eager is None) == (policy == "stop") == (captured is None)
    if eager is not None:
        assert captured.choice.captured
        assert_same(eager, captured)
        assert eager.history[-1]["skipped"] == captured.history[-1]["skipped"] > 0


class Jittered(nn.Module):
    """Its Cholesky factor does not exist for some data; then it takes another, as with jitter."""

    def __init__(self, catches: bool = True) -> None:
        super().__init__()
        self.w, self.catches = nn.Parameter(number(0.5)), catches

    def forward(self, x: Tensor) -> None:
        matrix = torch.eye(2, dtype=x.dtype) * torch.where((x > 50).any(), -1.0, 1.0)
        try:
            factor = torch.linalg.cholesky(matrix)
        except RuntimeError:
            if not self.catches:
                raise
            factor = torch.linalg.cholesky(matrix + 5 * torch.eye(2, dtype=x.dtype))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(self.w * factor[0, 0] * z, 1.0), obs=x.clamp(max=3))


@pytest.mark.slow
def test_where_an_operation_raises_the_eager_step_decides():
    """And the steps after it are captured again."""
    values = scalars(100)
    values[60] = 99.0
    calls, step = [], CapturedSteps.__call__

    def noting(self: CapturedSteps, *given: Any) -> Any:
        calls.append(done := step(self, *given))
        return done

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CapturedSteps, "__call__", noting)
        assert_captured_is_eager(lambda: (Jittered(), slope), values=load(values, heldout=0.0), steps=30)
    assert calls.count(None) in (2, 3)
    assert calls[-1] is not None
    texts = []
    for compile in (False, "captured"):
        with pytest.raises(FitError, match=r"linalg\.cholesky") as caught:
            taken(Jittered(catches=False), slope, compile, load(values, heldout=0.0), steps=30)
        texts.append(str(caught.value))
    assert texts[0] == texts[1]

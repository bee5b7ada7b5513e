"""Optimizers and schedules as people give them: under Pyro's, the steps of `pyro.infer.SVI`; a resumed fit to the bit."""

import copy
import math
import os
import signal
from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from catalogue import columns
from pyro.infer import SVI, Trace_ELBO
from small_fits import in_main_thread, quick, same_fit
from torch import Tensor, nn
from torch.distributions import constraints
from torch.optim import lr_scheduler

from pyro_vi import FitError, Run, UsageError, fit
from pyro_vi.data.loading import load
from pyro_vi.fitting.named_optimizers import OPTIMIZERS
from pyro_vi.fitting.optimizers import recipe_of
from pyro_vi.fitting.stepping import Stepper, clip, norm_of

# ---- Pyro's optimizers take the steps of SVI

STEPS, SEED = 6, 7


def regression() -> tuple[Callable[[Tensor], None], Callable[[Tensor], None], Tensor]:
    """A network, a plain and a constrained parameter, and a global latent, so that the order of the rows does not matter."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = nn.Sequential(nn.Linear(1, 2), nn.Tanh(), nn.Linear(2, 1)).double()
        x = torch.randn(30, dtype=torch.float64) + 2
    zero = torch.zeros((), dtype=torch.float64)

    def model(x: Tensor) -> None:
        pyro.module("decoder", network)
        b = pyro.param("b", zero + 0.3)
        z = pyro.sample("z", dist.Normal(zero, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(network(z.reshape(1, 1)).squeeze() + b, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", zero + 0.5, constraint=constraints.positive)
        pyro.sample("z", dist.Normal(pyro.param("loc", zero + 0.1), scale))

    return model, guide, x


def by_svi(make: Callable[[], Any]) -> tuple[dict[str, Tensor], float]:
    model, guide, x = regression()
    with pyro.get_param_store().scope(), torch.random.fork_rng():
        torch.manual_seed(SEED)
        optimizer = make()
        svi = SVI(model, guide, optimizer, Trace_ELBO())
        for _ in range(STEPS):
            loss = svi.step(x)
            if hasattr(optimizer, "step"):  # once per epoch
                optimizer.step(*([loss] if "patience" in optimizer.kwargs else []))
        store = pyro.get_param_store()
        return {n.replace("$$$", "."): store[n].unconstrained().detach() for n in store.keys()}, loss  # noqa: SIM118


def by_fit(optimizer: Any, **options: Any) -> Run:
    model, guide, x = regression()
    data = load(x, heldout=0.0)
    settings = {"steps": STEPS, "seed": SEED, "batch_size": len(x), "compile": False, "progress": False, **options}
    return fit(model, guide, data, elbo="trace", optimizer=optimizer, **settings)


def rates(name: str) -> dict[str, float]:
    return {"lr": {"decoder.0.weight": 0.01, "b": 0.1, "scale": 0.02}.get(name, 0.05)}


def rates_of_two(module: str, name: str) -> dict[str, float]:
    return {"lr": 0.01 if module == "decoder" else 0.05, "weight_decay": 0.1 if name == "0.weight" else 0.0}


def limits(module: str, name: str) -> dict[str, float]:
    return {"clip_value": 0.5} if module == "decoder" else {"clip_norm": 0.2}


def wrapped(**options: Any) -> dict[str, Any]:
    return {"optimizer": torch.optim.SGD, "optim_args": {"lr": 1e-3}, **options}


PYROS = {
    "SGD": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.8, "clip_norm": 0.5}),
    "rates by name": lambda: pyro.optim.Adam(rates),
    "rates by module and name": lambda: pyro.optim.Adam(rates_of_two),
    "a limit": lambda: pyro.optim.SGD({"lr": 1e-2}, {"clip_norm": 1.0}),
    "limits by name": lambda: pyro.optim.SGD({"lr": 1e-2}, limits),
    "no rate": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "ExponentialLR": lambda: pyro.optim.ExponentialLR(wrapped(gamma=0.7)),
    "ReduceLROnPlateau": lambda: pyro.optim.ReduceLROnPlateau(wrapped(factor=0.5, patience=0, threshold=0.5)),
}


@pytest.mark.parametrize("name", PYROS)
def test_pyros_optimizers_take_the_steps_of_svi(name):
    wanted, loss = by_svi(PYROS[name])
    run = by_fit(PYROS[name]())
    assert run.history[-1]["loss"] == pytest.approx(loss / 30, rel=1e-9)
    found = {name: parameter.detach() for name, (_, parameter) in run.pair.owned().items()}
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=0)


def test_other_optimizers_step_on_the_loss_per_datum():
    """So SGD with N times the rate takes the steps of SVI."""
    wanted, _ = by_svi(lambda: pyro.optim.SGD({"lr": 1e-3}))
    for optimizer, options in (
        (partial(torch.optim.SGD, lr=30e-3), {}),
        (torch.optim.SGD, {"lr": 30e-3}),
        ("sgd", {"lr": 30e-3, "schedule": "constant"}),
        ("SGD(lr=0.03)", {"schedule": "constant"}),
    ):
        run = by_fit(optimizer, **options)
        for key, value in wanted.items():
            torch.testing.assert_close(run.pair.owned()[key][1].detach(), value, rtol=1e-9, atol=0)


def test_records_are_per_datum_whatever_the_optimizer_steps_on():
    pyros, ours = by_fit(pyro.optim.SGD({"lr": 1e-3}), steps=1), by_fit(partial(torch.optim.SGD, lr=30e-3), steps=1)
    for key in ("loss", "grad_norm", "elbo"):
        assert pyros.history[0][key] == pytest.approx(ours.history[0][key], rel=1e-9)
    assert pyros.history[0]["lr"] == 1e-3
    limit = pyros.history[0]["grad_norm"] / 4
    clipped = [
        by_fit(o, steps=1, clip_norm=limit) for o in (pyro.optim.SGD({"lr": 1e-3}), partial(torch.optim.SGD, lr=0.03))
    ]
    assert clipped[0].history[0]["grad_norm"] == pytest.approx(limit, rel=1e-5)
    assert all(
        torch.allclose(a, b, rtol=1e-7) for a, b in zip(*(run.pair.parameters() for run in clipped), strict=True)
    )


# ---- learning rates


class Rates(torch.optim.SGD):
    """SGD that notes the rate of each step, and then halves its own."""

    decay = 1.0

    def __init__(self, parameters: Any, lr: float = 1e-3) -> None:
        super().__init__(parameters, lr)
        self.seen: list[float] = []
        seen.append(self.seen)

    def step(self, closure: Any = None) -> None:
        self.seen.append(self.param_groups[0]["lr"])
        super().step(closure)
        self.param_groups[0]["lr"] *= self.decay


class Halving(Rates):
    decay = 0.5


seen: list[list[float]] = []


@pytest.mark.parametrize(
    ("optimizer", "schedule", "wanted"),
    [
        (Rates, None, [1, 1, 1, 1]),
        (Halving, None, [1, 0.5, 0.25, 0.125]),
        (Halving, "constant", [1, 0.5, 0.25, 0.125]),
        (Halving, "linear", [1, 0.75 / 2, 0.5 / 4, 0.25 / 8]),
        (Rates, "cosine", [0.5 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]),
        (Rates, partial(lr_scheduler.StepLR, step_size=1, gamma=0.1), [1, 1, 0.1, 0.1]),
        (Halving, partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)), [1, 0.5, 0.5, 0.25]),
    ],
)
def test_the_rate_of_each_step(optimizer, schedule, wanted):
    """Two steps are an epoch here."""
    seen.clear()
    quick(steps=4, batch_size=30, optimizer=optimizer, lr=0.1, schedule=schedule, compile=False)
    assert seen[0] == pytest.approx([0.1 * rate for rate in wanted], rel=1e-12)


def test_a_plateau_is_of_the_mean_loss_of_an_epoch():
    losses: list[float] = []

    class Noting(lr_scheduler.ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:
            losses.append(float(metrics))
            super().step(metrics)

    run = quick(steps=5, batch_size=30, optimizer="sgd", schedule=Noting, compile=False)
    every = [record["loss"] for record in run.history]
    assert losses == pytest.approx([sum(every[:2]) / 2, sum(every[2:4]) / 2], rel=1e-12)


def group_rates(lr: Any) -> dict[str, float]:
    owned = quick(steps=1).pair.owned()
    kept: list[Any] = []

    class Kept(torch.optim.SGD):
        def __init__(self, parameters: Any, lr: float = 1e-3) -> None:
            super().__init__(parameters, lr)
            kept.append(self)

    run = quick(steps=1, optimizer=Kept, lr=lr, compile=False)
    by_id = {id(p): group["lr"] for group in kept[0].param_groups for p in group["params"]}
    assert owned.keys() == run.pair.owned().keys()
    return {name: by_id[id(p)] for name, (_, p) in run.pair.owned().items()}


@pytest.mark.slow
def test_rates_of_model_and_guide_and_by_name():
    owners = {name: owner for name, (owner, _) in quick(steps=1).pair.owned().items()}
    first = next(name for name, owner in owners.items() if owner == "guide")
    prefix = first.split(".")[0]
    plain = {name: 1e-3 if owner == "model" else 1e-2 for name, owner in owners.items()}
    assert group_rates({"model": 1e-3, "guide": 1e-2}) == plain
    assert group_rates({"model": 1e-3, "guide": 1e-2, first: 0.0})[first] == 0.0
    by_prefix = group_rates({"model": 1e-3, "guide": 1e-2, prefix: 0.5})
    assert by_prefix == {n: 0.5 if n == prefix or n.startswith(f"{prefix}.") else rate for n, rate in plain.items()}
    assert group_rates(lambda name: plain[name] / 2) == {name: rate / 2 for name, rate in plain.items()}


# ---- resuming

SCHEDULERS: dict[str, Any] = {
    "StepLR": partial(lr_scheduler.StepLR, step_size=1, gamma=0.5),
    "MultiStepLR": partial(lr_scheduler.MultiStepLR, milestones=[1, 3], gamma=0.5),
    "LambdaLR": partial(lr_scheduler.LambdaLR, lr_lambda=lambda epoch: 0.9**epoch),
    "CosineAnnealingWarmRestarts": partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=2),
    "OneCycleLR": partial(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=10),
    "CyclicLR": partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=2),
    "ReduceLROnPlateau": partial(lr_scheduler.ReduceLROnPlateau, patience=0, threshold=0.5),
    "SequentialLR": lambda optimizer: lr_scheduler.SequentialLR(
        optimizer, [lr_scheduler.ConstantLR(optimizer, 0.1), lr_scheduler.ExponentialLR(optimizer, 0.9)], milestones=[2]
    ),
}


@pytest.mark.slow
@in_main_thread
@pytest.mark.parametrize("stop", [3, 4])
@pytest.mark.parametrize("name", ["pyro", "clipped", *SCHEDULERS])
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one_under_each_schedule(
    name, stop, tmp_path, monkeypatch, few_records
):
    """Within an epoch of two steps, and at its end."""
    given: dict[str, Any] = {"optimizer": "sgd(momentum=0.9)", "schedule": SCHEDULERS.get(name)}
    if name == "pyro":
        given = {"optimizer": pyro.optim.ExponentialLR(wrapped(gamma=0.7))}
    if name == "clipped":
        given = {"optimizer": pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.8})}
    options = {"steps": 7, "batch_size": 30, "compile": False}
    whole = quick(**options, **copy.deepcopy(given))

    taken, descend = [0], Stepper.descend

    def interrupted(self: Any, *args: Any) -> bool:
        found = descend(self, *args)
        taken[0] += 1
        if taken[0] == stop:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    monkeypatch.setattr(Stepper, "descend", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quick(**options, **copy.deepcopy(given), out=tmp_path / "run")
    assert same_fit(quick(**options, **copy.deepcopy(given), out=tmp_path / "run", resume=True), whole)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"optimizer": partial(torch.optim.SGD, lr=0.2)}, "the options of the optimizer have changed"),
        ({"schedule": partial(lr_scheduler.StepLR, step_size=2)}, "the scheduler has changed"),
    ],
)
def test_a_run_is_not_resumed_with_another_optimizer_of_the_same_name(other, said, tmp_path):
    options = {"optimizer": partial(torch.optim.SGD, lr=0.1), "out": tmp_path / "run", "steps": 2}
    quick(**options)
    with pytest.raises(UsageError, match=f"holds a run with other settings \\({said}\\)"):
        quick(**{**options, "resume": True, **other})


# ---- what cannot be


def stranger(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(2))], 0.1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"optimizer": 3}, "optimizer must be a name, a class of torch.optim, a function that makes an optimizer"),
        ({"optimizer": "adm"}, "no optimizer named 'adm'; did you mean 'adam'?"),
        ({"optimizer": "sgd(momentun=0.9)"}, "optimizer 'sgd' has no option 'momentun'; did you mean 'momentum'?"),
        ({"optimizer": "sgd(momentum=-1)"}, "optimizer sgd(momentum=-1) cannot be made: ValueError: Invalid momentum"),
        ({"optimizer": "lbfgs"}, "optimizer LBFGS evaluates the loss several times in a step"),
        ({"optimizer": torch.optim.LBFGS}, "optimizer LBFGS evaluates the loss several times in a step"),
        ({"optimizer": torch.optim.Adam([nn.Parameter(torch.zeros(1))])}, "optimizer is an Adam that holds parameters"),
        ({"optimizer": stranger}, "the optimizer holds parameters that the fit does not have"),
        ({"optimizer": lambda p: None}, "optimizer must make a torch optimizer of the parameters, not a NoneType"),
        ({"optimizer": lambda p: 1 / 0}, "cannot be made: ZeroDivisionError: division by zero"),
        ({"optimizer": pyro.optim.Adam(lambda name: 0.1)}, "must be a dictionary, not 0.1"),
        (
            {"schedule": 3},
            "schedule must be one of constant, linear, cosine, plateau, or a function that makes a torch scheduler",
        ),
        ({"schedule": lambda optimizer: 3}, "schedule must make a torch scheduler of the optimizer, not an int"),
        ({"schedule": lr_scheduler.StepLR}, "schedule cannot be made: TypeError"),
        ({"lr": {"model": 0.1}}, "lr has no rate for parameter '"),
        ({"lr": {"model": 0.1, "guide": 0.1, "lok": 0.1}}, "lr names 'lok', which is no parameter of the pair"),
        ({"lr": {"model": "fast"}}, "lr of 'model' must be a number of at least 0, not 'fast'"),
        ({"optimizer": "adagrad_rmsprop", "schedule": "cosine"}, "AdagradRMSProp has no learning rate that a schedule"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, said, tmp_path):
    with pytest.raises(UsageError) as caught:
        quick(**options, out=tmp_path / "run")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_optimizer_that_fails_is_named():
    def fails(parameters: Any) -> torch.optim.Optimizer:
        optimizer = torch.optim.SGD(parameters, 0.1)
        optimizer.register_step_pre_hook(lambda *_: 1 / 0)
        return optimizer

    with pytest.raises(
        FitError, match=r"^at step 1 \(epoch 0, batch 0\), the optimizer SGD fails: ZeroDivisionError: div"
    ):
        quick(optimizer=fails)


@pytest.mark.slow
def test_names():
    assert {"adam", "adamw", "sgd", "rmsprop", "adagrad", "nadam", "clipped_adam"} <= OPTIMIZERS.keys()
    assert recipe_of("ClippedAdam").name == "ClippedAdam"
    assert same_fit(quick(optimizer="adam"), quick())


# ---- sparse gradients, hooks


class Looked(nn.Module):
    """Rows of a table with sparse gradients."""

    def __init__(self, sparse: bool) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(torch.ones(4, 1), freeze=False, sparse=sparse)

    def forward(self, x: Tensor) -> None:
        mean = self.table(torch.tensor([1, 2])).mean()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def test_sparse_gradients_take_the_steps_of_dense_ones():
    def run(sparse: bool) -> Run:
        options = {"optimizer": "sgd", "clip_norm": 0.01, "compile": "auto"}
        return quick(Looked(sparse), lambda x: None, load(columns(50)[:, 0]), elbo="trace", **options)

    one, two = run(True), run(False)
    assert torch.equal(*(r.model.table.weight for r in (one, two)))
    assert one.history[-1]["grad_norm"] == pytest.approx(two.history[-1]["grad_norm"], rel=1e-6)
    with pytest.raises(UsageError, match=r"'model.table' has sparse gradients, which Adam cannot take"):
        quick(Looked(True), lambda x: None, load(columns(50)[:, 0]), elbo="trace")


def test_norm_and_limit_of_dense_and_sparse_gradients():
    dense, table = nn.Parameter(torch.zeros(2)), nn.Embedding(3, 1, sparse=True)
    dense.grad = torch.tensor([3.0, 0.0])
    table(torch.tensor([1, 1])).sum().mul(2.0).backward()  # one row, met twice
    gradients = [dense.grad, table.weight.grad]
    assert float(norm_of(gradients)) == 5.0
    clip([dense, table.weight], 2.5)
    assert dense.grad.tolist() == pytest.approx([1.5, 0.0])
    assert float(norm_of([dense.grad, table.weight.grad])) == pytest.approx(2.5)


@pytest.mark.parametrize("kind", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_hook_on_a_gradient_keeps_the_steps_eager(kind):
    """A hook that changes nothing looks the same in a graph without it."""
    called: list[int] = []
    note: Any = (lambda gradient: called.append(1)) if kind == "register_hook" else lambda parameter: called.append(1)

    def make(parameters: Any) -> torch.optim.Optimizer:
        parameters = list(parameters)
        getattr(parameters[0], kind)(note)
        return torch.optim.SGD(parameters, 1e-3)

    run = quick(steps=3, optimizer=make, compile="auto")
    assert len(called) == 3
    assert not run.compiled

"""Steps of torch's optimizers without the import of torch's compiler: the same bits, hooks and counts as `step()` has."""

import functools
import subprocess
import sys
import types
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop

from pyro_vi.support import torch_internals
from pyro_vi.support.torch_internals import take_step, without_compiler
from pyro_vi.tracing import record

MADE = {
    "adam": lambda p: Adam(p, 0.1),
    "fused": lambda p: Adam(p, 0.1, fused=True),
    "amsgrad": lambda p: AdamW(p, 0.1, amsgrad=True, foreach=True),
    "sgd": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "rmsprop": lambda p: RMSprop(p, 0.1),
    "adagrad": lambda p: Adagrad(p, 0.1),
    "nadam": lambda p: NAdam(p, 0.1),
}


@pytest.fixture
def not_imported(monkeypatch):
    """As in a process that has not imported torch's compiler."""
    monkeypatch.setattr(torch_internals, "COMPILER", "torch.nothing")


def stepped(make, step, times=3, schedule=True) -> list[torch.Tensor]:
    parameter = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 7))
    optimizer = make([parameter])
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) if schedule else None
    for number in range(times):
        parameter.grad = torch.cos(number + torch.arange(7.0))
        step(optimizer)
        if scheduler is not None:
            scheduler.step()
    return [
        parameter.detach(),
        *(v for _, v in sorted(optimizer.state[parameter].items()) if isinstance(v, torch.Tensor)),
    ]


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("schedule", [True, False], ids=["schedule", "constant"])
def test_a_step_has_the_same_bits(name, schedule, not_imported):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a scheduler warns if it knows of no step
        own = stepped(MADE[name], take_step, schedule=schedule)
    expected = stepped(MADE[name], lambda optimizer: optimizer.step(), schedule=schedule)
    assert all(map(torch.equal, own, expected))
    assert not torch.equal(own[0], torch.linspace(-1.0, 1.0, 7))


def optimizer_of(**options) -> SGD:
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.ones(2)
    return SGD([parameter], 0.1, **options)


def test_what_else_hangs_on_a_step_is_done(not_imported):
    """Hooks of an optimizer and of all optimizers, and a method of its own."""
    optimizer, seen = optimizer_of(), list[str]()
    of_all = sys.modules[Optimizer.__module__].register_optimizer_step_post_hook(lambda *_: seen.append("all"))
    try:
        take_step(optimizer)
    finally:
        of_all.remove()
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    take_step(optimizer)
    optimizer.step = lambda: seen.append("own")
    take_step(optimizer)
    assert seen == ["all", "before", "after", "own"]


@pytest.mark.parametrize("schedule", [True, False], ids=["schedule", "constant"])
def test_a_method_or_a_wrapper_of_a_user_is_called(schedule, not_imported, monkeypatch):
    """Also if a scheduler wraps it once more, and if it keeps the marks of what it wraps."""
    calls = []

    def counted(function):
        @functools.wraps(function)
        def step(*given):
            calls.append(None)
            return function(*given)

        return step

    def made(own: bool) -> SGD:
        optimizer = optimizer_of()
        if own:
            optimizer.step = types.MethodType(counted(SGD.step), optimizer)
        if schedule:
            torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return optimizer

    take_step(made(own=True))
    assert len(calls) == 1
    late = made(own=False)
    late.step = counted(late.step)
    take_step(late)
    assert len(calls) == 2
    take_step(made(own=False))
    assert len(calls) == 2
    monkeypatch.setattr(SGD, "step", counted(SGD.step))
    take_step(made(own=False))
    assert len(calls) == 3
    monkeypatch.setattr(SGD, "step", mock.Mock())
    take_step(optimizer_of())
    assert SGD.step.called


def test_a_profiler_sees_the_step(not_imported):
    with torch.autograd.profiler.profile() as found:
        take_step(optimizer_of())
    assert "Optimizer.step#SGD.step" in {event.name for event in found.function_events}


@pytest.mark.slow
def test_the_recorder_is_not_compiled_itself(monkeypatch):
    """A program may have a part under `torch.compile`, whose compiler would take the recorder for a part of it."""
    laws: Any = torch.distributions.Distribution
    monkeypatch.setattr(laws, "_validate_args", laws._validate_args)  # which torch's compiler turns off for good
    from torch._dynamo.utils import counters

    part = torch.compile(lambda x: (x * 2).tanh() + 1, backend="eager")
    part(torch.ones(3))
    before = counters["frames"]["total"]
    x = torch.linspace(0, 1, 3)
    assert torch.equal(record(lambda x: part(x).exp(), x).module()(x)[0], part(x).exp()[0])
    assert counters["frames"]["total"] - before <= 2


def test_gradients_go_through_a_step_that_is_differentiable(not_imported):
    optimizer = optimizer_of(differentiable=True)
    (parameter,) = optimizer.param_groups[0]["params"]
    rate = torch.tensor(0.1, requires_grad=True)
    parameter.grad = torch.ones(2) * rate
    with torch.no_grad():
        optimizer.param_groups[0]["params"] = [moved := parameter.clone()]
    moved.grad = parameter.grad
    take_step(optimizer)
    (slope,) = torch.autograd.grad(moved.sum(), rate)
    assert float(slope) == pytest.approx(-0.2)


def test_nothing_is_left_on_the_methods_of_optimizers(not_imported):
    methods = [getattr(Optimizer, name).__wrapped__ for name in ("add_param_group", "state_dict", "load_state_dict")]
    before = [getattr(one, "__dynamo_disable", None) for one in methods]
    for one in methods:
        if hasattr(one, "__dynamo_disable"):
            delattr(one, "__dynamo_disable")
    with without_compiler(), without_compiler():
        assert all(getattr(one, "__dynamo_disable") is one for one in methods)
    assert not any(hasattr(one, "__dynamo_disable") for one in methods)
    for one, value in zip(methods, before, strict=True):
        if value is not None:
            setattr(one, "__dynamo_disable", value)


@pytest.mark.slow
@pytest.mark.parametrize("compile", ["captured", False])
def test_a_fit_an_audit_and_the_evidence_import_no_compiler(compile):
    """Torch's compiler and sympy take 1.5 s to import, and nothing of them is used."""
    code = f"""
import sys, pyro_vi
run = pyro_vi.fit("vae", "diag_normal", "digits", steps=40, compile={compile!r}, progress=False)
pyro_vi.audit(run.model, run.guide, run.data.heldout[0], draws=20, elbos=("trace", "mean_field"))
pyro_vi.evidence(run.model, run.guide, run.data.heldout[0][:4], particles=2000)
print([name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"

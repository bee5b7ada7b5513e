"""The fused step of Adam and AdamW called directly: the bits of ``step()``, or nothing where that is not sure."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

import pyro_vi
from pyro_vi.fitting import direct
from pyro_vi.fitting.direct import direct_update

Make = Callable[[Any], Optimizer]
FUSED: dict[str, Make] = {
    "Adam": partial(Adam, lr=0.03, fused=True),
    "AMSGrad": partial(Adam, lr=0.03, amsgrad=True, fused=True),
    "decay": partial(Adam, lr=0.03, weight_decay=0.2, betas=(0.5, 0.9), eps=1e-3, fused=True),
    "maximize": partial(Adam, lr=0.03, maximize=True, fused=True),
    "AdamW": partial(AdamW, lr=0.03, fused=True),
    "AdamW, AMSGrad": partial(AdamW, lr=0.03, weight_decay=0.3, amsgrad=True, fused=True),
    "groups": lambda ps: AdamW(
        [{"params": ps[:1], "lr": 0.1}, {"params": ps[1:], "betas": (0.3, 0.8)}], lr=0.01, fused=True
    ),
}


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    drawn = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=drawn, dtype=dtype)) for shape in ((3, 4), (5,), ())]


def gradients(own: list[nn.Parameter], fitted: tuple[int, ...], seed: int) -> list[Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return [torch.randn(own[i].shape, generator=drawn, dtype=own[i].dtype) for i in fitted]


def begun(make: Make, dtype: torch.dtype = torch.float64) -> tuple[Optimizer, list[nn.Parameter]]:
    """An optimizer after its first step."""
    own = parameters(dtype)
    optimizer = make(own)
    step(optimizer, own, (0, 1, 2), gradients(own, (0, 1, 2), 99))
    return optimizer, own


def step(optimizer: Optimizer, own: list[nn.Parameter], fitted: tuple[int, ...], found: list[Tensor]) -> None:
    for parameter in own:
        parameter.grad = None
    for i, gradient in zip(fitted, found, strict=True):
        own[i].grad = gradient.clone()
    optimizer.step()


def state(optimizer: Optimizer, own: list[nn.Parameter]) -> list[Tensor]:
    found = [value for p in own for _, value in sorted(optimizer.state[p].items())]
    return [*(p.detach() for p in own), *found]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("fitted", [(0, 1, 2), (2, 0), (1,)], ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_the_bits_of_step(name, fitted, dtype):
    """Over several steps, at several rates; a parameter without a gradient stays."""
    fitted = tuple(sorted(fitted))
    one, first = begun(FUSED[name], dtype)
    two, second = begun(FUSED[name], dtype)
    before = [value.clone() for value in state(one, first)]
    update = direct_update(one, first, fitted)
    assert update is not None
    assert all(map(torch.equal, before, state(one, first))), "the trial changed something"
    for seed in range(4):
        found, rate = gradients(first, fitted, seed), (1.0, 0.5)[seed % 2]
        update(found, rate)
        rates = [group["lr"] for group in two.param_groups]
        for group in two.param_groups:
            group["lr"] *= rate
        step(two, second, fitted, found)
        for group, lr in zip(two.param_groups, rates, strict=True):
            group["lr"] = lr
        assert all(map(torch.equal, state(one, first), state(two, second)))


def test_a_scheduler_is_followed():
    """It changes the rate of the groups, and counts calls of `step`."""
    results = []
    for directly in (True, False):
        optimizer, own = begun(FUSED["Adam"])
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        update = direct_update(optimizer, own, (0, 1, 2))
        assert update is not None
        for seed in range(3):
            found = gradients(own, (0, 1, 2), seed)
            update(found, 1.0) if directly else step(optimizer, own, (0, 1, 2), found)
            optimizer._opt_called = True
            scheduler.step()
        results.append(state(optimizer, own))
    assert all(map(torch.equal, *results))


class Own(Adam):
    pass


def hooked(own: Any) -> Optimizer:
    optimizer = Adam(own, fused=True)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def replaced(own: Any) -> Optimizer:
    optimizer: Any = Adam(own, fused=True)
    optimizer.step = partial(Adam.step, optimizer)
    return optimizer  # type: ignore[no-any-return]


OTHERS: dict[str, Make] = {
    "not fused": Adam,
    "foreach": partial(AdamW, foreach=True),
    "SGD": partial(torch.optim.SGD, lr=0.1, fused=True),
    "NAdam": torch.optim.NAdam,
    "a subclass": partial(Own, fused=True),
    "hooks": hooked,
    "another step": replaced,
}


@pytest.mark.parametrize("name", OTHERS)
def test_others_have_no_direct_step(name):
    optimizer, own = begun(OTHERS[name])
    assert direct_update(optimizer, own, (0, 1, 2)) is None


def test_a_wrapper_around_the_method_of_the_class_is_called(monkeypatch):
    calls = []

    @functools.wraps(Adam.step)
    def counted(*given):
        calls.append(None)
        return step(*given)

    run = partial(pyro_vi.fit, "ppca", "diag_normal", torch.randn(40, 3), steps=12, compile="captured", progress=False)
    expected, step = run(), Adam.step
    monkeypatch.setattr(Adam, "step", counted)
    found = run()
    assert len(calls) >= 12
    assert all(map(torch.equal, found.pair.parameters(), expected.pair.parameters()))


def test_without_a_state_there_is_no_direct_step():
    own = parameters()
    assert direct_update(FUSED["Adam"](own), own, (0, 1, 2)) is None


def test_a_step_that_differs_in_the_trial_is_not_taken(monkeypatch):
    """As with another version of torch."""
    kernel = direct.fused_adam
    for wrong in (lambda *given, **named: None, lambda *given, lr, **named: kernel(False)(*given, lr=2 * lr, **named)):
        optimizer, own = begun(FUSED["Adam"])
        before = [value.clone() for value in state(optimizer, own)]
        monkeypatch.setattr(direct, "fused_adam", lambda decoupled, wrong=wrong: wrong)
        assert direct_update(optimizer, own, (0, 1, 2)) is None
        assert all(map(torch.equal, before, state(optimizer, own)))
        monkeypatch.setattr(direct, "fused_adam", kernel)


def test_a_kernel_that_fails_is_not_called(monkeypatch):
    def failing(*given: Any, **named: Any) -> None:
        raise TypeError("unexpected keyword")

    optimizer, own = begun(FUSED["Adam"])
    monkeypatch.setattr(direct, "fused_adam", lambda decoupled: failing)
    assert direct_update(optimizer, own, (0, 1, 2)) is None

"""A program runs with a param store, generators and flags of its own, and leaves all of them as they were."""

import random
from contextlib import contextmanager

import numpy as np
import pyro
import pytest
import torch
from catalogue import number
from torch import nn
from torch.distributions import Distribution

from pyro_vi.programs.isolation import evaluating, isolated


def states() -> tuple[bytes, bytes, object]:
    return torch.get_rng_state().numpy().tobytes(), np.random.get_state()[1].tobytes(), random.getstate()


def disturb() -> None:
    torch.rand(3), np.random.rand(3), random.random()
    pyro.param("mine", number(1.0))
    torch.set_default_dtype(torch.float64)
    Distribution.set_default_validate_args(False)
    pyro.enable_validation(False)


@pytest.mark.parametrize("fails", [False, True])
def test_isolated_puts_every_global_back(fails):
    before, check_args, settings = states(), Distribution._validate_args, pyro.settings.get()
    try:
        with isolated(3):
            disturb()
            if fails:
                raise RuntimeError("stop")
    except RuntimeError:
        assert fails
    assert states() == before
    assert Distribution._validate_args == check_args
    assert pyro.settings.get() == settings
    assert torch.get_default_dtype() == torch.float32
    assert len(pyro.get_param_store()) == 0


def test_isolated_keeps_a_flag_of_torch_that_differs_from_pyros():
    before = Distribution._validate_args
    Distribution.set_default_validate_args(not before)
    try:
        with isolated(3):
            pass
        assert Distribution._validate_args is not before
    finally:
        Distribution.set_default_validate_args(before)


def test_isolated_seeds_all_generators_and_hides_the_store():
    pyro.param("mine", number(1.0))
    drawn = []
    for _ in range(2):
        with isolated(3):
            assert len(pyro.get_param_store()) == 0
            drawn.append((torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()))
    assert drawn[0] == drawn[1]
    assert list(pyro.get_param_store().keys()) == ["mine"]
    pyro.clear_param_store()


def test_isolated_without_a_seed_lets_the_generators_run_on():
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    with isolated():
        first = torch.rand(2)
    assert torch.equal(torch.cat([first, torch.rand(2)]), expected)


@pytest.mark.parametrize("flag", [True, False])
def test_isolated_sets_validation_within(flag):
    before = pyro.poutine.util.is_validation_enabled()
    with isolated(validation=flag):
        assert pyro.poutine.util.is_validation_enabled() == flag
        assert Distribution._validate_args == flag
    assert pyro.poutine.util.is_validation_enabled() == before


def test_evaluating_puts_each_mode_back():
    net = nn.Sequential(nn.Dropout(), nn.Sequential(nn.Dropout()))
    net[1].eval()

    @contextmanager
    def raising():
        with evaluating(net):
            assert not any(module.training for module in net.modules())
            yield

    with pytest.raises(RuntimeError), raising():
        raise RuntimeError
    assert [module.training for module in net.modules()] == [True, True, False, False]

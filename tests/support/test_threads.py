"""Small problems are computed on one thread, large ones on as many as before; afterwards it is as before."""

import pytest
import torch
from torch import nn

from pyro_vi.support.threads import WORTH, fitting_threads


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def module(parameters: int) -> nn.Module:
    return nn.ParameterList([nn.Parameter(torch.zeros(parameters))])


@pytest.mark.parametrize(
    ("parameters", "rows", "small"), [(10, 4, True), (2**12, 2**12 - 1, True), (2**12, 2**12, False)]
)
def test_threads_within_and_after(threads, parameters, rows, small):
    assert (parameters * rows < WORTH) == small
    with fitting_threads(module(parameters), (torch.zeros(rows),)):
        assert torch.get_num_threads() == (1 if small else threads)
    assert torch.get_num_threads() == threads


def test_threads_after_an_error(threads):
    with pytest.raises(ValueError, match="mine"), fitting_threads(module(3), (torch.zeros(2),)):
        raise ValueError("mine")
    assert torch.get_num_threads() == threads

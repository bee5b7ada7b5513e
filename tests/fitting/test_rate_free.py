"""Optimizers without a rate take the steps of their papers, eager and compiled, and resume to the same bits."""

import pytest
import torch
from small_fits import quick, same, same_fit
from torch import nn

from pyro_vi import UsageError
from pyro_vi.fitting.rate_free import DoG, DoWG

PATHS = {
    DoG: {1: 1e-6, 2: 1.7071067e-6, 3: 2.6927049e-6, 10: 2.6944709e-5, 50: 0.030594865, 100: 2.3420574},
    DoWG: {3: 3.0217085e-6, 20: 0.092016924, 30: 2.3006752},
}


@pytest.mark.parametrize("kind", PATHS)
def test_the_path_on_a_parabola_is_that_of_the_paper(kind):
    """f = ½ (x − 3)², from 0; computed twice, independently."""
    x, found = nn.Parameter(torch.zeros((), dtype=torch.float64)), {}
    optimizer = kind([x])
    for step in range(1, 101):
        optimizer.zero_grad()
        (0.5 * (x - 3) ** 2).backward()
        optimizer.step()
        found[step] = float(x.detach())
    for step, wanted in PATHS[kind].items():
        assert found[step] == pytest.approx(wanted, rel=5e-8)


@pytest.mark.parametrize("kind", PATHS)
def test_norms_are_those_of_all_parameters_in_all_groups(kind):
    """So one vector, and its parts in two groups, take the same steps."""
    target = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    joint = nn.Parameter(torch.ones(3, dtype=torch.float64))
    parts = [nn.Parameter(torch.ones(n, dtype=torch.float64)) for n in (1, 2)]
    one, two = kind([joint]), kind([{"params": [part]} for part in parts])
    for _ in range(40):
        for optimizer, value in ((one, joint), (two, torch.cat(parts))):
            optimizer.zero_grad()
            ((value - target) ** 2).sum().backward()
            optimizer.step()
    torch.testing.assert_close(torch.cat(parts), joint, rtol=1e-12, atol=0)
    assert float((joint.detach() - 1).abs().max()) > 1e-4


@pytest.mark.parametrize("kind", PATHS)
def test_a_gradient_of_zero_moves_nothing(kind):
    x = nn.Parameter(torch.ones(2))
    x.grad = torch.zeros(2)
    kind([x]).step()
    assert torch.equal(x.detach(), torch.ones(2))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dog", "dowg"])
def test_a_resumed_fit_has_the_same_bits(name, few_records, tmp_path):
    whole = quick(optimizer=name, steps=12, out=tmp_path / "whole")
    quick(optimizer=name, steps=7, out=tmp_path / "run")
    resumed = quick(optimizer=name, steps=12, out=tmp_path / "run", resume=True, allow=("steps", "kept"))
    assert same(resumed.pair.state_dict(), whole.pair.state_dict())
    assert not same_fit(quick(optimizer=name, steps=7), whole)


def test_a_rate_schedule_is_refused():
    with pytest.raises(UsageError, match="DoG has no learning rate that a schedule could change"):
        quick(optimizer="dog", schedule="cosine")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dog", "dowg"])
def test_compiled_steps_are_eager_ones(name, few_records, tmp_path):
    settings = {"optimizer": name, "steps": 40, "warmup": 10, "clip_norm": 5.0, "batch_size": 20}
    eager, compiled = (quick(compile=on, **settings) for on in (False, True))
    assert compiled.compiled, compiled.choice
    for key, value in eager.pair.state_dict().items():
        torch.testing.assert_close(compiled.pair.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    quick(compile=True, out=tmp_path / "run", **{**settings, "steps": 23})
    resumed = quick(compile=True, out=tmp_path / "run", resume=True, allow=("steps", "kept"), **settings)
    assert same(resumed.pair.state_dict(), compiled.pair.state_dict())

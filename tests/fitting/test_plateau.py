"""The schedule "plateau": which number it follows, when it lowers the rate, resumed and compiled."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, global_pair, number, scalars
from pyro.infer import Trace_ELBO
from small_fits import DIAGONAL, LINEAR, in_main_thread, interrupting, nothing, quick, same_fit
from torch import Tensor

from pyro_vi import Run, UsageError
from pyro_vi.data.loading import load
from pyro_vi.estimators.objective import Objective
from pyro_vi.fitting.plateau import height_of, named_schedule
from pyro_vi.fitting.records import Records
from pyro_vi.programs.build import pair_of


def lowered(values: Sequence[float], **options: Any) -> list[float]:
    """The rate after each of some records, from 1 on."""
    text = ", ".join(f"{name}={value}" for name, value in options.items())
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    make = named_schedule(f"plateau({text})" if text else "plateau")[1]
    assert make is not None
    scheduler, found = make(optimizer), []
    for value in values:
        scheduler.step(value)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_rate_falls_exactly_when_the_numbers_say_so():
    """After two records that are at most 1 above the best one before them; a small rise adds up to a large one."""
    values = [0.0, 1.0, 1.5, 2.6, 2.0, 3.0, 3.7, -9.0, math.nan, 9.0]
    expected = [1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert lowered(values, factor=0.5, patience=2, threshold=1.0) == expected
    assert lowered([0.0] * 12) == [1.0] * 10 + [0.3] * 2  # factor 0.3, patience 10
    assert lowered([0.009 * k for k in range(9)]) == [1.0] * 9  # rises by more than 0.01 within five records


def flat(x: Tensor) -> None:
    """x ~ Laplace(m, 1): the gradient of the loss per datum in m is the fraction of x below m, minus that above."""
    m = pyro.param("m", number(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Laplace(m, 1.0), obs=x)


def test_a_fit_lowers_its_rate_at_the_record_after_which_the_elbo_no_longer_rises():
    """log p(x) is −log 2 − |x − m|, x = 0.9. Records 3 and 4 are not above record 2, and records 5 and 6 neither."""
    path = quick(
        flat,
        nothing,
        load(torch.full((10,), 0.9, dtype=torch.float64), heldout=0.0),
        optimizer=sgd,
        schedule="plateau(factor=0.5, patience=2)",
        steps=7,
        snapshots=tuple(s / 7 for s in range(8)),
        check=False,
    )
    assert [float(path.snapshots[s]["model.m"]) for s in range(8)] == pytest.approx(
        [0.0, 0.4, 0.8, 1.2, 0.8, 1.0, 0.8, 0.9], abs=1e-10
    )
    assert [record["lr"] for record in path.history] == pytest.approx([0.4] * 4 + [0.2] * 2 + [0.1])


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, 0.4)


def noisy(**options: Any) -> Run:
    """A high rate: the ELBO rises and falls, so that the rate falls in the course of the fit."""
    settings = {
        "steps": 30,
        "batch_size": 10,
        "lr": 0.3,
        "schedule": "plateau(patience=2)",
        "compile": False,
        **options,
    }
    return quick(LINEAR, DIAGONAL, load(columns(50)), check=False, **settings)


@pytest.mark.slow
@in_main_thread
def test_a_resumed_fit_lowers_its_rate_at_the_same_records(tmp_path):
    whole = noisy(optimizer=interrupting(lr=0.3))
    rates = [record["lr"] for record in whole.history]
    assert len({*rates}) > 2 and rates == sorted(rates, reverse=True)
    with pytest.raises(KeyboardInterrupt):
        noisy(optimizer=interrupting(11, lr=0.3), out=tmp_path / "run")
    assert same_fit(noisy(optimizer=interrupting(lr=0.3), out=tmp_path / "run", resume=True), whole)
    with pytest.raises(UsageError, match="the scheduler has changed"):
        noisy(optimizer=interrupting(lr=0.3), out=tmp_path / "run", resume=True, schedule="plateau(patience=3)")


@pytest.mark.slow
@pytest.mark.parametrize("lr", [0.3, {"model": 0.3, "guide": 0.07}, {"model": 0.0, "guide": 0.3}], ids=str)
def test_compiled_steps_follow_the_rate(lr):
    """Of groups of parameters with different rates, too."""
    eager, compiled = (noisy(lr=lr, compile=how) for how in (False, True))
    assert compiled.compiled and [r["lr"] for r in eager.history] == [r["lr"] for r in compiled.history]
    assert eager.history[-1]["lr"] < eager.history[0]["lr"] or lr != 0.3
    for name, value in eager.pair.state_dict().items():
        torch.testing.assert_close(compiled.pair.state_dict()[name], value, rtol=1e-8, atol=1e-8)


def test_the_number_that_is_followed():
    """Held-out before training; for all data where latents are shared; none in the warm-up."""

    def height(warmup: int = 0, units: tuple[int, int] = (1, 1), **record: float) -> float | None:
        return height_of({"step": 3, **record}, warmup, units)

    assert height(elbo=-2.0, heldout_elbo=-3.0) == -3.0
    assert height(elbo=-2.0) == -2.0 and height(3, elbo=-2.0) is None
    assert height(elbo=math.nan, log_joint=-4.0) == -4.0
    assert math.isnan(height(elbo=-2.0, heldout_elbo=math.nan) or 0.0)
    assert height(0, (40, 10), elbo=-2.0, heldout_lpd=-3.0) == -30.0 and height(0, (40, 10), elbo=-2.0) == -80.0
    data = load(scalars(50), heldout=0.2)
    pair = pair_of(*global_pair(), data.example(40))
    assert Records(Objective(pair, Trace_ELBO()), data, data.example(40)).units == (
        50,
        10,
    )  # the plate of the pair holds 50


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"schedule": "plateau(factor=2)"}, "factor of schedule 'plateau' must be a number above 0 and below 1, not 2"),
        (
            {"schedule": "plateau(patience=0)"},
            "patience of schedule 'plateau' must be a whole number of at least 1, not 0",
        ),
        ({"schedule": "plateau(tolerance=1)"}, "schedule 'plateau' has no option 'tolerance'"),
        ({"schedule": "cosine(patience=3)"}, "schedule 'cosine' has no option 'patience'"),
        ({"schedule": "plateau", "optimizer": "dog"}, "has no learning rate that a schedule could change"),
        (
            {"schedule": "plateau", "stop": "converged"},
            "could end a fit just before schedule='plateau' lowers its rate",
        ),
        (
            {"schedule": "plateau", "stop": "heldout", "patience": 5},
            "ends the fit before schedule='plateau' lowers its",
        ),
    ],
    ids=str,
)
def test_options_that_cannot_be(options, text):
    with pytest.raises(UsageError, match=text):
        quick(**options)

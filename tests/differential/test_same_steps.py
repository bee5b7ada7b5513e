"""The same program under `pyro.infer.SVI` and `pyro_vi.fit` takes the same steps, and reports numbers of that program."""

from collections.abc import Callable
from typing import Any

import pyro
import pytest
import torch
from differential import autoguides, baselines, flows_and_gps, idioms, mixtures, networks, regressions, sequences, vaes
from differential.harness import STEPS, Program, adam, float64, made, svi, values
from pyro.infer import Trace_ELBO
from torch import Tensor

import pyro_vi
from pyro_vi.errors import InputError
from pyro_vi.programs import Pair, evaluating
from pyro_vi.support import kept_generators, seed_generators

MODULES = (vaes, sequences, mixtures, regressions, flows_and_gps, autoguides, baselines, networks, idioms)
QUICK = {
    "vae_class",
    "semi_supervised_partly",
    "deep_markov",
    "hmm_vectorised",
    "gmm_mean_field",
    "eight_schools",
    "own_minibatch",
    "flow_prior",
    "auto_normal",
    "neural_baseline",
    "gradient_hook",
    "pyro_module_methods",
    "partials",
}
"""One program of each kind; the others are in the slow tests, as all together take half a minute."""


MAKERS = [
    pytest.param(make, id=make.__name__, marks=() if make.__name__ in QUICK else pytest.mark.slow)
    for module in MODULES
    for make in module.PROGRAMS
]
REFUSED = networks.REFUSED
OPTIMIZERS: dict[str, Callable[[], Any]] = {
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.02, "clip_norm": 0.5, "lrd": 0.7}),
    "one rate for each": lambda: pyro.optim.Adam(lambda name: {"lr": 0.05 if "decoder" in name else 0.01}),
    "clipped": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.9}, {"clip_norm": 1.0}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
}


def fitted(program: Program, optimizer: Callable[[], Any] = adam) -> pyro_vi.Run:
    """Fit a program in full batch and given order, by the same optimizer and estimator."""
    return pyro_vi.fit(
        program.model,
        program.guide,
        dict(program.kwargs) or program.args,
        elbo=program.elbo(),
        optimizer=optimizer(),
        batch_size=None,
        heldout=0.0,
        steps=STEPS,
        compile=False,
        progress=False,
        snapshots=(0,),
    )


def owned(pair: Pair, program: Program) -> dict[str, Tensor]:
    """The parameters that a bound pair owns, as a trace of it meets them."""
    with pyro.get_param_store().scope():
        return values(program, pair.model, pair.guide)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


def last_loss(run: pyro_vi.Run, program: Program) -> float:
    """Pyro's loss of the fitted programs, in evaluation mode and under the draws of the last record."""
    with kept_generators(), pyro.get_param_store().scope(), evaluating(run.pair):
        seed_generators(STEPS)
        return Trace_ELBO().loss(run.model, run.guide, *program.args, **program.kwargs)


@pytest.mark.filterwarnings("ignore:'w' is shared by all 9 data")  # which are meant as a part of 90
@pytest.mark.parametrize("make", MAKERS)
def test_same_steps(make: Callable[[], Program]) -> None:
    with float64():
        program = made(make)
        run = fitted(program)
        start = owned(run.at(0), program)
        # SVI trains the same objects: the fit has left them as they were.
        expected = svi(program, start if program.drawn else None)

        assert_equal(start, expected.start)
        losses = torch.tensor([record["loss"] for record in run.history])
        torch.testing.assert_close(losses, torch.tensor(expected.losses) / program.rows, rtol=1e-9, atol=0)
        assert_equal(owned(run.pair, program), expected.end)
        if program.elbo is Trace_ELBO:  # whose KL is the draw's, as in the record
            last = run.history[-1]  # a point estimate has log p(x, z) in place of an ELBO
            expected_elbo = -last_loss(run, program) / program.rows
            assert last.get("log_joint", last["elbo"]) == pytest.approx(expected_elbo, rel=1e-9)


@pytest.mark.parametrize(("make", "message"), REFUSED.items(), ids=[make.__name__ for make in REFUSED])
def test_refused(make: Callable[[], Program], message: str) -> None:
    with float64(), pytest.raises(InputError, match=message):
        fitted(made(make))


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_same_steps_of_other_optimizers(optimizer: Callable[[], Any]) -> None:
    with float64():
        program = made(vaes.vae_of_closures)
        run = fitted(program, optimizer)
        expected = svi(program, optimizer=optimizer)
        losses = torch.tensor([record["loss"] for record in run.history])
        torch.testing.assert_close(losses, torch.tensor(expected.losses) / program.rows, rtol=1e-9, atol=0)
        assert_equal(owned(run.pair, program), expected.end)

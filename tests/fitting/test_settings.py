"""Numbers and names that a fit cannot take are refused in one line."""

import math

import numpy as np
import pytest
import torch
from catalogue import (
    columns,
)
from small_fits import (
    LINEAR,
    quick,
    same_fit,
)

from pyro_vi import InputError, UsageError
from pyro_vi.data.loading import load
from pyro_vi.fitting import planned, settings


@pytest.mark.slow
def test_an_epoch_is_as_many_steps_as_it_has_batches(few_records, monkeypatch):
    data = load(columns(50))  # 45 of them to train on
    assert quick(data=data, steps=None, epochs=3, batch_size=16).steps == 9
    assert quick(data=data, steps=None, epochs=3, batch_size=16, drop_last=True).steps == 6
    assert quick(data=data, steps=7, batch_size=16).steps == 7
    assert (settings.EPOCHS, settings.STEPS) == (100, 2000)
    monkeypatch.setattr(planned, "EPOCHS", 4)
    monkeypatch.setattr(planned, "STEPS", 5)
    for batch_size, steps, epochs in ((16, 12, 4), (1000, 5, 5)):
        run = quick(data=data, steps=None, batch_size=batch_size)
        assert (run.steps, run.history[-1]["epoch"]) == (steps, epochs - 1)
    assert same_fit(quick(data=data, steps=None, epochs=3, batch_size=16), quick(data=data, steps=9, batch_size=16))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": None, "epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"steps": -5}, "steps must be a whole number of at least 1, not -5"),
        ({"epochs": 2}, "give steps or epochs, not both"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"lr": 0.0}, "lr must be a number above 0, not 0.0"),
        ({"lr": -1.0}, "lr must be a number above 0, not -1.0"),
        ({"lr": math.nan}, "lr must be a number above 0, not nan"),
        ({"lr": math.inf}, "lr must be a number above 0, not inf"),
        ({"clip_norm": 0.0}, "clip_norm must be a number above 0, not 0.0"),
        ({"clip_norm": math.nan}, "clip_norm must be a number above 0, not nan"),
        ({"beta": -0.1}, "beta must be a number of at least 0, not -0.1"),
        ({"beta": math.inf}, "beta must be a number of at least 0, not inf"),
        ({"warmup": -1}, "warmup must be a whole number of at least 0, not -1"),
        ({"seed": -1}, "seed must be a whole number from 0 to 9223372036854775807, not -1"),
        (
            {"schedule": "cosin"},
            "schedule must be one of constant, linear, cosine, plateau, not 'cosin'; did you mean 'cosine'?",
        ),
        (
            {"warmup": 7},
            "a warmup of 7 steps is longer than the fit (6 steps), so the KL would never reach its full weight",
        ),
        ({"elbo": "mean_feild"}, "no ELBO estimator named 'mean_feild'; did you mean 'mean_field'?"),
        ({"elbo": "trace(particles=3)"}, "has no option 'particles'"),
        ({"steps": math.nan}, "steps must be a whole number of at least 1, not nan"),
        ({"steps": 1.5}, "steps must be a whole number of at least 1, not 1.5"),
        ({"steps": True}, "steps must be a whole number of at least 1, not True"),
        ({"batch_size": "64"}, "batch_size must be a whole number of at least 1, not '64'"),
        ({"records": 0}, "records must be a whole number of at least 1, not 0"),
        ({"seed": 2**70}, "seed must be a whole number from 0 to 9223372036854775807"),
        ({"snapshots": (2.0, -1.0)}, "each of snapshots must be a number of at least 0, not -1.0"),
        ({"snapshots": (0.5, 2)}, "snapshots must be fractions of the fit, from 0 to 1, not 2.0"),
        ({"snapshots": 0.5}, "snapshots must be fractions of the fit, such as (0, 0.5, 1), not 0.5"),
        ({"device": "nowhere"}, "device 'nowhere' cannot be used: "),
        ({"resume": True}, "resume needs the folder of a run; give it as out"),
        ({"model": "vea"}, "no model named 'vea'; did you mean 'vae'?"),
        ({"guide": "diag_norm"}, "no guide named 'diag_norm'; did you mean 'diag_normal'?"),
        ({"data": "digts"}, "no data set named 'digts'; did you mean 'digits'?"),
        ({"model": "linear_gaussian(latent=2)"}, "has no option 'latent'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, text, tmp_path):
    with pytest.raises(UsageError) as caught:
        quick(**{"out": None if options.get("resume") else tmp_path / "run", **options})
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"steps": np.int64(6), "seed": np.int64(0), "batch_size": np.array(16), "warmup": np.int32(0)},
        {"steps": torch.tensor(6), "lr": torch.tensor(3e-3, dtype=torch.float64), "beta": np.float32(1.0), "seed": 0.0},
    ],
    ids=["NumPy", "torch"],
)
def test_numbers_of_other_packages_are_numbers(options, tmp_path):
    plain = quick(steps=6, batch_size=16 if "batch_size" in options else 128)
    assert same_fit(quick(**options, out=tmp_path / "run"), plain)


def test_a_warmup_as_long_as_the_fit_is_taken():
    assert quick(warmup=6).steps == 6


@pytest.mark.parametrize("allow", [b"lr", [3]])
def test_what_may_differ_is_named(allow):
    with pytest.raises(UsageError, match=r"^allow must be names of settings, such as \('versions', 'lr'\), not "):
        settings.Options(allow=allow)


@pytest.mark.parametrize("heldout", [0.25, 0.5])
def test_held_out_rows_that_have_no_parameters_are_refused(heldout):
    """With half of the rows held out, the parameters of the others have their shapes, and would give a wrong ELBO."""
    said = r"^the guide has parameters for each row that it is fitted to, and none for the \d+ held-out rows, so they have no"
    with pytest.raises(InputError, match=said):
        quick(LINEAR, "auto_normal", columns(20), heldout=heldout)

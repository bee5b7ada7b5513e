"""Numbers and names that a fit cannot take are refused in one line."""

import math

import pytest
from catalogue import (
    columns,
)
from small_fits import (
    quick,
    same_fit,
)

from pyro_vi import UsageError
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError
from pyro_vi.fitting import settings, svi


def test_an_epoch_is_as_many_steps_as_it_has_batches(few_records, monkeypatch):
    data = load(columns(50))  # 45 of them to train on
    assert quick(data=data, steps=None, epochs=3, batch_size=16).steps == 9
    assert quick(data=data, steps=None, epochs=3, batch_size=16, drop_last=True).steps == 6
    assert quick(data=data, steps=7, batch_size=16).steps == 7
    assert (settings.EPOCHS, settings.STEPS) == (100, 2000)
    monkeypatch.setattr(svi, "EPOCHS", 4)
    monkeypatch.setattr(svi, "STEPS", 5)
    for batch_size, steps, epochs in ((16, 12, 4), (1000, 5, 5)):
        run = quick(data=data, steps=None, batch_size=batch_size)
        assert (run.steps, run.history[-1]["epoch"]) == (steps, epochs - 1)
    assert same_fit(quick(data=data, steps=None, epochs=3, batch_size=16), quick(data=data, steps=9, batch_size=16))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": None, "epochs": 0}, "epochs must be at least 1, not 0"),
        ({"steps": -5}, "steps must be at least 1, not -5"),
        ({"epochs": 2}, "give steps or epochs, not both"),
        ({"batch_size": 0}, "batch_size 0 is out of range; it must be at least 1"),
        ({"lr": 0.0}, "lr 0.0 is out of range; it must be positive"),
        ({"lr": -1.0}, "lr -1.0 is out of range; it must be positive"),
        ({"lr": math.nan}, "lr nan is out of range; it must be positive"),
        ({"lr": math.inf}, "lr inf is out of range; it must be positive"),
        ({"clip_norm": 0.0}, "clip_norm 0.0 is out of range; it must be positive"),
        ({"clip_norm": math.nan}, "clip_norm nan is out of range; it must be positive"),
        ({"beta": -0.1}, "beta -0.1 is out of range; it must be 0 or more"),
        ({"beta": math.inf}, "beta inf is out of range; it must be 0 or more"),
        ({"warmup": -1}, "warmup -1 is out of range; it must be 0 or more"),
        ({"seed": -1}, None),
        ({"schedule": "cosin"}, "schedule 'cosin' is out of range; it must be one of constant, linear, cosine"),
        (
            {"warmup": 7},
            "a warmup of 7 steps is longer than the fit (6 steps), so the KL would never reach its full weight",
        ),
        ({"elbo": "mean_feild"}, "no ELBO estimator named 'mean_feild'; did you mean 'mean_field'?"),
        ({"elbo": "trace(particles=3)"}, "has no option 'particles'"),
        ({"resume": True}, "resume needs the folder of a run; give it as out"),
        ({"model": "vea"}, "no model named 'vea'; did you mean 'vae'?"),
        ({"guide": "diag_norm"}, "no guide named 'diag_norm'; did you mean 'diag_normal'?"),
        ({"data": "digts"}, "no data set named 'digts'; did you mean 'digits'?"),
        ({"model": "linear_gaussian(latent=2)"}, "has no option 'latent'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(options, text, tmp_path):
    with pytest.raises(InputError if text is None else UsageError) as caught:
        quick(**{"out": None if options.get("resume") else tmp_path / "run", **options})
    assert (text or "seed") in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_warmup_as_long_as_the_fit_is_taken():
    assert quick(warmup=6).steps == 6

"""Callbacks see each record, change nothing, and stop the fit with one line when they fail."""

import pytest
import torch
from data_toys import message
from small_fits import quick, same_fit

from pyro_vi import FitError, UsageError
from pyro_vi.fitting.reading import newest


def test_each_record_is_told_and_the_fit_is_the_same():
    seen, plain = [], quick()

    def mine(record):
        torch.rand(3)  # what it draws is not missed by the fit
        seen.append(dict(record))
        record.clear()

    assert same_fit(quick(callbacks=[mine]), plain)
    assert [record["step"] for record in seen] == [1, 2, 3, 4, 5, 6]
    assert seen[-1]["elbo"] == plain.history[-1]["elbo"]


@pytest.mark.slow
def test_one_that_fails_stops_the_fit_with_a_line_and_a_checkpoint(tmp_path):
    def bad(record):
        if record["step"] == 3:
            raise KeyError("absent")

    with pytest.raises(FitError) as caught:
        quick(callbacks=bad, out=tmp_path / "run")
    text = str(caught.value)
    assert "\n" not in text and "bad fails at step 3: KeyError: 'absent'" in text and "test_callbacks.py line" in text
    assert newest(tmp_path / "run", None)[0]["position"]["step"] == 3
    assert same_fit(quick(out=tmp_path / "run", resume=True), quick())


def test_what_is_no_function_is_refused():
    assert "callbacks must be functions" in message(quick, callbacks=[3], error=UsageError)

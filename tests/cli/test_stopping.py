"""Ctrl-C and SIGTERM end a command at its next step, with the one command that goes on."""

import json
import os
import signal

import numpy as np
import pytest
from command_line import SMALL
from small_fits import in_main_thread

from pyro_vi.cli import entry as cli
from pyro_vi.cli.stopping import stopped
from pyro_vi.errors import Terminated
from pyro_vi.fitting.progress import Progress


@in_main_thread
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_fit_with_the_command_that_goes_on(number, code, folder, monkeypatch, capsys):
    update, before = Progress.update, [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def press(self: Progress, step: int, elbo: float) -> None:
        update(self, step, elbo)
        if step == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Progress, "update", press)
    args = ["fit", *SMALL, "--data", "five.npy", "--steps", "6", "--compile", "no", "--out", "my run"]
    assert cli.main(args) == code
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == "interrupted; continue with: pyro-vi resume 'my run'"
    lines = (folder / "my run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 and (folder / "my run" / "checkpoint.pt").exists()


PROGRAM = """
import pyro, torch, pyro.distributions as dist

def model(x):
    m = pyro.param("m", torch.tensor(0.0))
    with pyro.plate("data", 12, subsample=x):
        pyro.sample("x", dist.Normal(torch.where(x > 50, torch.nan, m), 1.0), obs=x)

def guide(x):
    pass
"""


@pytest.mark.slow
def test_a_fit_that_stops_at_a_number_that_is_not_finite_goes_on_by_its_own_words(folder, capsys):
    (folder / "own.py").write_text(PROGRAM)
    np.save(folder / "own.npy", np.array([*range(11), 99], dtype=np.float32))
    pair = ["own.py:model", "own.py:guide", "--data", "own.npy", "--heldout", "0", "--batch-size", "3"]
    pair += ["--shuffle", "False"]
    assert cli.main(["fit", *pair, "--elbo", "trace", "--steps", "8", "--compile", "no", "--out", "my run"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == (
        "error: the loss is nan at step 4 (epoch 0, batch 3): log p of site 'x' is not finite for data 11; there 'x' is 99 "
        "under Normal(loc nan, scale 1); check those values, or lower lr; the state before it is kept, go on with: "
        "pyro-vi resume 'my run' --lr 0.0015, or --nonfinite skip"
    )
    assert cli.main(["resume", "my run", "--lr", "0.0015"]) == 1
    assert "at step 4 (epoch 0, batch 3)" in capsys.readouterr().err
    assert cli.main(["resume", "my run", "--lr", "0.0015", "--nonfinite", "skip", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 2


def test_where_there_is_no_run_there_is_no_command(folder, capsys):
    assert stopped(Terminated(), ".") == 143 and stopped(KeyboardInterrupt(), None) == 130
    assert capsys.readouterr() == ("", "interrupted\ninterrupted\n")

"""Ctrl-C and SIGTERM end a command at its next step, with the one command that goes on."""

import os
import signal

import pytest
from command_line import SMALL
from small_fits import in_main_thread

from pyro_vi.cli import entry as cli
from pyro_vi.cli.stopping import stopped
from pyro_vi.fitting import Terminated
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


def test_where_there_is_no_run_there_is_no_command(folder, capsys):
    assert stopped(Terminated(), ".") == 143 and stopped(KeyboardInterrupt(), None) == 130
    assert capsys.readouterr() == ("", "interrupted\ninterrupted\n")

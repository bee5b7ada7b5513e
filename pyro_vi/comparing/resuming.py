"""The continuation of a fit or a comparison from its folder alone."""

import contextlib
import inspect
import os
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pyro_vi.comparing.comparer import compare
from pyro_vi.comparing.results import Comparison
from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting import Options, Run, config_of, fit, given_of, newest, refuse_code, wrong_state


def resume(
    folder: str | Path,
    *,
    lr: float | None = None,
    nonfinite: str | None = None,
    allow: Collection[str] = (),
    progress: bool = True,
    trust: bool = False,
) -> Run | Comparison:
    """Continue the fit or the comparison in a folder to its end, with the same bits as if it had not been interrupted.

    Paths of programs and data begin in the folder that the run was started from, if that still exists.

    Args:
        folder: the folder that was ``out`` of `pyro_vi.fit` or `pyro_vi.compare`.
        lr: another learning rate from here on.
        nonfinite: something else to do about a loss that is not finite, from here on: see `pyro_vi.fit`.
        allow: what may have changed since the run was made; see `pyro_vi.fit`.
        progress: show rate and time left on stderr.
        trust: run the code of programs that the folder names, though the run was not made by this user.

    Raises:
        InputError: the folder holds no run, its files are damaged, or it was made from Python objects.
        UsageError: programs, data, settings or versions have changed; another process writes into the folder; or the run of
            another user names programs that are code.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as out:
        ...     run = fit("vae", "diag_normal", "digits", steps=5, progress=False, out=out)
        ...     resume(out, progress=False).history == run.history
        True
    """
    path = Path(folder).expanduser().absolute()
    given = given_of(path)
    refuse_code(path, trust)
    start, call = Path(str(given.get("folder") or ".")), compare if given["command"] == "compare" else fit
    known = {*inspect.signature(call).parameters, *(option.name for option in fields(Options))} - {"callbacks"}
    strange = sorted(map(str, given["arguments"].keys() - known))
    if strange:
        raise InputError(
            f"'{path}' was made by another version of pyro_vi, with {', '.join(strange)}; resume it with that version"
        )
    changes = {name: value for name, value in (("lr", lr), ("nonfinite", nonfinite)) if value is not None}
    if changes and call is fit:
        _refuse_finished(path, changes)
    allow = (allow,) if isinstance(allow, str) else tuple(allow)
    arguments: dict[str, Any] = {
        "average": "none",  # of a run that was made before there were averages
        **given["arguments"],
        **changes,
        "out": path,
        "resume": True,
        "allow": (*allow, *(name for name, value in changes.items() if given["arguments"].get(name) != value)),
        "progress": progress,
    }
    with _imports_from_here(), contextlib.chdir(start if start.is_dir() else "."):
        return call(**arguments)


def _refuse_finished(path: Path, changes: Mapping[str, Any]) -> None:
    """Raise UsageError if the run has taken all its steps, so that changes would be in its configuration only."""
    state, _, _ = newest(path, config_of(path).get("run"))
    if state is not None and not wrong_state(state) and state["position"]["step"] >= state["config"]["steps"]:
        options = ", ".join(f"{name}={value!r}" for name, value in changes.items())
        raise UsageError(
            f"the run in '{path}' has taken all its {state['position']['step']} steps, so {' and '.join(changes)} would change "
            f"nothing; to go on from it, use pyro_vi.open('{path}').more(steps=..., {options})"
        )


@contextlib.contextmanager
def _imports_from_here() -> Iterator[None]:
    """Keep Python from importing modules from the folder that a run names: "" in its path is the present folder."""
    before = sys.path[:]
    sys.path[:] = [place or os.getcwd() for place in before]
    try:
        yield
    finally:
        sys.path[:] = before

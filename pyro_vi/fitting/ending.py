"""The error of a fit that ends at a number that is not finite: the cause, the state that is kept, and the call that goes on.

* `ended` makes the error; `continued` is the call that goes on.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyro_vi.errors import FitError, InputError
from pyro_vi.fitting.calls import of_comparison
from pyro_vi.fitting.failures import Failed, NotTaken, Overflowed
from pyro_vi.fitting.folder import RunFolder


def ended(
    error: NotTaken | Overflowed, folder: RunFolder | None, save: Callable[[], bool], saved: int | None
) -> FitError:
    """Return the error with which a fit ends; if it is as it was before the step, its state is saved.

    Args:
        error: the cause.
        folder: the run folder, if there is one.
        save: writes a checkpoint, and returns whether the state is finite, so that it could.
        saved: the step of the last checkpoint.
    """
    if folder is None:
        return FitError(str(error))
    options: list[tuple[str, Any]] = [] if isinstance(error, Failed) else _lower(folder.config.get("lr"))
    if isinstance(error, NotTaken):
        skips = folder.config.get("nonfinite") == "stop" and not isinstance(error, Failed)
        options += [("nonfinite", "skip")] if skips else []
        try:
            written = save()
        except InputError as problem:
            return FitError(f"{error}; the state before it cannot be kept: {problem}")
    if isinstance(error, NotTaken) and written:
        kept = "the state before it is kept"
    else:
        kept = "there is no checkpoint before it" if saved is None else f"the checkpoint of step {saved} is kept"
    how = f", go on with: {continued(folder.config, folder.path, options)}" if options else ""
    return FitError(f"{error}; {kept}{how}")


def continued(config: Mapping[str, Any], path: Path, options: Sequence[tuple[str, Any]]) -> str:
    """Return the call that continues a run with one of some other options.

    Example:
        >>> config = {"given": {"command": "fit", "arguments": {}, "objects": []}}
        >>> continued(config, Path("run"), [("lr", 0.1), ("nonfinite", "skip")])
        'pyro-vi resume run --lr 0.1, or --nonfinite skip'
    """
    given = config.get("given") or {}
    command = str(given.get("command", "fit"))
    whole = of_comparison(path, given) if command == "compare" else path
    if given.get("objects", ["settings"]):
        first, *others = [f"{name}={value!r}, allow='{name}'" for name, value in options]
        instead = "".join(f", or {other} instead" for other in others)
        return f"pyro_vi.{command}(..., out='{whole}', resume=True, {first}){instead}"
    return f"pyro-vi resume {shlex.quote(str(whole))} {', or '.join(f'--{name} {value}' for name, value in options)}"


def _lower(rate: Any) -> list[tuple[str, Any]]:
    return [("lr", float(f"{rate / 2:.4g}"))] if isinstance(rate, (int, float)) else []

"""How a fit or a comparison was called, in plain values, so that it can be called again from its folder alone.

* `given` makes this part of a run's configuration.
* `given_of` reads it from the folder of a fit or a comparison; `refuse_code` asks whether its code may run.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting.reading import CONFIG, holds_run, read_config
from pyro_vi.fitting.settings import Options
from pyro_vi.fitting.trusting import refuse_foreign

OF_A_CALL = ("out", "resume", "progress", "allow", "callbacks")
"""Options that belong to one call, and not to the run."""


def given(command: str, arguments: Mapping[str, Any], options: Options) -> dict[str, Any]:
    """Return how a run was called: the arguments of `pyro_vi.fit` or `pyro_vi.compare`, and the folder that paths begin in.

    Arguments that a file cannot hold, such as functions, are named in ``objects``.

    Example:
        >>> found = given("fit", {"model": "vae", "guide": print}, Options(lr=0.1))
        >>> found["arguments"]["model"], found["arguments"]["lr"], found["objects"]
        ('vae', 0.1, ['guide'])
    """
    every = {o.name: getattr(options, o.name) for o in fields(Options) if o.name not in OF_A_CALL} | {**arguments}
    plain: dict[str, Any] = {}
    for name, value in every.items():
        try:
            plain[name] = _plain(value)
        except TypeError:
            continue
    try:
        folder = os.getcwd()
    except OSError:  # it was removed
        folder = ""
    return {"command": command, "arguments": plain, "objects": sorted({*every} - {*plain}), "folder": folder}


def given_of(path: Path) -> dict[str, Any]:
    """Return what `given` made for the run or the comparison in a folder.

    Raises:
        InputError: the folder holds neither, or the run was made from Python objects.
        UsageError: the folder holds one of the fits of a comparison.
    """
    found = _found(path)
    if holds_run(path) and found.get("command") == "compare":
        whole = of_comparison(path, found)
        raise UsageError(f"'{path}' is one fit of a comparison; continue all of it with: pyro-vi resume {whole}")
    if holds_run(path) and "start" in read_config(path)[0]:
        raise UsageError(f"'{path}' is one start of a fit; continue all of it with: pyro-vi resume {path.parent}")
    objects = found.get("objects", ["settings"])
    if objects:
        call = f"pyro_vi.{found.get('command', 'fit')}(..., out='{path}', resume=True)"
        raise InputError(
            f"the run in '{path}' was made from Python objects ({', '.join(objects)}), which the folder does not hold; "
            f"call {call} with the same ones"
        )
    return found


def of_comparison(path: Path, call: Mapping[str, Any]) -> Path:
    """Return the folder of the comparison that a fit belongs to, given how the comparison was called."""
    return path.parent.parent if call["arguments"].get("seeds", 1) > 1 else path.parent


def refuse_code(path: Path, trust: bool) -> None:
    """Raise UsageError if the run or the comparison in a folder names code that is not trusted: see `trusting`."""
    config = _configuration(path)
    arguments = _call(config).get("arguments", {})
    programs = {kind: arguments.get(kind, config.get(kind)) for kind in ("model", "guide")}
    refuse_foreign(path, config, programs, trust)


def _found(path: Path) -> dict[str, Any]:
    return _call(_configuration(path))


def _configuration(path: Path) -> dict[str, Any]:
    if holds_run(path):
        return read_config(path)[0]
    for folder in fits_in(path):
        try:
            config = read_config(folder)[0]
        except InputError:
            continue
        if _call(config).get("command") == "compare" or "start" in config:
            return config
    raise InputError(f"'{path}' holds no run to resume; give the folder of a fit or a comparison")


def _call(config: Mapping[str, Any]) -> dict[str, Any]:
    found = config.get("given")
    return dict(found) if isinstance(found, dict) and isinstance(found.get("arguments"), dict) else {}


def fits_in(path: Path) -> Iterator[Path]:
    """Yield the folders of the fits of the comparison in a folder."""
    for pattern in (f"*/{CONFIG}", f"seed*/*/{CONFIG}"):
        yield from (found.parent for found in sorted(path.glob(pattern)))


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (Path, torch.device)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(f"{type(value).__name__} is no plain value")

"""The run folder: the files of one fit, from which it can be repeated, continued and read.

* ``config.json``: everything needed to repeat the fit.
* ``metrics.jsonl``: one line for each logged step.
* ``checkpoint.pt``: the state from which the fit can continue (tensors and plain numbers only).
* ``snapshot-<step>.pt``: parameters at the requested steps.

Files are written under a temporary name and then renamed, so that an interrupted write loses nothing.
"""

import json
import warnings
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vi.data import Mapped
from pyro_vi.errors import InputError, UsageError
from pyro_vi.support import Lock, finite, make_folder, unwritable, write_json, write_through

CONFIG, METRICS, CHECKPOINT = "config.json", "metrics.jsonl", "checkpoint.pt"


class RunFolder:
    """The folder of one fit.

    Args:
        path: the folder, which is made if it does not exist.
        config: everything needed to repeat the fit; it must be the same when a run is continued.
        resume: if true, continue from the checkpoint in the folder; otherwise a folder that holds a run is an error.

    Raises:
        UsageError: the folder holds a run and ``resume`` is false, or its run was made with other settings.
        UsageError: there is no run to continue, or another process is writing into the folder.
        InputError: the folder cannot be written to.
    """

    def __init__(self, path: str | Path, config: Mapping[str, Any], *, resume: bool = False) -> None:
        if resume and not holds_run(path):
            raise UsageError(f"'{path}' holds no run to resume; leave out resume to start one")
        self.path = make_folder(path)
        self.lock = Lock(self.path)
        try:
            self._begin(config, resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, config: Mapping[str, Any], resume: bool) -> None:
        found = self.path / CONFIG
        if not resume and holds_run(self.path):
            raise UsageError(f"'{self.path}' holds a run already; continue it with --resume, or choose another folder")
        if resume and not found.exists():
            raise InputError(
                f"'{self.path}' has a checkpoint but no {CONFIG}, so nothing tells whether the settings are the same; "
                "put it back, or choose another folder"
            )
        if resume:
            old = _read_config(found)
            changed = _differences(old, config)
            if changed:
                raise UsageError(
                    f"'{self.path}' holds a run with other settings ({'; '.join(changed)}); resume with the same ones, "
                    "or choose another folder"
                )
            _warn_of_versions(self.path, old.get("versions", {}), config.get("versions", {}))
        write_json(found, config)

    def close(self) -> None:
        """Let others write into the folder."""
        self.lock.release()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        path = self.path / METRICS
        try:
            with path.open("a") as file:
                file.write(json.dumps(finite(record)) + "\n")
        except OSError as error:
            raise unwritable(path, error) or error from error

    def save(self, state: Mapping[str, Any], name: str = CHECKPOINT) -> Path:
        """Write tensors and plain numbers, atomically; return the path."""
        return write_through(self.path / name, lambda temporary: torch.save(dict(state), temporary))

    def load(self, name: str = CHECKPOINT) -> dict[str, Any] | None:
        """Return what `save` wrote, or None if there is no file; code in the file is never run."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:
            raise InputError(f"'{path}' cannot be read ({type(error).__name__}); delete it to start again") from error
        return state

    def history(self, before: int) -> list[dict[str, Any]]:
        """Return the records up to a step, and delete later ones, whose steps will be taken again, from the file."""
        path = self.path / METRICS
        if not path.exists():
            return []
        records = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        kept = [record for record in records if record["step"] <= before]
        write_through(path, lambda temporary: temporary.write_text("".join(json.dumps(r) + "\n" for r in kept)))
        return kept


def holds_run(path: str | Path) -> bool:
    """True if a folder holds a run, finished or not."""
    return any((Path(path).expanduser() / name).exists() for name in (CONFIG, CHECKPOINT))


def config_of(path: Path) -> dict[str, Any]:
    """Return the configuration of the run in a folder.

    Raises:
        InputError: the folder holds no run, or its configuration cannot be read.
    """
    if not (path / CHECKPOINT).exists() or not (path / CONFIG).exists():
        raise InputError(f"'{path}' holds no run (no {CHECKPOINT}); give the folder of a fit")
    return _read_config(path / CONFIG)


def load_parameters(pair: torch.nn.Module, path: Path) -> None:
    """Load the parameters of a run's checkpoint into a pair.

    Raises:
        InputError: the folder holds no run, its checkpoint cannot be read, or it is of another pair.
    """
    if not (path / CHECKPOINT).exists():
        raise InputError(f"'{path}' holds no run (no {CHECKPOINT}); give the folder of a fit")
    try:
        state = torch.load(path / CHECKPOINT, weights_only=True)["pair"]
    except Exception as error:
        raise InputError(
            f"'{path / CHECKPOINT}' cannot be read ({type(error).__name__}); give the folder of an intact run"
        ) from error
    try:
        pair.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(
            f"the run in '{path}' is of another pair, with other parameters; give the model and guide of that run"
        ) from error


def checksum(columns: Iterable[torch.Tensor | Mapped]) -> int:
    """CRC-32 of the bytes of columns, by which other data of the same name are recognised.

    Example:
        >>> checksum([torch.arange(3)]) == checksum([torch.arange(3)]) != checksum([torch.arange(1, 4)])
        True
    """
    found = 0
    for column in columns:
        for block in column.blocks() if isinstance(column, Mapped) else (column,):
            found = zlib.crc32(block.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes(), found)
    return found


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"'{path}' cannot be read as the configuration of a run; choose another folder") from error
    return config


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the settings that differ; of the optimizer's details, only those that no other setting explains."""
    new = json.loads(json.dumps(finite(new)))
    changed = [key for key in sorted({*old, *new}) if key not in DETAILS and old.get(key) != new.get(key)]
    found = [f"{key} was {old.get(key)!r}, is {new.get(key)!r}" for key in changed]
    pythons = [str(one.get("versions", {}).get("python")).split(".")[:2] for one in (old, new)]
    for key, (text, explained) in DETAILS.items():
        comparable = key != "code" or pythons[0] == pythons[1]  # other versions of Python write other code
        if text and comparable and old.get(key) != new.get(key) and not {*explained} & {*changed}:
            found.append(text)
    return found


DETAILS: dict[str, tuple[str, tuple[str, ...]]] = {
    "versions": ("", ()),
    "code": ("the code of the model or the guide has changed", ("model", "guide")),
    "elbo_options": ("the options of the estimator have changed", ("elbo",)),
    "optimizer_groups": ("the options of the optimizer have changed", ("optimizer", "lr")),
    "scheduler": ("the scheduler has changed", ("schedule",)),
}
"""Parts of a configuration that are too long for a message: what is said, and the settings that may explain a difference."""


def _warn_of_versions(path: Path, old: Mapping[str, str], new: Mapping[str, str]) -> None:
    changed = [f"{name} {old[name]}, now {new[name]}" for name in new if name in old and old[name] != new[name]]
    if changed:
        text = f"the run in '{path}' was made with {', '.join(changed)}; its numbers may change slightly"
        warnings.warn(text, stacklevel=2)

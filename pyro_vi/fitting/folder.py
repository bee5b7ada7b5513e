"""The run folder: the files of one fit, from which it can be repeated, continued and read.

* ``config.json``: everything needed to repeat the fit, and the name of the run.
* ``metrics.jsonl``: one line for each logged step.
* ``checkpoint.pt``: the state from which the fit can continue, with the configuration and the records so far.
* ``checkpoint-previous.pt``: the checkpoint before it, which is used if the newest is damaged.
* ``best.pt``: parameters at the record with the highest held-out number.
* ``snapshot-<step>.pt``: parameters at the requested steps.

Files are written under a temporary name and then renamed, so that an interrupted write loses nothing. Each file has a checksum,
and files of tensors also the name of the run: see `sealed`. Of ``metrics.jsonl``, the checkpoint holds a copy.
"""

import json
import os
import secrets
import warnings
import zlib
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vi.data import Mapped
from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting.identity import differences
from pyro_vi.fitting.reading import (
    CHECKPOINT,
    CONFIG,
    METRICS,
    PREVIOUS,
    config_of,
    holds_run,
    kind_of,
    load_parameters,
    newest,
    read_config,
    signed,
)
from pyro_vi.fitting.sealed import RUN, Damaged, read_sealed, write_sealed
from pyro_vi.fitting.trusting import own_mark
from pyro_vi.support import (
    NO_LINK,
    Lock,
    finite,
    keep_as,
    make_folder,
    remove_temporary,
    unwritable,
    write_json,
    write_through,
)

__all__ = ["CHECKPOINT", "CONFIG", "METRICS", "RunFolder", "checksum", "config_of", "holds_run", "load_parameters"]

ASIDE = "checkpoint-damaged.pt"
"""Where a checkpoint is put that cannot be used: it may be another run's."""


class RunFolder:
    """The folder of one fit.

    Args:
        path: the folder, which is made if it does not exist.
        config: everything needed to repeat the fit; it must be the same when a run is continued.
        resume: if true, continue from the checkpoint in the folder; otherwise a folder that holds a run is an error.
        allow: keys of the configuration that may differ from those of the run that is continued, and ``"snapshots"`` if some
            of its snapshots may be missing.

    Attributes:
        records: the records so far.
        changed: the keys of the configuration that differ from those of the checkpoint that was loaded.

    Raises:
        UsageError: the folder holds a run and ``resume`` is false, or its run was made with other settings.
        UsageError: there is no run to continue, or another process is writing into the folder.
        InputError: the folder cannot be written to, or its configuration is damaged.
    """

    def __init__(
        self, path: str | Path, config: Mapping[str, Any], *, resume: bool = False, allow: Collection[str] = ()
    ) -> None:
        if resume and not holds_run(path):
            raise UsageError(f"'{path}' holds no run to resume; leave out resume to start one")
        self.path, self.allow = make_folder(path), allow
        self.records: list[dict[str, Any]] = []
        self.changed: frozenset[str] = frozenset()
        self.then = f"make room for it, then continue with: pyro-vi resume {self.path}"
        self.lock = Lock(self.path)
        try:
            self._begin(config, resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, config: Mapping[str, Any], resume: bool) -> None:
        if not resume and holds_run(self.path):
            raise UsageError(f"'{self.path}' holds a run already; continue it with --resume, or choose another folder")
        remove_temporary(self.path)
        old, said = read_config(self.path) if resume else ({"run": secrets.token_hex(RUN // 2)}, "")
        found = differences(old, config) if resume else {}
        strange = {*self.allow} - {*old, *config, *found, "snapshots"}
        if resume and strange:
            raise UsageError(
                f"allow names {', '.join(sorted(map(repr, strange)))}, which is no setting of a run; give the names that the "
                "error without allow has, such as 'lr' or 'versions'"
            )
        refused = [key for key in found if key not in self.allow]
        if refused:
            raise UsageError(
                f"'{self.path}' holds a run with other settings ({'; '.join(found[key] for key in refused)}); resume with "
                f"the same ones, choose another folder, or allow it: --allow {' '.join(refused)}"
            )
        if said:
            warnings.warn(said, stacklevel=2)
        changes = (
            {"changes": [*map(str, old.get("changes") or ()), *found.values()]} if found or "changes" in old else {}
        )
        self.run: str = old["run"]
        self.config = signed({**config, **changes, "run": self.run})
        mark = own_mark(self.config)
        self.config |= {} if mark is None else {"signature": mark}
        if said or self.config != old:
            write_json(self.path / CONFIG, self.config)

    def close(self) -> None:
        """Let others write into the folder."""
        self.lock.release()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append a line to ``metrics.jsonl``."""
        path = self.path / METRICS
        try:
            with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o666), "a") as file:
                file.write(_line(record))
        except OSError as error:
            raise unwritable(path, error, self.then) or error from error
        self.records.append(dict(record))

    def save(self, state: Mapping[str, Any], name: str = CHECKPOINT) -> Path:
        """Write tensors and plain numbers, atomically; return the path. The checkpoint before is kept."""
        own: dict[str, Any] = {}
        if name == CHECKPOINT:
            own = {"config": self.config, "history": json.loads(json.dumps(self.records))}
        return write_through(
            self.path / name,
            lambda temporary: write_sealed(temporary, {**state, **own}, self.run, kind_of(name)),
            keep=self.path / PREVIOUS if name == CHECKPOINT else None,
            then=self.then,
        )

    def load(self) -> dict[str, Any] | None:
        """Return the newest intact checkpoint, and put ``metrics.jsonl`` into its state; None if there is none yet.

        Raises:
            InputError: no checkpoint is intact.
        """
        state, _, wrong = newest(self.path, self.run)
        if state is None:
            if (self.path / METRICS).exists():
                warnings.warn(f"'{self.path}' has no checkpoint; the run starts again at its first step", stacklevel=2)
                (self.path / METRICS).unlink()
            return None
        self.changed = frozenset(differences(state["config"], self.config))
        self.records = list(state["history"])
        if wrong:
            self._set_aside(wrong)
        self._mend()
        return state

    def snapshot(self, step: int) -> dict[str, torch.Tensor] | None:
        """Return the parameters that were kept at a step that is done; None if they are missing and that is allowed.

        Raises:
            InputError: they are missing or damaged.
        """
        path = self.path / f"snapshot-{step}.pt"
        try:
            return read_sealed(path, self.run, kind_of(path.name))
        except (Damaged, FileNotFoundError) as error:
            if {"kept", "snapshots"} & {*self.allow}:
                return None
            why = str(error) if isinstance(error, Damaged) else "it is missing"
            raise InputError(
                f"'{path}' cannot be used: {why}; put it back, or continue without it: --allow snapshots"
            ) from error
        except OSError as error:
            raise InputError(f"'{path}' cannot be read ({error.strerror}); make it readable") from error

    def _set_aside(self, wrong: str) -> None:
        path, aside = self.path / CHECKPOINT, ""
        if path.exists():
            path.replace(self.path / ASIDE)
            aside = f" (kept as {ASIDE})"
        keep_as(self.path / PREVIOUS, path)
        warnings.warn(
            f"'{path}' is not used: {wrong}{aside}; the run continues from the checkpoint before it", stacklevel=3
        )

    def _mend(self) -> None:
        """Cut records off whose steps will be taken again, and restore those that are missing."""
        path, wanted = self.path / METRICS, "".join(map(_line, self.records)).encode()
        try:
            with path.open("rb") as file:
                found, size = file.read(len(wanted)), file.seek(0, os.SEEK_END)
        except FileNotFoundError:
            found, size = b"", 0
        except OSError as error:
            raise InputError(f"'{path}' cannot be read ({error.strerror}); make it readable") from error
        if found != wanted:
            warnings.warn(f"'{path}' was damaged or cut; its records are restored from the checkpoint", stacklevel=3)
        if found != wanted or size != len(wanted):
            write_through(path, lambda temporary: temporary.write_bytes(wanted), then=self.then)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(finite(record)) + "\n"


def checksum(columns: Iterable[torch.Tensor | Mapped]) -> int:
    """CRC-32 of the bytes of columns, by which other data of the same name are recognised.

    Example:
        >>> checksum([torch.arange(3)]) == checksum([torch.arange(3)]) != checksum([torch.arange(1, 4)])
        True
    """
    found = 0
    for column in columns:
        for block in column.blocks() if isinstance(column, Mapped) else (column,):
            # Flat, as memory of any shape is read without a copy then.
            found = zlib.crc32(block.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, found)
    return found

"""Write a run that is only in memory, so that it can be opened later, with data that have no name.

* `store` writes a run, and `keep_data` its data; `stored_data` reads them.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vi.data import ColumnSpec, Data, DataSpec, Mapped
from pyro_vi.data.arguments import Arguments, Place
from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting import BEST, Run, RunFolder, config_of, holds_run
from pyro_vi.fitting.sealed import Damaged, read_sealed, write_sealed
from pyro_vi.support import make_folder, write_through

DATA = "data.pt"
PLAIN = ("levels", "binarize", "integers", "shuffle", "drop_last", "numbered", "classes", "seed")
PLACE = "place of a column"
TENSORS = ("given", "labels", "heldout_labels", "standard", "heldout", "columns")


def store(run: Run, folder: str | Path) -> Path:
    """Write a run into a new folder; return it. A run that has a folder is copied.

    Data that were given as Python objects are written too, unless their rows stay in a file, or a program takes arguments
    that are neither tensors nor plain values.

    Raises:
        UsageError: the folder holds a run already.
        InputError: the folder cannot be written, or the run has neither a folder nor a state.
    """
    path = Path(folder).expanduser().absolute()
    if holds_run(path):
        raise UsageError(f"'{path}' holds a run already; choose another folder")
    if run.out is not None and holds_run(run.out):
        make_folder(path)
        for file in sorted(Path(run.out).iterdir()):
            if (
                file.is_file()
                and not file.is_symlink()
                and not file.name.startswith(".")
                and file.suffix not in (".tmp", ".lock")
            ):
                write_through(path / file.name, lambda temporary: shutil.copyfile(file, temporary))  # noqa: B023
    elif run.state:
        target = RunFolder(path, run.config)
        try:
            for record in run.history:
                target.log(record)
            for step, parameters in run.snapshots.items():
                target.save(parameters, f"snapshot-{step}.pt")
            if run.best is not None and run.chosen == run.best.step:
                target.save({"pair": run.pair.state_dict(), "step": run.chosen}, BEST)
            target.save(run.state)
        finally:
            target.close()
    else:
        raise InputError(
            "the run has neither a folder nor a state, so that it cannot be saved; fit it again with out=FOLDER"
        )
    keep_data(run, path)
    return path


def keep_data(run: Run, path: Path) -> None:
    """Write the data of a run into its folder, if they were given as Python objects and are tensors in memory."""
    state = _state_of(run.data)
    if "data" in run.config.get("given", {}).get("objects", ()) and state is not None and not (path / DATA).exists():
        name = config_of(path)["run"]
        write_through(path / DATA, lambda temporary: write_sealed(temporary, state, name, "data"))


def stored_data(path: Path, run: str) -> Data:
    """Return the data that `store` wrote into a folder.

    Raises:
        InputError: the file is damaged.
    """
    try:
        state = read_sealed(path / DATA, run, "data")
        spec = {**state["spec"], "dtype": getattr(torch, state["spec"]["dtype"])}
        spec["others"] = tuple(ColumnSpec(**_tuples(one)) for one in spec["others"])
        values = {name: state[name] for name in (*PLAIN, *TENSORS, "roles")}
        values["standard"] = None if values["standard"] is None else tuple(values["standard"])
        values |= {name: tuple(values[name]) for name in ("heldout", "columns", "classes")}
        if state["arguments"] is not None:
            places, names = state["arguments"]
            values["arguments"] = Arguments(tuple(_read(places)), tuple(names))
        return Data(DataSpec(**_tuples(spec)), **values)
    except (Damaged, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"'{path / DATA}' cannot be used: {error}; give the data of the run by data=...") from error


def _state_of(data: Data) -> dict[str, Any] | None:
    """The data as tensors and plain values, or None if they hold anything else."""
    if any(isinstance(column, Mapped) for column in data.columns):
        return None
    spec = dataclasses.asdict(data.spec)
    spec["dtype"] = str(data.spec.dtype).removeprefix("torch.")
    arguments = data.arguments
    try:
        called = None if arguments is None else [_written(arguments.values), arguments.names]
        found = {name: _written(getattr(data, name)) for name in (*PLAIN, *TENSORS)}
    except TypeError:
        return None
    return {"spec": spec, "roles": dict(data.roles), "arguments": called, **found}


def _written(value: Any) -> Any:
    """Arguments as plain values: a place is a dictionary of one entry."""
    if isinstance(value, Place):
        return {PLACE: value.column}
    if value is None or isinstance(value, (bool, int, float, str, Tensor)):
        return value
    if type(value) in (list, tuple):
        return type(value)(_written(item) for item in value)
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {key: _written(item) for key, item in value.items()}
    raise TypeError(type(value).__name__)


def _read(value: Any) -> Any:
    if isinstance(value, dict):
        return Place(value[PLACE]) if {*value} == {PLACE} else {key: _read(item) for key, item in value.items()}
    return type(value)(_read(item) for item in value) if isinstance(value, (list, tuple)) else value


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

"""Find the programs and the data of a run in a folder: by the names in its configuration, on disk, or from the caller.

* `sources_of` returns them in the form that `pyro_vi.fit` takes; `plan_again` plans the same fit from them.
* `same_data` recognises the data of a run by their name.
"""

import contextlib
import platform
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vi.afterwards.storing import DATA, stored_data
from pyro_vi.data import Data
from pyro_vi.errors import InputError
from pyro_vi.fitting import Options, Plan, checksum, config_of, names_of, plan_of, refuse_foreign

KINDS = ("model", "guide", "data")
OWN = re.compile(r"^(?P<path>.*?\.(?:py|npy|npz|csv|parquet))(?=$|[:(])", re.IGNORECASE)
"""A path to a file, at the start of the name of a program or of data."""


def sources_of(path: Path, config: Mapping[str, Any], given: Mapping[str, Any], trust: bool = False) -> dict[str, Any]:
    """Return model, guide and data of the run in a folder, with absolute paths; what is in ``given`` comes first.

    Args:
        path: the folder.
        config: the configuration of the run.
        given: what the caller passed, by ``"model"``, ``"guide"`` and ``"data"``; for None, the folder decides.
        trust: the code of programs that the folder names may run, whoever made the run.

    Raises:
        UsageError: the run of another user names programs that are code.
        InputError: the run was made from Python objects that are not given, or a file is not found.
    """
    called = config.get("given", {})
    arguments, objects = called.get("arguments", {}), called.get("objects", ())
    found: dict[str, Any] = {}
    asked = []
    for kind in KINDS:
        if given.get(kind) is not None:
            found[kind] = _absolute(given[kind], Path.cwd())
        elif kind == "data" and (path / DATA).is_file():
            found[kind] = stored_data(path, config["run"])
        elif kind in objects:
            asked.append(kind)
        else:
            found[kind] = arguments.get("data", config.get("data")) if kind == "data" else config.get(kind)
    if asked:
        call = ", ".join([f"'{path}'", *(f"{kind}=..." for kind in asked)])
        raise InputError(
            f"the run in '{path}' was made from Python objects ({', '.join(asked)}), which the folder does not hold; give "
            f"them: pyro_vi.open({call})"
        )
    refuse_foreign(path, config, {kind: found[kind] for kind in ("model", "guide") if given.get(kind) is None}, trust)
    places = [Path(place) for place in (called.get("folder") or ".", ".")]
    for kind in KINDS:
        if given.get(kind) is None:
            found[kind] = _found(kind, found[kind], places, path)
    return found


def plan_again(
    path: Path, config: Mapping[str, Any], sources: Mapping[str, Any], parameters: Mapping[str, torch.Tensor]
) -> Plan:
    """Return the plan of the run in a folder, with the same rows as in its fit.

    Args:
        path: the folder.
        config: the configuration of the run.
        sources: model, guide and data.
        parameters: the parameters in its checkpoint.

    Raises:
        InputError: programs or data cannot be used, or the data differ from those of the run.
    """
    arguments = config.get("given", {}).get("arguments", {})
    heldout = None if isinstance(sources["data"], Data) else config.get("heldout")
    rows = {name: arguments.get(name) for name in ("batch_size", "shuffle")}
    options = Options(seed=config["seed"], heldout=heldout, drop_last=bool(config.get("drop_last")), **rows)
    found = None
    # The fit may have run under another default dtype. If the data have no dtype of their own, the parameters show it.
    for dtype in dict.fromkeys(
        (torch.get_default_dtype(), *(v.dtype for v in parameters.values() if v.is_floating_point()))
    ):
        with _default(dtype):
            planned = plan_of(sources["model"], sources["guide"], sources["data"], options)
            names = names_of(sources["model"], sources["guide"], sources["data"], planned.data)
        if config.get("data_checksum") in (None, checksum(planned.data.columns)):
            found = found or (planned, names)
            own = planned.pair.state_dict()
            if all(name in own and own[name].dtype == value.dtype for name, value in parameters.items()):
                found = planned, names
                break
    if found is None:
        raise InputError(
            f"the data are not those that the run in '{path}' was fitted to (their checksum differs); give the same ones by "
            "data=..., and new rows to the methods of the run"
        )
    planned, names = found
    old, new = config.get("code", {}), names["code"]
    same = str(config.get("versions", {}).get("python")).split(".")[:2] == _python()
    changed = [kind for kind in ("model", "guide") if old.get(kind) and old[kind] != new[kind]]
    if changed and same:
        warnings.warn(
            f"the code of the {' and the '.join(changed)} has changed since the run in '{path}' was made; its numbers may "
            "be others",
            stacklevel=4,
        )
    return planned


def same_data(folder: str | Path, source: str) -> bool:
    """True if ``source`` names the data of the run in a folder: the same name, or the same file with the same options."""
    config = config_of(Path(folder))
    called = config.get("given", {})
    start = Path(called.get("folder") or ".")
    own = called.get("arguments", {}).get("data", config.get("data"))
    if not isinstance(own, str):
        return False
    if own == source and own_path(own) is None:
        return True
    return _real(own, start) == _real(source, Path.cwd())


def _real(source: str, start: Path) -> str:
    path = own_path(source)
    if path is None:
        return source
    return str(_absolute(source, start)).replace(str(start / path), str((start / path).resolve()))


def own_path(source: object) -> Path | None:
    """Return the path in the name of a program or of data, or None for other names and objects.

    Example:
        >>> own_path("my/vae.py:Model(width=3)"), own_path("wine.csv(label='kind')"), own_path("vae(latent_dim=2)")
        (PosixPath('my/vae.py'), PosixPath('wine.csv'), None)
    """
    if isinstance(source, Path):
        return source.expanduser()
    match = OWN.match(source) if isinstance(source, str) else None
    return None if match is None else Path(match["path"]).expanduser()


def _absolute(source: Any, start: Path) -> Any:
    path = own_path(source)
    if path is None:
        return source
    whole = start / path
    if isinstance(source, Path):
        return whole
    match = OWN.match(source)
    assert match is not None
    return f"{whole}{source[match.end() :]}"


def _found(kind: str, source: Any, places: list[Path], folder: Path) -> Any:
    path = own_path(source)
    if path is None:
        return source
    for place in places:
        if (place / path).is_file():
            return _absolute(source, place.absolute())
    how = f"{kind}='PATH'" if kind == "data" else f"{kind}='PATH/{path.name}:NAME'"
    raise InputError(f"the run in '{folder}' uses '{path}', which is not in '{places[0]}'; say where it is: {how}")


@contextlib.contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """Set the default dtype within the block, as in the process that made the fit."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _python() -> list[str]:
    return platform.python_version().split(".")[:2]

"""Reading of a run folder: its configuration and its newest intact checkpoint, each compared with its checksum.

* `read_config` and `newest` read them; `config_of` and `load_parameters` are for those who use a run.
* `read_best` reads the parameters of the best record, and `parameters_of` those that are the result of a run.
* `signed` gives a configuration its checksum.
"""

import hashlib
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pyro_vi.errors import InputError
from pyro_vi.fitting.plausible import wrong_config, wrong_records
from pyro_vi.fitting.sealed import Damaged, read_sealed
from pyro_vi.support import finite

CONFIG, METRICS, CHECKPOINT, PREVIOUS = "config.json", "metrics.jsonl", "checkpoint.pt", "checkpoint-previous.pt"
BEST = "best.pt"

SEALS = ("checksum", "signature")
"""Entries of a configuration that are made from the others: see `pyro_vi.fitting.trusting`."""

RESULT = "result"
"""Key of the parameters in a checkpoint that are the result of the fit, where these are not those of its steps."""

STARTS = "starts.json"
"""The numbers of all starts of a fit with several."""

LONGEST = 2**24
"""Most bytes of a configuration."""


def holds_run(path: str | Path) -> bool:
    """True if a folder holds a run, finished or not."""
    return any((Path(path).expanduser() / name).exists() for name in (CONFIG, CHECKPOINT, PREVIOUS))


def signed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration with its checksum, a BLAKE2b digest of all other entries; a signature is left out.

    Example:
        >>> signed({"lr": 1.0})["checksum"] == signed({"lr": 1.0, "checksum": ""})["checksum"]
        True
    """
    plain = json.loads(json.dumps(finite({key: value for key, value in config.items() if key not in SEALS})))
    text = json.dumps(plain, sort_keys=True)
    return {**plain, "checksum": hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}


def read_config(path: Path) -> tuple[dict[str, Any], str]:
    """Return the configuration of the run in a folder; if its file is damaged, that of a checkpoint, and a line that says so.

    Raises:
        InputError: there is none.
    """
    try:
        return _config(path / CONFIG), ""
    except Damaged as error:
        why = str(error)
    for name in (CHECKPOINT, PREVIOUS):
        try:
            found = _checkpoint(read_sealed(path / name, None, kind_of(name)))["config"]
            return found, f"'{path / CONFIG}' is not used: {why}; the copy in {name} is"
        except (Damaged, OSError):
            continue
    raise InputError(
        f"'{path / CONFIG}' cannot be used: {why}, and no checkpoint has a copy; put it back, or choose another folder"
    )


def newest(path: Path, run: str | None) -> tuple[dict[str, Any] | None, str, str]:
    """Return the newest intact checkpoint, the name of its file, and what is wrong with the newest, if anything is.

    Args:
        path: the folder.
        run: the run that it must belong to, or None if that is not known.

    Raises:
        InputError: there are checkpoints, but none can be used.
    """
    wrong: dict[str, str] = {}
    for name in (CHECKPOINT, PREVIOUS):
        try:
            return _checkpoint(read_sealed(path / name, run, kind_of(name))), name, wrong.get(CHECKPOINT, "")
        except FileNotFoundError:
            wrong.update({CHECKPOINT: "it is missing"} if name == CHECKPOINT else {})
        except Damaged as error:
            wrong[name] = str(error)
        except OSError as error:
            raise InputError(f"'{path / name}' cannot be read ({error.strerror}); make it readable") from error
    if not any((path / name).exists() for name in wrong):
        return None, "", ""
    earlier = f"{PREVIOUS} is no better ({wrong[PREVIOUS]})" if PREVIOUS in wrong else "there is no earlier one"
    raise InputError(
        f"'{path / CHECKPOINT}' cannot be read: {wrong[CHECKPOINT]}; {earlier}; put it back, or delete the checkpoints to "
        "start the run again"
    )


def kind_of(name: str) -> str:
    """Return what a file of tensors is sealed as; both checkpoints are of one kind."""
    return Path(CHECKPOINT if name == PREVIOUS else name).stem


def config_of(path: Path) -> dict[str, Any]:
    """Return the configuration of the run in a folder.

    Raises:
        InputError: the folder holds no run, or its configuration cannot be read.
    """
    path = path.expanduser()
    if not any((path / name).exists() for name in (CHECKPOINT, PREVIOUS)):
        raise InputError(f"'{path}' holds no run (no {CHECKPOINT}); give the folder of a fit")
    config, said = read_config(path)
    if said:
        warnings.warn(said, stacklevel=2)
    return config


def load_parameters(pair: torch.nn.Module, path: Path) -> None:
    """Load the parameters of a run into a pair: those of its newest intact checkpoint, or of its best record.

    Raises:
        InputError: the folder holds no run, no checkpoint can be read, or it is of another pair.
    """
    path = path.expanduser()
    run = config_of(path).get("run")
    state, name, wrong = newest(path, run)
    assert state is not None
    if wrong:
        warnings.warn(f"'{path / CHECKPOINT}' is not used: {wrong}; the parameters are those of {name}", stacklevel=2)
    put_into(pair, {"pair": parameters_of(path, state)[0]}, f"the run in '{path}'")


def put_into(pair: torch.nn.Module, state: Mapping[str, Any], what: str) -> None:
    """Put the parameters of a checkpoint into a pair.

    Raises:
        InputError: they are those of another pair.
    """
    try:
        pair.load_state_dict(state["pair"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{what} is of another pair, with other parameters; give the model and guide of that run"
        ) from error


def _checkpoint(state: dict[str, Any]) -> dict[str, Any]:
    config = state.get("config")
    if not isinstance(config, dict) or "run" not in config or wrong_records(state.get("history")):
        raise Damaged("it lacks the configuration or the records of a run")
    if wrong := wrong_config(config):
        raise Damaged(wrong)
    return state


def _config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > LONGEST:
            raise Damaged("it is too long for one")
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise Damaged("it is missing") from error
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); make it readable") from error
    except (ValueError, RecursionError) as error:
        raise Damaged("it cannot be read as JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("checksum"), str):
        raise Damaged("it has no checksum")
    if wrong := wrong_config(found):
        raise Damaged(wrong)
    if not isinstance(found.get("run"), str) or signed(found)["checksum"] != found["checksum"]:
        raise Damaged("it has changed since it was written: its checksum differs")
    return found


def read_starts(path: Path) -> list[dict[str, Any]]:
    """Return the numbers of all starts of the run in a folder; none, if it had one start or the file is damaged."""
    try:
        found = _config(path / STARTS).get("starts")
    except (Damaged, InputError):
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        return []
    return [{key: math.nan if value is None else value for key, value in one.items()} for one in found]


def read_snapshot(path: Path, run: str, step: int) -> dict[str, torch.Tensor] | None:
    """Return the parameters that were kept at a step; None if they are missing or damaged."""
    name = f"snapshot-{step}.pt"
    try:
        return read_sealed(path / name, run, kind_of(name))
    except (Damaged, OSError):
        return None


def read_best(path: Path, run: str | None, step: int | None = None) -> tuple[dict[str, Any] | None, str]:
    """Return the parameters of the best record (``pair``) and its ``step``; or None, and what is wrong with the file.

    Args:
        path: the folder.
        run: the run that it must belong to, or None if that is not known.
        step: the step that it must be of; by default any.
    """
    try:
        found = read_sealed(path / BEST, run, kind_of(BEST))
    except FileNotFoundError:
        return None, "it is missing"
    except Damaged as error:
        return None, str(error)
    except OSError as error:
        return None, f"it cannot be read ({error.strerror})"
    if not isinstance(found.get("pair"), dict) or type(found.get("step")) is not int:
        return None, "it holds no parameters"
    if step is not None and found["step"] != step:
        return None, f"it is of step {found['step']}, and the best record is of step {step}"
    return found, ""


def parameters_of(path: Path, state: Mapping[str, Any]) -> tuple[Mapping[str, Any], int | None]:
    """Return the parameters that are the result of a run, and their step if it is not that of the checkpoint.

    They are those of the checkpoint; if the fit averages, the average. If the run was made with ``stop="heldout"``, they are
    those of the best record.

    Args:
        path: the folder.
        state: the checkpoint.
    """
    pair, result = state["pair"], state.get(RESULT)
    if isinstance(pair, Mapping) and isinstance(result, Mapping):
        pair = {**pair, **result}
    best = (state.get("best") or {}).get("best")
    if state["config"].get("stop") != "heldout" or not best:
        return pair, None
    found, why = read_best(path, state["config"]["run"], best[0])
    if found is None:
        warnings.warn(
            f"'{path / BEST}' is not used: {why}; the parameters are those of the last step, and not of the best record",
            stacklevel=3,
        )
        return pair, None
    return found["pair"], best[0]

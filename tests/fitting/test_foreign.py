"""Run folders from strangers, with right checksums, give one clear line; no code of theirs runs, and memory is bounded."""

import copy
import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
from data_toys import message
from forging import Bomb, sealed, unsealed
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

import pyro_vi
from pyro_vi import InputError
from pyro_vi.errors import FitError
from pyro_vi.fitting.folder import RunFolder
from pyro_vi.fitting.plausible import too_much
from pyro_vi.fitting.reading import config_of, signed
from pyro_vi.fitting.sealed import read_sealed, write_sealed
from pyro_vi.reporting.pictures.plotting import _write
from pyro_vi.support import Lock, make_folder

QUICK = {"steps": 3, "batch_size": 8, "compile": False, "progress": False, "check": False}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    np.save(place / "x.npy", np.random.default_rng(0).normal(size=(20, 2)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        pyro_vi.fit("linear_gaussian(latent_dim=1)", "diag_normal", "x.npy", out="run", **QUICK)
    return place / "run"


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def state_of(folder: Path) -> dict[str, Any]:
    return read_sealed(folder / "checkpoint.pt", None, "checkpoint")


def forge(folder: Path, state: Any, run: str) -> None:
    """Write a checkpoint as any Python could, with a right seal."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    sealed(folder / "checkpoint.pt", buffer.getvalue(), run=run)
    (folder / "checkpoint-previous.pt").unlink(missing_ok=True)


def test_a_pickle_in_a_checkpoint_is_not_run(folder: Path, tmp_path: Path) -> None:
    marker, state = tmp_path / "marker", state_of(folder)
    pickle.loads(pickle.dumps(Bomb(marker)))
    marker.rmdir()  # so the bomb is one
    forge(folder, {**state, "bomb": Bomb(marker)}, state["config"]["run"])
    for call in (pyro_vi.open, pyro_vi.resume):
        assert "torch cannot read it (UnpicklingError)" in message(call, folder)
    assert not marker.exists()


def test_values_that_would_take_forever_are_refused(folder: Path) -> None:
    state = state_of(folder)
    laughs: Any = [0] * 10
    for _ in range(20):  # 10^21 values in a few hundred bytes
        laughs = [laughs] * 10
    deep: Any = 0
    for _ in range(60):
        deep = [deep]
    for value, text in ((laughs, "too many values"), (deep, "nested too deeply"), (torch.Size, "it holds a type")):
        forge(folder, {**state, "more": value}, state["config"]["run"])
        assert text in message(pyro_vi.open, folder)
    assert too_much({"a": [1, (2.0, None)], "b": torch.ones(3)}, 0) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("pair", {"a": 1}), ("position", {"step": "x"}), ("convergence", 3), ("best", 3), ("best", {"best": ["x"]})],
)
def test_a_state_that_no_fit_writes_is_one_line(name: str, value: Any, folder: Path) -> None:
    state = state_of(folder)
    forge(folder, {**state, name: value}, state["config"]["run"])
    assert "has no state of a fit; fit again, or open another run" in message(pyro_vi.open, folder)


def test_a_configuration_that_is_long_or_deep_is_one_line(folder: Path) -> None:
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (folder / name).write_bytes(b"")
    path = folder / "config.json"
    with path.open("wb") as file:
        file.truncate(10**9)  # sparse
    assert "it is too long for one" in message(config_of, folder)
    for text in (
        "[" * 10**6,
        '{"a":' * 900 + "1" + "}" * 900,
        "9" * 10**6,
        '{"checksum": "x", "a": ' + "[" * 900 + "]" * 900 + "}",
    ):
        path.write_text(text)
        assert "and no checkpoint has a copy" in message(config_of, folder)


CHANGES: dict[str, Any] = {
    "seed": "x",
    "steps": -1,
    "batch_size": 2**80,
    "heldout": [],
    "kept": [-1],
    "model": "vae\x1b[2J",
    "guide": None,
    "versions": 3,
    "code": [],
    "given": {"arguments": {"model": {"a": {}}}, "objects": []},
    "run": "../../../../etc/x",
    "changes": [{}],
}


@pytest.mark.parametrize("name", CHANGES)
def test_an_entry_that_no_fit_writes_is_one_line(name: str, folder: Path) -> None:
    for file in ("checkpoint.pt", "checkpoint-previous.pt"):
        (folder / file).write_bytes(b"")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(signed({**config, name: CHANGES[name]})))
    text = message(config_of, folder)
    assert "cannot be used: its " in text or "cannot be used: it does not say" in text


def test_nothing_is_written_through_a_link(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("mine")
    for name in (".lock", "metrics.jsonl", ".writable", "elbo.png"):
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(own)
    with pytest.raises(InputError, match=r"\.lock' cannot be opened"):
        Lock(folder)
    make_folder(folder)
    (folder / ".lock").unlink()
    with pytest.warns(UserWarning, match="was damaged or cut"):  # and is replaced, as is any other file
        pyro_vi.resume(folder, progress=False)
    _write(Figure(), folder / "elbo.png", "png")
    assert not (folder / "elbo.png").is_symlink()
    assert own.read_text() == "mine" and not (folder / "metrics.jsonl").is_symlink()
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").symlink_to(own)
    run = RunFolder(folder, config_of(folder), resume=True, allow=tuple(config_of(folder)))
    with pytest.raises(InputError, match="cannot be written"):
        run.log({"step": 1})
    run.close()
    assert own.read_text() == "mine"


def test_the_text_of_an_error_commands_no_terminal(tmp_path: Path) -> None:
    name = "a\x1b[31m\nb\u202e\udc80"
    for text in (message(pyro_vi.open, tmp_path / name), message(pyro_vi.load, tmp_path / f"{name}.npy")):
        assert text.isprintable() and "a\\x1b[31m\\nb\\u202e\\udc80" in text


LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["vae(", "/", "os:system"])
)
VALUES = st.recursive(
    LEAVES, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=3), inside, max_size=3)
)


def paths_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the values of a nested value are."""
    if not isinstance(value, dict):
        return [path]
    return [path, *(found for key, item in value.items() for found in paths_in(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    found = copy.deepcopy(value)
    place = found
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return found


def outcome(folder: Path) -> None:
    """Open a run, and use it; anything but an answer or one clear line is an error of the test."""
    try:
        run = pyro_vi.open(folder)
        repr(run), run.embed(), run.history
    except InputError as error:
        assert str(error).isprintable()


def fuzz_configuration(folder: Path, data: st.DataObject) -> None:
    """One entry is another one; the checksum is right, and the checkpoint has the same configuration."""
    state = state_of(folder)
    config = state["config"]
    place = data.draw(st.sampled_from([path for path in paths_in(config) if path]))
    config = signed(json.loads(json.dumps(changed(config, place, data.draw(VALUES)), default=str)))
    (folder / "config.json").write_text(json.dumps(config))
    if data.draw(st.booleans()):
        write_sealed(folder / "checkpoint.pt", {**state, "config": config}, state["config"]["run"], "checkpoint")
    outcome(folder)


def fuzz_state(folder: Path, data: st.DataObject) -> None:
    state = state_of(folder)
    place = data.draw(st.sampled_from([path for path in paths_in(state) if path and path[0] != "config"]))
    write_sealed(
        folder / "checkpoint.pt", changed(state, place, data.draw(VALUES)), state["config"]["run"], "checkpoint"
    )
    outcome(folder)


def fuzz_bytes(folder: Path, data: st.DataObject) -> None:
    """A checkpoint whose bytes were changed and which was sealed again."""
    run = state_of(folder)["config"]["run"]
    content = bytearray(unsealed((folder / "checkpoint.pt").read_bytes()))
    for _ in range(data.draw(st.integers(1, 5))):
        content[data.draw(st.integers(0, len(content) - 23))] = data.draw(st.integers(0, 255))
    sealed(folder / "checkpoint.pt", bytes(content), run=run)
    (folder / "checkpoint-previous.pt").unlink(missing_ok=True)
    outcome(folder)


def fuzz_records(folder: Path, data: st.DataObject) -> None:
    (folder / "metrics.jsonl").write_bytes(data.draw(st.binary(max_size=300)))
    (folder / "result.nc").write_bytes(data.draw(st.binary(max_size=300)))
    outcome(folder)


def fuzz_call(folder: Path, data: st.DataObject) -> None:
    """A run is resumed after the arguments in its configuration were changed."""
    state = state_of(folder)
    config, lengths = state["config"], ("steps", "epochs")
    places = [("given", name) for name in config["given"]]
    places += [("given", "arguments", name) for name in config["given"]["arguments"] if name not in lengths]
    config = changed(config, data.draw(st.sampled_from(places)), data.draw(VALUES))
    config = signed(json.loads(json.dumps(config, default=str)))
    (folder / "config.json").write_text(json.dumps(config))
    # Outside tests nothing compares arguments with annotations, so pyro_vi's own checks have to find them.
    disabled = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        pyro_vi.resume(folder, progress=False, allow=[name for name in CHANGES if name in config])
    except (InputError, FitError) as error:
        assert str(error).isprintable()
    finally:
        jaxtyping.config.update("jaxtyping_disable", disabled)


def fuzzed(fuzz: Any, whole: Path, tmp_path: Path, examples: int) -> None:
    suppressed = [HealthCheck.too_slow, HealthCheck.data_too_large]

    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=suppressed)
    @given(data=st.data())
    def run(data: Any) -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        fuzz(Path(shutil.copytree(whole, tmp_path / "run")), data)

    run()
    assert not (tmp_path / "marker").exists()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("fuzz", "examples"),
    [
        (fuzz_configuration, 3),
        (fuzz_bytes, 3),
        *(
            pytest.param(fuzz, 100, marks=pytest.mark.slow)
            for fuzz in (fuzz_state, fuzz_configuration, fuzz_bytes, fuzz_records)
        ),
        pytest.param(fuzz_call, 60, marks=pytest.mark.slow),
    ],
)
def test_any_folder_gives_an_answer_or_one_line(fuzz: Any, examples: int, whole: Path, tmp_path: Path) -> None:
    fuzzed(fuzz, whole, tmp_path, examples)


def test_names_of_members_are_no_paths(folder: Path, tmp_path: Path) -> None:
    run = state_of(folder)["config"]["run"]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../marker", b"x")
    sealed(folder / "checkpoint.pt", buffer.getvalue(), run=run)
    (folder / "checkpoint-previous.pt").unlink(missing_ok=True)
    assert "torch cannot read it" in message(pyro_vi.open, folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]

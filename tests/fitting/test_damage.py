"""Run folders that were damaged: resuming gives the bits of an uninterrupted fit, or one clear line; never other numbers."""

import random
import re
import resource
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_fits import in_main_thread, interrupting, quick, same_fit

from pyro_vi import InputError, Run
from pyro_vi.fitting.reading import signed
from pyro_vi.fitting.sealed import read_sealed, write_sealed
from pyro_vi.support import Lock, write_json

STEPS, STOP = 20, 13
OPTIONS = {"steps": STEPS, "batch_size": 20, "snapshots": (0.0, 0.5, 1.0)}
FILES = (
    "config.json",
    "metrics.jsonl",
    "checkpoint.pt",
    "checkpoint-previous.pt",
    "snapshot-0.pt",
    "snapshot-10.pt",
    "best.pt",
)


def begun(folder: Path, seed: int = 0) -> Path:
    with pytest.raises(KeyboardInterrupt):
        quick(out=folder, optimizer=interrupting(STOP), seed=seed, **OPTIONS)
    return folder


def resumed(folder: Path, **options) -> Run:
    return quick(out=folder, optimizer=interrupting(), resume=True, **{**OPTIONS, **options})


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return begun(tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the same programs with another seed."""
    return begun(tmp_path_factory.mktemp("another") / "run", seed=1)


@pytest.fixture(scope="module")
def whole() -> Run:
    return quick(optimizer=interrupting(), **OPTIONS)


def copied(folder: Path, to: Path) -> Path:
    shutil.rmtree(to, ignore_errors=True)
    return Path(shutil.copytree(folder, to))


def outcome(folder: Path, whole: Run) -> str:
    """Resume, and return what was said; the bits are right if there is no error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            run = resumed(folder)
        except InputError as error:
            said = [f"error: {error}"]
        else:
            said = [str(warning.message) for warning in caught]
            assert same_fit(run, whole)
            lines = (folder / "metrics.jsonl").read_text().splitlines()
            assert len(lines) == len(whole.history)
    assert len(said) <= 3 and all("\n" not in line and str(folder) in line for line in said), said
    assert not list(folder.glob("*.tmp"))
    return " / ".join(said)


@pytest.mark.slow
@in_main_thread
def test_an_intact_run_is_resumed_without_a_word(stopped, whole, tmp_path):
    assert outcome(copied(stopped, tmp_path / "run"), whole) == ""


@pytest.mark.slow
@in_main_thread
@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: torch.save(step(torch.load(f / FILES[2])), f / FILES[2]), "is not used: it has no checksum"),
        (lambda f: (f / FILES[2]).write_bytes((f / "snapshot-10.pt").read_bytes()), "is not used: it is not the check"),
        (lambda f: (f / FILES[2]).unlink(), "is not used: it is missing; the run continues from the checkpoint before"),
        (
            lambda f: (f / FILES[4]).write_bytes((f / FILES[5]).read_bytes()),
            "error: '.*snapshot-0.pt' cannot be used: it",
        ),
        (lambda f: (f / FILES[5]).unlink(), "error: .*it is missing; .* --allow snapshots"),
    ],
    ids=["a step of 10^9", "a snapshot", "missing", "another snapshot", "no snapshot"],
)
def test_what_is_said(damage: Callable[[Path], object], text, stopped, whole, tmp_path):
    damage(copied(stopped, tmp_path / "run"))
    assert re.search(text, said := outcome(tmp_path / "run", whole)), said


def step(state):
    state["position"]["step"] = 10**9
    return state


@in_main_thread
@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"step": 10**9}, "the run is at step 1000000000 already, and steps is 20; give more steps"),
        ({"batch": 4}, "the checkpoint has no position in this fit"),
        ({"step": -1}, "the checkpoint has no position in this fit"),
        ({"epoch": 14}, "the checkpoint has no position in this fit"),
    ],
)
def test_a_position_that_is_none_of_the_fit(changed, text, stopped, tmp_path):
    """In a file with a right checksum."""
    path = copied(stopped, tmp_path / "run") / "checkpoint.pt"
    state = read_sealed(path, None, "checkpoint")
    state["position"].update(changed)
    write_sealed(path, state, state["config"]["run"], "checkpoint")
    with pytest.raises(InputError, match=text):
        resumed(tmp_path / "run")


@pytest.mark.slow
@in_main_thread
def test_a_checkpoint_of_another_run_is_not_taken(stopped, another, whole, tmp_path):
    folder = copied(stopped, tmp_path / "run")
    shutil.copy(another / "checkpoint.pt", folder)
    assert "is not used: it is of another run" in outcome(folder, whole)
    assert (folder / "checkpoint-damaged.pt").read_bytes() == (another / "checkpoint.pt").read_bytes()
    folder = copied(stopped, tmp_path / "run")
    shutil.copy(another / "config.json", folder)
    assert "error: " in (said := outcome(folder, whole)) and "(seed was 1, is 0)" in said
    config = read_sealed(stopped / "checkpoint.pt", None, "checkpoint")["config"]
    write_json(folder / "config.json", signed({**config, "run": "0" * 16}))  # the same settings, but another run
    assert "cannot be read: it is of another run" in outcome(folder, whole)


@pytest.mark.slow
@in_main_thread
def test_what_is_allowed_to_change_changes(stopped, tmp_path):
    """A learning rate of zero leaves the parameters of the checkpoint, whatever the optimizer's state."""
    with pytest.raises(KeyboardInterrupt):
        quick(out=tmp_path / "run", optimizer=interrupting(STOP), **OPTIONS)
    state = read_sealed(tmp_path / "run" / "checkpoint.pt", None, "checkpoint")
    run = quick(
        out=tmp_path / "run",
        optimizer="sgd",
        lr=1e-30,
        schedule="constant",
        allow=("optimizer", "lr"),
        resume=True,
        **OPTIONS,
    )
    assert run.steps == STEPS and run.history[:3] == state["history"][:3]
    assert all(torch.equal(value, state["pair"][name]) for name, value in run.pair.state_dict().items())


@pytest.mark.slow
@in_main_thread
def test_another_rate_of_the_same_optimizer_is_used(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        quick(out=tmp_path / "run", optimizer=stopping(0.1), **OPTIONS)
    run = quick(out=tmp_path / "run", optimizer=stopping(0.025), resume=True, allow=("optimizer_groups",), **OPTIONS)
    assert [record["lr"] for record in run.history] == STOP * [0.1] + (STEPS - STOP) * [0.025]


def stopping(lr: float):
    inner = interrupting(STOP)

    def adam(parameters):
        optimizer = inner(parameters)
        optimizer.param_groups[0]["lr"] = lr
        return optimizer

    return adam


def doing(action: Callable[[], object], step: int) -> Callable[..., torch.optim.Optimizer]:
    """Adam that does something after one of its steps; in a run's configuration it has the name of `interrupting`."""
    inner = interrupting()

    def adam(parameters):
        optimizer, taken = inner(parameters), []
        optimizer.register_step_post_hook(lambda *_: action() if taken.append(1) or len(taken) == step else None)
        return optimizer

    adam.__qualname__ = inner.__qualname__
    return adam


@pytest.mark.slow
def test_a_disk_that_fills_in_the_midst_of_a_fit_loses_nothing(whole, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = doing(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1])), STOP)
    with pytest.raises(InputError) as caught:
        try:
            quick(out=tmp_path / "run", optimizer=fill, **OPTIONS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(caught.value)
    assert "cannot be written (File too large); make room for it, then continue with: pyro-vi resume" in said
    assert "\n" not in said and not list((tmp_path / "run").glob("*.tmp"))
    assert outcome(tmp_path / "run", whole) == ""


@pytest.mark.slow
def test_a_folder_that_vanishes_in_the_midst_of_a_fit_is_one_line(tmp_path):
    with pytest.raises(
        InputError, match=r"^the folder '.*run' is gone, so '.*' cannot be written; put it back, or start"
    ):
        quick(out=tmp_path / "run", optimizer=doing(lambda: shutil.rmtree(tmp_path / "run"), STOP), **OPTIONS)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_run_that_another_process_writes_is_left_alone(stopped, whole, tmp_path):
    folder = copied(stopped, tmp_path / "run")
    lock = Lock(folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "is in use by another fit; wait until it is done, or choose another folder" in outcome(folder, whole)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    lock.release()
    assert outcome(folder, whole) == ""


def damaged(folder: Path, another: Path, draw: random.Random) -> str:
    """Damage one file in one of many ways; return what was done."""
    there = [name for name in FILES if (folder / name).exists()]
    name = draw.choice(there)
    path = folder / name
    content = path.read_bytes()
    kind = draw.choice(("cut", "flip", "zero", "empty", "delete", "swap", "foreign", "garbage", "longer", "header"))
    kind = kind if content else "delete"  # it was emptied before
    if kind == "cut":
        path.write_bytes(content[: draw.randrange(len(content))])
    elif kind in ("flip", "zero"):
        changed, at = bytearray(content), draw.randrange(len(content))
        changed[at] = changed[at] ^ 1 << draw.randrange(8) if kind == "flip" else 0
        path.write_bytes(changed)
    elif kind == "delete":
        path.unlink()
    elif kind == "swap":
        other = folder / draw.choice(there)
        path.write_bytes(other.read_bytes())
        other.write_bytes(content)
    elif kind == "foreign":
        path.write_bytes((another / name).read_bytes())
    elif kind == "header":  # of a zip archive, of NumPy, of JSON: each claims more than there is
        path.write_bytes(
            draw.choice((b"PK\x05\x06" + b"\xff" * 18, b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", b"[" * 10**6))
        )
    else:
        path.write_bytes({"empty": b"", "garbage": draw.randbytes(500), "longer": content + draw.randbytes(9)}[kind])
    return f"{kind} {name}"


@in_main_thread
@pytest.mark.parametrize("count", [3, pytest.param(150, marks=pytest.mark.slow)])
def test_random_damage_gives_the_same_bits_or_one_line(count, stopped, another, whole, tmp_path):
    draw, said = random.Random(count), []
    for _ in range(count):
        folder = copied(stopped, tmp_path / "run")
        done = "; ".join(damaged(folder, another, draw) for _ in range(draw.choice((1, 1, 1, 2))))
        try:
            said.append(outcome(folder, whole))
        except BaseException as error:
            raise AssertionError(f"after: {done}") from error
    errors = sum("error: " in line for line in said)
    assert errors < count
    assert count < 10 or errors > 0 < sum("continues from the checkpoint before" in line for line in said)


@in_main_thread
@pytest.mark.parametrize(
    "junk", [None, pytest.param(3, marks=pytest.mark.slow), pytest.param(["x"], marks=pytest.mark.slow)]
)
def test_a_checkpoint_that_someone_made_up_is_one_line(junk, stopped, tmp_path):
    """With a right checksum: a part of the state is another one, or missing."""
    names = ("pair", "optimizer", "generators", "position", "config", "history")
    for name in names if junk else ("pair", "position", "history"):
        path = copied(stopped, tmp_path / "run") / "checkpoint.pt"
        (tmp_path / "run" / "checkpoint-previous.pt").unlink()
        state = read_sealed(path, None, "checkpoint")
        run = state["config"]["run"]
        state.update({name: junk})
        write_sealed(path, {k: v for k, v in state.items() if v is not None}, run, "checkpoint")
        with pytest.raises(InputError) as caught:
            resumed(tmp_path / "run")
        assert "\n" not in str(caught.value)

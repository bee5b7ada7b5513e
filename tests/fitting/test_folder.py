"""The run folder: what it holds, what is refused, and what a checkpoint cannot do."""

import errno
import json
import math
import os
import resource
import shutil
from contextlib import closing
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting.folder import RunFolder, checksum
from pyro_vi.fitting.reading import config_of, load_parameters, signed
from pyro_vi.fitting.sealed import write_sealed

CONFIG = {"model": "vae", "lr": 0.1, "kept": (0, 5), "versions": {"torch": "1"}}


def names(path):
    return sorted(file.name for file in path.iterdir())


def state(step, **more):
    return {"n": step, **more}


def test_a_new_folder_holds_the_configuration(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b", CONFIG)
    folder.close()
    assert names(folder.path) == ["config.json"]
    found = json.loads((folder.path / "config.json").read_text())
    assert {key: found[key] for key in CONFIG} == {**CONFIG, "kept": [0, 5]}
    assert found.keys() == {*CONFIG, "run", "checksum"} and len(found["run"]) == 16
    assert signed(found) == found != signed({**found, "lr": 0.3})


def test_a_folder_is_continued_with_the_same_settings_only(tmp_path):
    RunFolder(tmp_path, CONFIG)
    with pytest.raises(UsageError, match="holds a run already"):
        RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, CONFIG, resume=True)
    with pytest.raises(UsageError, match=r"\(torch was 1, is 2\); .* or allow it: --allow versions$"):
        RunFolder(tmp_path, {**CONFIG, "versions": {"torch": "2"}}, resume=True)
    with pytest.raises(UsageError, match=r"\(lr was 0\.1, is 0\.2; seed was None, is 3\); .* --allow lr seed$"):
        RunFolder(tmp_path, {**CONFIG, "lr": 0.2, "seed": 3}, resume=True)
    with pytest.raises(UsageError, match=r"\(kept was \[0, 5\], is \[0\]\)"):
        RunFolder(tmp_path, {**CONFIG, "kept": (0,)}, resume=True)


def test_what_differs_is_allowed_by_name_and_kept_in_the_configuration(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    before = config(tmp_path)
    other = {**CONFIG, "lr": 0.2, "versions": {"torch": "2"}}
    with pytest.raises(UsageError, match=r"\(torch was 1, is 2\)"):  # what is allowed is not named
        RunFolder(tmp_path, other, resume=True, allow=("lr",))
    with pytest.raises(UsageError, match="allow names 'rate', which is no setting of a run"):
        RunFolder(tmp_path, other, resume=True, allow=("lr", "rate"))
    assert config(tmp_path) == before
    RunFolder(tmp_path, other, resume=True, allow=("lr", "versions")).close()
    RunFolder(tmp_path, other, resume=True).close()
    after = config(tmp_path)
    assert after["changes"] == ["lr was 0.1, is 0.2", "torch was 1, is 2"]
    assert (after["lr"], after["run"]) == (0.2, before["run"])


def config(path):
    return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("key", ["code", "elbo_options", "optimizer_groups", "scheduler"])
def test_long_parts_of_a_configuration_are_named_only(tmp_path, key):
    config = {**CONFIG, "versions": {"python": "3.11.2"}, key: {"a": 1}}
    RunFolder(tmp_path, config).close()
    with pytest.raises(UsageError, match=r"holds a run with other settings \(the [a-z ]+ ha(s|ve) changed\)"):
        RunFolder(tmp_path, {**config, key: {"a": 2}}, resume=True)
    if key == "code":  # of another Python, in which it looks otherwise
        other = {**config, key: {"a": 2}, "versions": {"python": "3.12.0"}}
        with pytest.raises(UsageError, match=r"settings \(python was 3\.11\.2, is 3\.12\.0\)"):
            RunFolder(tmp_path, other, resume=True)
        RunFolder(tmp_path, other, resume=True, allow=("versions",)).close()


def test_what_cannot_be_resumed(tmp_path):
    with pytest.raises(UsageError, match=r"holds no run to resume; leave out resume to start one$"):
        RunFolder(tmp_path / "typo", CONFIG, resume=True)
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize("text", [None, "", "null", "[" * 100_000, '{"model": ', "0.2"])
def test_a_configuration_that_is_lost_is_that_of_the_checkpoint(tmp_path, text):
    folder = RunFolder(tmp_path, CONFIG)
    path = tmp_path / "config.json"
    whole = path.read_text()

    def damage():
        path.unlink() if text is None else path.write_text(whole.replace("0.1", text) if text == "0.2" else text)

    damage()
    folder.close()
    if text is not None:
        with pytest.raises(InputError, match=r"config\.json' cannot be used: it .*, and no checkpoint has a copy; put"):
            RunFolder(tmp_path, CONFIG, resume=True)
    path.write_text(whole)
    with closing(RunFolder(tmp_path, CONFIG, resume=True)) as folder:
        folder.save(state(1))
    damage()
    with pytest.warns(UserWarning, match=(said := r"config\.json' is not used: it .*; the copy in checkpoint\.pt is$")):
        assert config_of(tmp_path) == json.loads(whole)
    with pytest.raises(UsageError, match="holds a run already"):
        RunFolder(tmp_path, CONFIG)
    with pytest.warns(UserWarning, match=said):
        RunFolder(tmp_path, CONFIG, resume=True).close()
    assert path.read_text() == whole


def test_one_fit_at_a_time_writes_into_a_folder(tmp_path):
    first = RunFolder(tmp_path, CONFIG)
    with pytest.raises(UsageError, match=r"is in use by another fit; wait until it is done, or choose another folder$"):
        RunFolder(tmp_path, CONFIG, resume=True)
    first.close()
    RunFolder(tmp_path, CONFIG, resume=True).close()
    assert names(tmp_path) == ["config.json"]


def test_a_full_disk_is_one_line_and_leaves_the_checkpoint(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, CONFIG)
    folder.save({"n": 1})

    def full(state, path):
        path.write(b"half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1459008 vs 1458896")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match="inline_container"):
        folder.save({"n": 2})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**19))
    with pytest.raises(
        InputError, match=r"checkpoint\.pt' cannot be written \(No space left on device\); make room for it"
    ):
        folder.save({"n": 2})
    assert folder.load()["n"] == 1
    assert names(tmp_path) == [".lock", "checkpoint.pt", "config.json"]


@pytest.mark.parametrize("room", [0, 100, 1500, 4096])
def test_a_disk_that_takes_some_bytes_leaves_what_was(tmp_path, room):
    """The kernel refuses to let a file grow beyond a size, in the midst of a write."""
    folder = RunFolder(tmp_path, CONFIG)
    for step in (1, 2):
        folder.log({"step": step})
        folder.save(state(step))
    files = {name: (tmp_path / name).read_bytes() for name in names(tmp_path)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(InputError) as caught:
            folder.save(state(3, x=torch.zeros(2000)))
        if room < 30:
            with pytest.raises(
                InputError, match=r"metrics\.jsonl' cannot be written \(File too large\); make room for it"
            ):
                folder.log({"step": 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    wanted = "checkpoint.pt' cannot be written (File too large); make room for it, then continue with: pyro-vi resume"
    assert wanted in str(caught.value) and "\n" not in str(caught.value)
    assert {name: (tmp_path / name).read_bytes() for name in names(tmp_path)} == files
    assert folder.load()["n"] == 2 and folder.records == [{"step": 1}, {"step": 2}]


def test_a_folder_that_has_vanished_is_one_line(tmp_path):
    folder = RunFolder(tmp_path / "run", CONFIG)
    shutil.rmtree(tmp_path / "run")
    for write in (lambda: folder.save(state(1)), lambda: folder.log({"step": 1})):
        with pytest.raises(
            InputError, match=r"^the folder '.*run' is gone, so '[a-z.]+' cannot be written; put it back, or"
        ):
            write()
    folder.close()
    assert names(tmp_path) == []


def test_a_file_that_may_not_be_written_is_one_line(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, CONFIG)

    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(
        InputError, match=r"written \(Permission denied\); make it writable, then continue with: pyro-vi res"
    ):
        folder.save(state(1))
    assert names(tmp_path) == [".lock", "config.json"]


def test_records_are_lines_of_json(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    for step, loss in ((1, 2.5), (2, math.nan), (3, math.inf)):
        folder.log({"step": step, "loss": loss})
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "loss": 2.5},
        {"step": 2, "loss": None},
        {"step": 3, "loss": None},
    ]


def test_the_history_ends_where_the_checkpoint_is(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    for step in (1, 2, 3, 4):
        folder.log({"step": step, "elbo": math.nan if step == 2 else 0.5})
        if step == 2:
            folder.save(state(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    folder.load()
    assert [record["step"] for record in folder.records] == [1, 2] and math.isnan(folder.records[1]["elbo"])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "elbo": 0.5}\n{"step": 2, "elbo": null}\n'
    folder.log({"step": 3})
    assert (tmp_path / "metrics.jsonl").read_text().endswith('null}\n{"step": 3}\n')


@pytest.mark.parametrize("damage", ["unlink", "shorten", "change", "empty", "exchange"])
def test_records_that_are_lost_are_those_of_the_checkpoint(tmp_path, damage):
    folder, path = RunFolder(tmp_path, CONFIG), tmp_path / "metrics.jsonl"
    for step in (1, 2, 3):
        folder.log({"step": step})
    folder.save(state(3))
    whole = path.read_text()
    changed = {"shorten": whole[:13], "change": whole.replace("2", "7"), "empty": "", "exchange": "x" * 10**7}
    path.unlink() if damage == "unlink" else path.write_text(changed[damage])
    with pytest.warns(UserWarning, match=r"metrics\.jsonl' was damaged or cut; its records are restored"):
        folder.load()
    assert path.read_text() == whole and [record["step"] for record in folder.records] == [1, 2, 3]


def test_a_state_comes_back(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    assert folder.load() is None
    folder.save({"x": torch.arange(3), "n": {"step": 2}})
    found = folder.load()
    assert torch.equal(found["x"], torch.arange(3)) and found["n"] == {"step": 2}
    assert found["config"] == folder.config and found["history"] == []
    assert names(tmp_path) == [".lock", "checkpoint.pt", "config.json"]


def test_the_checkpoint_before_is_used_if_the_newest_is_damaged(tmp_path):
    folder, path = RunFolder(tmp_path, CONFIG), tmp_path / "checkpoint.pt"
    for step in (1, 2, 3):
        folder.log({"step": step})
        folder.save(state(step))
    kept = (tmp_path / "checkpoint-previous.pt").read_bytes()
    path.write_bytes(damaged := path.read_bytes()[:-1] + b"?")
    with pytest.warns(
        UserWarning, match=r"checkpoint\.pt' is not used: it is not the checkpoint that was written.*continues"
    ):
        assert folder.load()["n"] == 2
    assert folder.records == [{"step": 1}, {"step": 2}]
    assert (tmp_path / "checkpoint-damaged.pt").read_bytes() == damaged and path.read_bytes() == kept
    folder.save(state(3))  # what is kept beside it is a good one
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match=r"checkpoint\.pt' is not used: it is empty"):
        assert folder.load()["n"] == 2
    for name in ("checkpoint.pt", "checkpoint-previous.pt"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        InputError, match=r"cannot be read: it is empty; checkpoint-previous\.pt is no better \(it is empty"
    ):
        folder.load()
    (tmp_path / "checkpoint-previous.pt").unlink()
    with pytest.raises(
        InputError, match=r"cannot be read: it is empty; there is no earlier one; put it back, or delete the"
    ):
        folder.load()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    RunFolder(tmp_path, CONFIG).close()
    for name in ("checkpoint.pt.12-34.tmp", "mine.tmp"):
        (tmp_path / name).write_text("half")
    RunFolder(tmp_path, CONFIG, resume=True).close()
    assert names(tmp_path) == ["config.json", "mine.tmp"]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run", CONFIG)
    write_sealed(tmp_path / "run" / "checkpoint.pt", {"pair": Harmful()}, folder.run, "checkpoint")
    with pytest.raises(InputError, match=r"cannot be read: torch cannot read it \(UnpicklingError\)"):
        folder.load()
    with pytest.raises(InputError, match="cannot be read"):
        load_parameters(nn.Linear(1, 1), tmp_path / "run")
    assert not (tmp_path / "harm").exists()


def test_parameters_of_a_run(tmp_path):
    one, other = nn.Linear(2, 3), nn.Linear(2, 3)
    with pytest.raises(InputError, match="holds no run"):
        load_parameters(other, tmp_path)
    with pytest.raises(InputError, match="holds no run"):
        config_of(tmp_path)
    RunFolder(tmp_path, CONFIG).save({"pair": one.state_dict()})
    load_parameters(other, tmp_path)
    assert torch.equal(one.weight, other.weight)
    assert config_of(tmp_path)["lr"] == 0.1
    with pytest.raises(InputError, match="is of another pair"):
        load_parameters(nn.Linear(2, 4), tmp_path)


def test_a_checksum_is_of_the_bytes():
    x = torch.arange(6.0)
    assert checksum([x]) == checksum([x.clone()]) == checksum([torch.stack([x, x], 1)[:, 0]])
    assert checksum([x]) != checksum([x + 1])
    assert checksum([x, x + 1]) != checksum([x + 1, x])
    assert checksum([x.to(torch.uint8)]) != checksum([x])
    assert checksum([x > 2]) != checksum([x > 3])


def test_parameters_of_a_damaged_checkpoint_are_those_of_the_one_before(tmp_path):
    """Also while another process writes into the folder, and nothing in it is changed."""
    one, two, found = nn.Linear(2, 3), nn.Linear(2, 3), nn.Linear(2, 3)
    folder = RunFolder(tmp_path, CONFIG)
    for pair in (one, two):
        folder.save({"pair": pair.state_dict()})
    (tmp_path / "checkpoint.pt").write_bytes((tmp_path / "checkpoint.pt").read_bytes()[:900])
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.warns(
        UserWarning, match=r"'.*checkpoint\.pt' is not used: it has no checksum.*those of checkpoint-previous"
    ):
        load_parameters(found, tmp_path)
    assert torch.equal(found.weight, one.weight)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before

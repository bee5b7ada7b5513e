"""The run folder: what it holds, what is refused, and what a checkpoint cannot do."""

import json
import math
import os
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from pyro_vi.errors import InputError, UsageError
from pyro_vi.fitting.folder import RunFolder, checksum, config_of, load_parameters

CONFIG = {"model": "vae", "lr": 0.1, "kept": (0, 5), "versions": {"torch": "1"}}


def names(path):
    return sorted(file.name for file in path.iterdir())


def test_a_new_folder_holds_the_configuration(tmp_path):
    folder = RunFolder(tmp_path / "a" / "b", CONFIG)
    folder.close()
    assert names(folder.path) == ["config.json"]
    assert json.loads((folder.path / "config.json").read_text()) == {**CONFIG, "kept": [0, 5]}


def test_a_folder_is_continued_with_the_same_settings_only(tmp_path):
    RunFolder(tmp_path, CONFIG)
    with pytest.raises(UsageError, match="holds a run already"):
        RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, CONFIG, resume=True)
    with pytest.warns(UserWarning, match=r"was made with torch 1, now 2; its numbers may change slightly$"):
        RunFolder(tmp_path, {**CONFIG, "versions": {"torch": "2"}}, resume=True)
    with pytest.raises(UsageError, match=r"\(lr was 0\.1, is 0\.2; seed was None, is 3\)"):
        RunFolder(tmp_path, {**CONFIG, "lr": 0.2, "seed": 3}, resume=True)
    with pytest.raises(UsageError, match=r"\(kept was \[0, 5\], is \[0\]\)"):
        RunFolder(tmp_path, {**CONFIG, "kept": (0,)}, resume=True)


@pytest.mark.parametrize("key", ["code", "elbo_options", "optimizer_groups", "scheduler"])
def test_long_parts_of_a_configuration_are_named_only(tmp_path, key):
    config = {**CONFIG, "versions": {"python": "3.11.2"}, key: {"a": 1}}
    RunFolder(tmp_path, config)
    with pytest.raises(UsageError, match=r"holds a run with other settings \(the [a-z ]+ ha(s|ve) changed\)"):
        RunFolder(tmp_path, {**config, key: {"a": 2}}, resume=True)
    if key == "code":  # of another Python, in which it looks otherwise
        with pytest.warns(UserWarning, match="python"):
            RunFolder(tmp_path, {**config, key: {"a": 2}, "versions": {"python": "3.12.0"}}, resume=True)


def test_what_cannot_be_resumed(tmp_path):
    with pytest.raises(UsageError, match=r"holds no run to resume; leave out resume to start one$"):
        RunFolder(tmp_path / "typo", CONFIG, resume=True)
    assert not (tmp_path / "typo").exists()
    RunFolder(tmp_path, CONFIG).save({})
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"has a checkpoint but no config\.json, so nothing tells whether"):
        RunFolder(tmp_path, CONFIG, resume=True)
    with pytest.raises(UsageError, match="holds a run already"):
        RunFolder(tmp_path, CONFIG)


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
        path.write_text("half")
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 1459008 vs 1458896")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(RuntimeError, match="inline_container"):
        folder.save({"n": 2})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**19))
    with pytest.raises(
        InputError, match=r"checkpoint\.pt' cannot be written \(No space left on device\); make room for it"
    ):
        folder.save({"n": 2})
    assert folder.load() == {"n": 1}
    assert names(tmp_path) == [".lock", "checkpoint.pt", "config.json"]


def test_a_damaged_configuration_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model": ')
    with pytest.raises(InputError, match=r"config\.json' cannot be read"):
        RunFolder(tmp_path, CONFIG, resume=True)


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
    assert folder.history(5) == []
    for step in (1, 2, 3, 4):
        folder.log({"step": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert folder.history(2) == [{"step": 1}, {"step": 2}]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    folder.log({"step": 3})
    assert folder.history(9) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_a_state_comes_back(tmp_path):
    folder = RunFolder(tmp_path, CONFIG)
    assert folder.load() is None
    folder.save({"x": torch.arange(3), "n": {"step": 2}})
    found = folder.load()
    assert torch.equal(found["x"], torch.arange(3)) and found["n"] == {"step": 2}
    assert names(tmp_path) == [".lock", "checkpoint.pt", "config.json"]


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_a_checkpoint_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = RunFolder(tmp_path / "run", CONFIG)
    torch.save({"pair": Harmful()}, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(InputError, match="cannot be read"):
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

"""The run folder: what it holds, what is refused, and what a checkpoint cannot do."""

import json
import math
import os

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
    assert names(folder.path) == ["config.json"]
    assert json.loads((folder.path / "config.json").read_text()) == {**CONFIG, "kept": [0, 5]}


def test_a_folder_is_continued_with_the_same_settings_only(tmp_path):
    RunFolder(tmp_path, CONFIG)
    with pytest.raises(UsageError, match="holds a run already"):
        RunFolder(tmp_path, CONFIG)
    RunFolder(tmp_path, CONFIG, resume=True)
    RunFolder(tmp_path, {**CONFIG, "versions": {"torch": "2"}}, resume=True)
    with pytest.raises(UsageError, match=r"\(lr was 0\.1, is 0\.2; seed was None, is 3\)"):
        RunFolder(tmp_path, {**CONFIG, "lr": 0.2, "seed": 3}, resume=True)
    with pytest.raises(UsageError, match=r"\(kept was \[0, 5\], is \[0\]\)"):
        RunFolder(tmp_path, {**CONFIG, "kept": (0,)}, resume=True)


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
    assert names(tmp_path) == ["checkpoint.pt", "config.json"]


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

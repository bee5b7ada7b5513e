"""The blocks of the documents: Python runs, commands parse, and targets and scripts exist."""

import functools
import operator
import re
import shlex
from pathlib import Path
from typing import Annotated

import pytest
import tyro

from pyro_vi.cli.entry import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)

BLOCKS = [(d.name, *found) for d in DOCUMENTS for found in BLOCK.findall(d.read_text())]
PYTHON = [
    pytest.param(text, id=f"{name}-{i}") for i, (name, language, text) in enumerate(BLOCKS) if language == "python"
]
LINES = [line.strip() for _, language, text in BLOCKS if not language for line in text.splitlines()]


def commands(start: str) -> list[str]:
    return [line.split("  #")[0] for line in LINES if line.startswith(start) and " | " not in line]


@pytest.mark.slow
@pytest.mark.parametrize("text", PYTHON)
def test_python_runs(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(text, "block", "exec"), {"__name__": "block"})


@pytest.mark.parametrize("line", commands("pyro-vi "))
def test_a_command_parses(line):
    every = functools.reduce(
        operator.or_, [Annotated[c, tyro.conf.subcommand(name=c.__name__.lower())] for c in COMMANDS]
    )
    tyro.cli(every, args=shlex.split(line)[1:])


def test_targets_and_scripts_exist():
    targets = {word for line in commands("make ") for word in line.split(";")[0].split()[1:] if "=" not in word}
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "check"} <= targets
    assert {target for target in targets if f"\n{target}:" not in makefile} == set()
    scripts = {line.split()[1] for line in commands("python scripts/")}
    assert {script for script in scripts if not (ROOT / script).is_file()} == set()


def anchors(path: Path) -> set[str]:
    text = BLOCK.sub("", path.read_text())
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", BLOCK.sub("", document.read_text())):
        name, _, anchor = target.partition("#")
        path = document.parent / name if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


def test_every_document_is_read():
    assert len(PYTHON) > 10
    assert commands("pyro-vi ")

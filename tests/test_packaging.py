"""The installed package: its modules, links, wheel, pinned versions and citation."""

import ast
import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from datetime import date
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LINKED = ("models", "guides")


def lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def read_setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    return setup


def direct_requirements() -> list[Requirement]:
    setup = read_setup()
    texts = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    return [Requirement(line) for text in texts for line in lines(text)]


def supported_pythons() -> list[str]:
    allowed = SpecifierSet(read_setup()["options"]["python_requires"])
    return [f"3.{minor}" for minor in range(100) if f"3.{minor}" in allowed]


def pins(python_version: str) -> dict[str, str]:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    found = [Requirement(line) for line in lines(constraints) if not line.startswith("#")]
    applying = [pin for pin in found if pin.marker is None or pin.marker.evaluate({"python_version": python_version})]
    versions = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in applying}
    assert len(versions) == len(applying), f"a package is pinned twice for Python {python_version}"
    return versions


def module_files() -> set[str]:
    """Every Python file of the three packages, where it belongs once installed."""
    files = {path.relative_to(ROOT) for top in ("pyro_vi", *LINKED) for path in (ROOT / top).rglob("*.py")}
    return {(Path("pyro_vi") / path if path.parts[0] in LINKED else path).as_posix() for path in files}


def python(*arguments: str, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A Python process in `cwd`, with `path` before everything installed."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: setuptools leaves its own folders where it builds."""
    source = tmp_path_factory.mktemp("source")
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, source)
    for name in ("pyro_vi", *LINKED):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))

    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet")
    built = python("-m", "pip", "wheel", *options, "--wheel-dir", str(folder), ".", cwd=source)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_package_list_equals_folders():
    packages = lines(read_setup()["options"]["packages"])
    assert len(packages) == len(set(packages))
    assert set(packages) == {".".join(Path(file).parent.parts) for file in module_files()}


def test_package_dir_maps_the_linked_folders():
    mapping = dict(line.split(" = ") for line in lines(read_setup()["options"]["package_dir"]))
    assert mapping == {"pyro_vi": "pyro_vi"} | {f"pyro_vi.{name}": name for name in LINKED}


@pytest.mark.parametrize("name", LINKED)
def test_link_is_relative(name):
    assert os.readlink(ROOT / "pyro_vi" / name) == f"../{name}"


@pytest.mark.parametrize("name", LINKED)
def test_top_level_import_names_the_right_one(name):
    done = python("-c", f"import {name}", cwd=ROOT)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == f"ImportError: import pyro_vi.{name}, not {name}"


def test_wheel_holds_every_module_once(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = Counter(name for name in archive.namelist() if ".dist-info/" not in name)
    templates = {f"pyro_vi/reporting/page/templates/{name}" for name in ("report.html.jinja", "script.js", "style.css")}
    assert held == Counter(module_files() | templates | {"pyro_vi/py.typed"})


@pytest.mark.slow
def test_installed_wheel_imports_from_elsewhere(wheel, tmp_path):
    target = tmp_path / "installed"
    options = ("--no-deps", "--no-index", "--quiet")
    installed = python("-m", "pip", "install", *options, "--target", str(target), str(wheel), cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr

    code = "import pyro_vi.models as m, pyro_vi.guides as g; print(m.__file__); print(g.__file__)"
    imported = python("-c", code, cwd=tmp_path, path=target)
    assert imported.returncode == 0, imported.stderr
    assert lines(imported.stdout) == [str(target / "pyro_vi" / name / "__init__.py") for name in LINKED]


@pytest.mark.parametrize("python_version", supported_pythons())
def test_direct_dependencies_are_pinned(python_version):
    # numpyro's own too: the speed that the benchmark tells of is theirs.
    brought = {"jax", "jaxlib", "ml-dtypes", "multipledispatch", "opt-einsum", "tqdm"}
    required = {canonicalize_name(requirement.name) for requirement in direct_requirements()}
    assert required | brought == set(pins(python_version))


@pytest.mark.parametrize("python_version", supported_pythons())
@pytest.mark.parametrize("requirement", direct_requirements(), ids=str)
def test_range_admits_its_pin(requirement, python_version):
    assert requirement.specifier.contains(pins(python_version)[canonicalize_name(requirement.name)])


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    origins = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in plain | origins}


@pytest.mark.slow
def test_what_the_packages_import_is_what_they_require() -> None:
    """xarray imports h5netcdf and h5py by name, people import arviz and its parts; pyarrow is the extra's."""
    names = {"sklearn": "scikit-learn", "pyro": "pyro-ppl"}
    by_others = {"h5netcdf", "h5py", "arviz", "arviz-plots", "arviz-stats"}
    files = [path for top in ("pyro_vi", *LINKED) for path in (ROOT / top).rglob("*.py")]
    found = set().union(*map(imported, files)) - set(sys.stdlib_module_names) - {"pyro_vi"}
    required = {Requirement(line).name for line in lines(read_setup()["options"]["install_requires"])}
    assert {canonicalize_name(names.get(name, name)) for name in found} | by_others == required | {"pyarrow"} & found


def test_importing_pyro_vi_imports_no_part_of_arviz():
    """arviz would make the import half as long again: only what writes or reads a DataTree imports it."""
    code = "import sys, pyro_vi.cli.entry, pyro_vi.guides, pyro_vi.models; print(*sys.modules, sep='\\n')"
    done = python("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    names = set(done.stdout.split())
    assert "pyro_vi.guides" in names
    assert not {name for name in names if name.startswith("arviz")}


def test_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    top = dict(line.split(": ", 1) for line in text.splitlines() if line[:1].isalpha() and ": " in line)
    metadata = read_setup()["metadata"]
    assert top["version"] == metadata["version"]
    assert top["license"] == metadata["license_expression"]
    assert date.fromisoformat(top["date-released"])


def test_make_help_names_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = [line for line in makefile.splitlines() if line.startswith(".PHONY:")]
    said = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    named = [line.split()[1] for line in said.splitlines() if line.startswith("make ")]
    assert sorted([*named, "help"]) == sorted(phony.removeprefix(".PHONY:").split())


@pytest.mark.parametrize("interpreter", ["no-such-python", "false"])
def test_smoke_fails_and_cleans_up_without_an_interpreter(interpreter, tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    command = ["make", "smoke", f"PYTHON={interpreter}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert f"smoke: '{interpreter}' makes no virtual environment" in done.stderr
    assert list(tmp_path.iterdir()) == []

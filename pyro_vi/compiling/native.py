"""Shared libraries made of the C++ code that Inductor writes: built quickly, kept on disk, called with little overhead.

* `building` makes Inductor hand its C++ code to `Library` within a block, and not build it itself.
* `Library` is a shared library on disk. It is built by two runs of the C++ compiler at the same time, one for the loops and one
  for the code that calls them, with less optimisation for the second. Both read the large headers in precompiled form, which is
  made in the background the first time.
* `Native` calls the graph in a library: once, or several times in a row with one call from Python.
"""

import getpass
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar
from unittest import mock

import torch
from torch import Tensor

from pyro_vi.compiling import driver
from pyro_vi.errors import first_line
from pyro_vi.support import inductor_internals

HEADERS = "#include <torch/csrc/inductor/cpp_wrapper/cpu.h>\n#include <torch/csrc/inductor/cpp_prefix.h>\n"
"""Headers of the C++ code that Inductor writes; to read them takes longer than to compile the code."""
HEADERS_FOLDER = "headers"
"""They are kept in Inductor's default place, whatever its cache is: they depend on nothing else."""
FEWER = '#pragma GCC optimize ("O1")\n'
"""Precedes the code that calls the loops. It runs once per call, and takes twice as long to compile with more optimisation."""
ENTRY = re.compile(r"steal_from_raw_handles_to_raii_handles\(input_handles, (\d+)\)")


class Native:
    """The graph in a shared library, as a function of one list of tensors, which it empties.

    Args:
        module: the library, loaded.
        constants: tensors that follow the inputs.
    """

    def __init__(self, module: ModuleType, constants: Sequence[Tensor] = ()) -> None:
        make, self._take = inductor_internals.handles()
        self._known, self._call, self._several = module.begin(make), module.call, module.several
        self._constants = list(constants)

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        inputs += self._constants
        results = self._take(self._call(self._known, inputs))
        inputs.clear()
        return results

    def several(self, inputs: list[Tensor], many: int, control: int) -> tuple[list[float], Sequence[Tensor]]:
        """Call the graph many times in a row, and return the first result of each call, and all results of the last.

        Args:
            inputs: the last one has the rows of all calls, and each call gets its part of them.
            many: number of calls.
            control: position of an input of shape (≥ many, ·) in double precision; call i finds row i in its first row.
        """
        rows = len(inputs) - 1
        numbers, results = self._several(self._known, inputs + self._constants, many, rows, control)
        return numbers, self._take(results)


class Library:
    """A shared library in the folder of compiled code.

    Args:
        name: name of the file, a digest of all that the code depends on.

    Attributes:
        path: the file, which exists if the library is complete.
    """

    def __init__(self, name: str) -> None:
        self.path = folder() / f"{name}.so"

    def load(self) -> ModuleType:
        """Load the library.

        Raises:
            RuntimeError: it cannot be loaded.
        """
        name = f"pyro_vi.compiled.{self.path.stem}.{driver.NAME}"
        try:
            spec = importlib.util.spec_from_file_location(
                name, self.path, loader=importlib.machinery.ExtensionFileLoader(name, str(self.path))
            )
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        except ImportError as error:
            raise RuntimeError(f"the compiled code cannot be loaded: {first_line(error)}") from error
        return module

    def build(self, command: Sequence[str], code: Mapping[str, str]) -> None:
        """Compile pieces of code at the same time, and link them; nothing is left behind if that fails.

        Raises:
            RuntimeError: the compiler fails; the message has its first error.
        """
        headers = Headers(command)
        headers.wait()
        with tempfile.TemporaryDirectory(dir=self.path.parent) as place:
            runs, objects = [], []
            for name, text in code.items():
                if not text:
                    continue
                source, target = Path(place, f"{name}.cpp"), Path(place, f"{name}.o")
                source.write_text(text, encoding="utf-8")
                objects.append(str(target))
                runs.append(_start([*_filled(command, str(source), str(target)), *headers.options()]))
            for run in runs:
                _finish(run)
            made = Path(place, "made.so")
            torch_at = f"-L{Path(torch.__file__).parent / 'lib'}"
            libraries = [torch_at, "-ltorch", "-ltorch_cpu", "-ltorch_python", "-lgomp"]
            _finish(_start([command[0], "-shared", "-o", str(made), *objects, *libraries]))
            made.replace(self.path)


class Headers:
    """The precompiled form of `HEADERS` for one command line, made in the background the first time."""

    running: ClassVar[dict[Path, subprocess.Popen[bytes]]] = {}

    def __init__(self, command: Sequence[str]) -> None:
        version = _version(command[0])
        text = json.dumps([list(command), version, torch.__version__, torch.version.git_version, sys.version, HEADERS])
        self.command, self.plain = command, folder(HEADERS_FOLDER) / f"{_digest(text)}.h"
        self.made = self.plain.with_suffix(".h.gch")

    def start(self) -> None:
        """Begin to make the precompiled headers, unless they exist; the run goes on if this process ends."""
        if self.made.exists() or self.plain in self.running or _is_clang(self.command[0]):
            return
        write(self.plain, HEADERS)
        with suppress(OSError):
            part = self.plain.with_suffix(f".{os.getpid()}.part")
            build = [*_filled(self.command, str(self.plain), str(part), "-x", "c++-header"), "-w"]
            line = f"{shlex.join(build)} && mv {shlex.quote(str(part))} {shlex.quote(str(self.made))}"
            self.running[self.plain] = subprocess.Popen(
                ["sh", "-c", f"{line} || rm -f {shlex.quote(str(part))}"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Wait if the headers are in the making: to compile without them would take longer."""
        run = self.running.pop(self.plain, None)
        if run is not None:
            with suppress(subprocess.TimeoutExpired):
                run.wait(timeout=60)

    def options(self) -> list[str]:
        """Return the options of the compiler that include the headers, precompiled if they are."""
        return ["-include", str(self.plain)] if self.made.exists() else []


@dataclass(frozen=True)
class Code:
    """The C++ code of a graph.

    Attributes:
        calls: the code that calls the loops and torch's operations.
        loops: the loops.
        vectors: the loops use the processor's vector instructions.
    """

    calls: str
    loops: str
    vectors: bool

    @property
    def inputs(self) -> int:
        """Number of inputs; 0 if the code has an unknown form."""
        found = ENTRY.findall(self.calls)
        return int(found[0]) if len(found) == 1 else 0

    def library(self, results: int) -> Library:
        """Return the library made of this code, built unless it exists, for a graph with this number of results.

        Raises:
            RuntimeError: the compiler fails.
        """
        calls = FEWER + self.calls + driver.source(self.inputs, results)
        command = compiler_command(vectors=self.vectors)
        library = Library(_digest(json.dumps([calls, self.loops, command, torch.__version__, sys.version])))
        if not library.path.exists():
            library.build(command, {"calls": calls, "loops": self.loops})
        return library


@contextmanager
def building(made: list[Code]) -> Iterator[None]:
    """Within the block, Inductor builds nothing, and the code of each graph is added to ``made``."""

    def collected(*_: Any, main_code: str, kernel_code: str | None = None, **options: Any) -> Callable[..., Any]:
        if options.get("extra_flags") or kernel_code is None:
            raise ValueError("the code needs other libraries")
        made.append(Code(main_code, kernel_code, bool(options.get("kernel_needs_vec_isa", True))))

        def unbuilt(*_: Any) -> Any:
            raise AssertionError("this code is called by `Native`")

        return unbuilt

    with (
        mock.patch.object(inductor_internals.wrapper_cache(), "load_pybinding", collected),
        inductor_internals.trusted_isa(),
    ):
        yield


def prepare_headers() -> None:
    """Begin to precompile the headers, if they are not yet, while Inductor works on the graph."""
    with suppress(Exception):
        Headers(compiler_command(vectors=True)).start()


def folder(part: str = "") -> Path:
    """Return the folder of compiled code, in Inductor's cache; it is made if it is missing."""
    base = "" if part == HEADERS_FOLDER else os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    user = re.sub(r'[\\/:*?"<>|]', "_", getpass.getuser())
    found = Path(base or Path(tempfile.gettempdir(), f"torchinductor_{user}"), "pyro_vi", part)
    found.mkdir(parents=True, exist_ok=True)
    if found.stat().st_uid != os.getuid():  # code of another user is not loaded
        raise PermissionError(f"the folder {found} belongs to another user; set TORCHINDUCTOR_CACHE_DIR")
    return found


def compiler_command(*, vectors: bool) -> list[str]:
    """Return the command that compiles a source ``i`` to an object ``o.o``, with most of Inductor's options."""
    tokens = shlex.split(inductor_internals.compile_command(vectors=vectors))
    unwanted = {"-g1", "-Wall", "-pedantic", "-Wno-unused-variable", "-Wno-unknown-pragmas"}
    return [*("-O2" if token == "-O3" else token for token in tokens if token not in unwanted), "-w"]


def _filled(command: Sequence[str], source: str, target: str, *options: str) -> list[str]:
    given = {"i": source, "o.o": target}
    filled = [given.get(token, token) for token in command]
    if options:  # headers
        filled = [token for token in filled if token != "-c"]
    at = filled.index(source)
    return [*filled[:at], *options, *filled[at:]]


def _start(command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, stdin=subprocess.DEVNULL
    )


def _finish(run: "subprocess.Popen[str]") -> None:
    said, _ = run.communicate()
    if run.returncode:
        errors = [line for line in said.splitlines() if "error" in line] or said.splitlines() or [""]
        raise RuntimeError(f"the C++ compiler fails: {errors[0].strip()}")


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout


def _is_clang(compiler: str) -> bool:
    return "clang" in compiler


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write(path: Path, text: str) -> None:
    """Write a file at once, so that no other process reads a part of it."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as part:
        part.write(text)
    os.replace(part.name, path)

"""The compilation of a step in another process, while the fit takes captured steps.

* `Background` starts the process, and says when its code is on disk. Then `pyro_vi.compiling.inductor.compile_graph` finds it
  at once, in this process and in later ones.
* `Pending` is a step of a fit whose code is made so.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, fx

from pyro_vi.compiling.inductor import is_kept, lift
from pyro_vi.compiling.step import MANY
from pyro_vi.compiling.steps import CompiledSteps
from pyro_vi.compiling.written import write_graph
from pyro_vi.errors import NoGraph


class Background:
    """A process that compiles one graph.

    Args:
        graph: the flat graph.
        inputs: its inputs, of which only shapes, strides and dtypes are used.

    Raises:
        NoGraph: the code cannot be handed over, or the process cannot be started.
    """

    def __init__(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> None:
        if any(value.device.type != "cpu" for value in inputs):
            raise NoGraph("compiled code for a GPU is not kept on disk")
        lifted, constants = lift(graph)
        written = write_graph(lifted.graph)
        self._folder = tempfile.TemporaryDirectory(prefix="pyro_vi-")
        path, self._said = Path(self._folder.name, "graph"), Path(self._folder.name, "said")
        task = {
            "graph": written,
            "inputs": [(tuple(v.shape), tuple(v.stride()), _name(v.dtype)) for v in [*inputs, *constants]],
            "threads": torch.get_num_threads(),
            "dtype": _name(torch.get_default_dtype()),
            "precision": torch.get_float32_matmul_precision(),
            "deterministic": (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
            ),
        }
        try:
            path.write_text(json.dumps(task), encoding="utf-8")
            here = str(Path(__file__).parents[2])
            places = os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH", "")])])
            with self._said.open("wb") as said:  # a pipe would stay open in what the process leaves behind
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "pyro_vi.compiling.worker", str(path)],
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=subprocess.DEVNULL,
                    env={**os.environ, "PYTHONPATH": places},
                    start_new_session=True,
                )
        except Exception as error:
            self._folder.cleanup()
            raise NoGraph(f"no process to compile in: {error}") from error
        self.stop = weakref.finalize(self, _end, self._process, self._folder)

    def ended(self) -> bool:
        """True if the process has ended; asking takes about a microsecond."""
        return self._process.poll() is not None

    def result(self) -> str:
        """Wait for the process; return why there is no code, or nothing if there is."""
        self._process.wait()
        said = []
        with contextlib.suppress(OSError):
            said = self._said.read_text(errors="replace").strip().splitlines()
        self.stop()
        return "" if self._process.returncode == 0 else (said[-1].strip() if said else "the compiler's process died")


class Pending:
    """A traced step whose code is not there yet.

    Args:
        compiled: the compiled steps to which it is added.
        graph: its graph.
        length: length of its batches.
        sources: called with a number of batches, returns two sources of that many batches, for the proof.
    """

    def __init__(
        self,
        compiled: CompiledSteps,
        graph: fx.GraphModule,
        length: int,
        sources: Callable[[int], Sequence[Sequence[Tensor]]],
    ) -> None:
        self.compiled, self.length, self.graph, self.sources = compiled, length, graph, sources
        self._background: Background | None = None
        self._start = time.perf_counter()

    def _inputs(self) -> list[Tensor]:
        return [*self.compiled.whole.tensors, self.compiled.whole.control, *self.sources(1)[0]]

    def is_kept(self) -> bool:
        """True if the code is on disk."""
        return is_kept(self.graph, self._inputs())

    def start(self) -> None:
        """Begin to compile.

        Raises:
            NoGraph: the code cannot be handed over, or the process cannot be started.
        """
        self._background = Background(self.graph, self._inputs())

    def ended(self) -> bool:
        """True if the process has ended."""
        return self._background is not None and self._background.ended()

    def finish(self) -> None:
        """Load the code, prove it on the present state of the fit, and add it to the compiled steps.

        Raises:
            NoGraph: there is no code, or it differs from the eager step.
        """
        if self._background is not None and (why := self._background.result()):
            raise NoGraph(why)
        if not self.is_kept():
            raise NoGraph("the compiled code is not on disk")
        self.compiled.whole.restart()
        self.compiled.add(self.length, self.graph, self.sources(1))
        if self.compiled.short(self.length):
            with contextlib.suppress(NoGraph):  # then each step is its own call
                self.compiled.add_several(self.length, self.sources(MANY)[0])

    def seconds(self) -> float:
        """Return the seconds since the step was traced."""
        return time.perf_counter() - self._start

    def stop(self) -> None:
        """End the process, if it runs."""
        if self._background is not None:
            self._background.stop()


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _end(process: "subprocess.Popen[bytes]", folder: "tempfile.TemporaryDirectory[str]") -> None:
    """End the process, if it runs, with the runs of the compiler that it has started, also if a signal has ended it."""
    if process.poll() is None or process.returncode < 0:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    folder.cleanup()

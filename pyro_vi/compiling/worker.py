"""The process that compiles a step while the fit goes on: `python -m pyro_vi.compiling.worker FILE`.

FILE is what `pyro_vi.compiling.background.Background` wrote. The compiled code is kept on disk, where the fit finds it.
If there is none, the last line of the output says why.
"""

import json
import os
import sys
from pathlib import Path

import torch

from pyro_vi.compiling.inductor import compile_graph, is_kept
from pyro_vi.compiling.written import read_graph
from pyro_vi.errors import NoGraph, kind_and_line


def main(path: Path) -> int:
    """Compile the graph in a file; return 0 if the fit will find its code."""
    os.nice(5)  # the steps of the fit go first
    try:
        task = json.loads(path.read_text(encoding="utf-8"))
        torch.set_num_threads(task["threads"])
        torch.set_default_dtype(getattr(torch, task["dtype"]))
        torch.set_float32_matmul_precision(task["precision"])
        always, warn_only = task["deterministic"]
        torch.use_deterministic_algorithms(always, warn_only=warn_only)
        inputs = [
            torch.empty_strided(shape, stride, dtype=getattr(torch, dtype)) for shape, stride, dtype in task["inputs"]
        ]
        graph = read_graph(task["graph"])
        compile_graph(graph, inputs)
    except NoGraph as error:
        print(error)
        return 1
    except Exception as error:
        print(kind_and_line(error))
        return 1
    if not is_kept(graph, inputs):
        print("the compiled code cannot be kept on disk")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

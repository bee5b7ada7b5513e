"""Compiled graphs that are kept on disk, so that later processes need neither the compiler nor Inductor.

* `description` writes down all that the compiled code of a graph depends on.
* `find` returns the name of the library that was kept under a description, and `keep` keeps it.

A description is compared as a whole, so that a library is never taken for that of another graph. It has the operations of the
graph with their arguments; shapes, strides and dtypes of its inputs; the settings of the compiler, of torch and of the
environment; the versions; the processor; and the code of pyro_vi that changes graphs.
"""

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from pyro_vi.compiling.looking import OPERATION
from pyro_vi.compiling.native import Library, folder, write
from pyro_vi.support.inductor_internals import changed_settings

KNOWN = {"aten", "prims", "mkldnn"}
"""Operations that torch's version determines. A graph with others, such as those of a user, is not kept."""
PREFIXES = ("TORCH", "ATEN_", "MKL_", "DNNL_", "ONEDNN_", "CXX")
PLACES = {"TORCHINDUCTOR_CACHE_DIR", "TORCH_HOME", "TORCH_EXTENSIONS_DIR", "TORCH_LOGS"}


def description(graph: fx.GraphModule, inputs: Sequence[Tensor], settings: Mapping[str, Any]) -> str:
    """Return all that the compiled code of a graph depends on; empty if the graph cannot be kept, or no cache is wanted."""
    config = sys.modules.get("torch._inductor.config")
    if os.environ.get("TORCHINDUCTOR_FORCE_DISABLE_CACHES") == "1" or getattr(config, "force_disable_caches", False):
        return ""
    operations = _operations(graph)
    if operations is None:
        return ""
    try:
        changed = changed_settings()
    except Exception:
        return ""
    return json.dumps(
        {
            "operations": operations,
            "inputs": [
                [list(v.shape), list(v.stride()), str(v.dtype), str(v.device), v.layout.__repr__()] for v in inputs
            ],
            "settings": {name: repr(value) for name, value in sorted(settings.items())},
            "inductor": changed,
            "torch": _of_torch(),
            "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(PREFIXES) and k not in PLACES},
            "program": _of_program(),
            "machine": _of_machine(),
        }
    )


def find(text: str) -> Library | None:
    """Return the library that was kept under a description, or None."""
    if not text:
        return None
    with suppress(OSError, ValueError, KeyError):
        held = json.loads(_place(text).read_text(encoding="utf-8"))
        library = Library(held["library"])
        if held["description"] == text and library.path.exists():
            return library
    return None


def keep(text: str, library: Library) -> None:
    """Keep a library under a description; without one, or without a place to write to, nothing is kept."""
    if text:
        with suppress(OSError):
            write(_place(text), json.dumps({"library": library.path.stem, "description": text}))


def _place(text: str) -> Path:
    return folder() / f"{hashlib.sha256(text.encode()).hexdigest()}.json"


def _operations(graph: fx.GraphModule) -> list[str] | None:
    """Return the operations of a graph in order, with all arguments; None if something in it is not known by its name."""
    numbers: dict[fx.Node, int] = {}
    lines: list[str] = []
    for node in graph.graph.nodes:
        if node.op == "call_function":
            target = node.target
            if isinstance(target, OPERATION):
                if target.namespace not in KNOWN:
                    return None
                name = str(target)
            elif getattr(target, "__module__", "") == "_operator":
                name = f"operator.{target.__name__}"
            else:
                return None
        elif node.op in ("placeholder", "output"):
            name = node.op
        else:
            return None
        given = [_written(node.args, numbers), _written(node.kwargs, numbers)]
        if None in given:
            return None
        numbers[node] = len(lines)
        lines.append(f"{name} {given[0]} {given[1]}")
    return lines


def _written(value: Any, numbers: Mapping[fx.Node, int]) -> str | None:
    """Return an argument as text from which it can be told from any other; None for an object of an unknown kind."""
    if isinstance(value, fx.Node):
        return f"%{numbers[value]}"
    if isinstance(value, (list, tuple)):
        parts = [_written(part, numbers) for part in value]
        return None if None in parts else f"[{', '.join(part or '' for part in parts)}]"
    if isinstance(value, Mapping):
        parts = [_written(part, numbers) for part in value.values()]
        return None if None in parts else str({str(k): part for k, part in zip(value, parts, strict=True)})
    if value is None or isinstance(value, (bool, int, float, complex, str)):
        return f"{type(value).__name__}:{value!r}"
    if isinstance(value, (torch.dtype, torch.device, torch.layout, torch.memory_format)):
        return str(value)
    return None


def _of_torch() -> list[Any]:
    backends = torch.backends
    return [
        *(torch.__version__, torch.version.git_version, torch.get_num_threads(), str(torch.get_default_dtype())),
        *(torch.are_deterministic_algorithms_enabled(), _filled()),
        *(torch.get_float32_matmul_precision(), backends.mkldnn.enabled, backends.mkldnn.is_available()),
        *(backends.mkldnn.deterministic, backends.mkldnn.allow_tf32, backends.cpu.get_cpu_capability()),
    ]


def _filled() -> bool:
    settings: Any = torch.utils.deterministic
    return bool(settings.fill_uninitialized_memory)


@cache
def _of_machine() -> str:
    """Return the processor with all that it can do, as the code is made for it."""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        wanted = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
        return "\n".join(sorted(wanted))
    return platform.processor()


@cache
def _of_program() -> str:
    """Return a digest of the code that changes graphs before Inductor compiles them, and of Python's version."""
    here = Path(__file__).parent
    text = [sys.version, *(path.read_text(encoding="utf-8") for path in sorted(here.glob("*.py")))]
    return hashlib.sha256("\n".join(text).encode()).hexdigest()

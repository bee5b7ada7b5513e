"""The names of all tables with a line about each, read from the source of the tables and programs, which is not imported.

Importing it would import torch and Pyro, which takes seconds.
"""

import ast
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from pyro_vi.overview.options import plain


def names() -> dict[str, dict[str, str]]:
    """Return every name with a line about it, by kind.

    Example:
        >>> names()["models"]["vae"].startswith("Variational autoencoder")
        True
    """
    autoguides = ast.literal_eval(_table("pyro_vi.programs.lookup", "AUTOGUIDES"))
    return {
        "models": _programs("pyro_vi.models"),
        "guides": _programs("pyro_vi.guides")
        | {name: f"Pyro's {found}, for latents that all data share" for name, found in autoguides.items()},
        "data": _entries("pyro_vi.data.registered", "DATASETS", lambda description, *_: ast.literal_eval(description)),
        "estimators": _entries(
            "pyro_vi.estimators.table", "TABLE", lambda cls, line: f"{ast.unparse(cls)}: {ast.literal_eval(line)}"
        ),
    }


def _programs(package: str) -> dict[str, str]:
    """The first line of the docstring of each program of a package."""
    table: dict[str, str] = import_module(package).TABLE
    trees: dict[str, ast.Module] = {}
    found = {}
    for name, target in table.items():
        module, _, attribute = target.partition(":")
        tree = trees.setdefault(module, _tree(module))
        (cls,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == attribute)
        found[name] = plain(inspect.cleandoc(ast.get_docstring(cls) or "").split("\n")[0])
    return found


def _entries(module: str, table: str, line: Callable[..., str]) -> dict[str, str]:
    """The entries of a table: a dictionary whose values are calls with a description among the arguments."""
    written: Any = _table(module, table)
    return {ast.literal_eval(key): line(*call.args) for key, call in zip(written.keys, written.values, strict=True)}


def _table(module: str, name: str) -> ast.expr:
    """The value that is assigned to a name in a module."""
    for node in _tree(module).body:
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            target, value = node.target, node.value
        else:
            continue
        if isinstance(target, ast.Name) and target.id == name:
            return value
    raise LookupError(f"{module} has no {name}")


def _tree(module: str) -> ast.Module:
    """The source of a module of pyro_vi, whose packages may be links."""
    root = Path(__file__).parents[1]
    return ast.parse(root.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text(encoding="utf-8"))

"""Parts of other packages that these do not promise to keep: each is looked up where it is used, and named where it is missing.

`pyro_vi.support.torch_internals` and `pyro_vi.support.pyro_internals` are the only modules that use such parts.
"""

import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

from pyro_vi.errors import NoGraph

TESTED = {"torch": "2.13", "pyro-ppl": "1.9"}
"""Versions whose private parts are known to be as pyro_vi uses them."""


class Missing(NoGraph):
    """An installed package lacks a private part; one line that names both, and the version that has it.

    Most such parts serve graphs, so that callers of `NoGraph` go on eagerly. Others catch it where a part is used.
    """


def missing(package: str, name: str) -> Missing:
    """The error that says so; a constructor with other arguments than a text would break Pyro, which makes errors anew."""
    return Missing(f"this {package} ({version(package)}) has no {name}; install {package} {TESTED[package]}")


def part(package: str, module: str, name: str = "") -> Any:
    """A module, or what it holds under a name (``"Class.method"`` too).

    Raises:
        Missing: the package has none.

    Example:
        >>> part("torch", "torch.nn", "Linear").__name__
        'Linear'
    """
    whole = f"{module}.{name}".rstrip(".")
    found = sys.modules.get(module)
    if found is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what modules say of their own code as they are imported
                found = import_module(module)
        except ImportError as error:
            raise missing(package, module) from error
    for step in name.split(".") if name else ():
        found = attribute(package, found, step, whole)
    return found


def attribute(package: str, owner: Any, name: str, whole: str) -> Any:
    """An attribute of an object.

    Args:
        whole: its name in the error.

    Raises:
        Missing: the object has none.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise missing(package, whole) from error

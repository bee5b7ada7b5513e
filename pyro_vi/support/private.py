"""Lookup of private parts of other packages, which may change without notice; an error names a part that is missing.

`pyro_vi.support.torch_internals` and `pyro_vi.support.pyro_internals` are the only modules that use such parts.
"""

import sys
import warnings
from importlib import import_module
from importlib.metadata import version
from typing import Any

from pyro_vi.errors import NoGraph

TESTED = {"torch": "2.13", "pyro-ppl": "1.9"}
"""Versions that have all the private parts that pyro_vi uses."""


class Missing(NoGraph):
    """An installed package lacks a private part; the message names both, and the version that has the part, in one line.

    Most such parts are needed for graphs only: code that catches `NoGraph` continues eagerly. Other code catches `Missing`
    where it uses the part.
    """


def missing(package: str, name: str) -> Missing:
    """Make the error for a part that a package lacks.

    This is not a constructor of `Missing`, because Pyro remakes exceptions and passes a text only.
    """
    return Missing(f"this {package} ({version(package)}) has no {name}; install {package} {TESTED[package]}")


def part(package: str, module: str, name: str = "") -> Any:
    """Return a module of a package, or an attribute of the module, such as ``"Class.method"``.

    Raises:
        Missing: the package has no such part.

    Example:
        >>> part("torch", "torch.nn", "Linear").__name__
        'Linear'
    """
    whole = f"{module}.{name}".rstrip(".")
    found = sys.modules.get(module)
    if found is None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # modules may warn of their own code while they are imported
                found = import_module(module)
        except ImportError as error:
            raise missing(package, module) from error
    for step in name.split(".") if name else ():
        found = attribute(package, found, step, whole)
    return found


def attribute(package: str, owner: Any, name: str, whole: str) -> Any:
    """Return an attribute of an object.

    Args:
        package: the package that the object is from.
        owner: the object.
        name: name of the attribute.
        whole: full name of the attribute, for the error.

    Raises:
        Missing: the object has no such attribute.
    """
    try:
        return getattr(owner, name)
    except AttributeError as error:
        raise missing(package, whole) from error

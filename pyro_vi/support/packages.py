"""Versions of the packages that results depend on."""

import platform
from importlib.metadata import version

VERSION = version("pyro-vi")
PACKAGES = ("pyro-vi", "pyro-ppl", "torch", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that every result depends on, by name.

    Example:
        >>> sorted(versions())
        ['numpy', 'pyro-ppl', 'pyro-vi', 'python', 'torch']
    """
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}

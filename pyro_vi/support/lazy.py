"""Names of a package that are imported when they are first used, so that its import takes no time (PEP 562)."""

import ast
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazily(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` of a package, from the imports below ``if TYPE_CHECKING:`` in its source.

    Type checkers and import-linter read the same imports, so that each name is written once. Modules of the package are
    attributes of it too.

    Args:
        package: its name, ``__name__`` in its ``__init__.py``.

    Example:
        >>> import pyro_vi
        >>> "fit" in dir(pyro_vi), pyro_vi.fit is pyro_vi.fitting.svi.fit
        (True, True)
    """
    module = sys.modules[package]
    origins = _imports(Path(str(module.__file__)).read_text(encoding="utf-8"))

    def get(name: str) -> Any:
        found: Any
        origin, original = origins.get(name, (package, name))
        if origin != package:
            found = getattr(importlib.import_module(origin), original)
        elif name.startswith("__") or importlib.util.find_spec(f"{package}.{name}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        else:
            found = importlib.import_module(f"{package}.{name}")
        setattr(module, name, found)  # found by itself from now on
        return found

    def names() -> list[str]:
        return sorted({*vars(module), *origins})

    return get, names


def _imports(source: str) -> dict[str, tuple[str, str]]:
    """Names that are imported below ``if TYPE_CHECKING:``, each with the module and its name there.

    >>> _imports("if TYPE_CHECKING:\\n    from a.b import c as d, e")
    {'d': ('a.b', 'c'), 'e': ('a.b', 'e')}
    """
    blocks = [
        node.body
        for node in ast.parse(source).body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    imports = [node for block in blocks for node in block if isinstance(node, ast.ImportFrom)]
    return {one.asname or one.name: (str(node.module), one.name) for node in imports for one in node.names}

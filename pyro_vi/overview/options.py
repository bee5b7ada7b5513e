"""Options of a class or a function: from its signature, with types and help from the docstring.

* `options_from` makes the `Option` of each parameter; `helps` reads the help lines of a docstring, in Google's style
  (``Args:``) or in that of Sphinx (``:param float scale: …``), which is Pyro's; `about` is the first paragraph.
"""

import inspect
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Option:
    """An option: its type, its default and a help line, each as text; an option without a default is ``required``."""

    type: str
    default: str
    help: str


def options_from(program: Any, parameters: Iterable[inspect.Parameter]) -> dict[str, Option]:
    """Return options by name, without those that take a function, as no name can state one.

    Args:
        program: the class or the function, whose docstring is read, and those of the classes that it inherits from.
        parameters: those of its parameters that are options.
    """
    said: dict[str, tuple[str, str]] = {}
    for source in (program, *inspect.getmro(program)[1:-1]) if inspect.isclass(program) else (program,):
        for name, found in helps(source.__doc__ or "").items():
            said.setdefault(name, found)
    result = {}
    for one in parameters:
        kind, text = said.get(one.name, ("", ""))
        kind = _annotation(one) or kind or _type_of_default(one.default)
        if "callable" not in (kind.lower(), _type_of_default(one.default)) and kind != "Optional[Callable]":
            default = "required" if one.default is one.empty else repr(one.default)
            result[one.name] = Option(kind, default, text)
    return result


def helps(docstring: str) -> dict[str, tuple[str, str]]:
    """Return the type, which may be empty, and the help of each argument that a docstring describes.

    Example:
        >>> helps("Fit.\\n\\nArgs:\\n    x, y: numbers\\n        of ``float``.\\n\\nReturns:\\n    None")
        {'x': ('', 'numbers of float.'), 'y': ('', 'numbers of float.')}
        >>> helps(":param float scale: A scale.\\n:param rank: The rank.\\n:type rank: int or None")
        {'scale': ('float', 'A scale.'), 'rank': ('int or None', 'The rank.')}
    """
    text = inspect.cleandoc(docstring)
    found: dict[str, tuple[str, str]] = {}
    for block in re.findall(r"^Args:\n((?:[ ]+.*\n?|\n)*)", text, flags=re.MULTILINE):
        for names, help_ in re.findall(
            r"^ {4}([*\w][\w, *]*):(.*(?:\n(?: {5,}.*|(?=\n {5,})))*)", block, flags=re.MULTILINE
        ):
            found.update((name.strip(" *"), ("", plain(help_))) for name in names.split(","))
    types = {name: plain(kind) for name, kind in re.findall(r"^:type (\w+):(.*)", text, flags=re.MULTILINE)}
    entries = re.findall(r"^:param (?:([^:\n]+) )?(\w+):(.*(?:\n[ ]+\S.*)*)", text, flags=re.MULTILINE)
    found.update((name, (kind or types.get(name, ""), plain(help_))) for kind, name, help_ in entries)
    return found


def plain(text: str) -> str:
    """Return documentation as one line without its markup.

    Example:
        >>> plain("see `pyro_vi.load` and\\n  :class:`~pyro.nn.PyroModule`")
        'see pyro_vi.load and PyroModule'
    """
    text = re.sub(r":\w+:`~[\w.]*?(\w+)`", r"\1", text)
    text = re.sub(r":\w+:`([^`]*)`", r"\1", text)
    return " ".join(text.replace("`", "").split())


def about(program: Any) -> str:
    """Return the first paragraph of a docstring, in one line."""
    return plain((inspect.getdoc(program) or "").split("\n\n")[0])


def _annotation(one: inspect.Parameter) -> str:
    if one.annotation is one.empty:
        return ""
    text = one.annotation if isinstance(one.annotation, str) else inspect.formatannotation(one.annotation)
    return re.sub(r"(?:\w+\.)+(\w+)", r"\1", text)


def _type_of_default(default: Any) -> str:
    if default is None or default is inspect.Parameter.empty:
        return ""
    return "callable" if callable(default) else type(default).__name__

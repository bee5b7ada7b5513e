"""Exceptions, each with a message of one line, and functions that shorten other exceptions to one line.

Users see `InputError`, `UsageError` and `FitError`. The engine catches `NoGraph` itself, and continues without a graph.

An exception of a program is shown by `of_program`: its type, its text, and the line of the program that raised it.
"""

import linecache
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class InputError(ValueError):
    """Invalid input; the message says in one line what is wrong and what to do."""

    def __str__(self) -> str:
        # In a traced program, Pyro raises the error again with the shapes of the trace after its text.
        return plain(super().__str__().split(f"\n{SHAPES}")[0])


class UsageError(InputError):
    """Wrong usage: an unknown name or option, or a setting that is not allowed."""


class FitError(RuntimeError):
    """A fit that cannot continue; the message names the step, the batch and the site in one line."""

    def __str__(self) -> str:
        return plain(super().__str__())


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived, as `KeyboardInterrupt` says that SIGINT did."""


class NoGraph(RuntimeError):
    """A program that has no graph, or whose graph would give other numbers than the program; the message says why.

    Callers continue eagerly and report the message. Where the user demanded a graph, they raise `InputError` with it.
    """


def plain(text: str) -> str:
    """Return a text with an escape for each character that is not printed, such as those that command a terminal.

    Names of files, columns and programs may come from strangers.

    Example:
        >>> plain("a\\nb \\x1b[31m")
        'a\\\\nb \\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: object) -> str:
    """Return the first line of an error or a warning that is not blank, or the name of its class if there is none.

    Example:
        >>> first_line(ValueError("\\n  a is not b\\n  see c")), first_line(KeyboardInterrupt())
        ('a is not b', 'KeyboardInterrupt')
    """
    return plain(next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__))


def kind_and_line(error: object) -> str:
    """Return the class of an error and its first line, or the class alone if it has no text.

    Example:
        >>> kind_and_line(ValueError("a is not b")), kind_and_line(KeyboardInterrupt())
        ('ValueError: a is not b', 'KeyboardInterrupt')
    """
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"


def of_program(error: BaseException) -> str:
    """Return an exception that a program raised: its type, its first line, and where the program raised it, in one line.

    The place is the innermost line that belongs neither to pyro_vi nor to an installed package, if there is one.

    Example:
        >>> def model(x):
        ...     assert x > 0
        >>> try:
        ...     model(-1)
        ... except AssertionError as error:
        ...     of_program(error).startswith("AssertionError (")
        True
    """
    # Pyro raises an error in a traced program again, with the shapes of the trace after its text.
    while error.__cause__ is not None and SHAPES in str(error):
        error = error.__cause__
    place = where_in_program(error)
    return f"{kind_and_line(error)} ({place})" if place else kind_and_line(error)


def where_in_program(error: BaseException) -> str:
    """Return the file, the line and the code at which a program raised an exception, or an empty text if no program did."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(PACKAGES):
            code = (linecache.getline(frame.filename, frame.lineno or 0) or frame.line or "").strip()
            shown = code if len(code) <= CODE else f"{code[:CODE]} …"
            return f"{Path(frame.filename).name} line {frame.lineno}" + (f": {shown}" if shown else "")
    return ""


@contextmanager
def naming_programs(what: str, *, always: bool = False) -> Iterator[None]:
    """Turn an exception that a program raises in the block into an `InputError`: ``what`` fails, and where.

    Args:
        what: the start of the message.
        always: also if no line of the program is to be seen, as for programs of pyro_vi itself.
    """
    try:
        yield
    except (InputError, FitError, NoGraph):
        raise
    except Exception as error:
        if not always and not where_in_program(error):
            raise
        raise InputError(f"{what}: {of_program(error)}") from error


SHAPES, CODE = "Trace Shapes:", 80
PACKAGES = (
    str(Path(__file__).parent),
    *(str(Path(__file__).parents[1] / name) for name in ("models", "guides")),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
)
"""Folders whose code is not the user's."""

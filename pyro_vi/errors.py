"""Exceptions, each with a message of one line, and functions that shorten other exceptions to one line.

Users see `InputError`, `UsageError` and `FitError`. The engine catches `NoGraph` itself, and continues without a graph.
"""


class InputError(ValueError):
    """Invalid input; the message says in one line what is wrong and what to do."""


class UsageError(InputError):
    """Wrong usage: an unknown name or option, or a setting that is not allowed."""


class FitError(RuntimeError):
    """A fit that cannot continue; the message names the step, the batch and the site in one line."""


class NoGraph(RuntimeError):
    """A program that has no graph, or whose graph would give other numbers than the program; the message says why.

    Callers continue eagerly and report the message. Where the user demanded a graph, they raise `InputError` with it.
    """


def first_line(error: object) -> str:
    """Return the first line of an error or a warning that is not blank, or the name of its class if there is none.

    Example:
        >>> first_line(ValueError("\\n  a is not b\\n  see c")), first_line(KeyboardInterrupt())
        ('a is not b', 'KeyboardInterrupt')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def kind_and_line(error: object) -> str:
    """Return the class of an error and its first line, or the class alone if it has no text.

    Example:
        >>> kind_and_line(ValueError("a is not b")), kind_and_line(KeyboardInterrupt())
        ('ValueError: a is not b', 'KeyboardInterrupt')
    """
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"

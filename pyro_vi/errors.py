"""The exceptions of pyro_vi, one line each, and the first line of anybody else's exception.

Users see `InputError`, `UsageError` and `FitError`. `NoGraph` is for callers within the engine, which go on without a graph.
"""


class InputError(ValueError):
    """Bad input: one line that says what is wrong and what to do."""


class UsageError(InputError):
    """A name or an option that does not exist."""


class FitError(RuntimeError):
    """A fit that cannot go on: one line that names the step, the batch and the site."""


class NoGraph(RuntimeError):
    """There is no graph of a program, or none that does what the program does; one line that says why.

    Callers go on eagerly and report the line, or raise `InputError` with it where a graph was demanded.
    """


def first_line(error: object) -> str:
    """The first line of an error or a warning that is not blank; the name of its class where there is none.

    Example:
        >>> first_line(ValueError("\\n  a is not b\\n  see c")), first_line(KeyboardInterrupt())
        ('a is not b', 'KeyboardInterrupt')
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def kind_and_line(error: object) -> str:
    """The class of an error and its first line; the class alone where it has no text.

    Example:
        >>> kind_and_line(ValueError("a is not b")), kind_and_line(KeyboardInterrupt())
        ('ValueError: a is not b', 'KeyboardInterrupt')
    """
    kind, line = type(error).__name__, first_line(error)
    return kind if line == kind else f"{kind}: {line}"

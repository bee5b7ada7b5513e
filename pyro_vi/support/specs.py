"""Names with options: `vae(latent_dim=8)`, `digits(binarize=False)`, `path/file.py:Name(x=1)`.

* `parse` splits such a text into the name and its options, without evaluating anything.
* `unknown` makes the error for a name that is not in a table; `check_options` rejects unknown options.
"""

import ast
import difflib
import re
from collections.abc import Iterable

from pyro_vi.errors import UsageError

LONGEST = 10_000
"""Most characters of a name with its options."""
_PLAIN_TARGET = re.compile(r"[\w.:\-]+")


def parse(text: str) -> tuple[str, dict[str, object]]:
    """Split `target(option=literal, ...)` into the target and its options.

    The target is a name, `path/file.py:Name` or `package.module:Name`. Values are Python literals, read by
    `ast.literal_eval`.

    Raises UsageError for positional arguments, for values that are not literals, and for other text that cannot be read.

    >>> parse("vae(latent_dim=8, hidden=(256, 128))")
    ('vae', {'latent_dim': 8, 'hidden': (256, 128)})
    >>> parse("programs/mine.py:Model")
    ('programs/mine.py:Model', {})
    """
    text = text.strip()
    if len(text) > LONGEST:
        raise UsageError(f"cannot read a name of {len(text)} characters; write at most {LONGEST}")
    if not text.endswith(")"):
        if text.count("(") != text.count(")"):
            raise _unreadable(text)
        return _target(text, text), {}
    # A folder's name may contain parentheses too: options start at the first "(" from which the rest reads as one call.
    for opening in re.finditer(r"\(", text):
        try:
            call = ast.parse("f" + text[opening.start() :], mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name):
            return _target(text[: opening.start()].strip(), text), _options(call, text)
    raise _unreadable(text)


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Make the error for a name that is not in a table; it names the nearest match (difflib) and all known names.

    >>> str(unknown("data set", "digts", ["digits", "mnist"]))
    "no data set named 'digts'; did you mean 'digits'? Available: digits, mnist"
    """
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return UsageError(f"no {kind} named {name!r}{hint} Available: {', '.join(names) or 'none'}")


def check_options(what: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Check that every option is known.

    Args:
        what: name of the program or data set, for the message.
        options: the options given.
        known: the options that it has.

    Raises:
        UsageError: an option is unknown; the message names the first such option, its nearest match and the known options.

    >>> check_options("data set 'digits'", {"binarize": True}, ["binarize"])
    """
    names = list(known)
    for option in options:
        if option not in names:
            if not names:
                raise UsageError(f"{what} has no option {option!r}; it takes no options, so leave it out")
            near = difflib.get_close_matches(option, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "."
            raise UsageError(f"{what} has no option {option!r}{hint} Its options are: {', '.join(names)}")


def _target(target: str, text: str) -> str:
    is_path = "/" in target or "\\" in target or ".py:" in target
    if not target or not (is_path or _PLAIN_TARGET.fullmatch(target)):
        raise _unreadable(text)
    return target


def _options(call: ast.Call, text: str) -> dict[str, object]:
    if call.args:
        value = ast.unparse(call.args[0])
        raise UsageError(f"{text!r}: {value!r} has no option name; write it as option=value")
    options: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise UsageError(f"{text!r}: '**' cannot be read; write every option as option=value")
        if keyword.arg in options:
            raise UsageError(f"{text!r}: the option {keyword.arg!r} is given twice; give it once")
        try:
            options[keyword.arg] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            value = ast.unparse(keyword.value)
            raise UsageError(
                f"{text!r}: the value {value!r} of {keyword.arg!r} is not a Python literal; "
                "write a number, a quoted string, True, False, None, or a tuple, list or dict of those"
            ) from None
    return options


def _unreadable(text: str) -> UsageError:
    return UsageError(f"cannot read {text!r}; write name or name(option=value, ...) with Python literals as values")

"""How a run was called, as lines to type again: `commands_of`.

The command line is given where it can say all that was asked for, and the call of Python otherwise.
"""

import json
import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from pyro_vi.fitting import Options
from pyro_vi.reporting.page.parts import Command

DEFAULTS: Mapping[str, Any] = {
    **{option.name: getattr(Options, option.name) for option in fields(Options)},
    "elbo": "mean_field",
    "elbos": None,
    "seeds": 1,
    "audit_draws": 1000,
    "audit_batch": 128,
    "particles": 1000,
}
"""Options of a fit or a comparison, with the values that need no word."""

PYTHON_ONLY = ("audit_batch", "device", "check", "dtype", "model_options", "guide_options", "name")
"""Options that the command line does not have."""

APART = ("model", "guide", "data", "draws", "out", "progress", "resume", "allow", "callbacks", "snapshots")


def commands_of(config: Mapping[str, Any]) -> list[Command]:
    """Return how to make the run again, and its configuration, folded.

    Example:
        >>> arguments = {"model": "vae(latent_dim=2)", "guide": "diag_normal", "data": "digits", "lr": 0.01}
        >>> print(commands_of({"given": {"command": "fit", "arguments": arguments}})[0].text)
        pyro-vi fit 'vae(latent_dim=2)' diag_normal --data digits --lr 0.01
    """
    call = config.get("given")
    found = []
    if isinstance(call, Mapping) and isinstance(call.get("arguments"), Mapping):
        command, arguments = str(call.get("command", "fit")), dict(call["arguments"])
        objects = [str(name) for name in call.get("objects", ())]
        asked = {n: v for n, v in arguments.items() if n not in APART and not _equal(v, DEFAULTS.get(n))}
        if not objects and not any(n in PYTHON_ONLY or n not in DEFAULTS or _nested(v, n) for n, v in asked.items()):
            found.append(Command("On the command line", _line(command, arguments, asked)))
        if command in ("fit", "compare"):
            found.append(Command("In Python", _python(command, arguments, asked, objects)))
        if call.get("folder"):
            found.append(Command("In the folder", str(call["folder"])))
    text = json.dumps(config, indent=2, default=str, ensure_ascii=False) if config else ""
    return [*found, *([Command("The whole configuration", text, folded=True)] if text else [])]


def _line(command: str, arguments: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    guides = arguments.get("guide", "")
    words = ["pyro-vi", command, arguments.get("model", ""), *(guides if isinstance(guides, list) else [guides])]
    words += ["--data", arguments.get("data", "")]
    for name, value in asked.items():
        option = f"--{name.replace('_', '-')}"
        if name == "compile":
            words += [option, {True: "yes", False: "no"}.get(value, value)]
        elif name == "drop_last":
            words += [option] if value else []
        else:
            words += [option, *(value if isinstance(value, list) else [value])]
    return " ".join(shlex.quote(str(word)) for word in words)


def _python(command: str, arguments: Mapping[str, Any], asked: Mapping[str, Any], objects: list[str]) -> str:
    programs = [name if name in objects else repr(arguments.get(name)) for name in ("model", "guide", "data")]
    options = [f"{name}={value!r}" for name, value in asked.items()]
    options += [f"{name}={name}" for name in objects if name not in ("model", "guide", "data")]
    return f"pyro_vi.{command}({', '.join([*programs, *options])})"


def _nested(value: Any, name: str) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and name not in ("elbos", "guide"))


def _equal(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)

"""Sites at which an analytic KL is wrong, because of how model and guide depend on each other."""

from collections.abc import Mapping
from typing import Any

import pyro
from pyro.infer.inspect import get_dependencies

from pyro_vi.programs import Program


def refused_by_dependence(model: Program, guide: Program, args: tuple[Any, ...]) -> dict[str, str]:
    """Sites at which an analytic KL is wrong: z whose prior depends on a latent that the guide draws given z.

    There E_q of the closed form is over draws that depend on z. Dependence is found from the values, by tracking
    which draws enter the parameters of which site, and not the order of the statements.
    """
    flag = pyro.settings.get("validate_distributions_torch")
    with pyro.settings.context(validate_distributions_torch=flag):  # Pyro's look-up leaves its own in its place
        ours, theirs = _parents(model, args), _parents(guide, args)
    refused = {}
    for name in ours:
        later = {other for other in theirs if name in _ancestors(other, theirs)}
        clash = sorted(ours[name] & later)
        if clash:
            refused[name] = f"its prior depends on '{clash[0]}', which the guide draws given '{name}'"
    return refused


def _parents(program: Program, args: tuple[Any, ...]) -> dict[str, set[str]]:
    found: Any = get_dependencies(program, args)["prior_dependencies"]
    return {name: set(above) - {name} for name, above in found.items()}


def _ancestors(name: str, parents: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    stack = list(parents.get(name, ()))
    while stack:
        one = stack.pop()
        if one not in seen:
            seen.add(one)
            stack += parents.get(one, ())
    return seen

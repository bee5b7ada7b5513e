"""Rules of `check` on gradients: what cannot be differentiated, and what never trains."""

from collections.abc import Iterator

from torch import Tensor

from pyro_vi.checking.findings import Finding, View
from pyro_vi.estimators import instead_of_paths
from pyro_vi.programs import describe


def reparametrized(view: View) -> Iterator[Finding]:
    """Draws that have no pathwise gradient, under an estimator that goes through them."""
    if not view.traits.through_draws:
        return
    for name, (_, other) in view.shared.items():
        if not other["fn"].has_rsample:
            text = f"the guide's {describe(other['fn'])} at '{name}' cannot be reparameterised, so its gradient is lost"
            yield Finding("not-reparametrized", "error", name, text, instead_of_paths(other))


def unregistered(view: View) -> Iterator[Finding]:
    """Networks that the programs use and do not register."""
    known = {id(p) for p in view.pair.parameters()} | {id(a) for a in view.args}
    foreign = [leaf for leaf in leaves_of(view.terms.loss) if id(leaf) not in known] if view.terms is not None else []
    if foreign:
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in foreign[:3])
        text = (
            f"{len(foreign)} tensors that need gradients are not parameters of the pair (shapes {shapes}), "
            "so they never train"
        )
        remedy = "register their network: make it a submodule, or call pyro.module on it in the program"
        yield Finding("unregistered", "error", None, text, remedy)


def leaves_of(value: Tensor) -> Iterator[Tensor]:
    """The tensors with gradients that a result depends on."""
    stack, seen = [value.grad_fn], set()
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        stack += [before for before, _ in node.next_functions]

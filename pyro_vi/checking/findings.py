"""Findings of a check, and the run of a pair in which they are found.

* `Finding` is one finding with its remedy; `merged` makes one finding of several that have one cause.
* `View` is one run of a pair: everything that the rules of `pyro_vi.checking.rules` read. `latents_of`, `data_of`, `is_factor`
  and `is_point` say what the sites of its traces are.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pyro.distributions import Delta, Unit
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.data import Batch, length_of
from pyro_vi.elbo import Run, Terms
from pyro_vi.estimators.contract import Traits
from pyro_vi.programs import Pair, bare, role_of

Severity = Literal["error", "warning", "note"]
ORDER: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One finding of a check. A fit does not start if there is an error; it warns of warnings, and ignores notes."""

    code: str
    severity: Severity
    site: str | None
    message: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """Findings with errors first; those that differ by the name of their site alone are one.

    Example:
        >>> two = [Finding("mask-mismatch", "error", name, f"site '{name}' is masked", "drop it") for name in ("a", "b")]
        >>> [str(finding) for finding in merged(two)]
        ["site 'a' (likewise 'b') is masked; drop it"]
    """
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for finding in findings:
        texts = (text.replace(f"'{finding.site}'", "") for text in (finding.message, finding.remedy))
        groups.setdefault((finding.severity, finding.code, *texts), []).append(finding)
    found = []
    for first, *others in groups.values():
        message = first.message
        if others:
            names = [f"'{finding.site}'" for finding in others]
            listed = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
            message = message.replace(f"'{first.site}'", f"'{first.site}' (likewise {listed})", 1)
        found.append(Finding(first.code, first.severity, first.site, message, first.remedy))
    return sorted(found, key=lambda finding: ORDER.index(finding.severity))


@dataclass(frozen=True)
class Planned:
    """The options of the coming fit, besides the estimator; None for those that are not known.

    Attributes:
        steps: number of steps.
        warmup: steps over which the weight of the KL rises.
        optimizer: as `pyro_vi.fit` takes it.
        shuffle: whether minibatches are drawn in a new order in each epoch.
    """

    steps: int | None = None
    warmup: int = 0
    optimizer: Any = None
    shuffle: bool | None = None


@dataclass(frozen=True)
class View:
    """One run of a pair.

    Attributes:
        pair: the pair.
        args: the batch.
        elbo: the estimator that the fit will use, if it is known.
        traits: its traits.
        num_data: number of training data, if it is known.
        smallest: rows of the smallest batch of the fit, if they are known.
        planned: what else is known of the fit.
        model_trace: of the model, replayed on the guide's draws.
        guide_trace: of the guide.
        meant: sites of the model whose distribution has ``validate_args=False`` by its author.
        flat: there is a batch norm that cannot take a batch of one row.
        run: the same run with densities; None for the rules of `pyro_vi.checking.rules.STRUCTURE`.
        terms: its terms.
    """

    pair: Pair
    args: Batch
    elbo: ELBO | None
    traits: Traits
    num_data: int | None
    smallest: int | None
    planned: Planned = field(default_factory=Planned)
    model_trace: Any = None
    guide_trace: Any = None
    meant: frozenset[str] = field(default_factory=frozenset)
    flat: bool = False
    run: Run | None = None
    terms: Terms | None = None

    @property
    def minibatches(self) -> bool:
        """True if the batch is known to be a part of the data."""
        return self.num_data is not None and self.length < self.num_data

    @property
    def many_sample(self) -> bool:
        """True for a bound with a logarithm around several draws."""
        return self.traits.target not in ("elbo", "tmc")

    @property
    def length(self) -> int:
        """Rows of the batch."""
        return length_of(self.args)

    @property
    def shared(self) -> dict[str, tuple[Any, Any]]:
        """The latent sites that both programs have, in the model's order, each with its nodes in the two traces."""
        guide = self.guide_trace.nodes
        return {name: (node, guide[name]) for name, node in latents_of(self.model_trace).items() if name in guide}


def latents_of(trace: Any) -> dict[str, Any]:
    """The latent sites of a trace with their nodes, without auxiliary ones."""
    return {name: node for name, node in trace.nodes.items() if node["type"] == "sample" and role_of(node) == "latent"}


def data_of(trace: Any) -> dict[str, Any]:
    """The sites of a trace that observe data, with their nodes: no factors, no deterministic sites."""
    return {
        name: node for name, node in trace.nodes.items() if node["type"] == "sample" and role_of(node) == "observed"
    }


def is_factor(node: Any) -> bool:
    """True for a `pyro.factor` that is not 0 everywhere."""
    fn = bare(node["fn"]) if node["type"] == "sample" else None
    return isinstance(fn, Unit) and bool((torch.as_tensor(fn.log_factor) != 0).any())


def is_point(node: Any) -> bool:
    """True for a Delta whose density is 1: it has no part in log q."""
    fn = bare(node["fn"])
    return isinstance(fn, Delta) and not bool(torch.as_tensor(fn.log_density).any())


def number(value: Tensor) -> str:
    """A number in a message."""
    return f"{float(value):g}" if value.numel() == 1 else "a tensor"

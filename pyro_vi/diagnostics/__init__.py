"""Evidence of a fitted pair.

* `log_evidence` gives log p(x) of each datum; `weights` sums the importance weights that it needs.
"""

from pyro_vi.diagnostics.log_evidence import evidence, evidence_of_pair

__all__ = [
    "evidence",
    "evidence_of_pair",
]

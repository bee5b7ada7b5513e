"""Evidence of a fitted pair.

* `log_evidence` computes or estimates log p(x) of each datum; `weights` sums the importance weights for the estimate.
"""

from pyro_vi.diagnostics.log_evidence import evidence, evidence_of_pair

__all__ = [
    "evidence",
    "evidence_of_pair",
]

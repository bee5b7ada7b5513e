"""Evidence of a fitted pair.

* `log_evidence` computes or estimates log p(x) of each datum; `weights` sums the importance weights for the estimate, and
  `tails` says how heavy their tail is.
* `simulating` draws data and latents from the model itself.
"""

from pyro_vi.diagnostics.log_evidence import evidence, evidence_of_pair
from pyro_vi.diagnostics.tails import UNRELIABLE

__all__ = [
    "UNRELIABLE",
    "evidence",
    "evidence_of_pair",
]

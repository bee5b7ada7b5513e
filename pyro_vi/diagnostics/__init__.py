"""Evidence of a fitted pair, and whether its posterior can be trusted.

* `log_evidence` computes or estimates log p(x) of each datum; `weights` sums the importance weights for the estimate, and
  `tails` says how heavy their tail is.
* `simulating` draws data and latents from the model itself.
* `calibrating` ranks these latents among draws of the guide: `ranks` makes the ranks, `calibrated` the numbers and the verdict,
  with the exact test of `uniformity`, and `calibration_words` the sentences.
"""

from pyro_vi.diagnostics.calibrated import LEVELS, measured_calibration
from pyro_vi.diagnostics.calibrating import calibration, calibration_of_pair, refuse_unsimulated
from pyro_vi.diagnostics.log_evidence import evidence, evidence_of_pair
from pyro_vi.diagnostics.ranks import JOINT, LIKELIHOOD, Ranked, Ranker
from pyro_vi.diagnostics.simulating import Simulated, observed_entries, simulated
from pyro_vi.diagnostics.tails import UNRELIABLE
from pyro_vi.diagnostics.uniformity import band, edges

__all__ = [
    "JOINT",
    "LEVELS",
    "LIKELIHOOD",
    "UNRELIABLE",
    "Ranked",
    "Ranker",
    "Simulated",
    "band",
    "calibration",
    "calibration_of_pair",
    "edges",
    "evidence",
    "evidence_of_pair",
    "measured_calibration",
    "observed_entries",
    "refuse_unsimulated",
    "simulated",
]

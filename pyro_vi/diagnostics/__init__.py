"""Evidence of a fitted pair, and whether its posterior can be trusted.
"""Evidence of a fitted pair, and what its latents know.

* `log_evidence` computes or estimates log p(x) of each datum; `weights` sums the importance weights for the estimate, and
  `tails` says how heavy their tail is.
* `joint_tails` gives the k-hat of the guide, which `judging` says in sentences; `smoothed_moments` gives moments with the
  weights of `smoothing` beside the guide's own; both are from the draws of `drawing`.
* `mean_field` gives linear-response standard deviations, from the normals that `normal_guides` reads and the ELBO of `responding`.
* `simulating` draws data and latents from the model itself.
* `calibrating` ranks these latents among draws of the guide: `ranks` makes the ranks, `calibrated` the numbers and the verdict,
  with the exact test of `uniformity`, and `calibration_words` the sentences.
"""

from pyro_vi.diagnostics.calibrated import LEVELS, measured_calibration
from pyro_vi.diagnostics.calibrating import calibration, calibration_of_pair, refuse_unsimulated
* `collapse` measures which units of the latents have collapsed, and why, in the words of `collapse_sentences`. `local_runs`
  makes the runs, `units` splits a site into units, `unit_numbers` and `unit_table` have the numbers of each, `aggregate` the
  information by mixtures over the data, `unit_posteriors` what the posterior of a unit would be, and `linear_decoder` what
  probabilistic PCA says.
"""

from pyro_vi.diagnostics.collapse import collapse, collapse_of_pair
* `gaps` splits log p(x) − ELBO of each datum into what the encoder loses and what the guide's family loses. `gap_search` finds
  the best member of each family: on a density of `targets`, by `normals`, `local_flows` and `own_family`, with means over draws
  of `expectations`, and log p(x) of `evidence_from_search`. `gap_words` says what was found.
"""

from pyro_vi.diagnostics.gaps import gaps, gaps_of_pair
from pyro_vi.diagnostics.log_evidence import evidence, evidence_of_pair
from pyro_vi.diagnostics.ranks import JOINT, LIKELIHOOD, Ranked, Ranker
from pyro_vi.diagnostics.simulating import Simulated, observed_entries, simulated
from pyro_vi.diagnostics.joint_tails import reliability, reliability_of_pair
from pyro_vi.diagnostics.log_evidence import evidence, evidence_of_pair
from pyro_vi.diagnostics.mean_field import linear_response, linear_response_of_pair
from pyro_vi.diagnostics.smoothed_moments import moments, moments_of_pair
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
    "collapse",
    "collapse_of_pair",
    "evidence",
    "evidence_of_pair",
    "measured_calibration",
    "observed_entries",
    "refuse_unsimulated",
    "simulated",
    "gaps",
    "gaps_of_pair",
    "linear_response",
    "linear_response_of_pair",
    "moments",
    "moments_of_pair",
    "reliability",
    "reliability_of_pair",
]

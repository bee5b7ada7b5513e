"""Evidence of a fitted pair, and whether its posterior can be trusted.

* `log_evidence` computes or estimates log p(x) of each datum: by sums of importance `weights`, whose tail `tails`
  describes, from the guide or from the prior (`prior`), or by the chains of `annealing`. `estimates` lays the numbers out.
* `simulating` draws data and latents from the model itself.
* `annealing` anneals from guide or prior to the posterior (`chains`): `positions` are the draws on the unconstrained scale,
  `transitions` moves them, `annealed` adds up the weights. `sandwich` bounds log p(x) from both sides on simulated data.
* `splitting` splits log p(x) − ELBO into what the encoder loses and what the guide's family loses (`parts`).
* `reweighting` has the k-hat of the guide (`joint_tails`), and moments with smoothed weights (`smoothed_moments`).
* `responses` has linear-response standard deviations of shared latents (`mean_field`).
* `ranking` ranks the latents of simulated data among draws of the guide (`calibrating`).
* `collapsing` measures which units of the latents have collapsed, and why (`collapsed`).
* `diagnosing` calls the last four in one go.
"""

from typing import TYPE_CHECKING

from pyro_vi.support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vi.diagnostics.annealing.sandwich import sandwich_of_pair
    from pyro_vi.diagnostics.collapsing.collapsed import collapse, collapse_of_pair
    from pyro_vi.diagnostics.diagnosing import chosen, diagnose, diagnose_pair
    from pyro_vi.diagnostics.log_evidence import evidence, evidence_of_pair
    from pyro_vi.diagnostics.ranking.calibrated import LEVELS, measured_calibration
    from pyro_vi.diagnostics.ranking.calibrating import calibration, calibration_of_pair, refuse_unsimulated
    from pyro_vi.diagnostics.ranking.ranks import JOINT, LIKELIHOOD, Ranked, Ranker
    from pyro_vi.diagnostics.ranking.uniformity import band, edges
    from pyro_vi.diagnostics.responses.mean_field import linear_response, linear_response_of_pair
    from pyro_vi.diagnostics.reweighting.joint_tails import reliability, reliability_of_pair
    from pyro_vi.diagnostics.reweighting.smoothed_moments import moments, moments_of_pair
    from pyro_vi.diagnostics.simulating import Simulated, observed_entries, simulated
    from pyro_vi.diagnostics.splitting.parts import gaps, gaps_of_pair
    from pyro_vi.diagnostics.tails import UNRELIABLE
else:
    __getattr__, __dir__ = lazily(__name__)

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
    "chosen",
    "collapse",
    "collapse_of_pair",
    "diagnose",
    "diagnose_pair",
    "edges",
    "evidence",
    "evidence_of_pair",
    "gaps",
    "gaps_of_pair",
    "linear_response",
    "linear_response_of_pair",
    "measured_calibration",
    "moments",
    "moments_of_pair",
    "observed_entries",
    "refuse_unsimulated",
    "reliability",
    "reliability_of_pair",
    "sandwich_of_pair",
    "simulated",
]

"""Silent errors of a pair, found before its fit.

* `checks` runs the pair; `rules` is the table of the rules; each rule makes a `Finding` of `findings`.
* The rules are on `sites`, `values`, `gradients`, `scaling` (masks, scales, plates) and `closed_forms` (KL); those in `probes`
  run the pair again.
"""

from pyro_vi.checking.checks import check, check_pair, refuse
from pyro_vi.checking.findings import Finding

__all__ = ["Finding", "check", "check_pair", "refuse"]

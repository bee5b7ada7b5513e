"""Silent errors of a pair, found before its fit.

* `checks` runs the pair; `rules` is the table of the rules; each rule makes a `Finding` of `findings`.
* The rules are on `sites`, `values`, `gradients`, `scaling` (masks, scales, plates), `closed_forms` (KL), `logarithms` (bounds
  of many draws), `encoders`, `vanishing` (scales that go to 0) and `options` of the fit; those in `probes` run the pair on
  other rows. `estimates` are the two numbers that show a fault.
"""

from pyro_vi.checking.checks import check, check_pair, refuse
from pyro_vi.checking.findings import Finding, Planned, merged

__all__ = ["Finding", "Planned", "check", "check_pair", "merged", "refuse"]

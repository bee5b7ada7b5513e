"""Comparisons: one pair under several estimators, or one model with several guides under one estimator.

* `comparer` checks what was asked for, which `asked` holds, and repeats the comparison under each seed.
* `of_estimators` fits and audits one pair under several estimators; `of_guides` fits a model with several guides, on plans
  that `joint` makes; `evaluating` evaluates the fits; `results` holds them.
* `differences` compares numbers of fits; `ranking` ranks the fits by each of their numbers;
  `showing` shows them as text and as a frame.
* `resuming` continues a fit or a comparison from its folder alone.
"""

from typing import TYPE_CHECKING

from pyro_vi.support.lazy import lazily

if TYPE_CHECKING:
    from pyro_vi.comparing.comparer import compare
    from pyro_vi.comparing.differences import CERTAIN, Difference, Spread, Standing
    from pyro_vi.comparing.ranking import plain_ranks, spread_of, standings
    from pyro_vi.comparing.results import Comparison, Result
    from pyro_vi.comparing.resuming import resume
else:
    __getattr__, __dir__ = lazily(__name__)

__all__ = [
    "CERTAIN",
    "Comparison",
    "Difference",
    "Result",
    "Spread",
    "Standing",
    "compare",
    "plain_ranks",
    "resume",
    "spread_of",
    "standings",
]

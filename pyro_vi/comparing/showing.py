"""How a comparison is shown: `frame_of` as a pandas frame, `lines_of` in a dozen lines of text."""

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from pyro_vi.comparing.results import Comparison, Result

MOST = 10
"""Most fits in the lines of text."""


def frame_of(comparison: "Comparison") -> Any:
    """Return the numbers of a comparison as a pandas frame: a row for each fit, under each seed if there are several.

    Numbers are in nats per datum; those that a fit does not have are NaN. A column without a number is left out.
    """
    import pandas as pd

    rows = []
    for one in comparison.every:
        for name, result in one.results.items():
            rows.append({comparison.across.rstrip("s"): name, "seed": one.seed, **_numbers(result)})
    index = [comparison.across.rstrip("s")] + ["seed"] * bool(comparison.repeats)
    frame = pd.DataFrame(rows).set_index(index)
    return frame.drop(columns="seed", errors="ignore").dropna(axis=1, how="all")


def lines_of(comparison: "Comparison") -> list[str]:
    """Return a comparison as lines of text: what was compared on what, then the numbers of each fit, the best ELBO first."""
    data = comparison.data
    held = f"{data.num_heldout} held out" if data.num_heldout else "none held out"
    under = f" under {comparison.estimator}" if comparison.estimator else f" with guide {comparison.guide}"
    seeds = ", ".join(map(str, comparison.seeds))
    several = f", seeds {seeds}" if comparison.repeats else f", seed {seeds}"
    lines = [
        f"Comparison of {len(comparison.names)} {comparison.across}: {comparison.model}{under}",
        f"  data       {data.spec.name}: {data.spec.num_data} rows, {held}{several}; nats per {comparison.on} datum",
    ]
    results = sorted(comparison.results.items(), key=lambda item: -_or(item[1].elbo_mean, -math.inf))
    wide = max((len(name) for name, _ in results[:MOST]), default=0)
    for name, result in results[:MOST]:
        numbers = _numbers(result)
        shown = [f"{key} {numbers[key]:.3f}" for key in ("elbo", "log_joint", "evidence", "gap") if key in numbers]
        lines.append(f"  {name:<{wide}}  {', '.join(shown)}, {result.run.seconds:.1f} s")
    if len(results) > MOST:
        lines.append(f"  and {len(results) - MOST} others: table() has them")
    if comparison.refused:
        lines.append(f"  refused    {', '.join(comparison.refused)}")
    if comparison.out is not None:
        lines.append(f"  folder     {comparison.out}")
    return lines


def cells_of(comparison: "Comparison") -> list[list[str]]:
    """Return `frame_of` as text, with the names of the columns as the first row."""
    frame = frame_of(comparison).reset_index()
    rows = [
        [value if isinstance(value, str) else f"{value:.5g}" for value in row] for row in frame.itertuples(index=False)
    ]
    return [list(map(str, frame.columns)), *rows]


def _numbers(result: "Result") -> dict[str, float]:
    evaluation, found = result.evaluation, result.evidence
    numbers = {
        "elbo": result.elbo_mean,
        "elbo_se": _mean(evaluation.elbo_se),
        "reconstruction": _mean(evaluation.reconstruction),
        "kl": _mean(evaluation.kl),
        "log_joint": _mean(evaluation.log_joint),
        "heldout_lpd": _mean(result.lpd),
        "evidence": None if found is None else float(found.attrs["value"]),
        "evidence_se": None if found is None else float(found.attrs["se"]),
        "gap": result.gap,
        "guide_parameters": float(result.parameters.get("guide", 0)),
        "steps": float(result.run.steps),
        "seconds": result.run.seconds,
    }
    return {name: value for name, value in numbers.items() if value is not None and not math.isnan(value)}


def _mean(value: Tensor | float | None) -> float | None:
    return float(value.mean()) if isinstance(value, Tensor) else value


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value

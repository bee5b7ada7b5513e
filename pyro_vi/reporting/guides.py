"""The table of several guides, and the conclusions that their numbers support."""

import math
from collections.abc import Callable, Mapping

from rich import box
from rich.table import Table

from pyro_vi.comparing import Comparison, Result, Standing, plain_ranks, spread_of, standings
from pyro_vi.elbo import ELBO, standard_error
from pyro_vi.reporting.cells import decimals, figure, listed, over_seeds
from pyro_vi.reporting.sentences import ranked, remarks, untrusted


def guide_table(comparison: Comparison) -> Table:
    """Return the table of several guides: one row per guide, the best ELBO first, and a rank in each column."""
    found, data, some = standings(comparison), comparison.data, next(iter(comparison.results.values()))
    seeds = (
        f"seed {comparison.seed}" if not comparison.repeats else f"seeds {comparison.seed} to {comparison.seeds[-1]}"
    )
    shown = Table(
        title=f"{comparison.model} with {len({*comparison.names, *_refused(comparison)})} guides under "
        f"{comparison.estimator} on {data.spec.name} ({data.spec.num_data} training data, "
        f"{len(data.heldout[0]) if data.num_heldout else 0} held out, {seeds}; "
        f"the model has {some.parameters.get('model', 0):,} parameters)",
        caption=_caption(comparison, some),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # seven columns of numbers fit a terminal of 110 characters
    )
    columns = _columns(comparison, found)
    shown.add_column("guide", overflow="fold")
    for label in columns:
        shown.add_column(label, justify="right")
    for name in _order(comparison, found):
        shown.add_row(name, *(cell(name) for cell in columns.values()))
    for name in (name for name in _refused(comparison) if name not in comparison.names):
        shown.add_row(name, "refused", *[""] * (len(columns) - 1))
    return shown


def conclude_guides(comparison: Comparison) -> list[str]:
    """Return the conclusions on several guides: which differences are beyond error, and which guides were refused."""
    found = standings(comparison)
    sentences = [comparison.note] if comparison.note else []
    same_evidence = "evidence" in found and all(d.p == 1 for d in found["evidence"].differences.values())
    doubtful = _doubtful(comparison)
    for key, what in (("elbo", "ELBO"), ("evidence", "evidence"), ("gap", "gap"), ("lpd", "log predictive density")):
        if key not in found or len(found[key].means) < 2 or (key in ("evidence", "gap") and same_evidence):
            continue  # with one evidence for all, the gaps differ as the ELBOs do
        on = "held-out" if key == "lpd" else ""
        if key in ("evidence", "gap") and doubtful:
            continue  # their stated errors are too small to tell anything apart
        sentences += ranked(found[key], what, comparison, highest=key != "gap", on=on, caveat=key == "elbo")
    if doubtful and len(found["evidence"].means) > 1 and not same_evidence:
        sentences.append(
            f"Guides are not compared by evidence and gap: the evidence under {listed(doubtful)} is not to be trusted."
        )
    compiled = [name for name, result in comparison.results.items() if result.run.compiled]
    eager = [name for name, result in comparison.results.items() if not result.run.compiled and result.run.steps]
    if compiled and eager:
        sentences.append(
            f"Seconds are those of compiled steps for {listed(compiled)}, of eager steps for {listed(eager)}."
        )
    still = [name for name, result in comparison.results.items() if not result.run.steps]
    if still:
        sentences.append(f"Nothing is fitted with {listed(still)}: neither guide nor model has parameters.")
    sentences += remarks(comparison)
    return sentences + [f"Guide {name} is not compared: {why}." for name, why in _refused(comparison).items()]


def _columns(comparison: Comparison, found: Mapping[str, Standing]) -> dict[str, Callable[[str], str]]:
    """The cells of each column, by guide."""
    results = {name: result for one in reversed(comparison.every) for name, result in one.results.items()}
    means = {name: spread_of(comparison, name, _seconds) for name in results}
    seconds = plain_ranks({name: spread.mean for name, spread in means.items() if spread is not None})
    parameters = plain_ranks({name: float(_count(result)) for name, result in results.items()})
    doubtful = ("evidence", "gap") if _doubtful(comparison) else ()

    def number(
        key: str, error: Callable[[Result], float], read: Callable[[Result], float | None]
    ) -> Callable[[str], str]:
        def cell(name: str) -> str:
            if key not in found or name not in found[key].means:
                return "-"
            spread = spread_of(comparison, name, read) if comparison.repeats else None
            value = read(results[name])
            text = over_seeds(spread) if spread else figure(math.nan if value is None else value, error(results[name]))
            return f"{text} ({'?' if key in doubtful else found[key].ranks[name]})"

        return cell

    def behind(name: str) -> str:
        if "elbo" not in found or name not in found["elbo"].means:
            return "-"
        if name == found["elbo"].best:
            return "best"
        one = found["elbo"].differences[name]
        if one.seeds is not None:
            return over_seeds(one.seeds)
        places = min(3, decimals(one.se))
        interval = "" if math.isnan(one.se) else f" [{one.low:.{places}f}, {one.high:.{places}f}]"
        return f"{one.value:.{places}f}{interval}"

    def joint(name: str) -> str:
        return over_seeds(spread_of(comparison, name, _log_joint)) if results[name].objective != ELBO else "-"

    def time(name: str) -> str:
        spread = means[name]
        text = "-" if spread is None else f"{spread.mean:.2f}"
        return f"{text} ({seconds[name]})"

    columns: dict[str, Callable[[str], str]] = {
        f"{comparison.on} ELBO": number("elbo", _elbo_error, lambda result: result.elbo_mean),
        "behind the best": behind,
        "evidence": number("evidence", lambda result: math.nan, _evidence),
        "gap": number("gap", lambda result: math.nan, lambda result: result.gap),
    }
    if any(result.lpd is not None for result in results.values()):
        columns["held-out lpd"] = number("lpd", lambda result: math.nan, _lpd)
    if any(result.objective != ELBO for result in results.values()):
        columns["MAP"] = joint
    columns["parameters"] = lambda name: f"{_count(results[name]):,} ({parameters[name]})"
    columns["seconds"] = time
    return columns


def _caption(comparison: Comparison, some: Result) -> str:
    ranks = "(rank): 1 + the number of guides that are better beyond error (adjusted p < 0.05)."
    if any(result.lpd is not None for result in comparison.results.values()):
        ranks += " lpd: log predictive density."
    if any(result.objective != ELBO for result in comparison.results.values()):
        ranks += " MAP: log p(x, z) at a point estimate."
    if _doubtful(comparison):
        ranks += " (?): no rank, as an evidence is not to be trusted."
    if comparison.repeats:
        return f"Nats per datum, mean over {len(comparison.seeds)} seeds ± one standard error over seeds. {ranks}"
    over = f"{len(some.evaluation.of_draws)} draws" if some.shared and some.evaluation.of_draws is not None else "data"
    return (
        f"Nats per datum, ± one standard error over {over}; behind the best: paired difference [95 % interval]. {ranks}"
    )


def _doubtful(comparison: Comparison) -> list[str]:
    """Guides whose evidence is not to be trusted: neither it nor the gap ranks any of them."""
    return [name for name, result in comparison.results.items() if untrusted(result.evidence)]


def _order(comparison: Comparison, found: Mapping[str, Standing]) -> list[str]:
    """Guides with an ELBO, the best first; then the others as they were given."""
    best = list(found["elbo"].means) if "elbo" in found else []
    return [*best, *(name for name in comparison.names if name not in best)]


def _refused(comparison: Comparison) -> dict[str, str]:
    """Guides that have no result under any seed, or not under all, with the first reason."""
    found: dict[str, str] = {}
    for one in comparison.every:
        for name, why in one.refused.items():
            seed = f" (seed {one.seed})" if comparison.repeats and name in comparison.names else ""
            found.setdefault(name, f"{why}{seed}")
    return found


def _elbo_error(result: Result) -> float:
    evaluation = result.evaluation
    if not result.shared:
        return evaluation.elbo_se
    return math.nan if evaluation.of_draws is None else standard_error(evaluation.of_draws)


def _evidence(result: Result) -> float | None:
    return None if result.evidence is None else float(result.evidence.attrs["value"])


def _lpd(result: Result) -> float | None:
    return None if result.lpd is None else float(result.lpd.mean())


def _log_joint(result: Result) -> float | None:
    joint = result.evaluation.log_joint
    return None if joint is None else float(joint.mean())


def _seconds(result: Result) -> float:
    return result.run.seconds


def _count(result: Result) -> int:
    return result.parameters.get("guide", 0)

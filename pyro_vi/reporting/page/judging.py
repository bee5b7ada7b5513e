"""The rules that make one verdict on a posterior from the verdicts of the sections.

`RULES` is the table of all of them, as docs/trust.md prints it, and `judged` applies it. A diagnostic may say that something is
wrong without that being a fault of the posterior: each rule says what its finding means for the use of the posterior.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pyro_vi.reporting.page.parts import Judgement, Reason, Section, Verdict

HEADLINES: Mapping[Verdict, str] = {
    "pass": "This posterior can be used.",
    "care": "This posterior can be used with care.",
    "fail": "Do not use this posterior as it is.",
    "none": "It cannot be told whether this posterior can be used.",
}

SUPPORTING = ("reliability", "calibration")
"""Sections of which at least one must say something: the others cannot show that a guide is near its posterior."""

GRAVITY: Mapping[Verdict, int] = {"pass": 0, "none": 1, "care": 2, "fail": 3}


@dataclass(frozen=True)
class Rule:
    """What a finding of a section makes of the whole.

    Attributes:
        section: the section's anchor.
        found: the verdicts of the section that it is about.
        level: the verdict on the posterior; ``"pass"`` if the finding does not bear on its use.
        means: what the finding means for the use of the posterior.
        do: what to do next.
        passing: sections; if one of them says that nothing is wrong, ``level`` is ``"care"``.
    """

    section: str
    found: tuple[Verdict, ...]
    level: Verdict
    means: str
    do: str
    passing: tuple[str, ...] = ()


RULES = (
    Rule(
        "calibration",
        ("fail",),
        "fail",
        "Its means may still be useful, but its standard deviations and intervals are wrong on data that the model itself "
        "draws: do not use it for uncertainty.",
        "Fit with a richer guide or for longer, until the ranks are uniform; until then, use means only.",
    ),
    Rule(
        "reliability",
        ("fail",),
        "fail",
        "The guide is far from the posterior of most data: neither its moments nor what importance sampling makes of them can "
        "be relied on for these data.",
        "Fit for longer, or with a richer guide (a full covariance, a flow, semi_amortized); compare a few data with MCMC.",
        passing=("calibration",),
    ),
    Rule(
        "calibration",
        ("care",),
        "care",
        "Intervals and standard deviations are somewhat off; read them as approximate.",
        "See the coverage table for how far they are off; a richer guide repairs it.",
    ),
    Rule(
        "reliability",
        ("care",),
        "care",
        "The posterior can be used for the other data; for those with a k-hat above 0.7 it cannot be relied on.",
        "Treat the data that the table lists apart: by MCMC, or by a guide optimised for each of them.",
    ),
    Rule(
        "moments",
        ("care", "fail"),
        "care",
        "The guide's own means or standard deviations differ from those corrected by importance sampling.",
        "Use the corrected moments in the place of the guide's own.",
    ),
    Rule(
        "linear_response",
        ("care", "fail"),
        "care",
        "The guide's standard deviations of the global latents are too small, as those of a mean-field guide are.",
        "Report the linear-response standard deviations, or fit with a full covariance.",
    ),
    Rule(
        "gaps",
        ("care", "fail"),
        "care",
        "The ELBO lies below the evidence by the gap: differences of ELBOs that are smaller say nothing about models.",
        "Look which part is large: a better encoder or more steps close the amortization gap, a richer guide the other.",
    ),
    Rule(
        "evidence",
        ("care", "fail"),
        "care",
        "The number for the evidence is not to be relied on; the posterior is not judged by it.",
        "Use more draws, or annealed importance sampling: pyro-vi evidence --run FOLDER --method ais.",
    ),
    Rule(
        "predictive",
        ("care", "fail"),
        "care",
        "The model does not fit the data in every respect: its posterior may be right for the model, and wrong about the data.",
        "Change the model (likelihood, latents) where the checks show a misfit; a better guide will not help.",
    ),
    Rule(
        "training",
        ("care", "fail"),
        "care",
        "The fit had not converged, so that more steps may change the posterior.",
        "Continue the fit: pyro_vi.open(FOLDER).more(epochs=...), then make this page again.",
    ),
    Rule(
        "collapse",
        ("fail",),
        "care",
        "The guide says nothing about some latent dimensions, but the model's posterior does: do not use its draws of these.",
        "Fit the guide again with the model fixed, or give it a larger encoder; the section names the dimensions.",
    ),
    Rule(
        "collapse",
        ("care",),
        "pass",
        "Some latent dimensions carry little or nothing. This is no fault of the posterior by itself.",
        "If you want to use all of them: more data, fewer dimensions, a warm-up of the KL, or free bits.",
    ),
)
"""All rules, the gravest first. A verdict that no rule names has no effect."""


def judged(sections: Iterable[Section]) -> Judgement:
    """Return the verdict on a posterior: the gravest level that a rule gives.

    The verdict is ``"pass"`` only if k-hat or the calibration says so, as nothing else shows that the guide is near the
    posterior.

    Args:
        sections: the sections of the page.

    Example:
        >>> fine = Section("reliability", "k-hat", "pass", ("All k-hat are below 0.7.",))
        >>> narrow = Section("calibration", "Calibration", "fail", ("Intervals of 90 % hold 60 %.",))
        >>> judged([fine]).headline, judged([fine, narrow]).level
        ('This posterior can be used.', 'fail')
    """
    found = {section.anchor: section for section in sections}
    reasons: list[Reason] = []
    notes: list[Reason] = []
    for rule in RULES:
        section = found.get(rule.section)
        if section is None or section.verdict not in rule.found:
            continue
        held = any(name in found and found[name].verdict == "pass" for name in rule.passing)
        level: Verdict = "care" if held and rule.level == "fail" else rule.level
        reason = Reason(section.anchor, section.title, level, _first(section), rule.means, rule.do)
        (notes if level == "pass" else reasons).append(reason)
    reasons.sort(key=lambda reason: -GRAVITY[reason.level])
    supported = [name for name in SUPPORTING if name in found and found[name].verdict in ("pass", "care", "fail")]
    level = max((reason.level for reason in reasons), key=GRAVITY.__getitem__, default="pass")
    if not supported and level != "fail":
        level = "none"
        reasons.insert(0, _nothing(found))
    if level == "pass":
        for name in SUPPORTING:
            if name in found and found[name].verdict == "pass":
                section = found[name]
                reasons.append(Reason(name, section.title, "pass", _first(section), "", ""))
    do = tuple(dict.fromkeys(reason.do for reason in reasons if reason.do))
    return Judgement(level, HEADLINES[level], tuple(reasons), tuple(notes), do)


def _first(section: Section) -> str:
    return section.sentences[0] if section.sentences else section.absent


def _nothing(found: Mapping[str, Section]) -> Reason:
    absent = [found[name].absent for name in SUPPORTING if name in found and found[name].absent]
    name = next((name for name in SUPPORTING if name in found), "")
    title = found[name].title if name else ""
    why = absent[0] if absent else "They were not computed."
    return Reason(
        name,
        title,
        "none",
        f"There is neither a k-hat nor a calibration of this guide: {why[:1].lower() + why[1:]}",
        "No other number shows that a guide is near its posterior.",
        "",
    )

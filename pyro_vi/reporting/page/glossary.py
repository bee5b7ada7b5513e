"""What each number of the page means, in a sentence or two, and the document that says more.

`TERMS` is the glossary. The names are those of the datasets' variables, so that a table finds the entries of its columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

TRUST, NUMBERS, TRAINING = "docs/trust.md", "docs/numbers.md", "docs/training.md"


@dataclass(frozen=True)
class Term:
    """An entry of the glossary: the name of a number as people say it, its meaning, and where more is said."""

    title: str
    meaning: str
    document: str = TRUST


TERMS: Mapping[str, Term] = {
    "verdict": Term(
        "verdict",
        "What all sections together say about using the posterior. Each section has a verdict of its own; a "
        "table of rules says what each of them means for the whole.",
    ),
    "row": Term(
        "row",
        "The number of a row, counted from 0 in the data as they were handed over; if that is not known, in "
        "the held-out rows.",
    ),
    "error": Term(
        "± (standard error)",
        "One standard error. Of a mean over data, it says how far the mean over other such data may be; of a "
        "number from draws, how far other draws would move it.",
        NUMBERS,
    ),
    "parameters": Term("parameters", "How many numbers the fit sets, in the guide and in the model.", NUMBERS),
    "elbo": Term(
        "ELBO",
        "The mean of log p(x, z) − log q(z | x) over draws of the guide: a lower bound on log p(x), in nats "
        "per datum. Higher is better.",
        NUMBERS,
    ),
    "heldout_elbo": Term("held-out ELBO", "The ELBO of data that the fit has not seen, in nats per datum.", NUMBERS),
    "heldout_lpd": Term(
        "held-out log predictive density",
        "log E_q(w) p(x | w) of data that the fit has not seen, for latents w that all data share, in nats per datum.",
        NUMBERS,
    ),
    "log_joint": Term(
        "log p(x, z)",
        "What a fit maximises whose guide is a point estimate; no bound on log p(x).",
        NUMBERS,
    ),
    "reconstruction": Term("reconstruction", "The first part of the ELBO: the mean of log p(x | z).", NUMBERS),
    "kl": Term(
        "KL",
        "The second part: KL(q(z | x) ‖ p(z)), what a datum costs beyond the prior. ELBO = reconstruction − KL.",
        NUMBERS,
    ),
    "loss": Term(
        "loss",
        "What the optimizer minimises, averaged since the record before; the KL may be weighted in it.",
        TRAINING,
    ),
    "lr": Term("learning rate", "The size of a step, as the schedule sets it.", TRAINING),
    "grad_norm": Term(
        "gradient norm",
        "The length of the gradient of all parameters; it falls as a fit converges, down to its noise.",
        TRAINING,
    ),
    "converged": Term(
        "converged",
        "Whether the losses at the end of the fit still fell by more than their noise. A fit that had not "
        "converged may change with more steps.",
        TRAINING,
    ),
    "log_evidence": Term(
        "evidence, log p(x)",
        "The log of the probability of the data under the model, with the latents integrated out. It compares"
        " models; the ELBO is below it.",
    ),
    "mc_se": Term(
        "Monte Carlo error",
        "How far other draws of the guide would move an estimate: one standard error.",
    ),
    "gap": Term(
        "gap",
        "log p(x) − ELBO: the KL divergence from the guide to the posterior. It has two parts: amortization "
        "and approximation.",
    ),
    "amortization": Term(
        "amortization gap",
        "What is lost because one network serves all data: the best of the guide's family for a datum alone, "
        "minus the guide's own.",
    ),
    "approximation": Term(
        "approximation gap",
        "What is lost because the family does not hold the posterior: log p(x) minus the best ELBO of the family.",
    ),
    "khat": Term(
        "k-hat",
        "The shape of the tail of the importance weights p(x, z) / q(z | x) of a datum. Below 0.5 the guide "
        "is close to the posterior; above 0.7 neither its moments nor those corrected by the weights can be "
        "relied on. It cannot see a mode that the guide misses.",
    ),
    "share": Term(
        "share above 0.7",
        "The part of the data whose k-hat is above 0.7; for these the guide is not to be relied on.",
    ),
    "ess": Term(
        "effective draws",
        "How many of the draws carry the weight of an importance-sampling estimate. Near 1, it is too low.",
    ),
    "coverage": Term(
        "coverage",
        "How often a central interval of the guide holds the true latent, over data that the model draws. An "
        "interval of 90 % should hold it 90 % of the time; less means that the guide is too narrow.",
    ),
    "ranks": Term(
        "ranks",
        "The place of the true value among draws of the guide, over data that the model draws. If the guide "
        "is the posterior, they are uniform. Ranks of z alone cannot tell a guide that is the prior: ranks of"
        " log p(x | z) can.",
    ),
    "p": Term(
        "p-value",
        "How likely ranks as uneven as these are for the right posterior; adjusted for the number of tests "
        "where it says so. Small means that the guide is not the posterior.",
    ),
    "active": Term(
        "active units",
        "Latent dimensions whose posterior mean varies over the data by more than 0.01 (Burda et al. 2016).",
    ),
    "mutual_information": Term(
        "mutual information",
        "I(x; z): how much a latent says about the datum, in nats; the mean KL minus that of the aggregate.",
    ),
    "moments": Term(
        "corrected moments",
        "Means and standard deviations of the posterior from the guide's draws, weighted by p(x, z) / q(z | "
        "x) with smoothed weights (PSIS).",
    ),
    "linear_response": Term(
        "linear-response standard deviation",
        "The standard deviation of a latent from how the guide's mean moves if the log-density is tilted "
        "(Giordano et al. 2018). It repairs the too small one of a mean-field guide.",
    ),
    "loo": Term(
        "LOO",
        "The expected log predictive density of a new datum, from the weights of leaving each one out (PSIS-LOO).",
    ),
    "pit": Term(
        "PIT",
        "The place of an observed value among values that the fitted model predicts. If the model fits, they "
        "are uniform.",
    ),
}
"""The glossary, by name."""

ALIASES: Mapping[str, str] = {
    "k": "khat",
    "elbo_se": "error",
    "p_value": "p",
    "p_adjusted": "p",
    "family_elbo": "approximation",
    "mi": "mutual_information",
    "rank": "ranks",
    "information_lower": "mutual_information",
    "information_upper": "mutual_information",
    "best_elbo": "approximation",
    "level": "coverage",
    "nominal": "coverage",
    "elpd": "loo",
    "elpd_loo": "loo",
}


def term_of(name: str) -> str:
    """Return the name of the entry for a variable, or an empty string if it has none.

    Example:
        >>> term_of("khat"), term_of("p_value"), term_of("mean_gap"), term_of("temperature")
        ('khat', 'p', 'gap', '')
    """
    lowered = name.lower()
    if lowered in TERMS:
        return lowered
    if lowered in ALIASES:
        return ALIASES[lowered]
    for prefix in ("mean_", "total_", "shared_", "psis_", "site_"):
        if lowered.startswith(prefix) and term_of(lowered.removeprefix(prefix)):
            return term_of(lowered.removeprefix(prefix))
    begun = [key for key in TERMS if len(key) > 1 and lowered.startswith(f"{key}_")]
    return max(begun, key=len) if begun else ""


def title_of(name: str) -> str:
    """Return the heading for a variable: its name in words, or its entry's title if the entry has just that name.

    Example:
        >>> title_of("khat"), title_of("posterior_mean")
        ('k-hat', 'posterior mean')
    """
    return TERMS[name].title if name in TERMS else name.replace("_", " ").strip()

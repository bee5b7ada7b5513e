"""Evaluation of fits: on which data they are compared, and the numbers of each one there."""

from collections import Counter

from pyro_vi.comparing.asked import Asked
from pyro_vi.comparing.results import ROWS, On, Result
from pyro_vi.data import Batch, Data
from pyro_vi.diagnostics import evidence_of_pair
from pyro_vi.elbo import KL, Evaluation, Facts, length_of, log_predictive, measure
from pyro_vi.errors import InputError
from pyro_vi.fitting import Run
from pyro_vi.programs import Pair


def evaluated(data: Data, facts: Facts, example: Batch) -> tuple[On, Batch]:
    """Return the data on which fits are compared, and their name.

    They are the held-out data; training data if there are none, or if latents are shared by all data, so that ELBO and
    evidence are those of the data that were fitted.
    """
    every = undivided(facts)
    if data.num_heldout and not every:
        return "held-out", data.heldout
    rows = data.spec.num_data
    return "training", data.example(rows if every or length_of(example) >= rows else min(ROWS, rows))


def undivided(facts: Facts) -> bool:
    """True if the ELBO is one number for the data set, and no mean over data: all share latents, or there is no data plate."""
    return bool(facts.shared) or facts.plate is None


def measured(
    pair: Pair, args: Batch, facts: Facts, data: Data, *, draws: int, seed: int, kl: KL = "analytic"
) -> Evaluation:
    """Return the ELBO and its parts of each row of ``args``, which are some of ``data``; ``kl`` as in `measure`."""
    size, rows = pair.rows(args)[1], data.spec.num_data
    num_data = size if length_of(args) == rows else max(size, rows)
    return measure(pair, args, facts, num_data=num_data, draws=draws, kl=kl, seed=seed, rows=ROWS)


def result_of(run: Run, cls: str, target: str, example: Batch, facts: Facts, asked: Asked) -> Result:
    """Evaluate a fit.

    Args:
        run: the fit.
        cls: name of the class of what is compared.
        target: the bound of the estimator.
        example: a batch of the fit.
        facts: the facts about the pair.
        asked: the numbers of draws, and their seed.
    """
    data, pair, draws, seed = run.data, run.pair, asked.draws, asked.options.seed
    args = evaluated(data, facts, example)[1]  # on the device of the fit
    evaluation = measured(pair, args, facts, data, draws=draws, seed=seed)
    lpd = log_predictive(pair, data.heldout, facts, draws=draws, seed=seed) if data.num_heldout else None
    note, found = facts.remark, None
    if not facts.points:
        try:
            found = evidence_of_pair(pair, args, particles=asked.particles, seed=seed)
        except InputError as error:
            note = str(error)
    counts: Counter[str] = Counter({"guide": 0, "model": 0})
    for owner, parameter in pair.owned(args).values():
        counts[owner] += parameter.numel()
    return Result(
        run,
        cls,
        target,
        run.kl_source,
        evaluation,
        found,
        note,
        lpd,
        facts.objective,
        parameters=dict(counts),
        shared=undivided(facts),
    )

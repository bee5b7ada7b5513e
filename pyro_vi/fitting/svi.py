"""Fitting of one pair by SVI: `fit` assembles and runs a fit."""

import copy
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from pyro.infer import ELBO

from pyro_vi.checking import refuse
from pyro_vi.compiling import Compile
from pyro_vi.errors import UsageError
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting.averaging import average_of
from pyro_vi.fitting.calls import given
from pyro_vi.fitting.folder import RunFolder, checksum
from pyro_vi.fitting.identity import names_of, plain_options
from pyro_vi.fitting.loop import Loop
from pyro_vi.fitting.optimizers import recipe_of
from pyro_vi.fitting.plan import Plan, plan
from pyro_vi.fitting.planned import findings_of, refuse_options, total_steps
from pyro_vi.fitting.reading import load_parameters
from pyro_vi.fitting.runs import Run, parent_of
from pyro_vi.fitting.settings import Options, Settings, fractions
from pyro_vi.fitting.starts import best_of_starts
from pyro_vi.programs import Source, isolated
from pyro_vi.support import Real, Whole, fitting_threads, versions
from pyro_vi.support.torch_internals import without_compiler


def fit(
    model: Source,
    guide: Source,
    data: Any,
    *,
    elbo: str | ELBO = "mean_field",
    steps: Whole | None = Options.steps,
    epochs: Whole | None = Options.epochs,
    batch_size: Whole | None = Options.batch_size,
    accumulate: Whole = Options.accumulate,
    shuffle: bool | None = Options.shuffle,
    drop_last: bool = Options.drop_last,
    heldout: Real | None = Options.heldout,
    optimizer: Any = Options.optimizer,
    average: str | None = Options.average,
    lr: Real | Mapping[str, Real] | Callable[[str], Real] | None = Options.lr,
    schedule: Any = Options.schedule,
    clip_norm: Real | None = Options.clip_norm,
    nonfinite: str = Options.nonfinite,
    beta: Real | Callable[[float], Real] = Options.beta,
    warmup: Whole = Options.warmup,
    cycles: Whole | None = Options.cycles,
    free_bits: Real | None = Options.free_bits,
    stop: str | None = Options.stop,
    patience: Whole = Options.patience,
    records: Whole = Options.records,
    seed: Whole = Options.seed,
    starts: Whole = Options.starts,
    out: str | Path | None = Options.out,
    resume: bool = Options.resume,
    compile: Compile = Options.compile,
    device: str | torch.device | None = Options.device,
    progress: bool = Options.progress,
    check: bool = Options.check,
    allow: Collection[str] = Options.allow,
    callbacks: Any = Options.callbacks,
    snapshots: Any = (),
    parent: str | Path | None = None,
) -> Run:
    """Fit a pair by SVI: ascend an estimate of (1/N) [E_q log p(x | z) − β KL(q(z | x) ‖ p(z))] over minibatches.

    Args:
        model: a name (``"vae(latent_dim=4)"``, ``"file.py:Name"``), class, module or function: see `pyro_vi.programs.lookup`.
        guide: the same.
        data: name of a data set, a file, an array or tensor, a tuple of positional arguments, a dictionary of keyword
            arguments, None for programs that hold their data themselves, or a `Data`: see `pyro_vi.load`.
        elbo: estimator, by name or a `pyro.infer.ELBO`.
        steps: number of optimisation steps, instead of ``epochs``.
        epochs: number of passes over the data; by default 100, or 2000 if each step sees all data.
        batch_size: number of data per step; the last batch of an epoch may have fewer. By default 128 if all latent sites
            belong to data; otherwise each step sees all data, in the given order: see `pyro_vi.fitting.plan`.
        accumulate: number of consecutive batches whose gradients a step averages, with the memory of one batch. Each datum
            counts equally; the last step of an epoch averages the batches that are left.
        shuffle: whether minibatches are drawn in a new order in each epoch; by default they are.
        drop_last: leave out a last batch of an epoch with fewer rows.
        heldout: fraction of the rows to hold out; by default 1/10 if all latent sites belong to data, else nothing.
        optimizer: by default Adam with learning rate ``lr``. A name with options (``"sgd(momentum=0.9)"``, ``"clipped_adam"``),
            a class of ``torch.optim``, or a function that makes an optimizer of the parameters: it steps on the loss per
            datum. Or an optimizer or scheduler of ``pyro.optim``: it steps on the sum over all data, as `pyro.infer.SVI` does.
        average: ``"polynomial"`` averages the unconstrained parameters over the steps, and the average is the result of the
            fit; the last iterate is `Run.last`. See `pyro_vi.fitting.averaging`. ``"polynomial(eta=2)"`` forgets the first
            steps more slowly than the default of 8, and ``"none"`` averages nothing. By default only ``"dog"`` and ``"dowg"``
            average.
        lr: learning rate of an optimizer that is given by name or class; a dictionary gives different rates to ``"model"`` and
            ``"guide"``, or to parameters by name or prefix, and a function gets the name of each parameter.
        schedule: learning rate over the steps: ``"constant"``, or a ``"linear"`` or ``"cosine"`` decay to 0, times the rate of
            the optimizer. ``"plateau(factor=0.3, patience=10, threshold=0.01)"`` multiplies the rate by ``factor`` each time
            that ``patience`` records have not raised the ELBO by more than ``threshold`` nats: see `pyro_vi.fitting.plateau`.
            By default ``"cosine"``, and ``"constant"`` for an optimizer that is handed over as a class, a function or an
            object. Or a function that makes a torch scheduler of the optimizer, such as
            ``partial(torch.optim.lr_scheduler.StepLR, step_size=10)``: it is stepped once per epoch, as Pyro's are, and
            `ReduceLROnPlateau` gets the mean loss of the epoch.
        clip_norm: limit on the joint norm of all gradients, in nats per datum; by default none.
        nonfinite: what to do about a step whose loss or gradient is not finite, which is never taken. ``"stop"`` ends the fit
            with the cause, and keeps the state before the step. ``"skip"`` leaves the step out: at most 10 in a row, and 20
            or 5 % of the steps. ``"restore"`` leaves it out, goes back to the parameters and the optimizer's state of the last
            record, and halves the learning rate: at most 5 times, also after an update that overflows.
        beta: weight of the KL (β-VAE: Higgins et al. 2017), or a function that gives it for a fraction of steps that are done,
            from 0 to 1. Records always include the unannealed ELBO.
        warmup: steps over which the weight of the KL rises from 0 to ``beta``.
        cycles: number of equal parts of the fit; in the first half of each, the weight of the KL rises from 0 to ``beta``
            (arXiv:1903.10145).
        free_bits: λ in nats per datum: the KL of each local latent dimension counts as max(λ, KL), so that a dimension gains
            nothing by a KL below λ (arXiv:1606.04934): see `pyro_vi.estimators.free_bits`. The weight of the KL multiplies
            this.
        stop: ``"converged"`` ends the fit before its last step if the loss has converged: see `pyro_vi.fitting.convergence`.
            ``"heldout"`` ends it if ``patience`` records have brought no higher held-out ELBO (or log predictive density,
            where latents are shared); the result has the parameters of the best record, see ``best`` of the run. All records
            then use the same draws. With either, the schedule is ``"constant"`` by default.
        patience: number of records without a better one after which ``stop="heldout"`` ends the fit; see ``records``.
            Records during the warm-up do not count.
        records: number of records, evenly spread over the fit; the first and the last step have one in any case. A record
            takes as long as a few steps, because it evaluates up to 1000 training rows and as many held-out rows.
        seed: seed of the initial parameters, the order of the data and the draws; equal seeds give equal bits.
        starts: number of fits from other initial parameters, those of ``seed``, ``seed + 1`` and so on; data and draws are the
            same. The best by its held-out ELBO is the result (by its training ELBO, if nothing is held out), and `Run.starts`
            has the numbers of all. See `pyro_vi.fitting.starts`.
        out: run folder; without it nothing is written.
        resume: continue the run in ``out``, with the same bits as a run without the interruption.
        compile: how steps after the first one are taken. ``"captured"`` replays a graph of loss and gradients, without a
            compiler; True compiles the whole step (loss, gradients, clipping, schedule, optimizer) into one piece of machine
            code; either raises an error if it cannot. False leaves all steps eager. ``"auto"`` captures and compiles where that
            is possible and saves more time than it takes, with the compiler in the background. All use the same draws, and
            differ by rounding only; see ``choice`` of the run.
        device: device of parameters and data; by default they stay where they are.
        progress: show rate and time left on stderr.
        check: check the pair for silent errors first, and refuse to start if there is one.
        allow: what may differ from the run that ``resume`` continues, by the names that the error gives, such as
            ``("versions", "lr")``; by default nothing.
        callbacks: functions that are called with each record, a dictionary, as soon as it is made.
        snapshots: fractions of the run, from 0 to 1, at which the parameters are kept, such as ``(0, 0.5, 1)``.
        parent: folder of a run of this pair, from whose parameters the fit starts.

    Raises:
        UsageError: an unknown name or option, or a setting out of range.
        InputError: data or a pair that cannot be fitted.
        FitError: a loss, a gradient or a parameter that is not finite; the message names the step, the site, the datum and
            the values there.

    Example:
        >>> run = fit("vae", "diag_normal", "digits", steps=20, progress=False)
        >>> run.history[-1]["elbo"] > run.history[0]["elbo"]
        True
    """
    options = Options(
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        accumulate=accumulate,
        shuffle=shuffle,
        drop_last=drop_last,
        heldout=heldout,
        optimizer=optimizer,
        average=average,
        lr=lr,
        schedule=schedule,
        clip_norm=clip_norm,
        nonfinite=nonfinite,
        beta=beta,
        warmup=warmup,
        cycles=cycles,
        free_bits=free_bits,
        stop=stop,
        patience=patience,
        records=records,
        seed=seed,
        starts=starts,
        out=out,
        resume=resume,
        compile=compile,
        device=device,
        progress=progress,
        check=check,
        allow=allow,
        callbacks=callbacks,
    )
    recipe_of(optimizer, lr, schedule)  # refuses before anything is read
    (name, estimator), *rest = named(elbo).items()
    if rest:
        raise UsageError("fit takes one estimator; `compare` takes several")
    arguments = {"model": model, "guide": guide, "data": data, "elbo": elbo, "snapshots": fractions(snapshots)}
    planned = plan_of(model, guide, data, options)
    names = names_of(model, guide, data, planned.data)
    if parent is not None:
        path = Path(parent).expanduser().absolute()
        load_parameters(planned.pair, path)
        arguments["parent"], names["parent"] = path, parent_of(path)
    names["given"] = given("fit", arguments, options)
    kept = arguments["snapshots"]
    if options.starts == 1:
        return fit_pair(planned, name, estimator, names, options, kept)
    if parent is not None:
        raise UsageError("a fit from the parameters of another run has one start; leave starts out")

    def one(found: Plan, more: Mapping[str, Any], own: Options, title: str) -> Run:
        return fit_pair(found, name, copy.deepcopy(estimator), {**names, **more}, own, kept, title)

    return best_of_starts(planned, lambda start: plan_of(model, guide, data, options, start), one, estimator, options)


def plan_of(model: Source, guide: Source, data: Any, options: Options, initial: int | None = None) -> Plan:
    """Return the plan of a fit under its options; ``initial`` is another seed for its initial parameters."""
    names = ("batch_size", "heldout", "shuffle", "drop_last", "seed")
    return plan(model, guide, data, **{name: getattr(options, name) for name in names}, initial=initial)


@without_compiler()
def fit_pair(
    planned: Plan,
    name: str,
    estimator: ELBO,
    names: Mapping[str, Any],
    options: Options,
    snapshots: Any = (),
    title: str = "",
) -> Run:
    """`fit` for a pair that is bound already; the fit may change the pair.

    Args:
        planned: the pair, its data and the size of a batch.
        name: name of the estimator.
        estimator: the estimator; it may store what it learns about the pair.
        names: see `names_of`; with ``given``, if the run can be continued from its folder alone.
        options: the options of `fit`.
        snapshots: fractions of the run at which parameters are kept.
        title: title of the progress bar; by default the name of the estimator.
    """
    refuse_options(planned, estimator, options)
    options_of_elbo = plain_options(estimator)  # before it learns about the pair
    adapted, pair, data, batch_size = estimator_of(estimator), planned.pair, planned.data, planned.batch_size
    schedule = "constant" if options.stop and options.schedule is None else options.schedule
    recipe = recipe_of(options.optimizer, options.lr, schedule)
    total = total_steps(planned, options)
    kept = tuple(sorted({round(fraction * total) for fraction in fractions(snapshots)}))
    settings = Settings(
        total,
        batch_size,
        recipe.schedule,
        options.clip_norm,
        options.beta,
        options.warmup,
        options.seed,
        kept,
        options.stop,
        options.nonfinite,
        options.patience if options.stop == "heldout" else None,
        cycles=options.cycles,
        free_bits=options.free_bits,
        accumulate=options.accumulate if options.accumulate > 1 else None,
        average=average_of(options.average, recipe.name),
        records=options.records if options.records != Options.records else None,
    )
    config = {
        **names,
        "data_checksum": checksum(data.columns),
        "elbo": name,
        "elbo_options": options_of_elbo,
        "optimizer": recipe.name,
        "lr": recipe.rate,
        **settings.config(),
        "heldout": options.heldout,
        "shuffle": data.shuffle,
        "drop_last": data.drop_last,
        "compile": options.compile,
        "device": None if options.device is None else str(options.device),
        "versions": versions(),
    }
    example = data.example(batch_size)
    with fitting_threads(pair, example):
        if options.check:
            refuse(findings_of(planned, estimator, options))
        with isolated(validation=False):
            sources = adapted.sources_of_pair(pair, example)
        pair, data = pair.to(options.device), data.to(device=options.device)
        loop = Loop(pair, estimator, data, settings, recipe, options.compile, options.callbacks)
    # The folder is made last, so that a pair that cannot be fitted leaves none.
    config.update(loop.steps.stepper.description)
    folder = None
    if options.out is not None:
        folder = RunFolder(options.out, config, resume=options.resume, allow=options.allow)
    try:
        loop.run(title or name, folder, resume=options.resume, progress=options.progress, note=planned.note)
    finally:
        if folder is not None:
            folder.close()
    verdict = loop.watch.verdict()
    return Run(
        pair=pair,
        elbo=name,
        data=data,
        history=loop.history,
        snapshots=loop.snapshots,
        steps=loop.position.step,
        seconds=loop.position.seconds,
        kl_source={site: str(source) for site, source in sources.items()},
        choice=loop.choice,
        out=folder.path if folder else None,
        config=folder.config if folder else config,
        state=None if folder else loop.state,
        converged=verdict.converged,
        evidence=verdict.evidence,
        skipped=loop.steps.guard.skipped,
        restored=loop.steps.guard.restored,
        best=loop.best.best,
        chosen=loop.chosen,
        last_state=loop.last,
    )

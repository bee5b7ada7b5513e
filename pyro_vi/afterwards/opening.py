"""Open a run: from its folder alone, in any process, or from a `Run` in memory."""

import contextlib
import dataclasses
import warnings
from pathlib import Path
from typing import Any

from pyro_vi.afterwards.finding import plan_again, sources_of
from pyro_vi.afterwards.opened import OpenedRun
from pyro_vi.errors import InputError
from pyro_vi.estimators.table import named
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.fitting import (
    CHECKPOINT,
    Run,
    best_in,
    config_of,
    fits_in,
    holds_run,
    newest,
    parameters_of,
    put_into,
    read_snapshot,
    read_starts,
    wrong_state,
)
from pyro_vi.programs import Pair, Source, isolated


def open(
    folder: str | Path | Run,
    *,
    model: Source | None = None,
    guide: Source | None = None,
    data: Any = None,
    trust: bool = False,
) -> OpenedRun:
    """Open a fit, for posteriors, embeddings, reconstructions, samples and evidence of its data or of new rows.

    The configuration in the folder names the programs, the data and the seed, and tells which rows were held out. Paths of
    files are relative to the folder in which the run was started, else to the present one.

    Args:
        folder: the folder ``out`` of `pyro_vi.fit`, the folder of one fit of a comparison, or a `Run`.
        model: the model, if it was a Python object or if its file has moved.
        guide: the guide, in the same cases.
        data: the data of the fit, in the same cases; pass new data to the methods of the result.
        trust: run the code of programs that the folder names, though the run was not made by this user.

    Raises:
        UsageError: the run of another user names programs that are code: a file, or a module of a package.
        InputError: the folder holds no run, the run was made from Python objects that are not given, a file is not found, or
            the data differ from those of the fit.

    Example:
        >>> import tempfile
        >>> from pyro_vi import fit
        >>> with tempfile.TemporaryDirectory() as out:
        ...     run = fit("vae(latent_dim=2)", "diag_normal", "digits", steps=5, progress=False, out=out)
        ...     open(out).embed().shape
        (299, 2)
    """
    if isinstance(folder, Run):
        return OpenedRun(folder)
    path = Path(folder).expanduser()
    if not holds_run(path):
        fits = list(fits_in(path))
        if fits:
            listed = ", ".join(str(fit.relative_to(path)) for fit in fits[:6])
            raise InputError(f"'{folder}' holds several fits; open one of them: {listed}")
        raise InputError(f"'{folder}' holds no run; give the folder of a fit")
    config = config_of(path)
    state, name, wrong = newest(path, config.get("run"))
    if state is None:
        raise InputError(f"'{path}' holds no {CHECKPOINT} yet; continue the fit with: pyro-vi resume {path}")
    if wrong_state(state):
        raise InputError(f"'{path / name}' has no state of a fit; fit again, or open another run")
    if wrong:
        warnings.warn(f"'{path / CHECKPOINT}' is not used: {wrong}; the run is opened at {name}", stacklevel=2)
    sources = sources_of(path, config, {"model": model, "guide": guide, "data": data}, trust)
    planned = plan_again(path, config, sources, state["pair"])
    parameters, chosen = parameters_of(path, state)
    put_into(planned.pair, {"pair": parameters}, f"the run in '{path}'")
    size = min(config.get("batch_size", planned.batch_size), planned.data.spec.num_data)
    if "shuffle" in config:
        planned = dataclasses.replace(planned, data=dataclasses.replace(planned.data, shuffle=bool(config["shuffle"])))
    planned = dataclasses.replace(planned, batch_size=size)
    position, last = state["position"], state["history"][-1] if state["history"] else {}
    kept = sorted({min(step, position["step"]) for step in config.get("kept", ())})  # a fit may have stopped earlier
    snapshots = {step: read_snapshot(path, config["run"], step) for step in kept}
    run = Run(
        pair=planned.pair,
        elbo=config["elbo"],
        data=planned.data,
        history=[dict(record) for record in state["history"]],
        snapshots={step: found for step, found in snapshots.items() if found is not None},
        steps=position["step"],
        seconds=position["seconds"],
        kl_source=_sources(planned.pair, config["elbo"], planned.data.example(size)),
        out=path,
        config=config,
        converged=last.get("converged"),
        starts=read_starts(path),
        last_state=state["pair"] if "result" in state or chosen is not None else None,
        evidence=(state.get("convergence") or {}).get("evidence", ""),
        best=best_in(state["best"]) if state.get("best") else None,
        chosen=chosen,
    )
    return OpenedRun(run, planned)


def _sources(pair: Pair, elbo: str, example: Any) -> dict[str, str]:
    """How the KL of each site is computed; empty if the estimator was given as a Python object."""
    with contextlib.suppress(InputError):
        (estimator,) = named(elbo).values()
        with isolated(validation=False):
            found = estimator_of(estimator).sources_of_pair(pair, example)
        return {site: str(source) for site, source in found.items()}
    return {}

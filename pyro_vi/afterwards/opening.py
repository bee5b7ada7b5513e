"""The opening of a run: from its folder alone, in any process, or from a `Run` in hand."""

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
from pyro_vi.fitting import CHECKPOINT, CONFIG, Run, config_of, holds_run, newest, put_into, read_snapshot
from pyro_vi.programs import Pair, Source, isolated


def open(
    folder: str | Path | Run,
    *,
    model: Source | None = None,
    guide: Source | None = None,
    data: Any = None,
) -> OpenedRun:
    """Open a fit, to ask it for posteriors, embeddings, reconstructions, samples and evidence, of its data or of new rows.

    A folder tells everything: its configuration names the programs, the data, the seed and what was held out. Files are found
    from the folder that the run was started from, else from the present one.

    Args:
        folder: the folder that was ``out`` of `pyro_vi.fit`, one of the fits of a comparison, or a `Run`.
        model: the model, if it was a Python object or if its file has moved.
        guide: the same of the guide.
        data: the same of the data that were fitted; new data go to the methods of the result.

    Raises:
        InputError: the folder holds no run, it was made from Python objects that are not given, a file is not found, or the
            data are others than those of the fit.

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
        fits = sorted(found.parent for pattern in (f"*/{CONFIG}", f"seed*/*/{CONFIG}") for found in path.glob(pattern))
        if fits:
            listed = ", ".join(str(fit.relative_to(path)) for fit in fits[:6])
            raise InputError(f"'{folder}' holds several fits; open one of them: {listed}")
        raise InputError(f"'{folder}' holds no run; give the folder of a fit")
    config = config_of(path)
    state, name, wrong = newest(path, config.get("run"))
    if state is None:
        raise InputError(f"'{path}' holds no {CHECKPOINT} yet; continue the fit with: pyro-vi resume {path}")
    if wrong:
        warnings.warn(f"'{path / CHECKPOINT}' is not used: {wrong}; the run is opened at {name}", stacklevel=2)
    sources = sources_of(path, config, {"model": model, "guide": guide, "data": data})
    planned = plan_again(path, config, sources, state["pair"])
    put_into(planned.pair, state, f"the run in '{path}'")
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
        evidence=(state.get("convergence") or {}).get("evidence", ""),
    )
    return OpenedRun(run, planned)


def _sources(pair: Pair, elbo: str, example: Any) -> dict[str, str]:
    """How each KL is computed; empty for an estimator that is known by its object only."""
    with contextlib.suppress(InputError):
        (estimator,) = named(elbo).values()
        with isolated(validation=False):
            found = estimator_of(estimator).sources_of_pair(pair, example)
        return {site: str(source) for site, source in found.items()}
    return {}

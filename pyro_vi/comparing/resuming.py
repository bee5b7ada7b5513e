"""The continuation of a fit or a comparison from its folder alone."""

import contextlib
from collections.abc import Collection
from pathlib import Path

from pyro_vi.comparing.comparer import compare
from pyro_vi.comparing.results import Comparison
from pyro_vi.fitting import Run, fit, given_of


def resume(folder: str | Path, *, allow: Collection[str] = (), progress: bool = True) -> Run | Comparison:
    """Continue the fit or the comparison in a folder to its end, with the same bits as if it had not been interrupted.

    Paths of programs and data begin in the folder that the run was started from, if that still exists.

    Args:
        folder: the folder that was ``out`` of `pyro_vi.fit` or `pyro_vi.compare`.
        allow: what may have changed since the run was made; see `pyro_vi.fit`.
        progress: show rate and time left on stderr.

    Raises:
        InputError: the folder holds no run, its files are damaged, or it was made from Python objects.
        UsageError: programs, data, settings or versions have changed; or another process writes into the folder.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as out:
        ...     run = fit("vae", "diag_normal", "digits", steps=5, progress=False, out=out)
        ...     resume(out, progress=False).history == run.history
        True
    """
    path = Path(folder).expanduser().absolute()
    given = given_of(path)
    start = Path(given.get("folder") or ".")
    arguments = {**given["arguments"], "out": path, "resume": True, "allow": allow, "progress": progress}
    with contextlib.chdir(start if start.is_dir() else "."):
        return compare(**arguments) if given["command"] == "compare" else fit(**arguments)

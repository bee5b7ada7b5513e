"""Callbacks that hand the records of a fit to TensorBoard, Weights & Biases or MLflow, through their own packages.

Each is installed as an extra: ``pip install 'pyro-vi[tensorboard]'``, ``[wandb]`` or ``[mlflow]``. A writer is closed at the
end of its block, or by `Writer.close`::

    with pyro_vi.writers.tensorboard("runs/one") as board:
        pyro_vi.fit("vae", "diag_normal", "digits", callbacks=[board])
"""

import importlib
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from pyro_vi.errors import InputError


class Writer:
    """A callback of `pyro_vi.fit` that writes the finite numbers of each record.

    Args:
        write: called with the numbers by name, and the step.
        close: called at the end.

    Example:
        >>> with Writer(lambda numbers, step: print(step, numbers), lambda: print("closed")) as writer:
        ...     writer({"step": 3, "elbo": -1.5, "kl": float("nan")})
        3 {'elbo': -1.5}
        closed
    """

    def __init__(self, write: Callable[[dict[str, float], int], Any], close: Callable[[], Any]) -> None:
        self._write, self._close = write, close

    def __call__(self, record: Mapping[str, Any]) -> None:
        numbers = {name: float(value) for name, value in record.items() if name != "step" and _number(value)}
        self._write(numbers, int(record["step"]))

    def close(self) -> None:
        """End the writing."""
        self._close()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def tensorboard(folder: str | Path, **options: Any) -> Writer:
    """Return a callback that writes event files of TensorBoard into a folder.

    Args:
        folder: the folder.
        options: those of ``torch.utils.tensorboard.SummaryWriter``.

    Raises:
        InputError: the package tensorboard is not installed.
    """
    board = _package("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder), **options)

    def write(numbers: dict[str, float], step: int) -> None:
        for name, value in numbers.items():
            board.add_scalar(name, value, step)
        board.flush()

    return Writer(write, board.close)


def wandb(project: str, **options: Any) -> Writer:
    """Return a callback that logs to a new run of Weights & Biases.

    Args:
        project: name of the project.
        options: those of ``wandb.init``, such as ``name`` and ``mode="offline"``.

    Raises:
        InputError: the package wandb is not installed.
    """
    run = _package("wandb", "wandb").init(project=project, **options)
    return Writer(lambda numbers, step: run.log(numbers, step=step), run.finish)


def mlflow(experiment: str, **options: Any) -> Writer:
    """Return a callback that logs the metrics of a new run of MLflow.

    Args:
        experiment: name of the experiment.
        options: those of ``mlflow.start_run``, such as ``run_name``.

    Raises:
        InputError: the package mlflow is not installed.
    """
    flow = _package("mlflow", "mlflow")
    flow.set_experiment(experiment)
    flow.start_run(**options)

    def write(numbers: dict[str, float], step: int) -> None:
        # MLflow takes these characters only; the name of a site may have others.
        flow.log_metrics({re.sub(r"[^\w\-. :/]", "_", name): value for name, value in numbers.items()}, step=step)

    return Writer(write, flow.end_run)


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(
            f"the package {extra} is not installed; install it with: pip install 'pyro-vi[{extra}]'"
        ) from error


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)

"""Small fits, and what it means that two of them are the same."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue import (
    columns,
)
from torch import Tensor

from pyro_vi import Run, fit
from pyro_vi.data.loading import load

LINEAR, DIAGONAL = "linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))"


VAE, ENCODER = "vae(latent_dim=2, hidden=(4,))", "diag_normal(hidden=(4,))"


in_main_thread = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="Python delivers signals in the main thread only"
)


def quick(model: Any = LINEAR, guide: Any = DIAGONAL, data: Any = None, **options: Any) -> Run:
    return fit(model, guide, load(columns(50)) if data is None else data, **{"steps": 6, "progress": False, **options})


def untimed(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key != "seconds"} for record in history]


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def same_fit(a: Run, b: Run) -> bool:
    return (
        same(a.pair.state_dict(), b.pair.state_dict())
        and untimed(a.history) == untimed(b.history)
        and a.snapshots.keys() == b.snapshots.keys()
        and all(same(a.snapshots[step], b.snapshots[step]) for step in a.snapshots)
    )


def nothing(x: Tensor) -> None:
    pass


def interrupting(*steps: int, lr: float = 0.01, kind: Any = torch.optim.Adam) -> Callable[..., torch.optim.Optimizer]:
    """An optimizer that presses Ctrl-C after some of its steps; all of them have the same name in a run's configuration."""

    def made(parameters: Any) -> torch.optim.Optimizer:
        optimizer, taken = kind(parameters, lr), [0]

        def hook(*_: Any) -> None:
            taken[0] += 1
            if taken[0] in steps:
                os.kill(os.getpid(), signal.SIGINT)

        optimizer.register_step_post_hook(hook)
        return optimizer

    return made


def digits(out: Path | None, *stops: int, resume: bool = False, **options: Any) -> Run:
    return fit(
        VAE,
        ENCODER,
        **{
            "data": "digits",
            "batch_size": 400,  # 4 steps an epoch, each of which redraws the pixels
            "steps": 14,
            "optimizer": interrupting(*stops),
            "schedule": "cosine",
            "warmup": 6,
            "clip_norm": 5.0,
            "snapshots": (0.0, 0.5, 1.0),
            "progress": False,
            "out": out,
            "resume": resume,
            **options,
        },
    )

"""The command in a process of its own, and programs and options to give it."""

import os
import subprocess
import sys
from pathlib import Path

FAILED = 600
"""Seconds after which something that should have happened has not."""


PROGRAMS = '''
import pyro, torch
import pyro.distributions as dist
from torch import nn


class Wide(nn.Module):
    """A model of data with as many features as `width`, whatever the data."""

    def __init__(self, data, *, width=7):
        super().__init__()
        self.decoder = nn.Linear(1, width)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Grey(nn.Module):
    def __init__(self, data):
        super().__init__()
        self.decoder = nn.Linear(1, *data.event_shape)

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)


def other(x):
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(loc, 1.0).to_event(1))
'''


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts}


def real(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own."""
    command = [sys.executable, "-m", "pyro_vi", *args]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=FAILED)


QUICK = ("--data", "five.npy", "--steps", "3", "--batch-size", "20")


SMALL = ("linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))")

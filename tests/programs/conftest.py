"""Programs in a file of their own, and data for them."""

from pathlib import Path

import pytest
from catalogue import columns

from pyro_vi.data.dataset import Data
from pyro_vi.data.loading import load

FILE = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn

pyro.param("left", torch.tensor(1.0))


class Model(nn.Module):
    """A model."""

    def __init__(self, data, *, width=3):
        super().__init__()
        self.width, self.decoder = width, nn.Linear(1, data.event_shape[0])

    def forward(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)


class Guide(nn.Module):
    def __init__(self, model, batch, *, scale=1.0):
        super().__init__()
        if scale < 0:
            raise RuntimeError("no good")
        self.encoder, self.scale, self.seen = nn.Linear(batch[0].shape[1], 1), scale, [type(model).__name__]

    def forward(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), self.scale).to_event(1))


def function_guide(x):
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(1), scale).to_event(1))


def _hidden(x):
    pass


module_guide = Guide(None, (torch.zeros(1, 3),))
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE, encoding="utf-8")
    return path


@pytest.fixture
def data() -> Data:
    return load(columns(20).float())

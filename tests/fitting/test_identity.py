"""Fingerprints: of code and plain values, and of nothing else."""

import functools
from typing import Any

import numpy as np
import torch
from torch import nn

from pyro_vi.fitting.identity import fingerprint

SOURCE = """
import torch
SCALE = {scale}

def helper(x):
    {doc}
    return x * {factor}  {comment}

def model(x):
    return helper(x) * SCALE + {options}

class Model(torch.nn.Module):
    width = {width}
    def __init__(self, size=2):
        super().__init__()
        self.size = size
    def forward(self, x):
        return model(x) in {{1, 2, "a", "b"}}
"""


def made(
    scale: float = 1.0, factor: int = 2, doc: str = "", comment: str = "", options: str = "0", width: int = 3
) -> Any:
    names: dict[str, Any] = {"__name__": "mine"}
    text = SOURCE.format(scale=scale, factor=factor, doc=repr(doc), comment=comment, options=options, width=width)
    exec(compile(text, "mine.py", "exec"), names)
    return names


def test_a_fingerprint_is_of_what_a_program_does():
    first = made()
    for name in ("model", "Model"):
        assert fingerprint(first[name]) == fingerprint(made(doc="Other words.", comment="# and others")[name])
        for other in ({"scale": 2.0}, {"factor": 3}, {"options": "1"}):
            assert fingerprint(first[name]) != fingerprint(made(**other)[name])
    assert fingerprint(first["Model"]) != fingerprint(made(width=4)["Model"])
    assert fingerprint(first["Model"]()) == fingerprint(first["Model"](2)) != fingerprint(first["Model"](3))
    assert fingerprint(first["Model"]().forward) != fingerprint(first["Model"](3).forward)


def test_closures_partials_and_networks():
    def scaled(by: float) -> Any:
        return lambda x: x * by

    assert fingerprint(scaled(1.0)) == fingerprint(scaled(1.0)) != fingerprint(scaled(2.0))
    one, two = (functools.partial(torch.optim.SGD, lr=lr) for lr in (0.1, 0.2))
    assert fingerprint(one) == fingerprint(functools.partial(torch.optim.SGD, lr=0.1)) != fingerprint(two)
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh())
    assert fingerprint(net) == fingerprint(nn.Sequential(nn.Linear(2, 3), nn.Tanh()))
    assert fingerprint(net) != fingerprint(nn.Sequential(nn.Linear(2, 3), nn.ReLU()))


def test_constants_count_and_parameters_do_not():
    def reading(value: Any) -> Any:
        return lambda x: x * value

    kinds = (torch.tensor, np.array, lambda v: torch.tensor(v).to(torch.complex64), lambda v: [torch.tensor(v)])
    for kind in kinds:
        one, same, other = (fingerprint(reading(kind(v))) for v in (1.0, 1.0, 100.0))
        assert one == same != other
    two = [fingerprint(reading(torch.arange(6).reshape(shape))) for shape in ((2, 3), (3, 2))]
    assert two[0] != two[1]
    assert len({fingerprint(reading(torch.tensor(v, requires_grad=True))) for v in (1.0, 2.0)}) == 1
    assert fingerprint(reading(torch.empty(0))) == fingerprint(reading(torch.empty(0)))

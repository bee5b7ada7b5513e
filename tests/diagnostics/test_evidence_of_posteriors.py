"""log Z of the five posteriors of posteriordb within 0.02: by importance sampling from a full normal, and by annealing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from targets import TARGETS, needs_folder
from torch import Tensor, nn

from pyro_vi.diagnostics.log_evidence import evidence
from pyro_vi.guides.full_normal import FullNormal

pytestmark = [pytest.mark.slow, needs_folder]


class _Module(nn.Module):
    """A program as a module, for a guide that is made from its model."""

    def __init__(self, program: Callable[..., Any]) -> None:
        super().__init__()
        self.program = program

    def forward(self, *batch: Tensor) -> Any:
        return self.program(*batch)


FROM_GUIDE: list[dict[str, Any]] = [
    {"method": "iw", "particles": 20_000},
    {"method": "ais", "chains": 100, "steps": 30},
]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, options) for name in ("sblrc", "arK", "kidiq", "mixture") for options in FROM_GUIDE),
        ("schools", {"method": "ais", "start": "prior", "chains": 4000, "steps": 50}),
    ],
)
def test_log_z_is_within_002(name: str, options: dict[str, Any]) -> None:
    """The guide is the normal at the mode, where `FullNormal` starts; of eight schools it is poor, and the prior serves."""
    target = TARGETS[name]
    model, batch = _Module(target.model), target.columns()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = FullNormal(model, batch)
    found = evidence(model, guide, batch, **options)
    assert float(found.mc_se) < 0.02 and found.attrs["verdict"] == "pass"
    assert abs(float(found.log_evidence) - target.evidence) < 0.02
    assert abs(float(found.log_evidence) - target.evidence) < 4 * float(found.mc_se) + 1e-3


def test_annealing_reaches_the_neck_of_the_centred_eight_schools() -> None:
    """Within 4 standard errors, which are .03 here: within .02 takes 30,000 chains and minutes (docs/trust.md has that run)."""
    target = TARGETS["centred schools"]
    model, batch = _Module(target.model), target.columns()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = FullNormal(model, batch)
    found = evidence(model, guide, batch, method="ais", start="prior", chains=3000, steps=100)
    assert float(found.mc_se) < 0.04
    assert abs(float(found.log_evidence) - target.evidence) < 4 * float(found.mc_se)


def test_the_normal_at_the_mode_of_eight_schools_is_not_passed() -> None:
    """The true log Z is −31.311; importance sampling from the normal at the mode is nats below it, and says so."""
    target = TARGETS["schools"]
    model, batch = _Module(target.model), target.columns()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        guide = FullNormal(model, batch)
    found = evidence(model, guide, batch, particles=20_000)
    assert float(found.log_evidence) < target.evidence - 0.5
    assert found.attrs["verdict"] == "fail" and "It cannot be trusted: k-hat is" in found.attrs["sentences"][1]

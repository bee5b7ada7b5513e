"""Work that is done once: data are read, and programs are bound and looked at, no more often than they have to be."""

import pyro
import pyro.distributions as dist
import pytest
import torch

import pyro_vi
from pyro_vi.cli.commands import Fit
from pyro_vi.fitting import plan
from pyro_vi.fitting.optimizers import recipe_of
from pyro_vi.fitting.settings import Options
from pyro_vi.programs import build


@pytest.fixture
def binds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The models that are bound, each together with its guide."""
    bound: list[object] = []
    original = build.bind
    monkeypatch.setattr(build, "bind", lambda model, *rest: bound.append(model) or original(model, *rest))
    return bound


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The data that are read."""
    found: list[object] = []
    original = plan.load
    monkeypatch.setattr(plan, "load", lambda data, **options: found.append(data) or original(data, **options))
    return found


@pytest.mark.slow
def test_a_comparison_binds_its_two_programs_and_reads_its_data_once(binds, reads, tmp_path):
    original = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0]])
    options = {"steps": 2, "audit_draws": 20, "particles": 2, "draws": 2, "progress": False, "out": tmp_path / "out"}
    pyro_vi.compare("linear_gaussian(latent_dim=1)", "diag_normal", original.repeat(3, 1), **options)
    assert len(binds) == 1
    assert len(reads) == 1


def test_a_fit_of_one_step_runs_its_model_thirteen_times(binds, reads):
    """To bind it on all rows and to read its layout there, as rows are held out only of a model whose latents are all local;
    then for the check, under Pyro's validation, for its terms, for the gradients of the draws, for the networks that are
    called and under the estimator; the sources of the KL, the layout on the rows that are left,
    the facts that records need, the step, and two records. The data are read once to bind and once to be split."""
    runs = []

    def model(x):
        runs.append(len(x))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    pyro_vi.fit(model, guide, torch.arange(20.0), steps=1, progress=False)
    assert len(binds) == 1
    assert len(reads) == 2
    assert runs == [20, 20, 18, 18, 18, 18, 18, 18, 18, 18, 18, 18, 2]


def test_the_command_line_and_python_share_their_defaults():
    command = Fit().options()
    assert {name: command[name] for name in command} == {name: getattr(Options(), name) for name in command}
    assert (Options.lr, recipe_of().schedule) == (3e-3, "cosine")

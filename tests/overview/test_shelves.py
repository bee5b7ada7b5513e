"""Names, their options, and the pairs that go together."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_vi import DataSpec, estimators, guides, models
from pyro_vi.data.loading import available as data_sets
from pyro_vi.data.registered import DATASETS
from pyro_vi.errors import InputError, UsageError
from pyro_vi.overview import described, matches, names
from pyro_vi.overview.options import plain
from pyro_vi.overview.shelves import EXAMPLES
from pyro_vi.programs.lookup import AUTOGUIDES, available


@pytest.mark.slow
def test_every_name_has_a_line_and_can_be_described():
    """Names are read from source: they and their lines are those of the tables and docstrings that an import gives."""
    found = names()
    assert found == {
        "models": {name: plain(line) for name, line in available("model").items()},
        "guides": {name: plain(line) for name, line in available("guide").items()}
        | {name: f"Pyro's {found}, for latents that all data share" for name, found in AUTOGUIDES.items()},
        "data": data_sets(),
        "estimators": {name: f"{entry.cls.__name__}: {entry.about}" for name, entry in estimators.TABLE.items()},
    }
    assert {kind: list(entries) for kind, entries in found.items()} == {
        "models": list(models.TABLE),
        "guides": [*guides.TABLE, *AUTOGUIDES],
        "data": list(DATASETS),
        "estimators": list(estimators.TABLE),
    }
    assert all(line and "`" not in line for entries in found.values() for line in entries.values())
    ours = [name for name, entry in estimators.TABLE.items() if issubclass(entry.cls, estimators.Bound)]
    for name in (*DATASETS, *ours):
        for one in described(name):
            assert one.about and all(option.help for option in one.options.values()), name


def test_the_pairs_of_the_models_whose_posterior_is_known_or_not():
    found = {
        (match.model, match.guide): match for match in matches(["vae", "linear_gaussian"], ["diag_normal", "exact"])
    }
    assert {pair for pair, match in found.items() if not match.reason} == {
        ("vae", "diag_normal"),
        ("linear_gaussian", "diag_normal"),
        ("linear_gaussian", "exact"),
    }
    assert found["vae", "exact"].reason.startswith("guide 'exact' needs a model with a closed form")
    assert {match.data for match in found.values() if match.model == "linear_gaussian"} == {"real vectors"}


class Counts(nn.Module):
    """A model of counts with a discrete latent, marked for enumeration."""

    def __init__(self, data: DataSpec) -> None:
        super().__init__()
        if data.support != "nonnegative_integer":
            raise InputError("counts only")

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Poisson(1.0 + k.unsqueeze(-1).expand(*k.shape, x.shape[-1])).to_event(1), obs=x)


class Never(nn.Module):
    """A model of nothing."""

    def __init__(self, data: object) -> None:
        raise InputError("no data will do")


class Empty(nn.Module):
    """A guide that leaves every site to the estimator."""

    def __init__(self, model: nn.Module, batch: object) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> None:
        pass


class Far(Empty):
    """A guide whose density at its draw is infinite."""

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(torch.zeros(len(x), 8), torch.full((len(x),), torch.inf), 1))


def test_an_example_that_suits_the_model_is_found(monkeypatch):
    monkeypatch.setitem(models.TABLE, "counts", f"{__name__}:Counts")
    monkeypatch.setitem(models.TABLE, "never", f"{__name__}:Never")
    monkeypatch.setitem(guides.TABLE, "empty", f"{__name__}:Empty")
    monkeypatch.setitem(guides.TABLE, "far", f"{__name__}:Far")
    pairs = ("counts", "empty"), ("never", "empty"), ("linear_gaussian", "far")
    counts, never, far = (next(matches([model], [guide])) for model, guide in pairs)
    assert (counts.data, counts.reason) == ("counts", "")
    assert never.reason == "the model takes none of the examples: no data will do"
    assert far.reason == "its ELBO is -inf"


def test_examples_are_small_and_of_one_kind_each():
    supports = {name: make().spec.support for name, make in EXAMPLES.items()}
    assert supports["0/1 images"] == "boolean" and supports["counts"] == "nonnegative_integer"
    assert {supports[name] for name in EXAMPLES if name.startswith("real")} == {"real"}
    assert all(make().spec.num_data <= 8 for make in EXAMPLES.values())


@pytest.mark.slow
def test_a_name_has_its_options_with_types_and_defaults():
    (guide,) = described("diag_normal(hidden=(3,))")
    assert guide.kind == "guide" and {"vae", "linear_gaussian"} <= {match.model for match in guide.pairs}
    (model,) = described("vae")
    assert (model.options["latent_dim"].type, model.options["latent_dim"].default) == ("int", "8")
    assert model.example == 'pyro-vi fit "vae(latent_dim=8)"'
    (data,) = described("omniglot")
    assert data.options["heldout_part"].type == "'test' or 'valid'" and data.options["heldout_part"].default == "'test'"
    assert data.example == 'pyro-vi fit --data "omniglot(binarize=True)"'
    (pyros,) = described("AutoNormal")
    assert pyros.kind == "guide" and pyros.options["init_scale"].type == "float"
    with pytest.raises(UsageError, match="no model, guide, data set or estimator named 'vea'; did you mean 'vae'"):
        described("vea")


@pytest.mark.slow
def test_a_name_of_two_tables_is_described_twice(monkeypatch):
    monkeypatch.setitem(guides.TABLE, "vae", guides.TABLE["diag_normal"])
    assert [one.kind for one in described("vae")] == ["model", "guide"]


@pytest.mark.slow
def test_a_guide_with_parameters_for_each_row_gets_row_numbers():
    assert {match.guide: match.reason for match in matches(guides=["per_datum"])} == {"per_datum": ""}

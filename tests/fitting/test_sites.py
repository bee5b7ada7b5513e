"""The terms of the ELBO by site in the records of a fit."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, global_pair, number, scalars
from small_fits import DIAGONAL, LINEAR, quick
from torch import Tensor

import pyro_vi
from pyro_vi.data.loading import load
from pyro_vi.fitting.sites import COLUMNS, columns_of
from pyro_vi.reporting.datatree import history_dataset


def total(record: dict[str, float]) -> float:
    terms = sum(value for key, value in record.items() if key.startswith("term_"))
    return terms - sum(value for key, value in record.items() if key.startswith("kl_"))


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
def test_each_record_has_the_terms_of_its_sites_and_their_sum_is_the_elbo(elbo):
    for pair, data in (((LINEAR, DIAGONAL), load(columns(50))), (global_pair(), load(scalars(50), heldout=0.0))):
        run = quick(*pair, data, elbo=elbo, steps=2)
        for record in run.history:
            assert abs(total(record) - record["elbo"]) < 1e-10
            assert not [key for key in record if key.startswith("heldout_term")]
    assert {key for key in run.history[0] if key.startswith(("term_", "kl_"))} == {
        *(f"kl_{name}" for name in run.kl_source),
        "term_x",
    }


def test_the_terms_of_a_pair_without_parameters_of_its_latents_are_known():
    """KL(N(1, 1) ‖ N(0, 1)) is 1/2; a shared one is divided by the number of data; names may be of any form."""

    def model(x: Tensor) -> None:
        pyro.sample("a/b c", dist.Normal(number(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z.1", dist.Normal(number(0.0), 1.0))
            pyro.sample("x", dist.Normal(number(0.0), pyro.param("scale", number(1.0))), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("a/b c", dist.Normal(number(1.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z.1", dist.Normal(number(1.0), 1.0))

    x = scalars(10)
    run = quick(model, guide, load(x, heldout=0.0), steps=1, lr=1e-12, check=False)
    record = run.history[0]
    assert abs(record["kl_z.1"] - 0.5) < 1e-10 and abs(record["kl_a/b c"] - 0.05) < 1e-10
    assert abs(record["term_x"] - float(dist.Normal(0.0, 1.0).log_prob(x).mean())) < 1e-10
    frame = pyro_vi.open(run).history
    assert frame["kl_z.1"].tolist() == [record["kl_z.1"]] and "term_x" in frame
    np.testing.assert_array_equal(history_dataset(run.history)["kl_a.b c"].values, [record["kl_a/b c"]])


def test_many_sites_have_a_bounded_number_of_columns_with_the_same_sum():
    draws = torch.randn(300, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).tolist()
    steps = {f"z_{t}": value for t, value in enumerate(draws[:100])}
    assert columns_of({}, steps) == {"kl_z_*": pytest.approx(sum(draws[:100]), abs=1e-10)}
    words = {"".join(chr(97 + (i // 26**k) % 26) for k in range(3)): value for i, value in enumerate(draws)}
    found = columns_of(words, {**steps, "w": 2.0})
    terms = {key: value for key, value in found.items() if key.startswith("term_")}
    assert len(terms) == COLUMNS and next(iter(terms)) == "term_aaa" and [*terms][-1] == "term_*"
    assert abs(sum(terms.values()) - sum(draws)) < 1e-10 and found["kl_w"] == 2.0
    assert len(columns_of({f"x{i}": 1.0 for i in range(COLUMNS)}, {})) == COLUMNS

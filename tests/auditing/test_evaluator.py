"""Many draws at once, or one by one: the same numbers, and memory that does not grow with the draws."""

import numpy as np
import pytest
from catalogue import (
    CATALOGUE,
    columns,
)

from pyro_vi.auditing.auditor import audit
from pyro_vi.auditing.timing import Cost, peak_bytes
from pyro_vi.errors import InputError

MANY = ("trace", "stl", "score(num_particles=2)")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "elbos"),
    [("closure", MANY), ("inner_subsample", ("trace", "stl"))],
)
def test_many_draws_at_once_and_one_by_one_give_the_same_numbers(name, elbos):
    entry = CATALOGUE[name]
    at_once, looped = (
        audit(*entry.build(), entry.batch, elbos=elbos, draws=24, seed=2, vectorize=vectorize)
        for vectorize in (True, False)
    )
    assert (at_once.method == "vmap").all()
    assert (looped.method == "loop").all()
    for key in ("value_mean", "value_sd", "grad_mean", "grad_var", "part_grad_mean", "part_grad_var"):
        np.testing.assert_allclose(at_once[key], looped[key], rtol=1e-10, atol=1e-12, err_msg=key)
    np.testing.assert_allclose(at_once.grad_var_se, looped.grad_var_se, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(at_once.bias_z, looped.bias_z, atol=1e-6)
    assert looped.site_var.isnull().all()
    assert at_once.site_var.notnull().all()


def test_a_pair_that_cannot_be_evaluated_at_once_is_refused_where_that_is_asked():
    entry = CATALOGUE["discrete"]
    with pytest.raises(InputError, match="cannot be evaluated at once"):
        audit(*entry.build(), entry.batch, elbos="score(num_particles=2)", draws=20, vectorize=True)


@pytest.mark.parametrize(
    ("vectorize", "draws"), [(True, 2000), pytest.param(False, 400, marks=pytest.mark.slow)], ids=["vmap", "loop"]
)
def test_memory_does_not_grow_with_the_draws(vectorize, draws, monkeypatch):
    # Costs are measured with the same profiler, which does not nest.
    monkeypatch.setattr(
        "pyro_vi.auditing.auditor.costs", lambda calls, **_: dict.fromkeys(calls, Cost(1.0, 0.0, 0.0, 0))
    )
    model, guide = CATALOGUE["linear_gaussian_wrong"].build()

    def peak(draws: int) -> int:
        return peak_bytes(lambda: audit(model, guide, columns(), elbos="trace", draws=draws, vectorize=vectorize))

    few, many = peak(200), peak(draws)
    assert few > 50 * 8 * 8  # a chunk of gradients is seen at all
    # Growing are the seeds, 8 bytes a draw, and the variances of 40 groups in place of 20.
    assert many - few <= (draws - 200) * 8 + 20 * 8 * 8

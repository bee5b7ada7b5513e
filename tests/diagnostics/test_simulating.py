"""Data drawn from the model itself: they are where the model observes them, and have the model's distribution."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, exact_pair
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

from pyro_vi import InputError, evidence, load
from pyro_vi.diagnostics.simulating import observed_entries, simulated
from pyro_vi.programs import build_pair, evaluating, isolated, pair_and_args

ROWS = 6


def drawn(model, guide, args, given=None):
    pair, args = pair_and_args(model, guide, args)
    with evaluating(pair), isolated(0, validation=False):
        return pair, args, simulated(pair, args, given)


def guide(*_args):
    with pyro.plate("rows", ROWS):
        pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))


def test_the_draws_have_the_models_marginal_distribution():
    model, exact = exact_pair()
    x = columns(1).expand(20_000, 3).clone()
    _, _, found = drawn(model, exact, x)
    weight, bias = model.weight.detach(), model.bias.detach()
    covariance = weight @ weight.T + (2 * model.log_scale).exp().detach() * torch.eye(3).double()
    (new,) = found.args
    error = (covariance.diagonal() / len(new)).sqrt()
    assert ((new.mean(0) - bias).abs() < 4 * error).all()
    of_cov = ((covariance**2 + torch.outer(covariance.diagonal(), covariance.diagonal())) / len(new)).sqrt()
    assert ((new.T.cov() - covariance).abs() < 4 * of_cov).all()
    assert found.values["z"].shape == (20_000, weight.shape[1])
    assert torch.equal(x, columns(1).expand(20_000, 3))  # what was passed in


def test_other_inputs_stay_and_the_drawn_column_follows_the_latents():
    def model(inputs: Tensor, y: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("y", dist.Normal(z + inputs, 1e-9), obs=y)

    inputs, y = columns(ROWS, 1)[:, 0], columns(ROWS, 1, seed=1)[:, 0]
    _, _, found = drawn(model, guide, (inputs, y))
    assert torch.equal(found.args[0], inputs)
    torch.testing.assert_close(found.args[1], inputs + found.values["z"], rtol=0, atol=1e-7)


def test_slices_transposes_and_reordered_columns_are_found():
    """Of equal numbers in two places, each site gets its own."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            for step in range(3):
                pyro.sample(f"x_{step}", dist.Normal(z * 0 + step, 1e-9), obs=x.T[2 - step])

    pair, args, found = drawn(model, guide, torch.zeros(ROWS, 3).double())
    torch.testing.assert_close(
        found.args[0], torch.tensor([[2.0, 1.0, 0.0]]).double().expand(ROWS, 3), rtol=0, atol=1e-7
    )
    column, index = observed_entries(pair, args)["x_1"]
    assert (column, index.tolist()) == (0, [1 + 3 * row for row in range(ROWS)])


def test_masked_entries_stay():
    mask = torch.arange(ROWS) < 4

    def model(x: Tensor) -> None:
        with pyro.plate("rows", ROWS), poutine.mask(mask=mask):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.full((ROWS,), 99.0).double()
    _, _, found = drawn(model, guide, x)
    assert (found.args[0] == 99).tolist() == [False] * 4 + [True] * 2


def test_entries_that_are_masked_inside_an_event_stay():
    """The mask of a sequence as in Pyro's examples; with a draw in its place, a guide that reads padding seems right."""
    mask = torch.arange(3) < torch.tensor([1, 2, 3, 3, 2, 1]).unsqueeze(-1)

    def model(x: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            law = dist.Normal(z.unsqueeze(-1), 1.0).expand((ROWS, 3)).mask(mask)
            pyro.sample("x", law.to_event(1), obs=x)

    x = torch.full((ROWS, 3), 99.0).double()
    _, _, found = drawn(model, guide, x)
    torch.testing.assert_close(found.args[0] == 99, ~mask)


def test_given_latents_are_not_drawn():
    model, exact = exact_pair()
    z = torch.ones(8, 2).double()
    _, _, found = drawn(model, exact, columns(), {"z": z})
    assert torch.equal(found.values["z"], z)


def test_whole_numbers_are_found_by_their_values():
    def model(x: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z * 0 + 40), obs=x.double())

    _, _, found = drawn(model, guide, torch.arange(ROWS) % 2)
    assert found.args[0].tolist() == [1] * ROWS
    assert found.args[0].dtype == torch.int64


def test_a_function_of_the_columns_is_refused():
    def model(x: Tensor) -> None:
        with pyro.plate("rows", ROWS):
            z = pyro.sample("z", dist.Normal(torch.zeros(()).double(), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x / 255)

    with pytest.raises(InputError, match="site 'x' observes numbers that are no entries of the batch"):
        drawn(model, guide, columns(ROWS, 1)[:, 0])


def test_a_model_without_observations_is_refused():
    with pytest.raises(InputError, match="no observed site"):
        drawn(guide, guide, columns(ROWS, 1)[:, 0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("vae", "digits"),
        ("hierarchical_vae", "digits"),
        ("mixture_vae", "digits"),
        ("ppca", "wine"),
        ("factor_analysis", "wine"),
        ("deep_markov", "robot(sequences=20, steps=10)"),
    ],
)
def test_models_of_the_shelf_draw_their_data(name, data):
    loaded = load(data)
    pair = build_pair(name, "diag_normal", loaded)
    args = loaded.example(5)
    with evaluating(pair), isolated(0, validation=False):
        found = simulated(pair, args)
    assert found.args[0].shape == args[0].shape
    assert not torch.equal(found.args[0], args[0])


def correlated(x: Tensor) -> None:
    factor = pyro.sample("factor", dist.LKJCholesky(3, torch.ones(()).double()))
    with pyro.plate("rows", ROWS):
        pyro.sample("x", dist.MultivariateNormal(torch.zeros(3).double(), scale_tril=factor), obs=x)


def test_torch_does_not_draw_lkj_matrices_from_their_density():
    """E L_20² is .25 under LKJ(1) in three dimensions, as r = 2 Beta(3/2, 3/2) − 1; if this fails, torch has mended it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        square = dist.LKJCholesky(3, torch.ones(())).sample((100_000,))[:, 2, 0] ** 2
    assert square.mean() - 0.25 > 10 * square.std() / 100_000**0.5


@pytest.mark.parametrize("method", ["prior", "sandwich"])
def test_latents_that_torch_draws_wrongly_are_not_drawn_from_their_prior(method):
    x = columns(ROWS)
    guide = AutoNormal(correlated)
    with pytest.raises(
        InputError, match="'factor' cannot be drawn from its prior: torch draws LKJCholesky in 3 dimensions"
    ):
        evidence(correlated, guide, x, method=method)

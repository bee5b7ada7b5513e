"""The hierarchical VAE: its joint density layer by layer, what depends on what, and a KL for each layer."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BATCH, BITS, NUM_DATA, spec
from pyro.infer.inspect import get_dependencies

import pyro_vi
from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.models.hierarchical_vae import HierarchicalVAE
from pyro_vi.programs.layout import prototype

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
DIMS = {"z1": 3, "z2": 2, "z3": 1}


def made(structure: str = "burda", **options):
    torch.manual_seed(0)
    return HierarchicalVAE(spec(support="boolean"), latent_dims=(3, 2, 1), hidden=(4,), structure=structure, **options)


def values(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(BATCH, dim, generator=generator, dtype=torch.float64) for name, dim in DIMS.items()}


def joint(model, given) -> dict[str, torch.Tensor]:
    trace = pyro.poutine.trace(pyro.poutine.condition(model, given)).get_trace(BITS)
    trace.compute_log_prob()
    return {name: trace.nodes[name]["unscaled_log_prob"] for name in (*DIMS, "x")}


def normal(numbers, value):
    loc, log_scale = numbers.chunk(2, -1)
    return dist.Normal(loc, log_scale.exp()).log_prob(value).sum(-1)


def bits(numbers):
    return dist.Bernoulli(logits=numbers).log_prob(BITS).sum(-1)


def test_a_chain_is_scored_layer_by_layer():
    model, z = made(), values()
    found = joint(model, z)
    top, middle, bottom = model.heads
    torch.testing.assert_close(found["z3"], dist.Normal(0.0, 1.0).log_prob(z["z3"]).sum(-1), **TIGHT)
    torch.testing.assert_close(found["z2"], normal(top(z["z3"]), z["z2"]), **TIGHT)
    torch.testing.assert_close(found["z1"], normal(middle(z["z2"]), z["z1"]), **TIGHT)
    torch.testing.assert_close(found["x"], bits(bottom(z["z1"])), **TIGHT)


def test_a_ladder_hands_every_layer_down_its_path():
    model, z = made("ladder"), values()
    found = joint(model, z)
    h3 = model.steps[0](z["z3"])
    h2 = model.steps[1](torch.cat([h3, z["z2"]], -1))
    h1 = model.steps[2](torch.cat([h2, z["z1"]], -1))
    torch.testing.assert_close(found["z2"], normal(model.heads[0](h3), z["z2"]), **TIGHT)
    torch.testing.assert_close(found["z1"], normal(model.heads[1](h2), z["z1"]), **TIGHT)
    torch.testing.assert_close(found["x"], bits(model.heads[2](h1)), **TIGHT)


@pytest.mark.parametrize(
    ("structure", "below"),
    [
        ("burda", {"z3": {"z3"}, "z2": {"z2", "z3"}, "z1": {"z1", "z2"}, "x": {"x", "z1"}}),
        ("ladder", {"z3": {"z3"}, "z2": {"z2", "z3"}, "z1": {"z1", "z2", "z3"}, "x": {"x", "z1", "z2", "z3"}}),
    ],
)
def test_what_depends_on_what(structure, below):
    found = get_dependencies(made(structure), (BITS,))["prior_dependencies"]
    assert {name: set(parents) for name, parents in found.items()} == below


@pytest.mark.parametrize("structure", ["burda", "ladder"])
def test_decode_is_the_mean_of_the_observation(structure):
    model, z = made(structure), values()
    assert model.decode(z).shape == (BATCH, 3)
    torch.testing.assert_close(model.observation(z).log_prob(BITS), joint(model, z)["x"], **TIGHT)
    torch.testing.assert_close(model.decode(z), model.observation(z).mean, **TIGHT)


def test_each_layer_has_its_own_kl():
    """Under q = N(z2; 0.7, s²) N(z1; 1, 1) with s = 1e-12: KL(q(z2) ‖ N(0, 1)), and KL(q(z1) ‖ N(μ(0.7), σ(0.7)²))."""
    torch.manual_seed(0)
    model = HierarchicalVAE(spec(support="boolean"), latent_dims=(1, 1), hidden=())
    place, one, narrow = (torch.tensor([value], dtype=torch.float64) for value in (0.7, 1.0, 1e-12))

    def guide(x):
        with pyro.plate("data", NUM_DATA, subsample=torch.arange(len(x))):
            pyro.sample("z2", dist.Normal(place, narrow).to_event(1))
            pyro.sample("z1", dist.Normal(one, one).to_event(1))

    found = terms(model, guide, BITS, seed=1).sites
    loc, log_scale = model.heads[0](place)
    expected = log_scale + (1 + (1 - loc).square()) / (2 * (2 * log_scale).exp()) - 0.5
    torch.testing.assert_close(found["z1"].kl, expected.expand(BATCH), **TIGHT)
    top = torch.tensor(math.log(1e12) + 0.49 / 2 - 0.5, dtype=torch.float64)
    torch.testing.assert_close(found["z2"].kl, top.expand(BATCH), **TIGHT)


def test_its_sites_lie_in_the_data_plate():
    sites = prototype(made(), (BITS,)).sites
    assert {name: (sites[name].event_shape, sites[name].plates) for name in DIMS} == {
        name: ((dim,), ("data",)) for name, dim in DIMS.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["diag_normal", "structured"])
@pytest.mark.parametrize("model", ["hierarchical_vae", "hierarchical_vae(structure='ladder', latent_dims=(4, 4))"])
def test_a_fit_lowers_its_loss(model, guide):
    run = pyro_vi.fit(model, guide, "digits", steps=40, batch_size=64, lr=0.01, progress=False)
    assert run.history[-1]["loss"] < 0.85 * run.history[0]["loss"]
    assert run.kl_source == {"z1": "analytic", "z2": "analytic"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"latent_dims": (4,)}, "at least two whole numbers .* one layer is model 'vae'"),
        ({"latent_dims": (4, 0)}, "at least two whole numbers"),
        ({"structure": "stairs"}, "structure must be one of burda, ladder"),
        ({"prior": "vampire"}, "did you mean 'vamp'"),
        ({"likelihood": "gaussian"}, "use likelihood='auto'"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        HierarchicalVAE(spec(support="boolean"), **options)

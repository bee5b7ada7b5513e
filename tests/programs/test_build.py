"""Pairs are built from names, files, classes and functions, as copies, and equal seeds build equal pairs."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BoundVAE, closure_pair, columns, linear_gaussian, scalars
from pyro.contrib.zuko import ZukoToPyro
from zuko.flows import NSF

import pyro_vi
from pyro_vi.data.loading import load
from pyro_vi.elbo.traces import draw_traces
from pyro_vi.errors import InputError, UsageError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.guides.exact import Exact
from pyro_vi.guides.per_datum import PerDatum
from pyro_vi.models.linear_gaussian import LinearGaussian
from pyro_vi.models.vae import VAE
from pyro_vi.programs.build import build_pair, name_of, pair_of
from pyro_vi.programs.isolation import isolated
from pyro_vi.programs.numbering import takes_row_numbers


@pytest.mark.parametrize("guide", ["Guide(scale=0.5)", "function_guide", "module_guide"])
def test_a_pair_from_a_file(file, data, guide):
    pair = build_pair(f"{file}:Model", f"{file}:{guide}", data)
    with isolated(0):
        run = draw_traces(pair.model, pair.guide, data.example(4))
    assert set(run.model_trace.nodes) >= {"z", "x"}
    owners = {owner for owner, _ in pair.owned(data.example(4)).values()}
    assert owners == {"model", "guide"}
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize("model", ["vae(latent_dim=2)", "linear_gaussian(latent_dim=2)", VAE, LinearGaussian])
@pytest.mark.parametrize("guide", ["diag_normal(hidden=(4,))", DiagNormal])
def test_equal_seeds_give_equal_parameters(data, model, guide):
    first, again, other = (build_pair(model, guide, data, seed=seed) for seed in (1, 1, 2))
    pairs = [dict(pair.named_parameters()) for pair in (first, again, other)]
    assert pairs[0].keys() == pairs[1].keys()
    assert all(torch.equal(pairs[0][name], pairs[1][name]) for name in pairs[0])
    assert any(not torch.equal(pairs[0][name], pairs[2][name]) for name in pairs[0])


def test_building_leaves_the_generator_and_the_store(data):
    state = torch.get_rng_state()
    build_pair("vae", "diag_normal", data, seed=4)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(pyro.get_param_store()) == 0


def test_a_model_made_by_its_class_starts_on_all_rows_and_a_given_one_stays():
    x = columns(20)

    class Centred(LinearGaussian):
        def start(self, x):
            with torch.no_grad():
                self.bias.copy_(x.mean(0))

    data = load(x, heldout=0.0)
    for rows in (20, 4):
        made = build_pair(Centred, "diag_normal", data, rows=rows).model
        torch.testing.assert_close(made.bias.detach(), x.mean(0))
    given = build_pair(Centred(data.spec), "diag_normal", data).model
    assert (given.bias == 0).all()


def test_a_pair_has_copies_of_the_modules_that_it_was_given(data):
    model = VAE(data.spec, latent_dim=2)
    guide = DiagNormal(model, data.example(4))
    pair = build_pair(model, guide, data)
    originals = {id(p) for program in (model, guide) for p in program.parameters()}
    assert not originals & {id(p) for p in pair.parameters()}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, pair.model.get_parameter(name))


def test_a_pair_of_functions_has_copies_of_their_networks(data):
    model, guide = closure_pair()
    first, second = (build_pair(model, guide, load(columns(20))) for _ in range(2))
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    fresh = pair_of(*closure_pair(), (columns(),))
    for name, parameter in fresh.named_parameters():
        assert torch.equal(parameter, second.get_parameter(name))


def test_an_exact_guide_follows_the_model_of_its_own_pair(data):
    model = linear_gaussian()
    pair = build_pair(model, Exact, load(columns(20)))
    assert pair.guide.model is pair.model
    assert pair.model is not model
    assert {id(p) for p in pair.guide.parameters()} == {id(p) for p in pair.model.parameters()}


def test_a_partial_of_a_class_is_the_class_with_options(data):
    """The one way to hand over an encoder for a batch that the fit chooses; the network stays as it was."""
    net = torch.nn.Linear(3, 4)
    pair = build_pair(partial(VAE, latent_dim=2), partial(DiagNormal, encoder=net), data)
    assert pair.guide.encoder.network.weight.shape == (4, 3) and pair.guide.encoder.network is not net
    assert pair.guide(*data.example(4))["z"].shape == (4, 2)
    assert not takes_row_numbers(partial(DiagNormal)) and takes_row_numbers(partial(PerDatum, init_scale=0.1))
    assert name_of(partial(DiagNormal, encoder=net, hidden=(8,))).endswith(", hidden=(8,))")
    with pytest.raises(UsageError, match="guide 'DiagNormal' has no option 'encodr'"):
        build_pair("vae", partial(DiagNormal, encodr=net), data)


def test_a_registered_guide_goes_with_a_function(data):
    model, _ = closure_pair()
    pair = build_pair(model, "diag_normal(hidden=(4,))", load(columns(20)))
    owners = {name: owner for name, (owner, _) in pair.owned((columns(),)).items()}
    assert {name for name, owner in owners.items() if owner == "model"} == {"noise", "decoder.weight", "decoder.bias"}
    assert {name for name, owner in owners.items() if owner == "guide"} == {
        f"{layer}.{kind}" for layer in ("encoder.network.body.0", "q.z.head") for kind in ("weight", "bias")
    }


def test_programs_that_share_a_network_still_share_it_in_the_pair(data):
    vae = BoundVAE()
    pair = build_pair(vae.model, vae.guide, load(columns(20)))
    assert pair.model.get_parameter("vae.decoder.weight") is pair.guide.get_parameter("vae.decoder.weight")
    assert pair.model.get_parameter("vae.decoder.weight") is not vae.decoder.weight


@pytest.mark.parametrize(
    ("model", "guide", "error", "words"),
    [
        ("vae(latent=2)", "diag_normal", UsageError, "did you mean 'latent_dim'"),
        ("vae", "diag_normal(data=3)", UsageError, "has no option 'data'"),
        ("vae", "per_datum(num_data=4)", UsageError, "has no option 'num_data'. Its options are: family"),
        ("vae", "mixture(components=0)", UsageError, "components must be a whole number of at least 1, not 0"),
        ("vae", "low_rank_normal(rank=0)", UsageError, "rank must be a whole number of at least 1, not 0"),
        ("vae", "flow(bins=1)", UsageError, "bins must be a whole number of at least 2, not 1"),
        ("vae", "flow(flow_hidden=(0,))", InputError, "flow_hidden must hold positive whole numbers"),
        ("vae", "exact", InputError, "has none: use guide 'diag_normal'"),
        (
            "FILE:Model",
            "FILE:function_guide(scale=3)",
            UsageError,
            "is not a class and takes no options; leave out scale",
        ),
        ("FILE:Model", "FILE:Guide(scale=-1)", InputError, "cannot be built: RuntimeError: no good"),
    ],
)
def test_a_pair_that_cannot_be_built_says_why(file, data, model, guide, error, words):
    with pytest.raises(error) as caught:
        build_pair(model.replace("FILE", str(file)), guide.replace("FILE", str(file)), data)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [VAE, 3, None], ids=str)
def test_a_pair_is_of_functions_and_instances(wrong):
    for programs in ((wrong, lambda x: None), (lambda x: None, wrong)):
        with pytest.raises(InputError, match="must be a function or a module"):
            pair_of(*programs, (scalars(),))


def test_a_program_that_fails_on_the_batch_says_which():
    def model(x):
        raise RuntimeError("first\nsecond")

    with pytest.raises(InputError, match=r"^the model fails on a batch of shape \(8,\): RuntimeError: first \(test_b"):
        pair_of(model, lambda x: None, (scalars(),))


class Started(torch.nn.Module):
    """A model that cannot start on what is no tensor, and takes two columns."""

    def __init__(self, spec):
        super().__init__()

    def start(self, x, y=None):
        x.mean()

    def forward(self, x, y):
        pyro.sample("z", dist.Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            torch.zeros(9),
            r"^Started takes \(x, y\), but is given a batch of shape \(8,\); choose data with these columns",
        ),
        (None, r"^Started takes \(x, y\), but is given no arguments; choose data"),
        ({"data": torch.zeros(9)}, r"^Started takes \(x, y\), and the data name an argument 'data'; name the data so"),
        ([[1.0], [2.0]], r"^Started takes \(x, y\), but is given its arguments; choose"),
    ],
)
def test_data_that_a_model_does_not_take_are_named_with_what_it_takes(data, words):
    with pytest.raises(InputError, match=words):
        pyro_vi.fit(Started, lambda *args: pyro.sample("z", dist.Normal(0.0, 1.0)), data, steps=1, progress=False)


def test_a_flow_that_does_not_say_its_support_can_be_fitted():
    """Pyro's wrapper of zuko's flows, as its documents use it."""

    class Flow(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.flow = NSF(2, 3, transforms=1, hidden_features=(4,)).double()

        def forward(self, x: torch.Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", ZukoToPyro(self.flow(x)))

    x = columns(22)
    run = pyro_vi.fit("linear_gaussian(latent_dim=2)", Flow(), x, elbo="trace", steps=3, progress=False)
    assert math.isfinite(run.history[-1]["elbo"])

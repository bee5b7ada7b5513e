"""The VAE with a mixture as its prior: its bound by hand, its components, and what it refuses."""

import math

import pytest
import torch
from catalogue import columns, spec
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import pyro_vi
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.mixture_vae import MixtureVAE
from pyro_vi.models.vae import VAE

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def one_draw(model: torch.nn.Module, guide: torch.nn.Module, elbo: type = TraceEnum_ELBO) -> torch.Tensor:
    """The ELBO of one draw for one datum of the 50."""
    torch.manual_seed(3)
    return -elbo(max_plate_nesting=1).differentiable_loss(model, guide, columns()) / 50


def test_one_component_is_a_vae():
    torch.manual_seed(0)
    plain = VAE(spec(), latent_dim=2)
    guide = DiagNormal(plain, (columns(),))
    model = MixtureVAE(spec(), components=1, latent_dim=2)
    model.load_state_dict(plain.state_dict(), strict=False)
    torch.testing.assert_close(one_draw(model, guide), one_draw(plain, guide, Trace_ELBO), **EXACT)


@pytest.mark.parametrize("enumerate", ["model", "guide"])
def test_bound_sums_over_the_components(enumerate):
    """Σ_c in the logarithm where the model has c; Σ_c q(c | x) (… − log q(c | x)) where the guide has it."""
    torch.manual_seed(0)
    model = MixtureVAE(spec(), components=3, latent_dim=2, enumerate=enumerate)
    with torch.no_grad():
        model.logits.normal_()
        model.log_scale_of_z.normal_()
    guide = DiagNormal(model, (columns(),))
    found = one_draw(model, guide)
    torch.manual_seed(3)
    trace = poutine.trace(poutine.enum(guide, first_available_dim=-2)).get_trace(columns())
    z, q = trace.nodes["z"]["value"], trace.nodes["z"]["fn"]
    scores = torch.stack(
        [
            model.logits.log_softmax(-1)[c]
            + torch.distributions.Normal(model.loc[c], model.log_scale_of_z[c].exp()).log_prob(z).sum(-1)
            for c in range(3)
        ],
        -1,
    )
    if enumerate == "model":
        assert "c" not in trace.nodes
        of_z = scores.logsumexp(-1)
    else:
        log_q = trace.nodes["c"]["fn"].logits.log_softmax(-1)
        of_z = (log_q.exp() * (scores - log_q)).sum(-1)
    expected = model.observation(z).log_prob(columns()) + of_z - q.log_prob(z)
    torch.testing.assert_close(found, expected.mean(), **EXACT)
    torch.testing.assert_close(model.assign(z), scores.softmax(-1), **EXACT)


def test_a_minibatch_has_the_factor_of_all_data():
    trace = poutine.trace(MixtureVAE(spec(), latent_dim=2)).get_trace(columns())
    assert {trace.nodes[name]["scale"] for name in ("c", "z", "x")} == {50 / 8}


@pytest.mark.slow
@pytest.mark.parametrize("enumerate", ["model", "guide"])
@pytest.mark.parametrize("guide", ["diag_normal", "full_normal", "structured", "flow", "mixture"])
def test_guides_of_the_shelf_fit_it(guide, enumerate):
    model = f"mixture_vae(components=3, latent_dim=2, enumerate={enumerate!r})"
    run = pyro_vi.fit(model, guide, columns(), elbo="enum", steps=5, progress=False)
    assert math.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": 0}, "components must be a whole number of at least 1"),
        ({"enumerate": "both"}, "enumerate must be 'model' or 'guide'"),
        ({"spread": -1.0}, "must not be negative"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        MixtureVAE(spec(), **options)

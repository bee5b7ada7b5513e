"""The semi-supervised VAE: its bounds by hand, its classifiers, and what it refuses."""

import math

import pytest
import torch
from catalogue import columns, spec
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO

import pyro_vi
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.guides.prior import Prior
from pyro_vi.models.conditional_vae import ConditionalVAE
from pyro_vi.models.semi_supervised_vae import ENTERS, SemiSupervisedVAE

EXACT = {"rtol": 1e-10, "atol": 1e-10}
KNOWN, UNKNOWN = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]), torch.full((8,), -1)
PARTLY = torch.where(torch.arange(8) < 3, KNOWN, UNKNOWN)


def made(**options: object) -> tuple[SemiSupervisedVAE, DiagNormal]:
    """A model of three classes that are not equally probable, and a guide of z."""
    torch.manual_seed(0)
    model = SemiSupervisedVAE(spec(), classes=3, latent_dim=2, **options)
    with torch.no_grad():
        model.prior_logits.copy_(torch.tensor([0.5, 0.0, -1.0]))
    return model, DiagNormal(model, (columns(), PARTLY))


def elbo_and_draw(
    model: torch.nn.Module, guide: DiagNormal, y: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The ELBO of one draw under enumeration, for one datum of the 50; the draw z, and − log q(z) of each row."""
    torch.manual_seed(3)
    elbo = -TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(model, guide, columns(), y) / 50
    torch.manual_seed(3)
    site = poutine.trace(guide).get_trace(columns(), y).nodes["z"]
    z = site["value"]
    return elbo, z, -site["fn"].log_prob(z)


def joint(model: SemiSupervisedVAE, z: torch.Tensor) -> torch.Tensor:
    """log p(x, z, y) of each row and class, one class after another."""
    prior, found = model.prior_logits.log_softmax(-1), []
    for k in range(3):
        loc, scale = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        if model.enters == "prior":
            loc, scale = model.loc[k], model.log_scale_of_z[k].exp()
        of_z = torch.distributions.Normal(loc, scale).log_prob(z).sum(-1)
        found.append(prior[k] + of_z + model.observation(z, torch.full((8,), k)).log_prob(columns()))
    return torch.stack(found, -1)


@pytest.mark.parametrize("enters", ENTERS)
@pytest.mark.parametrize("y", [UNKNOWN, PARTLY, KNOWN])
def test_bound_is_the_sum_over_the_classes_that_a_row_may_have(y, enters):
    model, guide = made(enters=enters)
    elbo, z, rest = elbo_and_draw(model, guide, y)
    scores = joint(model, z)
    rows = [scores[i].logsumexp(-1) if k < 0 else scores[i, k] for i, k in enumerate(y.tolist())]
    torch.testing.assert_close(elbo, (torch.stack(rows) + rest).mean(), **EXACT)


def test_with_all_labels_it_is_the_conditional_vae_and_the_prior_of_the_labels():
    model, guide = made()
    other = ConditionalVAE(spec(), classes=3, latent_dim=2)
    other.load_state_dict({k: v for k, v in model.state_dict().items() if k != "prior_logits"})
    elbo, _, _ = elbo_and_draw(model, guide, KNOWN)
    torch.manual_seed(3)
    bound = -Trace_ELBO().differentiable_loss(other, guide, columns(), KNOWN) / 50
    expected = bound + model.prior_logits.log_softmax(-1)[KNOWN].mean()
    torch.testing.assert_close(elbo, expected, **EXACT)


@pytest.mark.parametrize("enters", ENTERS)
@pytest.mark.parametrize("y", [UNKNOWN, PARTLY])
def test_with_a_classifier_it_is_the_objective_of_m2(y, enters):
    """Kingma et al. (2014), equations 6, 7 and 9, with q(y | x) = r and the draw of z for every class."""
    model, guide = made(alpha=5.0, enters=enters)
    elbo, z, rest = elbo_and_draw(model, guide, y)
    scores, r = joint(model, z), model.classifier(columns()).softmax(-1)
    total = rest.sum()
    for i, k in enumerate(y.tolist()):
        unlabelled = sum(r[i, c] * (scores[i, c] - r[i, c].log()) for c in range(3))
        total = total + (unlabelled if k < 0 else scores[i, k] + 5.0 * r[i, k].log())
    torch.testing.assert_close(elbo, total / 8, **EXACT)
    torch.testing.assert_close(model.classify(columns()), r.detach(), **EXACT)


def test_units_that_are_left_out_in_training_are_there_for_the_classifier():
    model, _ = made(alpha=1.0, dropout=0.5)
    assert model.classifier.training
    torch.testing.assert_close(model.classify(columns()), model.classify(columns()), rtol=0, atol=0)
    assert model.classifier.training and not torch.equal(model.classifier(columns()), model.classifier(columns()))


def test_bayes_rule_is_exact_where_the_bound_is():
    """A decoder that does not read z: the bound of log p(x, y) is exact at q = p(z), and so is p(y | x)."""
    model, _ = made()
    with torch.no_grad():
        model.decoder[0].weight[:, :2] = 0.0
    guide = Prior(model, (columns(), UNKNOWN))
    expected = joint(model, torch.zeros(8, 2, dtype=torch.float64)).softmax(-1)
    torch.testing.assert_close(model.classify(columns(), guide, draws=1), expected.detach(), **EXACT)
    with pytest.raises(InputError, match="the model has no classifier"):
        model.classify(columns())


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.0, 10.0])
@pytest.mark.parametrize("enters", ENTERS)
@pytest.mark.parametrize("guide", ["diag_normal", "full_normal", "structured", "flow", "mixture"])
def test_guides_of_the_shelf_fit_it(guide, enters, alpha):
    model = f"semi_supervised_vae(classes=3, enters={enters!r}, alpha={alpha}, learn_prior=True)"
    run = pyro_vi.fit(model, guide, (columns(), PARTLY), elbo="enum", steps=5, progress=False)
    assert math.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -1.0}, "alpha is a weight and must not be negative"),
        ({"enters": "both"}, "enters must be 'decoder' or 'prior'"),
        ({"dropout": 1.0}, "dropout must be a fraction"),
        ({"latent_dim": 0}, "latent_dim must be a whole number of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        SemiSupervisedVAE(spec(), classes=3, **options)

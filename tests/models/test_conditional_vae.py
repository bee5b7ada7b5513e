"""The conditional VAE: its densities, its classes, and what it refuses."""

import dataclasses
import math

import pyro
import pytest
import torch
from catalogue import columns, spec

import pyro_vi
from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal
from pyro_vi.models.conditional_vae import PRIORS, ConditionalVAE
from pyro_vi.models.vae import VAE

EXACT = {"rtol": 1e-10, "atol": 1e-10}
CLASSES = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])


def test_one_class_is_a_vae():
    torch.manual_seed(0)
    x, y = columns(), torch.zeros(8, dtype=torch.long)
    model, plain = ConditionalVAE(spec(), classes=1, latent_dim=2), VAE(spec(), latent_dim=2)
    with torch.no_grad():
        plain.decoder[0].weight.copy_(model.decoder[0].weight[:, :2])
        plain.decoder[0].bias.copy_(model.decoder[0].bias + model.decoder[0].weight[:, 2])
        plain.decoder[2].load_state_dict(model.decoder[2].state_dict())
    guide = DiagNormal(plain, (x,))
    found = terms(model, lambda x, y: guide(x), (x, y), seed=1)
    expected = terms(plain, guide, x, seed=1)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, **EXACT)
    torch.testing.assert_close(found.kl, expected.kl, **EXACT)


@pytest.mark.parametrize("prior", PRIORS)
def test_each_row_has_the_decoder_and_the_prior_of_its_class(prior):
    """log p(x, z | y) of a row is that of the MLP of (z, one-hot y) by hand."""
    torch.manual_seed(0)
    model, x, z = (
        ConditionalVAE(spec(), classes=3, latent_dim=2, prior=prior, scale=0.5),
        columns(),
        columns(features=2),
    )
    loc, log_scale = torch.zeros(3, 2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    if prior == "class":
        with torch.no_grad():
            loc, log_scale = model.loc.normal_(), model.log_scale_of_z.normal_()
    trace = pyro.poutine.trace(pyro.poutine.condition(model, {"z": z})).get_trace(x, CLASSES)
    trace.compute_log_prob()
    assert trace.nodes["x"]["scale"] == 50 / 8
    for row, y in enumerate(CLASSES.tolist()):
        one_hot = [float(y == k) for k in range(3)]
        mean = model.decoder(torch.tensor([*z[row].tolist(), *one_hot], dtype=torch.float64))
        error = ((x[row] - mean) / 0.5).square().sum()
        expected = -0.5 * error - 3 * math.log(0.5 * math.sqrt(2 * math.pi))
        torch.testing.assert_close(trace.nodes["x"]["fn"].log_prob(x)[row], expected, **EXACT)
        away = ((z[row] - loc[y]) / log_scale[y].exp()).square().sum()
        expected = -0.5 * away - log_scale[y].sum() - math.log(2 * math.pi)
        torch.testing.assert_close(trace.nodes["z"]["fn"].log_prob(z)[row], expected.detach(), **EXACT)


def test_samples_of_a_class_come_from_its_prior_and_its_decoder():
    model = ConditionalVAE(spec(), classes=3, latent_dim=2, prior="class")
    with torch.no_grad():
        model.loc.copy_(torch.tensor([[5.0, 0.0], [0.0, 5.0], [-5.0, -5.0]]))
        model.log_scale_of_z.fill_(-30.0)
    assert model.sample(CLASSES.reshape(2, 4)).shape == (2, 4, 3)
    torch.testing.assert_close(model.sample(CLASSES), model.decode(model.loc[CLASSES], CLASSES), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["diag_normal", "full_normal", "structured", "flow", "mixture", "prior"])
def test_guides_of_the_shelf_fit_it(guide):
    run = pyro_vi.fit(
        "conditional_vae(classes=3, prior='class')", guide, (columns(), CLASSES), elbo="trace", steps=5, progress=False
    )
    assert math.isfinite(run.history[-1]["loss"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "give the model their labels, as in .*, or classes=10"),
        ({"classes": 0}, "classes must be a whole number of at least 1, not 0"),
        ({"classes": 2, "prior": "learned"}, "prior must be 'shared' or 'class'"),
        ({"classes": 2, "latent_dim": 0}, "latent_dim must be a whole number of at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        ConditionalVAE(spec(), **options)


def test_pictures_keep_their_shape():
    model = ConditionalVAE(dataclasses.replace(spec(), event_shape=(4, 5)), classes=3, latent_dim=2)
    assert model.decode(columns(8, 2), CLASSES).shape == (8, 4, 5)
    assert model.decode(columns(6, 2).reshape(6, 1, 2), CLASSES).shape == (6, 8, 4, 5)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "conditional_vae takes .x, y. with labels y"),
        (CLASSES.float(), "labels are whole numbers of shape"),
        (CLASSES + 1, "go from 1 to 3, and conditional_vae has 3 classes, 0 to 2; give classes=4"),
        (CLASSES - 1, "3 of 8 rows of .* have none; leave them out, or use model 'semi_supervised_vae'"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels, words):
    with pytest.raises(InputError, match=words):
        ConditionalVAE(spec(), classes=3).start(columns(), labels)

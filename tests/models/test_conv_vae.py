"""The convolutional VAE: images of any size, and the network of transposed convolutions."""

import dataclasses

import pytest
import torch
from catalogue import spec
from torch import nn

import pyro_vi
from pyro_vi.data import load
from pyro_vi.errors import InputError
from pyro_vi.models.conv_vae import ConvVAE, Images, image_of
from pyro_vi.models.vae import VAE
from pyro_vi.overview import described


def images(shape, support="boolean", image_shape=None):
    return dataclasses.replace(spec(support=support), event_shape=shape, image_shape=image_shape)


@pytest.mark.parametrize(
    ("shape", "image_shape", "expected"),
    [
        ((8, 8), None, (1, 8, 8)),
        ((28, 20), None, (1, 28, 20)),
        ((3, 7, 5), None, (3, 7, 5)),
        ((64,), (8, 8), (1, 8, 8)),
        ((1, 1), None, (1, 1, 1)),
    ],
)
@pytest.mark.parametrize(("support", "likelihood"), [("boolean", "auto"), ("real", "gaussian_scale")])
def test_images_of_any_size(shape, image_shape, expected, support, likelihood):
    data = images(shape, support, image_shape)
    assert image_of(data) == expected
    model = ConvVAE(data, latent_dim=2, channels=(4, 3), likelihood=likelihood)
    z = torch.randn(6, 5, 2, dtype=torch.float64)
    assert model.decode(z).shape == (6, 5, *shape)
    assert model.observation(z).log_prob(torch.ones(5, *shape, dtype=torch.float64)).shape == (6, 5)
    assert model(torch.ones(5, *shape, dtype=torch.float64)).shape == (5, *shape)


def test_the_channels_of_an_output_lie_together():
    """Two numbers a pixel, three channels: the first three maps are the means, the others the scales."""
    torch.manual_seed(0)
    model = ConvVAE(images((3, 4, 4), "real"), latent_dim=2, channels=(4,), likelihood="gaussian_scale", floor=0.1)
    z = torch.randn(5, 2, dtype=torch.float64)
    maps = model.decoder(z).reshape(5, 6, 4, 4)
    normal = model.observation(z).base_dist
    torch.testing.assert_close(normal.loc, maps[:, :3])
    torch.testing.assert_close(
        normal.scale, 0.1 + nn.functional.softplus(maps[:, 3:]) / torch.tensor(2.0).double().log()
    )


def test_a_cut_image_is_the_middle_of_the_whole():
    torch.manual_seed(0)
    cut = Images(2, (4, 3), (1, 5, 6), "relu")
    whole = Images(2, (4, 3), (1, 8, 8), "relu")
    whole.load_state_dict(cut.state_dict())
    z = torch.randn(3, 2)
    torch.testing.assert_close(cut(z).reshape(3, 5, 6), whole(z).reshape(3, 8, 8)[:, 1:6, 1:7])


def test_a_map_without_a_hidden_layer_is_the_transposed_convolution():
    torch.manual_seed(0)
    net = Images(3, (2,), (1, 6, 6), "relu")
    z = torch.randn(4, 3)
    layer = net.layers[1]
    expected = nn.functional.conv_transpose2d(
        net.first(z).reshape(4, 2, 3, 3).relu(), layer.weight, layer.bias, stride=2, padding=1
    )
    torch.testing.assert_close(net(z), expected.reshape(4, -1))


def test_it_is_a_vae_with_another_decoder():
    model, plain = ConvVAE(load("digits").spec, latent_dim=2, prior="vamp"), VAE(load("digits").spec, latent_dim=2)
    assert isinstance(model, VAE) and type(model.decoder) is Images and model.likelihood == plain.likelihood
    assert type(model.prior).__name__ == "VampPrior"


@pytest.mark.slow
def test_a_fit_lowers_its_loss():
    run = pyro_vi.fit(
        "conv_vae(channels=(8, 4))", "diag_normal", "digits", steps=100, batch_size=64, lr=0.01, progress=False
    )
    assert run.history[-1]["loss"] < 0.85 * run.history[0]["loss"]


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((64,), {}, "conv_vae takes images, but a datum of 'made up' has shape"),
        ((28, 28, 3), {}, "with the channels last; move them to the front, as by numpy.moveaxis"),
        ((8, 8), {"channels": (0,)}, "channels must hold positive whole numbers"),
        ((8, 8), {"channels": ()}, "channels must hold at least one number"),
        ((8, 8), {"latent_dim": 0}, "at least 1"),
        ((8, 8), {"activation": "sine"}, "no activation named 'sine'"),
    ],
)
def test_what_is_no_image_or_out_of_range_is_refused(shape, options, words):
    with pytest.raises(InputError, match=words):
        ConvVAE(images(shape), **options)


@pytest.mark.slow
def test_its_options_are_those_of_the_vae_too():
    found = described("conv_vae")[0].options
    assert set(found) >= {"channels", "activation", "latent_dim", "likelihood", "prior", "components"}
    assert found["activation"].default == "'relu'" and all(option.help for option in found.values())

"""Normalizing flows as priors, likelihoods and guides, and Gaussian processes."""

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pyro.distributions.transforms as T
import torch
import zuko
from differential.harness import Program
from pyro.contrib.zuko import ZukoToPyro
from pyro.infer import TraceMeanField_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_mean
from pyro.nn import PyroModule
from torch import Tensor, nn

N = 7


def flow_prior() -> Program:
    """A VAE whose prior is a flow: its density is evaluated after the model has returned."""
    flow, encoder, decoder = T.affine_coupling(2, hidden_dims=[3]), nn.Linear(3, 4), nn.Linear(2, 3)

    def model(x: Tensor) -> None:
        pyro.module("flow", flow)
        pyro.module("decoder", decoder)
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.TransformedDistribution(base, [flow]))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Program(model, guide, (torch.randn(N, 3),), rows=N)


def flow_likelihood() -> Program:
    """Maximum likelihood of a flow: no latent at all."""
    flows = [T.spline_coupling(2, hidden_dims=[3], count_bins=3, bound=4.0), T.affine_coupling(2, hidden_dims=[3])]
    modules = nn.ModuleList(flows)

    def model(x: Tensor) -> None:
        pyro.module("flows", modules)
        for flow in flows:
            flow.clear_cache()
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, flows), obs=x)

    return Program(model, lambda x: None, (torch.randn(N, 2),), rows=N)


def conditional_flow() -> Program:
    """A likelihood that is a flow conditioned on a column, with a global latent for the shift."""
    flow = T.conditional_affine_autoregressive(2, context_dim=1, hidden_dims=[4])

    def model(x: Tensor, context: Tensor) -> None:
        pyro.module("flow", flow)
        shift = pyro.sample("shift", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        base = dist.Normal(shift, 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            conditioned = dist.ConditionalTransformedDistribution(base, [flow]).condition(context)
            pyro.sample("x", conditioned, obs=x)

    guide = AutoNormal(model, init_loc_fn=init_to_mean)
    return Program(model, guide, (torch.randn(N, 2), torch.randn(N, 1)), rows=N)


def flow_guide() -> Program:
    """An inverse autoregressive flow after an encoder."""
    flow, encoder = T.affine_autoregressive(2, hidden_dims=[4]), nn.Linear(2, 4)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z**2, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        pyro.module("flow", flow)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            base = dist.Normal(loc, log_scale.exp()).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [flow]))

    return Program(model, guide, (torch.rand(N, 2),), rows=N)


def flow_with_batch_norm() -> Program:
    """A flow with a batch norm between two layers, in training mode."""
    layers = [T.affine_coupling(2, hidden_dims=[3]), T.batchnorm(2), T.affine_coupling(2, hidden_dims=[3])]
    modules = nn.ModuleList(layers)

    def model(x: Tensor) -> None:
        pyro.module("layers", modules)
        for layer in layers:
            layer.clear_cache()
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.TransformedDistribution(base, layers), obs=x)

    return Program(model, lambda x: None, (torch.randn(N, 2),), rows=N)


def zuko_flow() -> Program:
    """A flow of the package zuko as guide of a global latent."""
    flow = zuko.flows.MAF(features=2, transforms=1, hidden_features=(4,))

    def model(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.prod(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("flow", flow)
        pyro.sample("z", ZukoToPyro(flow()))

    return Program(model, guide, (1 + torch.randn(N),), rows=N)


def _curve() -> tuple[Tensor, Tensor]:
    x = torch.linspace(0.0, 3.0, N)
    return x, torch.sin(x) + 0.1 * torch.randn(N)


def sparse_gp() -> Program:
    """`VariationalSparseGP`: methods of a PyroModule, without arguments; the module holds the data."""
    x, y = _curve()
    kernel = gp.kernels.RBF(1, variance=torch.tensor(1.0), lengthscale=torch.tensor(0.8))
    likelihood = gp.likelihoods.Gaussian(variance=torch.tensor(0.3))
    process = gp.models.VariationalSparseGP(x, y, kernel, Xu=x[::3].clone(), likelihood=likelihood, whiten=True)
    return Program(process.model, process.guide, elbo=TraceMeanField_ELBO)


def gp_regression_with_priors() -> Program:
    """`GPRegression` with priors on the kernel's parameters, fitted by MAP (the guide that the class brings)."""
    x, y = _curve()
    kernel = gp.kernels.RBF(1)
    kernel.lengthscale = pyro.nn.PyroSample(dist.LogNormal(torch.tensor(0.0), torch.tensor(1.0)))
    kernel.variance = pyro.nn.PyroSample(dist.LogNormal(torch.tensor(0.0), torch.tensor(1.0)))
    process = gp.models.GPRegression(x, y, kernel, noise=torch.tensor(0.2))
    return Program(process.model, process.guide)


def gp_classification() -> Program:
    """`VariationalGP` with a binary likelihood, its data passed on by functions."""
    x, y = _curve()
    kernel = gp.kernels.Matern32(1, lengthscale=torch.tensor(0.7))
    process = gp.models.VariationalGP(x, (y > 0.3).double(), kernel, likelihood=gp.likelihoods.Binary())
    return Program(lambda: process.model(), lambda: process.guide())


def gplvm() -> Program:
    """A latent variable model: the inputs of a sparse process are latent."""
    y = torch.randn(2, 5)
    kernel = gp.kernels.RBF(1, lengthscale=torch.ones(1))
    inputs = torch.linspace(-1.0, 1.0, 5)[:, None]
    base = gp.models.SparseGPRegression(inputs, y, kernel, Xu=inputs[::2].clone(), noise=torch.tensor(0.3), jitter=1e-5)
    process = gp.models.GPLVM(base)
    return Program(process.model, process.guide)


def deep_kernel() -> Program:
    """A kernel on the output of a network."""
    x, y = _curve()
    net = PyroModule[nn.Linear](1, 1)
    base = gp.kernels.RBF(1)
    kernel = gp.kernels.Warping(base, iwarping_fn=lambda v: net(v))
    process = gp.models.VariationalSparseGP(
        x[:, None], y, kernel, Xu=x[::3, None].clone(), likelihood=gp.likelihoods.Gaussian()
    )

    def model() -> None:
        pyro.module("net", net)
        process.model()

    return Program(model, process.guide)


PROGRAMS = [
    flow_prior,
    flow_likelihood,
    conditional_flow,
    flow_guide,
    flow_with_batch_norm,
    zuko_flow,
    sparse_gp,
    gp_regression_with_priors,
    gp_classification,
    gplvm,
    deep_kernel,
]

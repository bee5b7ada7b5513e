"""Variational autoencoders: a class, closures, labels, dropout, batch norm, annealing."""

import pyro
import pyro.distributions as dist
import torch
from differential.harness import Program
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from torch import Tensor, nn

N, D, H, Z = 8, 5, 4, 2


def pixels(n: int = N) -> Tensor:
    return (torch.rand(n, D) < 0.4).to(torch.get_default_dtype())


class Encoder(nn.Module):
    """x (and labels) → mean and scale of z."""

    def __init__(self, width: int = D, *middle: nn.Module) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, H), *middle, nn.Softplus())
        self.loc, self.log_scale = nn.Linear(H, Z), nn.Linear(H, Z)

    def forward(self, *x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(torch.cat(x, -1))
        return self.loc(hidden), self.log_scale(hidden).exp()


def decoder(width: int = Z) -> nn.Module:
    return nn.Sequential(nn.Linear(width, H), nn.Softplus(), nn.Linear(H, D))


class VAE(nn.Module):
    """The class of the tutorial: methods model and guide, with `pyro.module` statements."""

    def __init__(self, *middle: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = Encoder(D, *middle), decoder()

    def model(self, x: Tensor) -> Tensor:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z = pyro.sample("latent", dist.Normal(x.new_zeros(len(x), Z), x.new_ones(len(x), Z)).to_event(1))
            logits = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(logits=logits).to_event(1), obs=x)
            return logits

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            loc, scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(loc, scale).to_event(1))


def vae_class() -> Program:
    vae = VAE()
    return Program(vae.model, vae.guide, (pixels(),), rows=N)


def vae_class_mean_field() -> Program:
    vae = VAE()
    return Program(vae.model, vae.guide, (pixels(),), elbo=TraceMeanField_ELBO, rows=N)


def vae_three_particles() -> Program:
    vae = VAE()
    return Program(
        vae.model,
        vae.guide,
        (pixels(),),
        elbo=lambda: Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1),
        rows=N,
    )


def vae_dropout() -> Program:
    vae = VAE(nn.Dropout(0.5))
    return Program(vae.model, vae.guide, (pixels(),), rows=N)


def vae_batch_norm() -> Program:
    vae = VAE(nn.BatchNorm1d(H))
    return Program(vae.model, vae.guide, (pixels(),), elbo=TraceMeanField_ELBO, rows=N)


def vae_of_closures() -> Program:
    """Networks in the closures of two functions, and a noise that is a constrained parameter."""
    encoder, decoder_net = Encoder(), decoder()

    def model(x: Tensor) -> None:
        net = pyro.module("decoder", decoder_net)
        noise = pyro.param("noise", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(net(z), noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        net = pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*net(x)).to_event(1))

    return Program(model, guide, (torch.randn(N, D),), rows=N)


def vae_annealed() -> Program:
    """The weight of the KL is an argument, a Python number."""
    vae = VAE()

    def model(x: Tensor, weight: float) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=weight):
                z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=vae.decoder(z)).to_event(1), obs=x)

    def guide(x: Tensor, weight: float) -> None:
        pyro.module("encoder", vae.encoder)
        with pyro.plate("data", len(x)), poutine.scale(scale=weight):
            pyro.sample("z", dist.Normal(*vae.encoder(x)).to_event(1))

    return Program(model, guide, (pixels(), 0.3), rows=N)


def conditional_vae() -> Program:
    """The prior of z and the likelihood depend on integer labels."""
    prior, encoder, decoder_net = nn.Embedding(3, Z), Encoder(D + 3), decoder(Z + 3)

    def model(y: Tensor, x: Tensor) -> None:
        pyro.module("prior", prior)
        pyro.module("decoder", decoder_net)
        label = nn.functional.one_hot(y, 3).to(x.dtype)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(prior(y), 1.0).to_event(1))
            logits = decoder_net(torch.cat([z, label], -1))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(y: Tensor, x: Tensor) -> None:
        pyro.module("encoder", encoder)
        label = nn.functional.one_hot(y, 3).to(x.dtype)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(*encoder(x, label)).to_event(1))

    return Program(model, guide, (torch.arange(N) % 3, pixels()), rows=N)


class SemiSupervised(nn.Module):
    """M2: a label that is drawn or observed, and z | x, y; the plate has no size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder_y = nn.Sequential(nn.Linear(D, 3), nn.Softmax(-1))
        self.encoder_z, self.decoder = Encoder(D + 3), decoder(Z + 3)

    def model(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("ss_vae", self)
        n = xs.size(0)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(xs.new_zeros(n, Z), xs.new_ones(n, Z)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(xs.new_ones(n, 3) / 3.0), obs=ys)
            wide = torch.broadcast_shapes(y.shape[:-1], z.shape[:-1])
            both = torch.cat([z.expand(*wide, Z), y.expand(*wide, 3)], -1)
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(both)).to_event(1), obs=xs)

    def guide(self, xs: Tensor, ys: Tensor | None = None) -> None:
        pyro.module("ss_vae", self)
        with pyro.plate("data"):
            if ys is None:
                ys = pyro.sample("y", dist.OneHotCategorical(self.encoder_y(xs)))
            rows = xs.expand(*ys.shape[:-1], D)
            pyro.sample("z", dist.Normal(*self.encoder_z(rows, ys)).to_event(1))


def semi_supervised_unlabelled() -> Program:
    vae = SemiSupervised()
    guide = config_enumerate(vae.guide, "parallel", expand=True)
    return Program(vae.model, guide, (pixels(),), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=N)


def semi_supervised_labelled() -> Program:
    vae = SemiSupervised()
    guide = config_enumerate(vae.guide, "parallel", expand=True)
    labels = torch.eye(3)[torch.arange(N) % 3]
    return Program(vae.model, guide, (pixels(), labels), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=N)


def semi_supervised_none() -> Program:
    """None in the place of the labels, given as an argument."""
    vae = SemiSupervised()
    guide = config_enumerate(vae.guide, "parallel", expand=True)
    return Program(vae.model, guide, (pixels(), None), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=N)


def semi_supervised_partly() -> Program:
    """Labels known for some rows only: the others are summed out in the guide."""
    vae = SemiSupervised()

    def model(xs: Tensor, ys: Tensor, known: Tensor) -> None:
        pyro.module("decoder", vae.decoder)
        with pyro.plate("data", len(xs)):
            z = pyro.sample("z", dist.Normal(torch.zeros(Z), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(3) / 3), obs=ys, obs_mask=known)
            wide = torch.broadcast_shapes(y.shape[:-1], z.shape[:-1])
            both = torch.cat([z.expand(*wide, Z), y.expand(*wide, 3)], -1)
            pyro.sample("x", dist.Bernoulli(logits=vae.decoder(both)).to_event(1), obs=xs)

    @config_enumerate
    def guide(xs: Tensor, ys: Tensor, known: Tensor) -> None:
        pyro.module("encoder_y", vae.encoder_y)
        pyro.module("encoder_z", vae.encoder_z)
        with pyro.plate("data", len(xs)):
            with poutine.mask(mask=~known):
                y = pyro.sample("y_unobserved", dist.OneHotCategorical(vae.encoder_y(xs)))
            y = torch.where(known[:, None], ys, y)
            pyro.sample("z", dist.Normal(*vae.encoder_z(xs.expand(*y.shape[:-1], D), y)).to_event(1))

    args = (pixels(), torch.eye(3)[torch.arange(N) % 3], torch.arange(N) < 3)
    return Program(model, guide, args, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=N)


PROGRAMS = [
    vae_class,
    vae_class_mean_field,
    vae_three_particles,
    vae_dropout,
    vae_batch_norm,
    vae_of_closures,
    vae_annealed,
    conditional_vae,
    semi_supervised_unlabelled,
    semi_supervised_labelled,
    semi_supervised_none,
    semi_supervised_partly,
]

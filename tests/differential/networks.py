"""Networks as people have them: frozen, shared, hooked, reparametrised, created late."""

import pyro
import pyro.distributions as dist
import torch
from differential.harness import Program
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_mean
from pyro.nn import PyroModule
from torch import Tensor, nn

N = 6


def _pair(encoder: nn.Module, decoder: nn.Module) -> Program:
    """An encoder with two outputs, and a decoder of one latent."""

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Program(model, guide, (torch.randn(N, 2),), rows=N)


def frozen_layer() -> Program:
    """A layer without gradients, in evaluation mode, before a layer that is fitted."""
    body = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).requires_grad_(False).eval()

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(body(x))

    return _pair(Encoder(), nn.Linear(1, 2))


def evaluation_mode() -> Program:
    """The author has put a network with dropout into evaluation mode."""
    return _pair(nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)).eval(), nn.Linear(1, 2))


def shared_weight() -> Program:
    """One parameter in two layers of one network, and in a layer of the other network."""
    encoder = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
    encoder[2].weight = encoder[0].weight
    decoder = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 2))
    decoder[1].weight = encoder[0].weight
    return _pair(encoder, decoder)


def gradient_hook() -> Program:
    """A hook on a parameter that keeps one column from moving."""
    encoder = nn.Linear(2, 2)
    encoder.weight.register_hook(lambda gradient: gradient * torch.tensor([1.0, 0.0]))
    return _pair(encoder, nn.Linear(1, 2))


def forward_hook() -> Program:
    decoder = nn.Linear(1, 2)
    decoder.register_forward_hook(lambda module, args, output: output.clamp(-1, 1))
    return _pair(nn.Linear(2, 2), decoder)


def weight_norm() -> Program:
    return _pair(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(1, 2))


def embedding_of_rows() -> Program:
    """A row of parameters for each row of the data, by number."""
    table = nn.Embedding(N, 2)

    def model(rows: Tensor, x: Tensor) -> None:
        with pyro.plate("data", len(rows)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(rows: Tensor, x: Tensor) -> None:
        pyro.module("table", table)
        with pyro.plate("data", len(rows)):
            loc, log_scale = table(rows).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))

    return Program(model, guide, (torch.arange(N), torch.randn(N)), rows=N)


def lazily_made() -> Program:
    """Parameters whose shape the first run tells; the AutoGuide of a model with a network of its own."""

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(2, 1)

        def forward(self, x: Tensor, y: Tensor) -> None:
            bias = pyro.param("bias", lambda: torch.zeros(x.shape[1]))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(w * self.net(x + bias)[:, 0], 1.0), obs=y)

    model = Model()
    return Program(model, AutoNormal(model, init_loc_fn=init_to_mean), (torch.randn(N, 2), torch.randn(N)), rows=N)


def writes_into_its_batch() -> Program:
    """The model clamps its argument in place."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, 1.0), obs=x.clamp_(-1, 1))

    def guide(x: Tensor) -> None:
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.3))

    return Program(model, guide, (2 * torch.randn(N),), rows=N)


def without_a_plate() -> Program:
    """Independent rows, declared as one event."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(m, 1.0).expand([len(x)]).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.3))

    return Program(model, guide, (torch.randn(N),), rows=N)


def guessed_nesting() -> Program:
    """The estimator finds the nesting of the plates by itself."""

    @config_enumerate
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(m + z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.3))

    return Program(model, guide, (torch.randn(N),), elbo=TraceEnum_ELBO, rows=N)


def particles_of_guessed_nesting() -> Program:
    program = _pair(nn.Linear(2, 2), nn.Linear(1, 2))
    elbo = lambda: Trace_ELBO(num_particles=3, vectorize_particles=True)  # noqa: E731
    return Program(program.model, program.guide, program.args, elbo=elbo, rows=N)


def _mean(x: Tensor) -> None:
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def a_branch_by_random_numbers() -> Program:
    """Python's control flow depends on a draw: each step moves one of two parameters."""

    def guide(x: Tensor) -> None:
        left, right = pyro.param("left", torch.tensor(-0.2)), pyro.param("right", torch.tensor(0.2))
        side = pyro.sample("side", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("m", dist.Normal(left if float(side) < 0 else right, 0.3))

    return Program(_mean, guide, (torch.randn(N),), rows=N)


def a_parameter_of_a_later_step() -> Program:
    """The same, with a parameter that is created when the branch is first met."""

    def guide(x: Tensor) -> None:
        side = pyro.sample("side", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        name = "left" if float(side) < 0 else "right"
        pyro.sample("m", dist.Normal(pyro.param(name, torch.tensor(0.1)), 0.3))

    return Program(_mean, guide, (torch.randn(N),), rows=N)


PROGRAMS = [
    frozen_layer,
    evaluation_mode,
    shared_weight,
    gradient_hook,
    forward_hook,
    weight_norm,
    embedding_of_rows,
    lazily_made,
    writes_into_its_batch,
    without_a_plate,
    guessed_nesting,
    particles_of_guessed_nesting,
    a_branch_by_random_numbers,
]
REFUSED = {a_parameter_of_a_later_step: "parameter '.*' is created only after the first call; create every parameter"}
"""Programs that `pyro.infer.SVI` runs and a fit refuses before its first step, with the message."""

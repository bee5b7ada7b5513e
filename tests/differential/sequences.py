"""Time series: Markov chains with discrete and continuous states, lengths, masks and plates."""

import pyro
import pyro.distributions as dist
import torch
from differential.harness import Program
from pyro import poutine
from pyro.contrib.tracking.distributions import EKFDistribution
from pyro.contrib.tracking.dynamic_models import NcvContinuous
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal, init_to_mean
from torch import Tensor, nn

S, T, K = 5, 4, 2  # sequences, steps, states


def deep_markov() -> Program:
    """A Markov chain of z with neural transitions, a recurrent guide that reads backwards, masks and annealing."""

    class DMM(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emit, self.move, self.rnn = nn.Linear(2, 3), nn.Linear(2, 4), nn.RNN(3, 4, batch_first=True)
            self.combine = nn.Linear(2 + 4, 4)
            self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

        def model(self, x: Tensor, backwards: Tensor, mask: Tensor, annealing: float = 1.0) -> None:
            pyro.module("dmm", self)
            z = self.z_0.expand(len(x), 2)
            with pyro.plate("sequences", len(x)):
                for t in pyro.markov(range(x.shape[1])):
                    loc, scale = self.move(z).chunk(2, -1)
                    with poutine.scale(None, annealing):
                        prior = dist.Normal(loc, nn.functional.softplus(scale))
                        z = pyro.sample(f"z_{t}", prior.mask(mask[:, t : t + 1]).to_event(1))
                    likelihood = dist.Bernoulli(logits=self.emit(z)).mask(mask[:, t : t + 1])
                    pyro.sample(f"x_{t}", likelihood.to_event(1), obs=x[:, t])

        def guide(self, x: Tensor, backwards: Tensor, mask: Tensor, annealing: float = 1.0) -> None:
            pyro.module("dmm", self)
            hidden = self.rnn(backwards)[0].flip(1)
            z = self.z_q_0.expand(len(x), 2)
            with pyro.plate("sequences", len(x)):
                for t in pyro.markov(range(x.shape[1])):
                    loc, scale = self.combine(torch.cat([z, hidden[:, t]], -1)).chunk(2, -1)
                    with poutine.scale(None, annealing):
                        q = dist.Normal(loc, nn.functional.softplus(scale)).mask(mask[:, t : t + 1])
                        z = pyro.sample(f"z_{t}", q.to_event(1))

    dmm = DMM()
    x = (torch.rand(S, T, 3) < 0.4).double()
    mask = torch.arange(T) < torch.tensor([4, 4, 3, 2, 1])[:, None]
    return Program(dmm.model, dmm.guide, (x, x.flip(1), mask, 0.4), rows=S)


def _chain() -> tuple[Tensor, Tensor]:
    """Transition and emission probabilities, with priors."""
    with pyro.plate("states", K):
        move = pyro.sample("move", dist.Dirichlet(torch.eye(K) + 0.5))
        emit = pyro.sample("emit", dist.Beta(2.0, 3.0))
    return move, emit


def _probabilities(model: object) -> AutoDelta:
    return AutoDelta(poutine.block(model, expose=["move", "emit"]), init_loc_fn=init_to_mean)


LENGTHS = torch.tensor([4, 3, 3, 2, 1])


def hmm_in_loops() -> Program:
    """Sequences in a sequential plate, steps in `pyro.markov`, states summed out; whole-number columns."""

    @config_enumerate
    def model(sequences: Tensor, lengths: Tensor) -> None:
        move, emit = _chain()
        for i in pyro.plate("sequences", len(sequences)):
            z = 0
            for t in pyro.markov(range(int(lengths[i]))):
                z = pyro.sample(f"z_{i}_{t}", dist.Categorical(move[z]))
                pyro.sample(f"x_{i}_{t}", dist.Bernoulli(emit[z]), obs=sequences[i, t].to(emit.dtype))

    args = (torch.randint(0, 2, (S, T)), LENGTHS)
    return Program(model, _probabilities(model), args, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=S)


def _vectorised(sequences: Tensor, lengths: Tensor, batch_size: int | None = None) -> None:
    move, emit = _chain()
    with pyro.plate("sequences", len(sequences), batch_size, dim=-1) as rows:
        x, z = sequences[rows], 0
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths[rows]):
                z = pyro.sample(f"z_{t}", dist.Categorical(move[z]), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Bernoulli(emit[z]), obs=x[:, t])


def hmm_vectorised() -> Program:
    args = (torch.randint(0, 2, (S, T)).double(), LENGTHS, None)
    guide = _probabilities(_vectorised)
    return Program(_vectorised, guide, args, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=S)


def hmm_own_minibatch() -> Program:
    args = (torch.randint(0, 2, (S, T)).double(), LENGTHS, 2)
    guide = _probabilities(_vectorised)
    return Program(_vectorised, guide, args, elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=S)


def hmm_neural() -> Program:
    """The emission is a network, and the parameters are fitted by maximum likelihood: the guide is empty."""

    class Emission(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(K + 1, 1)

        def forward(self, z: Tensor, before: Tensor) -> Tensor:
            state = nn.functional.one_hot(z, K).to(before.dtype)
            wide = torch.broadcast_shapes(z.shape, before.shape)
            return self.net(torch.cat([state.expand(*wide, K), before.expand(wide)[..., None]], -1))[..., 0]

    emission = Emission()

    def model(x: Tensor) -> None:
        pyro.module("emission", emission)
        move = pyro.param("move", torch.full((K, K), 1 / K) + 0.2 * torch.eye(K) - 0.1, dist.constraints.simplex)
        with pyro.plate("sequences", len(x), dim=-1):
            z, before = torch.tensor(0), x.new_zeros(len(x))
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(move[z]), infer={"enumerate": "parallel"})
                pyro.sample(f"x_{t}", dist.Bernoulli(logits=emission(z, before)), obs=x[:, t])
                before = x[:, t]

    x = torch.randint(0, 2, (S, T)).double()
    return Program(model, lambda x: None, (x,), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=S)


def mixed_hmm() -> Program:
    """A discrete effect of each group and of each sequence, summed out, and a chain of states."""

    def model(x: Tensor) -> None:
        groups, n, steps = x.shape
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), dist.constraints.simplex)
        group_effect, effect = (
            pyro.param("group_effect", torch.tensor([-1.0, 0.5])),
            pyro.param("effect", torch.zeros(2)),
        )
        start = pyro.param("start", torch.tensor([[0.3, -0.3], [-0.5, 0.5]]))
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("groups", groups, dim=-1):
            g = pyro.sample("g", dist.Categorical(weights), infer={"enumerate": "parallel"})
            with pyro.plate("individuals", n, dim=-2):
                i = pyro.sample("i", dist.Categorical(weights), infer={"enumerate": "parallel"})
                shift = group_effect[g] + effect[i]
                z = torch.tensor(0)
                for t in pyro.markov(range(steps)):
                    z = pyro.sample(
                        f"z_{t}",
                        dist.Categorical(logits=start[z] + shift[..., None] * torch.tensor([1.0, -1.0])),
                        infer={"enumerate": "parallel"},
                    )
                    pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[..., t].T)

    x = torch.randn(3, 2, 3)
    return Program(model, lambda x: None, (x,), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=2), rows=3)


def local_level() -> Program:
    """A random walk in a Python loop, without a plate."""

    def model(y: Tensor) -> None:
        noise = pyro.param("noise", torch.tensor(0.8), constraint=dist.constraints.positive)
        step = pyro.param("step", torch.tensor(0.4), constraint=dist.constraints.positive)
        level: float | Tensor = 0.0
        for t in range(len(y)):
            level = pyro.sample(f"level_{t}", dist.Normal(level, step if t else 10.0))
            pyro.sample(f"y_{t}", dist.Normal(level, noise), obs=y[t])

    return Program(model, AutoMultivariateNormal(model, init_loc_fn=init_to_mean), (torch.randn(6).cumsum(0),), rows=6)


def autoregression() -> Program:
    """AR(1): each observation depends on the one before."""

    def model(y: Tensor) -> None:
        phi = pyro.sample("phi", dist.Uniform(-1.0, 1.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
        with pyro.plate("time", len(y) - 1):
            pyro.sample("y", dist.Normal(phi * y[:-1], sigma), obs=y[1:])

    return Program(model, AutoNormal(model, init_loc_fn=init_to_mean), (torch.randn(9),), rows=8)


def gaussian_hmm() -> Program:
    """A linear state space model whose states are integrated out."""

    def model(y: Tensor) -> None:
        decay = pyro.sample("decay", dist.Beta(3.0, 2.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        start = dist.Normal(torch.zeros(1), 1.0).to_event(1)
        noise = dist.Normal(torch.zeros(1), scale).to_event(1)
        matrix, eye = decay.reshape(1, 1), torch.eye(1)
        with pyro.plate("series", len(y)):
            pyro.sample("y", dist.GaussianHMM(start, matrix, noise, eye, noise, duration=y.shape[1]), obs=y)

    return Program(model, AutoNormal(model, init_loc_fn=init_to_mean), (torch.randn(3, 5, 1),), rows=3)


def extended_kalman_filter() -> Program:
    """Positions of a target under nearly constant velocity; the variance of the measurement is fitted to them."""
    start, spread, dynamics = torch.zeros(4), torch.eye(4), NcvContinuous(4, torch.tensor(0.5)).requires_grad_(False)

    def model(positions: Tensor) -> None:
        variance = pyro.sample("variance", dist.HalfNormal(1.0))
        track = EKFDistribution(start, spread, dynamics, variance * torch.eye(2), time_steps=len(positions))
        pyro.sample("track", track, obs=positions)

    return Program(model, AutoDelta(model, init_loc_fn=init_to_mean), (torch.randn(5, 2).cumsum(0),), rows=5)


def capture_recapture() -> Program:
    """Cormack-Jolly-Seber: individuals in a plate, years in a loop, masks from the first capture on, deaths summed out."""

    def model(captures: Tensor) -> None:
        n, years = captures.shape
        survival = pyro.sample("survival", dist.Uniform(0.0, 1.0))
        recapture = pyro.sample("recapture", dist.Uniform(0.0, 1.0))
        with pyro.plate("animals", n, dim=-1):
            alive, seen = torch.ones(n), torch.zeros(n).bool()
            for t in pyro.markov(range(years)):
                with poutine.mask(mask=seen):
                    here = dist.Bernoulli(torch.where(seen, survival * alive, 1.0))
                    alive = pyro.sample(f"alive_{t}", here, infer={"enumerate": "parallel"})
                    pyro.sample(f"caught_{t}", dist.Bernoulli(recapture * alive), obs=captures[:, t])
                seen = seen | captures[:, t].bool()

    guide = AutoNormal(poutine.block(model, expose=["survival", "recapture"]), init_loc_fn=init_to_mean)
    captures = (torch.rand(7, 4) < 0.5).double()
    return Program(model, guide, (captures,), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=7)


def recapture_in_two_plates() -> Program:
    """Years in a plate of their own, with an effect of each year."""

    def model(captures: Tensor) -> None:
        n, years = captures.shape
        spread = pyro.sample("spread", dist.HalfNormal(1.0))
        with pyro.plate("years", years, dim=-1):
            effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
            with pyro.plate("animals", n, dim=-2):
                pyro.sample("caught", dist.Bernoulli(logits=spread * effect), obs=captures)

    return Program(model, AutoNormal(model, init_loc_fn=init_to_mean), ((torch.rand(6, 3) < 0.5).double(),), rows=3)


PROGRAMS = [
    deep_markov,
    hmm_in_loops,
    hmm_vectorised,
    hmm_own_minibatch,
    hmm_neural,
    mixed_hmm,
    local_level,
    autoregression,
    gaussian_hmm,
    extended_kalman_filter,
    capture_recapture,
    recapture_in_two_plates,
]

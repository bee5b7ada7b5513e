"""Times that ``compile="auto"`` compares, measured and estimated: `python scripts/benchmark_choice.py`.

The models are three VAEs and a state-space model with three time steps. Each runs in its own process, without a cache on disk.
The table has

* the time of an eager step and of a compiled step, and the estimates of both that ``compile="auto"`` makes from an eager step;
* the time to compile (processor time of the process and of the C++ compiler), and its estimate.

Eager and compiled steps take turns, and the table has the least times. With ``OMP_NUM_THREADS=1`` they are processor times,
which other processes on the machine hardly affect.
"""

import os
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass

import contenders
import pyro
import pyro.distributions as dist
import torch
import tyro
from contenders import BATCH, BATCHES, LR, Problem
from pyro.infer import TraceMeanField_ELBO
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from pyro_vi.compiling.cost import estimate_step, to_compile
from pyro_vi.data.loading import load
from pyro_vi.fitting.loop import Loop, Settings
from pyro_vi.programs.build import build_pair
from pyro_vi.programs.isolation import isolated
from pyro_vi.support.threads import fitting_threads

TIMES, NOTES, LATENT, HIDDEN = 3, 88, 8, 64


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Attributes:
        names: names of the models.
        rounds: turns of eager and of compiled steps.
        one: measure the first model in this process, and print its row.
    """

    names: tuple[str, ...] = ("tiny", "digits", "mnist", "sequence")
    rounds: int = 10
    one: bool = False


class Model(nn.Module):
    """z₀ = 0, z_t ~ N(f(z_{t−1})), x_t ~ Bernoulli(g(z_t))."""

    def __init__(self) -> None:
        super().__init__()
        self.move = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT))
        self.emit = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, NOTES))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = x.new_zeros(len(x), LATENT)
            for t in range(TIMES):
                loc, log_scale = self.move(z).chunk(2, -1)
                z = pyro.sample(f"z{t}", dist.Normal(loc, (0.1 * log_scale).exp()).to_event(1))
                pyro.sample(f"x{t}", dist.Bernoulli(logits=self.emit(z)).to_event(1), obs=x[:, t])


class Guide(nn.Module):
    """q(z_t | z_{t−1}, x_t, …, x_T), by a recurrent network from the last time to the first."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.GRUCell(NOTES, HIDDEN), nn.Linear(HIDDEN + LATENT, 2 * LATENT)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            states = [x.new_zeros(len(x), HIDDEN)]
            for t in reversed(range(TIMES)):
                states.append(self.read(x[:, t], states[-1]))
            z = x.new_zeros(len(x), LATENT)
            for t in range(TIMES):
                loc, log_scale = self.write(torch.cat([states[-1 - t], z], -1)).chunk(2, -1)
                z = pyro.sample(f"z{t}", dist.Normal(loc, (0.1 * log_scale).exp()).to_event(1))


def loop_of(name: str, compile: bool) -> Loop:
    """Return a fit of the named model."""
    torch.manual_seed(0)
    if name == "sequence":
        rows, programs = (torch.rand(BATCH * BATCHES, TIMES, NOTES) < 0.1).float(), (Model(), Guide())
    else:
        problem = Problem(name, "mean_field")
        rows, programs = problem.rows(), contenders.programs(problem)
    data = load(rows, heldout=0.0)
    settings = Settings(10**6, BATCH, "constant", None, beta=1.0, warmup=0, seed=0, kept=())
    optimizer = lambda parameters: torch.optim.Adam(parameters, LR, fused=True)  # noqa: E731
    return Loop(build_pair(*programs, data), TraceMeanField_ELBO(), data, settings, optimizer, compile=compile)


def busy() -> float:
    """Return the processor time, in seconds, of this process and of the processes that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def row(name: str, rounds: int) -> list[str]:
    """Return a row of the table: milliseconds per step and seconds to compile, measured and estimated."""
    eager, compiled = (loop_of(name, compile) for compile in (False, True))
    eager.take(3)
    batch = eager.data.example(BATCH)

    def estimate():
        with isolated(validation=False), fitting_threads(eager.pair, batch):
            return estimate_step(eager.objective, 1.0, eager.optimizer, None, lambda: batch)

    operations = estimate().operations
    begin, per_operation = busy(), to_compile(operations)
    compiled.take(2)
    took = busy() - begin
    assert compiled.compiled is not None
    tensors = len(compiled.compiled.whole.tensors)
    compiling = per_operation + to_compile(operations, tensors) - to_compile(operations)
    least = [float("inf")] * 4
    for _ in range(rounds):
        found = [*map(per_step, (eager, compiled)), *(getattr(estimate(), key) for key in ("eager", "compiled"))]
        least = [min(pair) for pair in zip(least, found, strict=True)]
    return [name, *(f"{1000 * value:.2f}" for value in least), f"{took:.1f}", f"{compiling:.1f}"]


def per_step(loop: Loop, count: int = 10) -> float:
    """Return the seconds of a step, from the mean of some."""
    clock = time.thread_time if os.environ.get("OMP_NUM_THREADS") == "1" else time.perf_counter
    start = clock()
    loop.take(count)
    return (clock() - start) / count


def main(options: Options) -> None:
    """Measure each model in its own process, and print the table."""
    if options.one:
        print(*row(options.names[0], options.rounds))
        return
    table = Table(
        "model", "eager ms", "compiled ms", "eager, in the fit", "compiled, estimated", "to compile s", "estimated"
    )
    for name in options.names:
        command = [sys.executable, __file__, "--one", "--names", name, "--rounds", str(options.rounds)]
        with tempfile.TemporaryDirectory() as cache:
            surroundings = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            done = subprocess.run(command, env=surroundings, stdout=subprocess.PIPE, text=True, check=True)
        table.add_row(*done.stdout.split())
    Console(highlight=False, width=120).print(table)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(tyro.cli(Options, description=__doc__))

"""The times that `check_device.py` measures: rates of the device, steps of three VAEs, audits and the evidence."""

import itertools
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import contenders
import torch
from contenders import LR, SIZES, Problem
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

import pyro_vi
from pyro_vi.fitting import Loop, Settings
from pyro_vi.programs import build_pair

BATCHES = (128, 1024, 8192)
Mode = bool | str


def title(mode: Mode) -> str:
    """Return the name of a mode."""
    return {False: "eager", True: "compiled"}.get(mode, str(mode)) if isinstance(mode, bool) else mode


@dataclass
class Times:
    """The times on one device: each part is a method that yields its rows.

    Attributes:
        device: the device.
        modes: values of ``compile`` besides False.
        rounds: turns of each contender.
        small: one VAE, one batch, few draws, and nothing that compiles.
        late: whether nothing more is to be started.
        found: bytes and operations per second, once they are measured.
    """

    device: torch.device
    modes: tuple[Mode, ...]
    rounds: int
    small: bool
    late: Callable[[], bool]
    found: dict[str, float] = field(default_factory=dict)

    def wait(self) -> None:
        """Wait until the device has done what was asked."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def least(self, function: Callable[[], Any], times: int = 5) -> float:
        """Return the least seconds of a call, after a first one that does not count."""
        function()
        found = []
        for _ in range(times):
            self.wait()
            start = time.perf_counter()
            function()
            self.wait()
            found.append(time.perf_counter() - start)
        return min(found)

    def rates(self) -> Iterator[dict[str, Any]]:
        """Rates of the device itself."""
        gpu, small = self.device.type == "cuda", self.small
        count, side = 2**20 if small else 2**28 if gpu else 2**26, 256 if small else 8192 if gpu else 2048
        source = torch.ones(count, device=self.device)
        target, one = torch.empty_like(source), torch.zeros(1, device=self.device)
        self.found["bytes"] = 8 * count / self.least(lambda: target.copy_(source))
        yield {"what": "copy", "value": self.found["bytes"] / 1e9, "unit": "GB/s read and written"}
        left, right = (torch.randn(side, side, device=self.device) for _ in range(2))
        self.found["flops"] = 2 * side**3 / self.least(lambda: left @ right)
        yield {"what": "product", "value": self.found["flops"] / 1e9, "unit": f"GFLOP/s, float32, {side} squared"}
        launch = self.least(lambda: [one.add_(1) for _ in range(1000)]) / 1000
        yield {"what": "smallest operation", "value": 1e6 * launch, "unit": "µs"}

    def floor(self, size: str, batch: int) -> dict[str, float]:
        """Return operations and bytes of a step, and the seconds that they take at least."""
        if not self.found:
            list(self.rates())
        data, hidden, latent = SIZES[size]
        layers = [(data, hidden), (hidden, 2 * latent), (latent, hidden), (hidden, data)]
        weights = sum(inputs * outputs for inputs, outputs in layers)
        parameters = weights + sum(outputs for _, outputs in layers)
        flops = 2 * batch * (3 * weights - data * hidden)
        moved = 4 * (6 * parameters + batch * data)
        return {
            "flops": flops,
            "bytes": moved,
            "floor": max(flops / self.found["flops"], moved / self.found["bytes"]),
        }

    def contenders(self, size: str, batch: int) -> dict[str, Callable[[int], float]]:
        """Return functions that take steps on the same data, by name; those that compile only where that is asked for."""
        rows = (torch.rand(4 * batch, SIZES[size][0], generator=torch.Generator().manual_seed(0)) < 0.3).float()
        compiled = not self.small and (size == "mnist" or batch in (BATCHES[0], BATCHES[-1]))
        found = {"torch": by_hand(size, batch, rows.to(self.device), False)}
        if compiled:
            found["torch.compile"] = by_hand(size, batch, rows.to(self.device), True)
        for mode in (False, *self.modes):
            if mode is not True or compiled:
                found[title(mode)] = self.ours(size, batch, rows, mode)
        return found

    def ours(self, size: str, batch: int, rows: Tensor, mode: Mode) -> Callable[[int], float]:
        """Steps of a fit of pyro_vi."""
        data = pyro_vi.load(rows, heldout=0.0)
        settings = Settings(10**6, batch, "constant", None, beta=1.0, warmup=0, seed=0, kept=())
        pair, data = (
            build_pair(*contenders.programs(Problem(size, "mean_field")), data).to(self.device),
            data.to(device=self.device),
        )
        loop = Loop(pair, TraceMeanField_ELBO(), data, settings, _adam, compile=mode)

        def steps(count: int) -> float:
            loop.take(count)
            return loop.position.losses[-1]

        return steps

    def steps(self) -> Iterator[dict[str, Any]]:
        """Times of a step, in turns."""
        sizes, batches = (("tiny",), BATCHES[:1]) if self.small else (tuple(SIZES), BATCHES)
        for batch, size in itertools.product(batches, sizes):
            if self.late():
                yield {"size": size, "batch": batch, "contender": "left out: no time"}
                continue
            torch.compiler.reset()
            turns, found = self.contenders(size, batch), {}
            counts, losses, order = {}, {}, random.Random(0)
            for name, steps in turns.items():
                steps(4)
                self.wait()
                start = time.perf_counter()
                steps(4)
                self.wait()
                each = (time.perf_counter() - start) / 4
                counts[name], found[name] = max(4, min(400, int((0.002 if self.small else 0.1) / each))), []
            for _ in range(self.rounds):
                for name in order.sample(list(turns), len(turns)):
                    self.wait()
                    start = time.perf_counter()
                    losses[name] = turns[name](counts[name])
                    self.wait()
                    found[name].append((time.perf_counter() - start) / counts[name])
            for name, values in found.items():
                yield {
                    "size": size, "batch": batch, "contender": name, "seconds": statistics.median(values),
                    "least": min(values), "loss": losses[name], **self.floor(size, batch),
                }  # fmt: skip

    def draws(self) -> Iterator[dict[str, Any]]:
        """Rates of audits and of the evidence."""
        draws, particles, count = (40, 40, 30) if self.small else (1000, 5000, 3000)
        for size in ("tiny",) if self.small else ("tiny", "digits"):
            if self.late():
                yield {"size": size, "what": "left out: no time", "value": float("nan"), "unit": ""}
                continue
            problem = Problem(size, "trace")
            model, guide = (program.to(self.device) for program in contenders.programs(problem))
            rows = problem.rows().to(self.device)
            for vectorize in (True, False):
                seconds = self.once(
                    pyro_vi.audit, model, guide, rows[:128], elbos="trace", draws=draws, vectorize=vectorize
                )
                how = "at once" if vectorize else "one by one"
                yield {"size": size, "what": f"audit, {how}", "value": draws / seconds, "unit": "draws/s"}
            for mode in (False,) if self.small else (False, "auto"):
                seconds = self.once(pyro_vi.evidence, model, guide, rows[:count], particles=particles, compile=mode)
                what = f"evidence, K = {particles}, compile={mode!r}"
                yield {"size": size, "what": what, "value": count / seconds, "unit": "data/s"}

    def once(self, function: Callable[..., Any], *args: Any, **options: Any) -> float:
        """Return the seconds of one call, with all that it compiles."""
        self.wait()
        start = time.perf_counter()
        function(*args, **options)
        self.wait()
        return time.perf_counter() - start


def _adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, LR, fused=True)


def by_hand(size: str, batch: int, rows: Tensor, compiled: bool) -> Callable[[int], float]:
    """Steps in plain PyTorch, with the analytic KL."""
    model, guide = (program.to(rows.device) for program in contenders.programs(Problem(size, "mean_field")))

    def plain(x: Tensor) -> Tensor:
        loc, log_scale = guide.encoder(x).chunk(2, -1)
        scale = log_scale.exp()
        kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * log_scale).sum()
        logits = model.decoder(loc + scale * torch.randn_like(loc))
        return binary_cross_entropy_with_logits(logits, x, reduction="sum") + kl

    loss_of = torch.compile(plain, dynamic=False) if compiled else plain
    optimizer = _adam([*model.parameters(), *guide.parameters()])
    return contenders.descending(loss_of, optimizer, rows.split(batch))

"""Sums of importance weights over many draws, in memory that does not grow with the number of draws.

* `Weights.sums` returns log Σ_k w_k, log Σ_k w_k² and the largest log w_k for a block of data, w_k = p(x, z_k) / q(z_k | x).
* `Weights.compile` captures the draws of one chunk, compiles them if that pays, and proves that the same seed gives the same
  weights as the programs.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from pyro_vi.compiling import (
    Compile,
    Compiled,
    Estimate,
    agree,
    compile_graph,
    eager_because,
    measure,
    to_compile,
    why_not,
)
from pyro_vi.data import Batch
from pyro_vi.diagnostics.repeated import Repeated, Total
from pyro_vi.diagnostics.tails import Tail
from pyro_vi.elbo import Facts, Weight, chunk_of, draw_terms, stream_weights, weight_of_terms
from pyro_vi.errors import InputError, NoGraph, first_line
from pyro_vi.programs import Pair, kept_buffers, swapped
from pyro_vi.programs.layout import key_of
from pyro_vi.support import generators, set_generators
from pyro_vi.tracing import Recording, put_back, reason, record, same_twice, trace

MANY = 20
"""Chunks of draws from which a graph of them saves more time than it takes to capture."""
GAIN = 0.5
"""Most of the time of captured draws that compiling saves."""

Sums = tuple[Tensor, Tensor, Tensor]


@dataclass
class Weights:
    """Sums of importance weights of a pair, for blocks of data of one shape.

    Args:
        pair: model and guide.
        args: a block of data.
        draws: number of draws, K.
        vectorized: true if the pair can make many draws in one run.
        facts: the facts about the pair.
        whole: true for one weight of the whole block, as latents that all data share need; false for one of each datum.

    Attributes:
        note: says whether the draws are compiled, and why; set by `compile`.
    """

    pair: Pair
    args: Batch
    draws: int
    vectorized: bool
    facts: Facts
    whole: bool = False
    note: str = "eager draws"

    def __post_init__(self) -> None:
        self._compiled: Compiled | None = None
        self._repeated: Repeated | None = None
        self._chunk, self._nesting = chunk_of(self.pair, self.args) if self.vectorized else (1, 0)
        self._chunk = min(self._chunk, self.draws)
        tensors = {id(t): t for t in (*self.pair.parameters(), *self.pair.buffers())}
        self._keys, self._tensors = list(tensors), list(tensors.values())

    def compile(self, mode: Compile, blocks: int) -> None:
        """Compile or capture the draws of a chunk, or leave them eager, as `pyro_vi.compiling.choice` does for steps.

        The generators and the programs are unchanged afterwards.

        Args:
            mode: True, False or ``"auto"``, as in `pyro_vi.evidence`.
            blocks: number of blocks of data.

        Raises:
            InputError: ``mode`` is True and the draws cannot be compiled.
        """
        if mode is False:
            return
        try:
            if self.facts.summed:
                raise NoGraph("sites are summed out")
            if not all(isinstance(a, Tensor) for a in self.args):
                raise NoGraph("not all arguments are tensors")
            with kept_buffers(self.pair), put_back(self.pair.model, self.pair.guide):
                if mode == "auto" and not self._pays(self.draws / self._chunk * blocks):
                    return
                graph = self._trace()
                self._compiled, self._repeated = self._prove(graph), None
                self.note = "compiled draws"
        except NoGraph as error:
            if mode is True:
                raise InputError(f"the draws cannot be compiled: {error}; or take compile='auto'") from error
            self.note = f"{'eager' if self._repeated is None else 'captured'} draws: {error}"

    def _pays(self, chunks: float) -> bool:
        """Capture the draws of so many chunks if that pays, and find out if compiling them does too."""
        seconds = self._capture() if chunks >= MANY else None
        if seconds is None:
            found = self._estimate()
            saved, cost = found.saving * chunks, to_compile(found.operations)
        else:
            assert self._repeated is not None
            saved, cost = GAIN * seconds * chunks, to_compile(self._repeated.operations)
            if saved >= cost:
                found = self._estimate()
                saved, cost = max(0.0, seconds - found.compiled) * chunks, to_compile(found.operations)
        if saved < cost:
            self.note = eager_because("draws", saved, cost)
            if seconds is not None:
                self.note = "captured" + self.note.removeprefix("eager")
        return saved >= cost

    def _capture(self) -> float | None:
        """Capture the draws of a chunk, and return the seconds that they take; None if they cannot be captured."""
        start, inputs = generators(), self._inputs()

        def graph() -> Recording:
            return record(lambda *i: self._weights(self._chunk, *i), *inputs, state=len(self._tensors))

        try:
            with torch.no_grad():
                made = Repeated(self._weights, same_twice(graph, self.pair.model, self.pair.guide), inputs, self._chunk)
                made.fix(inputs)
                set_generators(start)
                found = torch.cat(made())
                set_generators(start)
                expected = self._weights(self._chunk, *inputs)
                clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
                begin = clock()
                made()
                seconds = clock() - begin
        except InputError:
            raise
        except Exception:  # the draws are eager then, or compiling says what is the matter
            return None
        finally:
            set_generators(start)
        if not agree(found, expected):
            return None
        self._repeated = made
        return seconds

    def sums(self, args: Batch) -> Sums:
        """Return log Σ w and log Σ w² over the draws, each of shape ``(rows,)``, and the largest log w, ``(size, rows)``.

        With ``whole``, there is one row.
        """
        fits = key_of(args) == key_of(self.args)
        parts: list[tuple[Tensor, Tensor]] = []
        tail = Tail(self.draws)
        left = self._repeat(args, parts, tail) if self._repeated is not None and fits else self.draws
        whole = left // self._chunk if self._compiled is not None and fits else 0
        left -= whole * self._chunk
        with torch.no_grad():
            for _ in range(whole):
                assert self._compiled is not None
                start = generators()
                try:
                    one, two, each = self._compiled([*self._tensors, *args])
                except Exception as error:  # raised on some values; the programs may catch it
                    set_generators(start)
                    self._compiled, self.note = None, f"eager draws: the compiled draws raised ({first_line(error)})"
                    left = self.draws - len(parts) * self._chunk
                    break
                parts.append((one, two))
                tail.add(each)
            for weight in stream_weights(self.pair, args, left, self.facts, self.vectorized) if left else ():
                one, two, each = _reduced(self._log_weight(weight))
                parts.append((one, two))
                tail.add(each)
        one, two = (torch.stack(column).logsumexp(0) for column in zip(*parts, strict=True))
        return one, two, tail.top()

    def _repeat(self, args: Batch, parts: list[tuple[Tensor, Tensor]], tail: Tail) -> int:
        """Take the whole chunks of captured draws, and return how many draws are left."""
        assert self._repeated is not None
        total, left = Total(self.draws, tail), self.draws
        with torch.no_grad():
            start = generators()
            try:
                self._repeated.fix([*self._tensors, *args])
                while left >= self._chunk:
                    start = generators()
                    for part in self._repeated():
                        total.add(part)
                    left -= self._chunk
            except Exception as error:  # raised on some values; the programs may catch it
                set_generators(start)
                self._repeated, self.note = None, f"eager draws: the captured draws raised ({first_line(error)})"
            if left < self.draws:
                parts.append(total.sums())
        return left

    def _function(self, *inputs: Tensor) -> Sums:
        """Return the sums over one chunk, as a function of all tensors of the pair and of the data."""
        return _reduced(self._weights(self._chunk, *inputs))

    def _weights(self, draws: int, *inputs: Tensor) -> Tensor:
        """Return the log-weights of some draws, ``(draws, rows)``, as a function of all tensors of the pair and of the data."""
        count = len(self._tensors)
        places = dict(zip(self._keys, inputs[:count], strict=True))
        with swapped(self.pair, places) as held:
            particles = draws if self.vectorized else None
            terms = draw_terms(self.pair, inputs[count:], particles, self._nesting, "sampled")
            if any(held(key) is not value for key, value in places.items()):
                raise NoGraph("the programs put another tensor in the place of a buffer; change it in place")
        return self._log_weight(weight_of_terms(terms))

    def _log_weight(self, weight: Weight) -> Tensor:
        """Log-weights of some draws, shape ``(draws, rows)``."""
        if self.whole:
            return weight.total.reshape(-1, 1)
        # A factor that all data share belongs to each of them equally.
        plate, rows = self.facts.plate, weight.local.shape[-1]
        share = weight.shared / (plate.size if plate is not None and plate.size else rows)
        return (weight.local + share.unsqueeze(-1)).reshape(-1, rows)

    def _inputs(self) -> list[Tensor]:
        return [*(t.detach() for t in self._tensors), *self.args]

    def _estimate(self) -> Estimate:
        # The draws of these runs are not used.
        start = generators()
        with torch.no_grad():
            found = measure(lambda: self._function(*self._inputs()))
        set_generators(start)
        return found

    def _trace(self) -> fx.GraphModule:
        missing = why_not(self.args[0].device)
        if missing:
            raise NoGraph(missing)
        try:
            with torch.no_grad():
                return same_twice(self._graph, self.pair.model, self.pair.guide).module()
        except InputError:
            raise
        except Exception as error:
            raise NoGraph(reason(error)) from error

    def _graph(self) -> Recording:
        return Recording.of(trace(self._function, *self._inputs(), state=len(self._tensors)))

    def _prove(self, graph: fx.GraphModule) -> Compiled:
        start, compiled = generators(), compile_graph(graph, self._inputs())
        with torch.no_grad():
            try:
                with kept_buffers(self.pair):
                    found = compiled(self._inputs())
            except Exception as error:
                raise NoGraph(
                    f"the graph raises an error, which the programs may catch: {first_line(error)}"
                ) from error
            set_generators(start)
            expected = self._function(*self._inputs())
        set_generators(start)
        if not all(agree(one, two) for one, two in zip(found, expected, strict=True)):
            raise NoGraph("compiled they give other weights than the programs")
        return compiled


def _reduced(log_weight: Tensor) -> Sums:
    return log_weight.logsumexp(0), (2 * log_weight).logsumexp(0), log_weight

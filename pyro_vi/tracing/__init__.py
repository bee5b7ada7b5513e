"""A program as a flat graph of tensor operations, or the reason why it has no graph.

* `graph` traces a function; `recording` does so in less time, for graphs that are replayed in Python.
* `lifting` makes random draws inputs of a graph.
* `rewriting` replaces operations by faster forms, and `replaying` calls a graph many times at some fixed inputs.
* `shapes` rejects shapes that depend on values.
* `frozen` rejects programs that change Python state, and `reach` finds that state.

A program that has no graph raises `pyro_vi.errors.NoGraph`.
"""

from pyro_vi.tracing.frozen import put_back, same_twice
from pyro_vi.tracing.graph import reason, trace
from pyro_vi.tracing.lifting import Draw, lifted
from pyro_vi.tracing.recording import Recording, copied, flat, record, without_values
from pyro_vi.tracing.replaying import Replay
from pyro_vi.tracing.rewriting import faster
from pyro_vi.tracing.shapes import OPERATION, is_random

__all__ = [
    "OPERATION",
    "Draw",
    "Recording",
    "Replay",
    "copied",
    "faster",
    "flat",
    "is_random",
    "lifted",
    "put_back",
    "reason",
    "record",
    "same_twice",
    "trace",
    "without_values",
]

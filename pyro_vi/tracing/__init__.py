"""A program as a flat graph of tensor operations, or the reason why it has no graph.

* `graph` traces a function.
* `shapes` rejects shapes that depend on values.
* `frozen` rejects programs that change Python state, and `reach` finds that state.

A program that has no graph raises `pyro_vi.errors.NoGraph`.
"""

from pyro_vi.tracing.frozen import put_back, same_twice
from pyro_vi.tracing.graph import reason, trace
from pyro_vi.tracing.shapes import is_random

__all__ = [
    "is_random",
    "put_back",
    "reason",
    "same_twice",
    "trace",
]

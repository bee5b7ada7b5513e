"""A program as a flat graph of tensor operations, or the reason why there is none.

* `graph` traces a function; `shapes` refuses shapes that depend on values; `frozen` refuses programs that change
  state of Python, which `reach` finds. Where there is no graph, they raise `pyro_vi.errors.NoGraph`.
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

"""Output of the programs of this folder: one JSON line for each number, as soon as it is known.

    python scripts/solutions/mnist.py torch --passes 2 --rows 2000

A program solves one problem, in the way that its first argument names. It imports only what that way needs, because the time
counts from the start of the process. `benchmark_solution.py` starts the programs, and notes when each line arrives:

* ``{"heldout": b, "seen": e}``: a held-out bound of b nats per datum after e passes (or steps).
* ``{"final": b}``: the bound of the finished fit, on all held-out data.
* ``{"note": text}``: what a fit of pyro_vi says of its compiling.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any


def tell(**line: Any) -> None:
    """Print a line, and do not wait for others."""
    print(json.dumps(line), flush=True)


def solve(ways: Mapping[str, Callable[..., None]], description: str | None, **sizes: int) -> None:
    """Run the way that the command line names, with its sizes, which have defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("way", choices=sorted(ways))
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    given = vars(parser.parse_args())
    ways[given.pop("way")](**given)


def ours(function: Callable[..., None]) -> dict[str, Callable[..., None]]:
    """Return the ways of pyro_vi, by name, from a function of ``compile`` and the sizes."""
    modes = {"auto": "auto", "eager": False, "captured": "captured", "compiled": True}

    def way(mode: Any) -> Callable[..., None]:
        return lambda **sizes: function(mode, **sizes)

    return {f"pyro_vi_{name}": way(mode) for name, mode in modes.items()}

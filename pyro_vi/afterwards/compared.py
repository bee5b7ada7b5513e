"""`compare` and `resume` of Python: with ``out``, a comparison leaves there what the command line leaves."""

import functools
import sys
from typing import Any

from pyro_vi import comparing
from pyro_vi.afterwards.exporting import export_comparison
from pyro_vi.comparing import Comparison
from pyro_vi.fitting import Run


@functools.wraps(comparing.compare)
def compare(*args: Any, **options: Any) -> Comparison:
    """`pyro_vi.comparing.compare`, which then writes pictures and results into its folder, if it has one."""
    found = comparing.compare(*args, **options)
    _export(found, options)
    return found


@functools.wraps(comparing.resume)
def resume(*args: Any, **options: Any) -> Run | Comparison:
    """`pyro_vi.comparing.resume`, which then writes pictures and results of a comparison."""
    found = comparing.resume(*args, **options)
    if isinstance(found, Comparison):
        _export(found, options)
    return found


def _export(found: Comparison, options: dict[str, Any]) -> None:
    if found.out is None:
        return
    written = export_comparison(found, found.out)
    for remark in written.remarks if options.get("progress", True) else ():
        print(remark, file=sys.stderr)

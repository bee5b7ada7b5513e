"""`compare` and `resume` for Python: with ``out``, they write the same files of a comparison as the command line."""

import functools
import sys
from typing import Any

from pyro_vi import comparing
from pyro_vi.comparing import Comparison
from pyro_vi.fitting import Run


@functools.wraps(comparing.compare)
def compare(*args: Any, **options: Any) -> Comparison:
    """Call `pyro_vi.comparing.compare`, and write pictures and results into the folder of the comparison, if it has one."""
    found = comparing.compare(*args, **options)
    _export(found, options)
    return found


@functools.wraps(comparing.resume)
def resume(*args: Any, **options: Any) -> Run | Comparison:
    """Call `pyro_vi.comparing.resume`, and write pictures and results of a comparison."""
    found = comparing.resume(*args, **options)
    if isinstance(found, Comparison):
        _export(found, options)
    return found


def _export(found: Comparison, options: dict[str, Any]) -> None:
    if found.out is None:
        return
    from pyro_vi.afterwards.exporting import export_comparison  # matplotlib, which a comparison in memory does without

    written = export_comparison(found, found.out)
    for remark in written.remarks if options.get("progress", True) else ():
        print(remark, file=sys.stderr)

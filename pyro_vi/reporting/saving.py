"""Writing of all figures of a comparison to a folder."""

from pathlib import Path

from pyro_vi.comparing import Comparison
from pyro_vi.reporting.pictures.plotting import drawn


def save(comparison: Comparison, out: Path, format: str = "png") -> list[Path]:
    """Write every figure that applies to the comparison.

    Args:
        comparison: fits and audits.
        out: the folder, which is made if it does not exist.
        format: ``"png"``, ``"svg"`` or ``"pdf"``.

    Returns:
        The paths, in reading order.
    """
    return drawn(comparison, out=out, format=format)[1]

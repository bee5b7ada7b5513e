"""The commands that say if a posterior can be used: gaps, diagnose and report."""

from pyro_vi.cli.commands import Diagnose, Gaps, Report
from pyro_vi.errors import UsageError


def gaps(command: Gaps) -> int:
    """Split the gap between evidence and ELBO, and print the parts."""
    raise UsageError("gaps is not there yet")


def diagnose(command: Diagnose) -> int:
    """Diagnose a pair, and print what was found."""
    raise UsageError("diagnose is not there yet")


def report(command: Report) -> int:
    """Write the report of a run, and print its path."""
    raise UsageError("report is not there yet")

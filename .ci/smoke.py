"""First use of an installed pyro_vi, from Python and from the command line, in the current folder."""

import math
import subprocess
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import pyro_vi
import pyro_vi.guides
import pyro_vi.models

BIN = Path(sys.executable).parent


def demand(holds: bool, what: str) -> None:
    """Stop with a message unless it holds."""
    if not holds:
        sys.exit(f"smoke: {what}")


def output(*command: str | Path) -> str:
    """Run a command to its end; gives back its stdout."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def check_import() -> None:
    """Demand the installed package, not the checkout."""
    for module in (pyro_vi, pyro_vi.models, pyro_vi.guides):
        file = Path(module.__file__ or "")
        demand(file.is_relative_to(sys.prefix), f"{module.__name__} is {file}, outside the virtual environment")


def check_fit() -> None:
    """Demand a finite loss that falls in 50 steps."""
    run = pyro_vi.fit("vae", "diag_normal", "digits", steps=50, out="fit", progress=False)
    first, last = run.history[0]["loss"], run.history[-1]["loss"]
    demand(run.steps == 50, f"the fit took {run.steps} steps, not 50")
    demand(math.isfinite(last) and last < first, f"the loss of the fit went from {first} to {last}")


def check_report() -> None:
    """Demand a whole page of the fit, whose templates are in the wheel."""
    page = pyro_vi.report("fit", rows=50).read_text(encoding="utf-8")
    demand("</html>" in page and "k-hat by datum" in page, "the report of the fit is no whole page")


def check_commands() -> None:
    """Demand an answer of both forms of the command line."""
    said, expected = output(BIN / "pyro-vi", "--version"), f"pyro-vi {version('pyro-vi')}\n"
    demand(said == expected, f"pyro-vi --version says {said!r}, not {expected!r}")
    demand("compare" in output(sys.executable, "-m", "pyro_vi", "--help"), "the help names no command compare")
    demand("held-out ELBO" in output(BIN / "pyro-vi", "compare", "--epochs", "2"), "compare prints no held-out ELBO")


def check_results() -> None:
    """Demand that ArviZ opens and summarises the result of each fit of the comparison."""
    import arviz as az

    paths = sorted(Path("runs").glob("*/*/result.nc"))
    demand(len(paths) == 2, f"compare wrote {len(paths)} files result.nc, not 2")
    for path in paths:
        found = az.from_netcdf(path)
        means = az.summary(found, kind="stats", round_to="none")["mean"]
        demand(len(means) > 0 and all(map(math.isfinite, means)), f"ArviZ finds no finite means in {path}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # after two epochs the Pareto shapes are large
            az.loo(found)


for check in (check_import, check_fit, check_report, check_commands, check_results):
    check()
    print(f"smoke: {check.__name__} passed", flush=True)

"""All diagnostics of a fitted pair in one call.

`diagnose` collects them in a DataTree with a group for each, and `PARTS` is the table of them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import xarray as xr

from pyro_vi.data import Batch
from pyro_vi.diagnostics.collapsing.collapsed import collapse_of_pair
from pyro_vi.diagnostics.ranking.calibrating import calibration_of_pair
from pyro_vi.diagnostics.responses.mean_field import linear_response_of_pair
from pyro_vi.diagnostics.reweighting.joint_tails import reliability_of_pair
from pyro_vi.diagnostics.reweighting.smoothed_moments import moments_of_pair
from pyro_vi.errors import InputError, UsageError, naming_programs
from pyro_vi.programs import Pair, Program, pair_and_args
from pyro_vi.support import Whole, seed_from, whole

Part = Callable[..., xr.Dataset]

PARTS: Mapping[str, Part] = {
    "reliability": lambda pair, args, seed, rows: reliability_of_pair(pair, args, seed=seed, rows=rows),
    "moments": lambda pair, args, seed, rows: moments_of_pair(pair, args, seed=seed, rows=rows),
    "linear_response": lambda pair, args, seed, rows: linear_response_of_pair(pair, args, seed=seed),
    "calibration": lambda pair, args, seed, rows: calibration_of_pair(pair, args, seed=seed, rows=rows),
    "collapse": lambda pair, args, seed, rows: collapse_of_pair(pair, args, seed=seed, rows=rows),
}
"""The diagnostics of `diagnose` by name, in reading order: functions of a pair, its batch, a seed and rows at a time."""


def diagnose(
    model: Program,
    guide: Program,
    batch: Any,
    *,
    only: Sequence[str] = (),
    seed: Whole = 0,
    rows: Whole = 1000,
) -> xr.DataTree:
    """Return what can be said of the posterior of a fitted pair: k-hat, moments, linear response, calibration, collapse.

    A group is the dataset of one function: `pyro_vi.reliability`, `moments`, `linear_response`, `calibration`, `collapse`. Its
    attribute ``verdict`` is ``"pass"``, ``"care"``, ``"fail"`` or ``"none"``, and ``sentences`` says why. A diagnostic that
    the pair does not allow has the verdict ``"none"`` and its reason. docs/trust.md says how to read them, and where each is
    blind; `pyro_vi.gaps` and `pyro_vi.evidence` are asked for by themselves.

    Args:
        model: generative program.
        guide: variational program.
        batch: a tensor of rows, or the tuple that the programs are called with; all the data if latents are shared.
        only: names of groups; by default all.
        seed: seed of all draws.
        rows: most data that are evaluated at a time.

    Raises:
        UsageError: an unknown name in ``only``.
        InputError: the programs fail on the batch.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> from pyro_vi.guides.exact import Exact
        >>> from pyro_vi.models.linear_gaussian import LinearGaussian
        >>> import torch
        >>> x = torch.randn(50, 3, dtype=torch.float64)
        >>> model = LinearGaussian(DataSpec("x", 50, (3,), "real", torch.float64, "made up"), latent_dim=1)
        >>> tree = diagnose(model, Exact(model, (x,)), x, only=["reliability"])
        >>> tree["reliability"].attrs["verdict"]
        'pass'
    """
    asked = chosen(only)
    pair, args = pair_and_args(model, guide, batch)
    with naming_programs("the pair fails in a diagnostic"):
        return diagnose_pair(pair, args, only=asked, seed=seed, rows=rows)


def diagnose_pair(
    pair: Pair, args: Batch, *, only: Sequence[str] = (), seed: Whole = 0, rows: Whole = 1000
) -> xr.DataTree:
    """Return `diagnose` for a pair that is already bound."""
    seed, rows = seed_from(seed), whole("rows", rows, 1)
    pair.layouts(args)  # a pair that fails on the batch is no pair without diagnostics
    found = {}
    for name in chosen(only):
        try:
            found[name] = PARTS[name](pair, args, seed, rows)
        except UsageError:
            raise
        except InputError as error:
            found[name] = xr.Dataset(attrs={"verdict": "none", "sentences": [f"Not computed: {error}."]})
    return xr.DataTree.from_dict(found)


def chosen(only: Sequence[str]) -> list[str]:
    """Return the names of the parts that are asked for, in reading order.

    Raises:
        UsageError: an unknown name.
    """
    only = [only] if isinstance(only, str) else list(only)
    unknown = [name for name in only if name not in PARTS]
    if unknown:
        raise UsageError(f"there is no diagnostic {unknown[0]!r}; choose among {', '.join(PARTS)}")
    return [name for name in PARTS if name in only or not only]

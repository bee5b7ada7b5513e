"""Optimizers by name: those of torch and Pyro, those of ours without a rate, and two of another library.

* `named` returns the class for a text such as ``"sgd(momentum=0.9)"``, and its options.
* `library` names the package that the code of an optimizer comes from, with its version, if it is none of the above.

pytorch-optimizer has Prodigy (Mishchenko and Defazio 2023, arXiv:2306.06101) and schedule-free AdamW (Defazio et al. 2024,
arXiv:2405.15682). It is installed by ``pip install 'pyro-vi[optimizers]'``.
"""

import importlib
import inspect
from importlib.metadata import version

import torch
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.dct_adam import DCTAdam
from torch.optim import Optimizer

from pyro_vi.errors import UsageError
from pyro_vi.fitting.rate_free import DoG, DoWG
from pyro_vi.support import check_options, parse, unknown

PACKAGE, MODULE = "pytorch-optimizer", "pytorch_optimizer"
OPTIONAL = {"prodigy": "Prodigy", "schedule_free": "ScheduleFreeAdamW"}
"""Optimizers of that library, by their names here."""
RATELESS = ("Prodigy",)
"""Optimizers whose learning rate is a factor of a step size that they find: 1 unless it is given as an option."""


def _table() -> dict[str, type[Optimizer]]:
    own = {
        "clipped_adam": ClippedAdam,
        "dct_adam": DCTAdam,
        "adagrad_rmsprop": AdagradRMSProp,
        "dog": DoG,
        "dowg": DoWG,
    }
    classes = {name.lower(): value for name, value in vars(torch.optim).items() if inspect.isclass(value)}
    found = {name: cls for name, cls in classes.items() if issubclass(cls, Optimizer)}
    return {**{name: cls for name, cls in found.items() if name not in ("optimizer", "lbfgs")}, **own}


OPTIMIZERS = _table()
"""Optimizers by name: those of torch in lower case, Pyro's own, and those without a rate."""


def named(text: str) -> tuple[type[Optimizer], dict[str, object]]:
    """Return the class of an optimizer and its options.

    Raises:
        UsageError: an unknown name or option, or the library that has it is not installed.

    Example:
        >>> named("SGD(momentum=0.9)")
        (<class 'torch.optim.sgd.SGD'>, {'momentum': 0.9})
    """
    target, options = parse(text)
    key = plain(target)
    optional = {plain(name): name for name in OPTIONAL}
    known = {plain(name): cls for name, cls in OPTIMIZERS.items()}
    if key not in known and key not in optional:
        raise unknown("optimizer", target, sorted({*OPTIMIZERS, *OPTIONAL}))
    cls = known[key] if key in known else _of_library(optional[key])
    kinds = inspect.signature(cls).parameters
    names = [name for name, one in kinds.items() if name != "params" and one.kind is not one.VAR_KEYWORD]
    check_options(f"optimizer '{target}'", options, names)
    return cls, options


def plain(name: str) -> str:
    """Return the name of an optimizer in lower case, without its options, underscores and hyphens."""
    return name.split("(")[0].strip().lower().replace("_", "").replace("-", "")


def rated(cls: type[Optimizer]) -> bool:
    """True if an optimizer takes the learning rate of a fit."""
    return "lr" in inspect.signature(cls).parameters and cls.__name__ not in RATELESS


def library(optimizer: Optimizer) -> str | None:
    """Return name and version of the package of an optimizer, if it is that of `OPTIONAL`: the bits of a fit depend on it."""
    found = type(optimizer).__module__.split(".")[0] == MODULE
    return f"{PACKAGE} {version(PACKAGE)}" if found else None


def measured(optimizer: Optimizer) -> set[str]:
    """Return the names of what an optimizer of that package keeps among its options: numbers of its steps so far."""
    if library(optimizer) is None:
        return set()
    return {*optimizer.defaults} - {*inspect.signature(type(optimizer)).parameters}


def _of_library(name: str) -> type[Optimizer]:
    try:
        module = importlib.import_module(MODULE)
        found: type[Optimizer] = getattr(module, OPTIONAL[name])
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"optimizer '{name}' needs the package {PACKAGE}; install it: pip install 'pyro-vi[optimizers]'"
        ) from error
    return found

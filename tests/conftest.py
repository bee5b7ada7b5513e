"""Guards of the global state that Pyro, torch, numpy and Python keep, and one cache of the compiler for all tests."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator

import beartype._check.code.codemain as beartype_code
import numpy as np
import pyro
import pytest
import torch
import zuko  # noqa: F401  (its import turns torch's validation off: here, and not in the midst of the tests)

torch.distributions.Distribution.set_default_validate_args(__debug__)

# beartype picks at random which item of a list it looks at. It has a generator of its own here, as programs that draw from
# Python's have no graph, and the functions of pyro_vi are checked only in tests.
beartype_code.getrandbits = random.Random(0).getrandbits

CACHE = "TORCHINDUCTOR_CACHE_DIR"
STATE = "XDG_STATE_HOME"  # with the key that signs run folders
_cache = pytest.StashKey[tuple[str, dict[str, str | None]]]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the compiler's cache: empty, so that no test depends on earlier runs; the workers inherit it, and the key."""
    if not hasattr(config, "workerinput"):
        folder = tempfile.mkdtemp(prefix="pyro_vi_compiled_")
        config.stash[_cache] = folder, {name: os.environ.get(name) for name in (CACHE, STATE)}
        os.environ[CACHE] = folder
        os.environ[STATE] = os.path.join(folder, "state")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the compiler's cache."""
    if _cache in config.stash:
        folder, before = config.stash[_cache]
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({name: value} if value is not None else {})


@pytest.fixture(autouse=True)
def guard_global_state() -> Iterator[None]:
    """Give each test fresh seeds and an empty param store; fail it if it leaves parameters or changed flags behind."""
    store = pyro.get_param_store()
    settings = pyro.settings.get()  # the validation flags are among them
    dtype = torch.get_default_dtype()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)

    with store.scope():
        yield
        left = sorted(store.keys())

    changed = {name: value for name, value in pyro.settings.get().items() if value != settings[name]}
    changed_dtype = torch.get_default_dtype()
    pyro.settings.set(**settings)
    torch.set_default_dtype(dtype)

    assert not left, f"the test left parameters in Pyro's param store: {left}"
    assert not changed, f"the test changed Pyro's settings: {changed}"
    assert changed_dtype == dtype, f"the test changed the default dtype to {changed_dtype}"

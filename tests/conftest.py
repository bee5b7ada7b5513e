"""Guards of the global state that Pyro, torch, numpy and Python keep."""

import random
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

"""Writers hand each record to the package that they are named after, and say how to install it."""

import sys
from types import SimpleNamespace

import pytest
from data_toys import message
from small_fits import quick

from pyro_vi import writers


class Package:
    """A package that keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple] = []

    def __getattr__(self, name: str):
        def called(*args, **options):
            self.calls.append((name, args, options))
            return self

        return called


@pytest.mark.parametrize(
    ("name", "module", "place", "ends"),
    [
        ("tensorboard", "torch.utils.tensorboard", "runs", "close"),
        ("wandb", "wandb", "project", "finish"),
        ("mlflow", "mlflow", "experiment", "end_run"),
    ],
)
def test_each_record_is_written(name, module, place, ends, monkeypatch):
    package = Package()
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(**{k: getattr(package, k) for k in NAMES}))
    with getattr(writers, name)(place) as writer:
        run = quick(callbacks=[writer])
    first, last = run.history[0], run.history[-1]
    if name == "tensorboard":
        assert ("add_scalar", ("elbo", first["elbo"], 1), {}) in package.calls
    else:
        log = "log" if name == "wandb" else "log_metrics"
        found = [(args[0], options["step"]) for what, args, options in package.calls if what == log]
        assert [step for _, step in found] == [1, 2, 3, 4, 5, 6] and found[-1][0]["elbo"] == last["elbo"]
    assert package.calls[-1][0] == ends


NAMES = ("SummaryWriter", "init", "set_experiment", "start_run", "log_metrics", "end_run")


def test_mlflow_gets_names_that_it_takes(monkeypatch):
    package = Package()
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(**{k: getattr(package, k) for k in NAMES}))
    with writers.mlflow("experiment") as writer:
        writer({"step": 1, "kl_z[0]": 1.5, "term_a/b": -2.0})
    assert ("log_metrics", ({"kl_z_0_": 1.5, "term_a/b": -2.0},), {"step": 1}) in package.calls


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    assert f"pip install 'pyro-vi[{name}]'" in message(getattr(writers, name), "place")

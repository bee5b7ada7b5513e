"""The check on sound pairs: as people write them in Pyro, in the differential catalogue, and of our own shelf.

Nothing is found, under any estimator that people would use.
"""

import functools

import pyro
import pyro.distributions as dist
import pyro.infer.autoguide as auto
import pytest
import torch
from catalogue import columns, number, scalars
from differential import autoguides, baselines, flows_and_gps, idioms, mixtures, networks, regressions, sequences, vaes
from differential.harness import float64, made
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.infer import config_enumerate
from pyro.infer.reparam import LocScaleReparam
from shelf_catalogue import COLUMNS
from torch import nn
from torch.distributions import constraints

from pyro_vi import check
from pyro_vi.checking import check_pair
from pyro_vi.errors import InputError
from pyro_vi.estimators import get
from pyro_vi.fitting.plan import plan

X = scalars(12)
SEEN = torch.arange(12) % 3 > 0


def regression(x):
    """Global latents on the real and on the positive line, and a deterministic site."""
    w = pyro.sample("w", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(x.new_tensor(5.0)))
    pyro.deterministic("total", w.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w.sum() + 0 * x, s), obs=x)


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def local_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(0.4 * x, 0.7))


def of_both_sides(handler):
    """Model and guide under one handler."""
    return handler(local), handler(local_guide)


def with_missing(x, seen):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(pyro.param("b", number(0.0)), 1.0), obs=x, obs_mask=seen)


def of_missing(x, seen):
    with pyro.plate("data", len(x)), poutine.mask(mask=~seen):
        pyro.sample("x_unobserved", dist.Normal(pyro.param("m", number(0.0)), 1.0))


def missing_by_mask(x):
    """Missing values are NaN; they are filled before the likelihood."""
    with pyro.plate("data", len(x)):
        z = pyro.sample(
            "z", dist.Normal(x.new_zeros(()), pyro.param("scale", number(1.0), constraint=constraints.positive))
        )
        with poutine.mask(mask=~x.isnan()):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.nan_to_num())


def for_missing(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(pyro.param("m", number(0.0)), 1.0).expand(x.shape))


@config_enumerate
def mixture(x):
    means = pyro.sample("means", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(x.new_ones(2)))
        pyro.sample("x", dist.Normal(means[k], 1.0), obs=x)


def own_minibatch(x):
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x), subsample_size=4) as rows:
        pyro.sample("x", dist.Normal(w, 1.0), obs=x[rows])


def sequential(x):
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    for i in pyro.plate("data", len(x), subsample_size=4):
        pyro.sample(f"x_{i}", dist.Normal(w, 1.0), obs=x[i])


def scaled_by_hand(x):
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x)), poutine.scale(scale=60 / len(x)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


def of_w(*args):
    pyro.sample("w", dist.Normal(pyro.param("m", number(0.0)), 0.5))


def with_options(x, scale=None, options=None):
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w, scale or 1.0), obs=x)


def with_its_own_data():
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(X)):
        pyro.sample("x", dist.Normal(w, 1.0), obs=X)


def potential(x):
    """A factor instead of an observation."""
    w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
    pyro.factor("potential", -0.5 * (w - x).square().sum())


def normed(x):
    net = pyro.module("net", NET)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
        pyro.sample("x", dist.Normal(net(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)


NET = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()


class Easy(EasyGuide):
    def guide(self, x):
        group = self.group(match="w|s")
        loc = pyro.param("loc", torch.zeros(group.event_shape))
        group.sample("ws", dist.Normal(loc, 0.1).to_event(1))


def centred(x):
    m = pyro.sample("m", dist.Normal(number(0.0), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(m, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_plates_in_two_orders(x):
    rows, features = pyro.plate("rows", len(x), dim=-2), pyro.plate("features", 3, dim=-1)
    with features:
        b = pyro.sample("b", dist.Normal(x.new_zeros(()), 1.0))
    with rows, features:
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def of_b(x):
    with pyro.plate("features", 3, dim=-1):
        pyro.sample("b", dist.Normal(pyro.param("m", number(0.0)), 0.5))


NAN = torch.where(SEEN, X, torch.nan)
AUTO = [
    *("AutoNormal", "AutoDiagonalNormal", "AutoMultivariateNormal", "AutoLowRankMultivariateNormal", "AutoIAFNormal"),
    *("AutoNormalMessenger", "AutoHierarchicalNormalMessenger", "AutoRegressiveMessenger"),
    *("AutoStructured", "AutoGaussian"),  # the last two work with the default dtype only
]
reparametrized = poutine.reparam(centred, config={"z": LocScaleReparam(0.0)})

# Model, guide (or a function from the model to it), batch, options.
IDIOMS = {
    **{name: (regression, getattr(auto, name), X.float(), {}) for name in AUTO},
    "AutoNormal with an analytic KL": (centred, auto.AutoNormal, X, {"elbo": "mean_field"}),
    "EasyGuide": (regression, Easy, X.float(), {}),
    "AutoNormal after a reparameterization": (reparametrized, lambda model: auto.AutoNormal(model), X, {}),
    "a mask on both sides": (*of_both_sides(poutine.mask(mask=SEEN)), X, {}),
    "a scale on both sides": (*of_both_sides(poutine.scale(scale=0.3)), X, {}),
    "obs_mask": (with_missing, of_missing, (X, SEEN), {}),
    "NaN for missing values": (missing_by_mask, for_missing, NAN, {}),
    "a mixture": (mixture, lambda model: auto.AutoNormal(poutine.block(model, hide=["k"])), X, {"elbo": "enum"}),
    "a minibatch of its own": (own_minibatch, of_w, X, {"num_data": 12}),
    "a sequential minibatch": (sequential, of_w, X, {"num_data": 12}),
    "scaled by hand": (scaled_by_hand, of_w, X, {"num_data": 60}),
    "None, a number and a dictionary": (with_options, of_w, (X, 2, {"k": 1}), {}),
    "data in a closure": (with_its_own_data, of_w, (), {}),
    "a partial": (functools.partial(with_options, scale=2.0), of_w, X, {}),
    "a factor for the data": (potential, of_w, X, {}),
    "batch norm": (normed, local_guide, X, {"num_data": 36}),
    "two plates": (with_plates_in_two_orders, of_b, columns(12), {}),
    "many draws in one run": (local, local_guide, X, {"elbo": "trace(num_particles=4, vectorize_particles=True)"}),
}


@pytest.mark.filterwarnings("ignore")  # Pyro's own guides warn of sites that they leave out
@pytest.mark.parametrize("name", IDIOMS)
def test_nothing_is_found(name):
    model, guide, batch, options = IDIOMS[name]
    if isinstance(guide, type) or getattr(guide, "__name__", "") == "<lambda>":
        guide = guide(model)
    assert check(model, guide, batch, **options) == []


@pytest.mark.parametrize("guide", [auto.AutoDelta, auto.AutoLaplaceApproximation])
def test_a_point_estimate_is_a_note_only(guide):
    (finding,) = check(regression, guide(regression), X.float())
    assert (finding.code, finding.severity) == ("point-estimate", "note")


MODULES = (vaes, sequences, mixtures, regressions, flows_and_gps, autoguides, baselines, networks, idioms)
MEANT = {"validate_args_false": "outside-support"}
"""Notes on programs that mean what they do."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", [pytest.param(m, id=m.__name__) for module in MODULES for m in module.PROGRAMS])
def test_nothing_is_found_in_the_differential_catalogue(make, monkeypatch):
    """But for notes on points and on sampled KLs. Flows that have no inverse cannot be run on given draws."""
    monkeypatch.setattr(
        "pyro_vi.checking.checks.TOLERATED", (KeyError,) if make.__name__ == "auto_normalizing_flow" else ()
    )
    with float64():
        program = made(make)
        found = check(program.model, program.guide, dict(program.kwargs) or program.args, elbo=program.elbo())
    expected = {"point-estimate", "kl-fallback", MEANT.get(make.__name__)}
    assert [str(finding) for finding in found if finding.severity != "note" or finding.code not in expected] == []


GUIDES = ("diag_normal", "structured", "flow")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("name", COLUMNS)
def test_nothing_is_found_on_the_shelf(name, guide):
    column = COLUMNS[name]
    model, data = column.make()
    try:
        planned = plan(model, guide, data)
    except InputError:
        pytest.skip(f"{guide} refuses {name}")  # as docs/guides_matrix.md says
    rows, batch = planned.data.spec.num_data, planned.data.example(planned.batch_size)
    for elbo in ("enum",) if column.discrete else ("trace", "analytic"):
        found = check_pair(planned.pair, batch, elbo=get(elbo), num_data=rows)
        assert [str(finding) for finding in found if finding.code not in ("point-estimate", "kl-fallback")] == []

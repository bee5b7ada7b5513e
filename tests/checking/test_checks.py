"""The check: each silent error is found on a pair that has it, none on sound pairs."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, columns, number, scalars
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import AffineTransform

from pyro_vi import Finding, check, compare, fit
from pyro_vi.checking import check_pair, refuse
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError
from pyro_vi.estimators import get
from pyro_vi.programs import pair_of
from pyro_vi.support import generators

Program = Callable[..., Any]
X = scalars(12)


def program(
    latent: Any, observed: Any = None, *, plate: int | None = None, scale: float = 1.0, name: str = "z"
) -> Program:
    """A program with one latent site in the data plate; a model if it says how x is distributed given z."""

    def run(x: Tensor) -> None:
        rows = torch.arange(len(x))
        with pyro.plate("data", plate or len(x), subsample=rows if plate else None), poutine.scale(scale=scale):
            z = pyro.sample(name, latent if isinstance(latent, torch.distributions.Distribution) else latent(x))
            if observed is not None:
                pyro.sample("x", observed(z), obs=x)

    return run


NORMAL = dist.Normal(number(0.0), 1.0)


def around(z: Tensor) -> Any:
    return dist.Normal(z, 1.0)


MODEL = program(NORMAL, around)
GUIDE = program(lambda x: dist.Normal(0.5 * x, 0.7))
ROW_GUIDE = program(lambda x: dist.Normal(0.5 * x[:, 0], 0.7))


def two_sites(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", NORMAL)
        b = pyro.sample("b", dist.Normal(a, 1.0))
        pyro.sample("x", dist.Normal(b, 1.0), obs=x)


def other_order(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Normal(x, 1.0))
        pyro.sample("a", dist.Normal(b, 1.0))


def global_model(size: int | None) -> Program:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", NORMAL)
        with pyro.plate("data", size or len(x), subsample=torch.arange(len(x)) if size else None):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return model


def global_guide(x: Tensor) -> None:
    pyro.sample("w", NORMAL)


def unregistered() -> Program:
    network = nn.Linear(1, 1).double()
    return program(lambda x: dist.Normal(network(x.unsqueeze(-1)).squeeze(-1), 1.0))


def registered() -> Program:
    network = nn.Linear(1, 1).double()

    def guide(x: Tensor) -> None:
        pyro.module("network", network)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(network(x.unsqueeze(-1)).squeeze(-1), 1.0))

    return guide


def summed_out(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(number(0.3)), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def broken(x: Tensor) -> None:
    raise RuntimeError("no such thing\nat all")


def vector(dimension: int) -> Program:
    return program(dist.Normal(torch.zeros(dimension, dtype=torch.float64), 1.0).to_event(1))


VECTOR = program(
    dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1), lambda z: dist.Normal(z.sum(-1), 1.0)
)
BERNOULLI = program(NORMAL, lambda z: dist.Bernoulli(logits=z))
GAMMA = program(dist.Gamma(number(2.0), 1.0), around)
DISCRETE = program(dist.Bernoulli(number(0.3)), around)
HEAVY = program(dist.StudentT(number(3.0), 0.0, 1.0), around)
NARROW = program(
    dist.Normal(torch.zeros(1, dtype=torch.float64), 1.0).to_event(1), lambda z: dist.Normal(z, 1.0).to_event(1)
)

HALF = torch.arange(12) % 2 > 0


def with_factor(x: Tensor) -> None:
    GUIDE(x)
    pyro.factor("f", number(-3.0), has_rsample=True)


def observing(x: Tensor) -> None:
    GUIDE(x)
    pyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=x)


def undeclared(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", NORMAL)
        pyro.sample("x", dist.Normal(z, 1.0).expand(x.shape), obs=x)


def coupled(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", NORMAL)
        pyro.sample("x", dist.Normal(z - z.mean(0), 1.0), obs=x)


def fixed_plate(size: int, whole: bool) -> Program:
    def model(x: Tensor) -> None:
        w = pyro.sample("w", NORMAL)
        with pyro.plate("d", size, subsample=None if whole else torch.arange(len(x))):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    return model


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).double()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(self.net(z.unsqueeze(-1)).squeeze(-1), 1.0), obs=x)


class Silent(dist.Normal):
    """It states no support, as Pyro's wrapper of zuko's flows."""

    @property
    def support(self) -> Any:
        raise NotImplementedError


def logit_twice(z: Tensor) -> Any:
    sigmoid = dist.transforms.SigmoidTransform
    return dist.TransformedDistribution(dist.Normal(z, 1.0), [sigmoid(), sigmoid()])


# What is wrong: the trap of the list, the pair, the batch, the estimator, and the finding: code, severity, site, words.
WRONG: dict[str, tuple[Any, Any, Tensor, dict[str, Any], tuple[str, str, str | None, str]]] = {
    "2: no closed form": (
        *(HEAVY, GUIDE, X, {"elbo": "mean_field"}),
        ("kl-fallback", "note", "z", "no closed form of KL(Normal || StudentT)"),
    ),
    "3: another order, sampled": (
        *(two_sites, other_order, X, {"elbo": "analytic"}),
        ("kl-fallback", "note", "b", "its prior depends on 'a', which the guide draws given 'b'"),
    ),
    "3: another order": (
        *(two_sites, other_order, X, {"elbo": "mean_field"}),
        ("site-order", "error", "b", "its prior depends on 'a', which the guide draws given 'b'"),
    ),
    "4: scale on the model only": (
        *(program(NORMAL, around, scale=0.3), GUIDE, X, {}),
        ("scale-mismatch", "error", "z", "scaled by 0.3 in the model and by 1 in the guide"),
    ),
    "4: minibatch in the model only": (
        *(program(NORMAL, around, plate=60), GUIDE, X, {"num_data": 60}),
        ("scale-mismatch", "error", "z", "scaled by 5 in the model and by 1 in the guide"),
    ),
    "5: no such site in the guide": (
        *(MODEL, program(NORMAL, name="u"), X, {}),
        ("missing-in-guide", "error", "z", "the guide has no site 'z'"),
    ),
    "6: no such site in the model": (
        *(MODEL, lambda x: (GUIDE(x), pyro.sample("extra", NORMAL)), X, {}),
        ("missing-in-model", "error", "extra", "the guide samples 'extra', which the model does not have"),
    ),
    "7: a network that is not registered": (
        *(MODEL, unregistered(), X, {}),
        ("unregistered", "error", None, "2 tensors that need gradients are not parameters of the pair"),
    ),
    "8: a batch that counts as all data": (
        *(global_model(None), global_guide, X, {"num_data": 600}),
        ("batch-as-all", "error", "w", "'w' is shared by all 600 data, but a batch of 12 counts as all of them"),
    ),
    "10: a draw without a gradient": (
        *(DISCRETE, program(dist.Bernoulli(number(0.4))), X, {"elbo": "mean_field"}),
        ("not-reparametrized", "error", "z", "the guide's Bernoulli at 'z' cannot be reparameterised"),
    ),
    "15: grey pixels under a Bernoulli": (
        *(BERNOULLI, GUIDE, torch.linspace(0.0, 1.0, 12).double(), {}),
        ("outside-support", "error", "x", "10 of 12 observed values of site 'x' are outside the support of Bernoulli"),
    ),
    "15: negative counts": (
        *(program(NORMAL, lambda z: dist.Poisson(z.exp())), GUIDE, torch.tensor([1.0, -1.0, 2.0]).double(), {}),
        ("outside-support", "error", "x", "1 of 3 observed values"),
    ),
    "16: a normal guide for a positive latent": (
        *(GAMMA, GUIDE, X, {}),
        (
            "guide-support",
            "error",
            "z",
            "the guide's Normal for site 'z' has a different support from the model's Gamma",
        ),
    ),
    "20: NaN in the data": (
        *(MODEL, GUIDE, torch.tensor([1.0, math.nan, math.inf]), {}),
        ("data-not-finite", "error", None, "column 0 of the batch has 2 values that are NaN or infinite"),
    ),
    "a guide of another dimension": (
        *(VECTOR, vector(3), X, {}),
        ("shape-mismatch", "error", "z", "has shape (12, 2) in the model and (12, 3) in the guide"),
    ),
    "a model of width 1 for wider data": (
        *(NARROW, vector(1), columns(12), {}),
        (
            "observed-shape",
            "error",
            "x",
            "site 'x' has shape (12, 1) in the model, but its observed values have shape (12, 3)",
        ),
    ),
    "1: tensor Monte Carlo of a minibatch": (
        *(program(NORMAL, around, plate=60), program(NORMAL, plate=60), X, {"elbo": "tmc"}),
        ("tmc-subsampled", "error", None, "the scale of 12 of 60 data inside a logarithm"),
    ),
    "5: marked for a sum that the estimator does not make": (
        *(summed_out, lambda x: None, X, {"elbo": "trace"}),
        ("missing-in-guide", "error", "z", "the guide has no site 'z'"),
    ),
    "10: a draw without a gradient, of our own": (
        *(DISCRETE, program(dist.Bernoulli(number(0.4))), X, {"elbo": "stl"}),
        ("not-reparametrized", "error", "z", "the guide's Bernoulli at 'z' cannot be reparameterised"),
    ),
    "22: a mask on the model only": (
        *(poutine.mask(MODEL, mask=HALF), GUIDE, X, {}),
        ("mask-mismatch", "error", "z", "site 'z' is masked in the model and not in the guide"),
    ),
    "22: a mask on the guide only": (
        *(MODEL, poutine.mask(GUIDE, mask=HALF), X, {}),
        ("mask-mismatch", "error", "z", "site 'z' is masked in the guide and not in the model"),
    ),
    "22: a mask of the prior": (
        *(program(NORMAL.mask(False), around), GUIDE, X, {}),
        ("mask-mismatch", "error", "z", "site 'z' is masked in the model"),
    ),
    "23: a factor in the guide": (
        *(MODEL, with_factor, X, {}),
        ("no-density", "error", "f", "the guide has a factor 'f'"),
    ),
    "23: a guide that observes": (
        *(MODEL, observing, X, {}),
        ("no-density", "error", "y", "the guide observes 'y'"),
    ),
    "23: a draw of what the model observes": (
        *(MODEL, lambda x: (GUIDE(x), pyro.sample("x", dist.Normal(x, 1.0).to_event(1))), X, {}),
        ("no-density", "error", "x", "the guide draws 'x', which the model observes"),
    ),
    "23: all mass on one value": (
        *(MODEL, program(lambda x: dist.Delta(0.5 * x)), X, {}),
        ("point-estimate", "note", "z", "the guide's Delta puts all mass of 'z' on one value"),
    ),
    "8: a plate of more data than there are": (
        *(fixed_plate(5000, whole=False), global_guide, X, {"num_data": 180}),
        ("plate-size", "error", "w", "plate 'd' counts each batch as 5000 data, so its posterior would be too narrow"),
    ),
    "8: a plate of fewer data than there are": (
        *(fixed_plate(60, whole=False), global_guide, X, {"num_data": 180}),
        ("plate-size", "error", "w", "plate 'd' counts each batch as 60 data, so its posterior would be too wide"),
    ),
    "8: a plate of the batch's own fixed size": (
        *(fixed_plate(12, whole=True), global_guide, X, {"num_data": 180}),
        ("batch-as-all", "error", "w", "'w' is shared by all 180 data, but a batch of 12 counts as all of them"),
    ),
    "27: to_event forgotten where the shapes fit": (
        *(undeclared, ROW_GUIDE, columns(12, 12), {}),
        (
            "undeclared-dimension",
            "error",
            "x",
            "log-densities of shape (12, 12), which its plates do not declare: data (12)",
        ),
    ),
    "vectorize_particles without a dimension for it": (
        *(coupled, GUIDE, X, {"elbo": "trace(num_particles=2, vectorize_particles=True)"}),
        ("not-vectorizable", "error", None, "gives other numbers than single runs"),
    ),
    "a last batch of one row": (
        *(Normed(), GUIDE, X, {"num_data": 25}),
        ("batch-norm", "error", None, "the last batch of an epoch has one row"),
    ),
    "15: a value that torch clamps": (
        *(program(NORMAL, logit_twice), GUIDE, torch.zeros(12).double(), {}),
        (
            "outside-support",
            "error",
            "x",
            "12 of 12 observed values of site 'x' are outside the support of Transformed",
        ),
    ),
    "15: meant by the author": (
        *(program(NORMAL, lambda z: dist.Bernoulli(logits=z, validate_args=False)), GUIDE, X.sigmoid(), {}),
        ("outside-support", "note", "x", "12 of 12 observed values"),
    ),
    "16: a scaled interval": (
        *(program(dist.Uniform(number(0.0), 1.0), around), program(lambda x: dist.Uniform(0.0, 2 + 0 * x)), X, {}),
        (
            "guide-support",
            "error",
            "z",
            "the guide's Uniform for site 'z' has a different support from the model's Uniform",
        ),
    ),
    "16: a vector that is no distribution": (
        *(program(dist.Dirichlet(torch.ones(2).double()), lambda z: dist.Normal(z.sum(-1), 1.0)), vector(2), X, {}),
        ("guide-support", "error", "z", "a different support from the model's Dirichlet"),
    ),
    "a prior without a support": (
        *(program(lambda x: Silent(0 * x, 1.0), around), GUIDE, X, {}),
        ("support-unknown", "note", "z", "the model's Silent at site 'z' states no support"),
    ),
    "event dimensions": (
        *(program(dist.Normal(torch.zeros(12, 12).double(), 1.0).to_event(1), lambda z: dist.Normal(z.sum(-1), 1.0)),),
        *(lambda x: pyro.sample("z", dist.Normal(torch.zeros(12, 12).double(), 1.0).to_event(2)), X, {}),
        ("shape-mismatch", "error", "z", "has 1 event dimensions in the model and 2 in the guide"),
    ),
    "a program that fails": (
        *(MODEL, broken, X, {}),
        ("program-fails", "error", None, "the guide fails on a batch of shape (12,): RuntimeError: no such thing"),
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_error_is_found_and_named(case):
    model, guide, x, options, (code, severity, site, words) = WRONG[case]
    (finding,) = check(model, guide, x, **options)
    assert (finding.code, finding.severity, finding.site) == (code, severity, site)
    assert words in finding.message
    assert finding.remedy and str(finding) == f"{finding.message}; {finding.remedy}"
    assert "\n" not in str(finding)


def declared(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", NORMAL)
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), 1.0).expand(x.shape).to_event(1), obs=x)


# The same pairs without what is wrong in them.
SOUND: dict[str, tuple[Any, Any, Tensor, dict[str, Any]]] = {
    "2": (GAMMA, program(dist.Gamma(number(1.0), 1.0)), X, {"elbo": "mean_field"}),
    "2, sampled anyway": (HEAVY, GUIDE, X, {"elbo": "trace"}),
    "3, sampled": (two_sites, other_order, X, {"elbo": "trace"}),
    "5, summed out": (summed_out, lambda x: None, X, {"elbo": "enum"}),
    "4": (program(NORMAL, around, scale=0.3), program(NORMAL, scale=0.3), X, {}),
    "4, minibatch": (program(NORMAL, around, plate=60), program(NORMAL, plate=60), X, {"num_data": 60}),
    "7": (MODEL, registered(), X, {}),
    "8": (global_model(600), global_guide, X, {"num_data": 600}),
    "8, local": (MODEL, GUIDE, X, {"num_data": 600}),
    "8, all data": (global_model(None), global_guide, X, {"num_data": 12}),
    "10": (DISCRETE, program(dist.Bernoulli(number(0.4))), X, {"elbo": "trace"}),
    "15": (BERNOULLI, GUIDE, (X > 0).double(), {}),
    "16": (GAMMA, program(dist.LogNormal(number(0.0), 1.0)), X, {}),
    "dimension": (VECTOR, vector(2), X, {}),
    "width": (NARROW, vector(1), columns(12, 1), {}),
    "8, all data of a fixed plate": (fixed_plate(12, whole=True), global_guide, X, {"num_data": 12}),
    "8, a part of a fixed plate": (fixed_plate(180, whole=False), global_guide, X, {"num_data": 180}),
    "8, held-out rows of local latents": (MODEL, GUIDE, X, {"num_data": 5}),
    "15, inside": (program(NORMAL, logit_twice), GUIDE, torch.full((12,), 0.6).double(), {}),
    "15, masked": (
        program(NORMAL, lambda z: dist.Poisson(z.exp()).mask(X > 0)),
        *(GUIDE, X.round(), {}),
    ),
    "16, of the same interval": (
        program(dist.Uniform(number(0.0), 2.0), around),
        *(
            program(lambda x: dist.TransformedDistribution(dist.Beta(2 + 0 * x, 1.0), [AffineTransform(0.0, 2.0)])),
            X,
            {},
        ),
    ),
    "16, a shifted log-normal": (
        program(dist.HalfNormal(number(1.0)), around),
        *(
            program(lambda x: dist.TransformedDistribution(dist.LogNormal(0 * x, 1.0), [AffineTransform(0.0, 2.0)])),
            X,
            {},
        ),
    ),
    "22, masks that are equal": (
        poutine.mask(MODEL, mask=HALF),
        program(lambda x: NORMAL.expand([12]).mask(HALF)),
        X,
        {},
    ),
    "22, a mask that leaves nothing out": (poutine.mask(MODEL, mask=HALF | True), GUIDE, X, {}),
    "23, a factor of nothing": (
        MODEL,
        lambda x: (GUIDE(x), pyro.factor("f", 0 * number(1.0), has_rsample=True)),
        X,
        {},
    ),
    "23, a discrete point": (DISCRETE, program(lambda x: dist.Delta((x > 0).double())), X, {}),
    "27, declared": (declared, ROW_GUIDE, columns(12, 12), {}),
    "vectorized": (MODEL, GUIDE, X, {"elbo": "trace(num_particles=2, vectorize_particles=True)"}),
    "batches of more rows": (Normed(), GUIDE, X, {"num_data": 26}),
}


@pytest.mark.parametrize("case", SOUND)
def test_nothing_is_found_on_a_sound_pair(case):
    model, guide, x, options = SOUND[case]
    assert check(model, guide, x, **options) == []


@pytest.mark.parametrize("elbo", ["trace", "mean_field"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_no_error_is_found_in_the_catalogue(name, elbo):
    """But for a discrete guide under an estimator that needs reparameterised draws. An auxiliary site has no KL to look up."""
    entry = CATALOGUE[name]
    model, guide = entry.build()
    # Its mask belongs to the places of the rows, so a fit must keep their order.
    options = {"elbo": elbo, "num_data": entry.num_data, "shuffle": name != "masked_rows"}
    found = {finding.code for finding in check(model, guide, entry.batch, **options)}
    expected = {"not-reparametrized"} if (name, elbo) == ("discrete", "mean_field") else set()
    if elbo == "mean_field" and "sampled" in entry.sources.values() and name != "auxiliary":
        expected = {"kl-fallback"}
    assert found - {"kl-fallback"} == expected - {"kl-fallback"}
    assert ("kl-fallback" in found) == ("kl-fallback" in expected)


def test_errors_come_first():
    found = check(program(dist.StudentT(number(3.0), 0.0, 1.0), around, scale=0.3), GUIDE, X, elbo="mean_field")
    assert [finding.severity for finding in found] == ["error", "note"]


def test_one_cause_is_one_finding():
    """Five latents in one plate, which the guide subsamples and the model does not."""

    def sites(size: int | None) -> Program:
        def run(x: Tensor) -> None:
            with pyro.plate("data", size or len(x), subsample=torch.arange(len(x))):
                for name in "abcde":
                    pyro.sample(name, NORMAL)
                if size is None:
                    pyro.sample("x", dist.Normal(0 * x, 1.0), obs=x)

        return run

    (finding,) = check(sites(None), sites(60), X)
    expected = "site 'a' (likewise 'b', 'c', 'd' and 1 more) is scaled by 1 in the model and by 5 in the guide"
    assert (finding.code, finding.site) == ("scale-mismatch", "a")
    assert finding.message.startswith(expected)


@pytest.mark.parametrize(
    ("fill", "codes"), [(lambda x: x, ["data-not-finite"]), (lambda x: torch.where(x.isfinite(), x, 0), [])]
)
def test_nan_under_a_mask_is_an_error_if_it_reaches_the_gradient(fill, codes):
    """A mask keeps NaN from log p; its gradient is 0 · NaN, unless the values are filled before."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", number(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            with poutine.mask(mask=x.isfinite()):
                pyro.sample("x", dist.Normal(z + loc, 1.0), obs=fill(x))

    found = check(model, program(lambda x: NORMAL.expand(x.shape)), torch.where(X > 1, math.nan, X))
    assert [finding.code for finding in found] == codes


def test_the_word_of_the_author_is_heard_under_validation_only():
    """Stock Pyro refuses what its validation refuses; without it, nothing tells a word from a default."""
    model, guide, x, *_ = WRONG["15: meant by the author"]
    assert [f.severity for f in check(model, guide, x)] == ["note"]
    with pyro.validation_enabled(False):
        assert [f.severity for f in check(model, guide, x)] == ["error"]


def test_pyros_validation_of_parameters_is_that_of_the_caller():
    model = program(NORMAL, lambda z: dist.Normal(z, -1.0 + 0 * z))
    (finding,) = check(model, GUIDE, X)
    assert finding.code == "program-fails"
    assert "Expected parameter scale" in finding.message


@pytest.mark.parametrize("args", [(), (X, None), (X, 3), (X, {"k": 1}, None)], ids=str)
def test_a_batch_may_hold_anything(args):
    def model(x: Any = X, *others: Any) -> None:
        MODEL(x)

    def guide(x: Any = X, *others: Any) -> None:
        GUIDE(x)

    assert check(model, guide, args) == []


def test_the_check_changes_no_statistics_and_no_modes():
    model = Normed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert check(model, GUIDE, X) == []
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_refuse_raises_on_an_error_warns_of_a_warning_and_passes_a_note():
    finding = [Finding("code", severity, "z", f"a {severity}", "mend it") for severity in ("error", "warning", "note")]
    with pytest.raises(InputError, match=r"^a error; mend it$"):
        refuse(finding)
    with pytest.warns(UserWarning, match=r"^a warning; mend it$"):
        refuse(finding[1:])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        refuse(finding[2:])
        refuse([])


def test_a_fit_does_not_start_on_an_error(tmp_path):
    model, guide, *_ = WRONG["5: no such site in the guide"]
    data = load(scalars(40))
    with pytest.raises(InputError, match="the guide has no site 'z'"):
        fit(model, guide, data, steps=2, out=tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_fit_can_be_told_not_to_look():
    """A network that is not registered then stays as it is."""
    guide = unregistered()

    def model(x: Tensor) -> None:
        b = pyro.param("b", number(0.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z + b, 1.0), obs=x)

    data = load(scalars(40))
    with pytest.raises(InputError, match="never train"):
        fit(model, guide, data, steps=2, progress=False)
    run = fit(model, guide, data, steps=2, progress=False, check=False)
    assert [name for name, _ in run.pair.named_parameters()] == ["model.b"]


def test_the_check_leaves_nothing_behind():
    state = torch.get_rng_state()
    check(*CATALOGUE["closure"].build(), CATALOGUE["closure"].batch)
    assert torch.equal(state, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())


def test_the_check_changes_nothing():
    """Not the parameters, which probes move, nor buffers, modes, gradients, data, stores or generators."""
    model, guide = Normed(), registered()
    pair = pair_of(model, guide, (X,))
    states = [pair.state_dict(), model.state_dict(), {"x": X}]
    before = [{name: value.clone() for name, value in state.items()} for state in states]
    random, stored = generators(), dict(pyro.get_param_store().items())
    for elbo in ("trace", "mean_field", "iwae"):
        assert check_pair(pair, (X,), elbo=get(elbo), num_data=36) == []
        assert check(model, guide, X, elbo=elbo, num_data=36) == []
    for state, values in zip(states, before, strict=True):
        assert all(torch.equal(state[name], value) for name, value in values.items())
    assert all(p.grad is None for p in (*pair.parameters(), *model.parameters()))
    assert all(module.training for module in pair.modules())
    assert torch.equal(generators()["torch"], random["torch"])
    assert generators()["python"] == random["python"]
    assert dict(pyro.get_param_store().items()) == stored


def test_a_fit_is_the_same_with_and_without_the_check():
    model, guide = Normed(), registered()
    runs = [fit(model, guide, X, steps=3, check=c, progress=False, compile=False) for c in (False, True)]
    for name, value in runs[0].pair.state_dict().items():
        assert torch.equal(value, runs[1].pair.state_dict()[name]), name


def test_a_warning_is_printed_once_in_a_comparison():
    """And not again for each estimator and each fit."""
    model, guide = program(NORMAL, around), program(lambda x: dist.Normal(0.5 * x + pyro.param("a", number(0.0)), 0.7))

    def idle(x: Tensor) -> None:
        pyro.param("b", number(0.0))
        guide(x)

    with pytest.warns(UserWarning, match="does not depend on") as caught:
        compare(model, idle, X, elbos=("trace", "stl"), steps=2, audit_draws=0, particles=2, draws=2, progress=False)
    assert len([warning for warning in caught if "does not depend on" in str(warning.message)]) == 1

"""Comparisons: the same start for all, audits at the first one's parameters, and a document whose keys and types are fixed."""

import io
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, number, scalars
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from rich.console import Console
from torch import Tensor

from pyro_vi import Comparison, InputError, UsageError, audit
from pyro_vi.comparing import compare
from pyro_vi.data.loading import load
from pyro_vi.elbo.heldout import evaluate
from pyro_vi.reporting.document import to_dict
from pyro_vi.reporting.summary import conclude, table
from pyro_vi.support.writing import finite

LINEAR, DIAGONAL = "linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))"
QUICK: dict[str, Any] = {
    "steps": 6,
    "audit_draws": 20,
    "particles": 50,
    "draws": 10,
    "progress": False,
    "batch_size": 20,
}
FITS = {**QUICK, "audit_draws": 0}


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(LINEAR, DIAGONAL, load(columns(80)), out=tmp_path_factory.mktemp("both"), **QUICK)


@pytest.fixture
def one_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The name `pyro_vi.compare` is the function's."""
    monkeypatch.setattr("pyro_vi.comparing.of_estimators.AUDITED", (0.0,))


def regression(x: Tensor) -> None:
    w = pyro.sample("w", dist.Normal(number(0.0), 2.0))
    with pyro.plate("data", 72, subsample=torch.arange(len(x))):
        pyro.sample("x", dist.Normal(w, 1.0), obs=x)


@pytest.fixture(scope="module")
def global_one() -> Comparison:
    return compare(regression, "diag_normal", load(scalars(80)), **{**QUICK, "particles": 2000, "draws": 400})


@pytest.mark.slow
def test_all_fits_start_from_the_same_parameters():
    """And end elsewhere. Snapshots are of the first-named fit, so that each takes its turn."""
    data, starts, ends = load(columns(80)), [], []
    for elbos in (("trace", "mean_field"), ("mean_field", "trace")):
        run = compare(LINEAR, DIAGONAL, data, elbos=elbos, **FITS).results[elbos[0]].run
        starts.append(run.snapshots[0])
        ends.append(run.snapshots[6])
    assert len(starts[0]) > 3
    assert all(torch.equal(starts[0][name], starts[1][name]) for name in starts[0])
    fitted = [name for name, _ in run.pair.named_parameters() if name.startswith("guide")]
    assert fitted and all(not torch.equal(ends[0][name], ends[1][name]) for name in fitted)


@pytest.mark.slow
def test_a_fit_does_not_depend_on_those_before_it():
    """Under the second name a fit is what it is under the first."""
    data = load(columns(80))
    one = compare(LINEAR, DIAGONAL, data, elbos=("trace", "mean_field"), **FITS).results
    two = compare(LINEAR, DIAGONAL, data, elbos=("mean_field", "trace"), **FITS).results
    for name in one:
        assert one[name].elbo_mean == two[name].elbo_mean
        for a, b in zip(one[name].run.pair.parameters(), two[name].run.pair.parameters(), strict=True):
            assert torch.equal(a, b)


@pytest.mark.slow
def test_audits_are_at_the_parameters_of_the_first_fit(linear):
    assert list(linear.audits) == [0, 3, 6]
    first = linear.results["trace"].run
    batch = linear.data.example(72)
    for step, found in linear.audits.items():
        pair = first.at(step)
        expected = audit(pair.model, pair.guide, batch, elbos=("trace", "mean_field"), draws=20, seed=0)
        for key in ("value_mean", "value_sd", "grad_mean", "grad_var", "part_grad_var"):
            assert bool((found[key] == expected[key]).all()), key
    assert not bool((linear.audits[0].grad_var == linear.audits[6].grad_var).all())
    assert linear.audit_dataset().sizes["step"] == 3


def test_the_source_of_the_kl_is_said(linear):
    assert linear.results["trace"].kl_source == {"z": "sampled"}
    assert linear.results["mean_field"].kl_source == {"z": "analytic"}
    assert (linear.results["trace"].cls, linear.results["mean_field"].cls) == ("Trace_ELBO", "TraceMeanField_ELBO")


def test_numbers_are_of_the_held_out_data_under_each_fit(linear):
    for result in linear.results.values():
        heldout = linear.data.heldout
        exact = result.run.model.log_evidence(heldout[0]).detach().mean()
        assert result.evidence is not None and result.evidence.attrs["method"] == "exact"
        assert abs(result.evidence.attrs["value"] - float(exact)) < 1e-10
        seen = evaluate(result.run.pair, heldout, draws=10, seed=0)
        assert result.elbo_mean == float(seen.elbo_per_datum.mean())
        assert result.gap is not None and abs(result.gap - (float(exact) - result.elbo_mean)) < 1e-10


@pytest.mark.slow
def test_without_a_closed_form_the_evidence_is_sampled():
    found = compare("vae(latent_dim=2, hidden=(4,))", DIAGONAL, load(columns(80)), **FITS)
    for result in found.results.values():
        assert result.evidence is not None
        assert (result.evidence.attrs["method"], result.evidence.attrs["particles"]) == ("iw", 50)


def typed(value: Any, kind: Any) -> bool:
    if isinstance(kind, dict):
        return isinstance(value, dict) and value.keys() == kind.keys() and all(typed(value[k], kind[k]) for k in kind)
    if isinstance(kind, list):
        return isinstance(value, list) and all(typed(item, kind[0]) for item in value)
    if isinstance(kind, Mapping):
        return False
    return type(value) is kind


def test_the_document_has_the_keys_and_types_of_the_design(linear):
    """Keys and types of the JSON document, which other programs read."""
    document = json.loads(json.dumps(to_dict(linear, [linear.out / "a.png"]), allow_nan=False))
    parts = {"model": float, "guide": float}
    audits = {"step": int, "value_sd": float, "grad_var": parts, "grad_snr": parts, "seconds": float}
    estimator = {
        **dict.fromkeys(("class", "objective"), str),
        **dict.fromkeys(("log_joint", "heldout_lpd"), type(None)),
        **dict.fromkeys(("elbo", "elbo_se", "reconstruction", "kl"), float),
        "evidence": {"method": str, "value": float, "se": float},
        "gap": float,
        "train_seconds": float,
        "compiled": bool,
        "kl_source": {"z": str},
        "audits": [audits],
    }
    versions = dict.fromkeys(("python", "pyro-vi", "pyro-ppl", "torch", "numpy"), str)
    expected = {
        **dict.fromkeys(("model", "guide", "data", "out", "evaluated_on"), str),
        **dict.fromkeys(("num_data", "seed"), int),
        "versions": versions,
        "estimators": {"trace": estimator, "mean_field": estimator},
        "conclusion": [str],
        "plots": [str],
    }
    assert document.keys() == expected.keys()
    for key in expected:
        assert typed(document[key], expected[key]), key
    assert document["num_data"] == 72
    assert [one["step"] for one in document["estimators"]["trace"]["audits"]] == [0, 3, 6]
    part = linear.audits[3].sel(elbo="mean_field")
    assert document["estimators"]["mean_field"]["audits"][1]["grad_var"] == {
        "model": float(part.part_grad_var.sel(part="model")),
        "guide": float(part.part_grad_var.sel(part="guide")),
    }


@pytest.mark.slow
def test_one_estimator_alone():
    found = compare(LINEAR, DIAGONAL, load(columns(80)), elbos=("mean_field",), **QUICK)
    assert list(found.results) == ["mean_field"]
    assert list(found.audits) == [0, 3, 6]
    assert conclude(found) == []
    assert to_dict(found)["out"] is None
    Console(quiet=True).print(table(found))


def test_a_single_name_is_taken_as_one_estimator():
    assert list(compare(LINEAR, DIAGONAL, load(columns(80)), elbos="trace", **FITS).results) == ["trace"]


@pytest.mark.slow
def test_three_instances(one_audit):
    elbos = (Trace_ELBO(), TraceMeanField_ELBO(), TraceEnum_ELBO(max_plate_nesting=1))
    found = compare(LINEAR, DIAGONAL, load(columns(80)), elbos=iter(elbos), **QUICK)
    classes = [result.cls for result in found.results.values()]
    assert classes == ["Trace_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO"]
    assert found.audits[0].elbo.values.tolist() == list(found.results)
    assert len(conclude(found)) >= 2
    # Without enumerated sites TraceEnum_ELBO is Trace_ELBO.
    names = list(found.results)
    assert abs(found.results[names[0]].elbo_mean - found.results[names[2]].elbo_mean) < 1e-3


@pytest.mark.slow
def test_the_same_class_with_other_options(one_audit):
    """Both are audited under the name that they were given."""
    found = compare(LINEAR, DIAGONAL, load(columns(80)), elbos=("trace", "trace(num_particles=8)"), **QUICK)
    names = ["trace", "trace(num_particles=8)"]
    assert list(found.results) == names == found.audits[0].elbo.values.tolist()
    variance = found.audits[0].part_grad_var.sel(part="guide")
    # The mean of 8 draws has an eighth of the variance; 20 draws give each to about a third.
    assert 3 < float(variance.sel(elbo=names[0]) / variance.sel(elbo=names[1])) < 22


def test_a_global_latent_has_the_evidence_of_the_data_set_and_a_predictive_density(global_one):
    """ELBO and evidence are of the training data, the density log N(x; m, s² + 1) of the held-out ones."""
    assert global_one.on == "training"
    (x,), (new,) = global_one.data.train(), global_one.data.heldout
    covariance = torch.eye(len(x)).double() + 2.0**2
    exact = float(dist.MultivariateNormal(torch.zeros_like(x), covariance).log_prob(x)) / len(x)
    for result in global_one.results.values():
        found = result.evidence
        assert found is not None and found.attrs["per"] == "data set"
        assert abs(found.attrs["value"] - exact) < 4 * found.attrs["se"]
        assert result.gap is not None and abs(result.gap - (found.attrs["value"] - result.elbo_mean)) < 1e-12
        q = poutine.trace(result.run.guide).get_trace(x).nodes["w"]["fn"]
        right = dist.Normal(q.mean.detach(), (q.variance.detach() + 1).sqrt()).log_prob(new)
        scale = q.stddev.detach()
        spread = (scale * (new - q.mean.detach()).abs() + scale**2).mean() / 400**0.5  # about that of log p(x | w)
        assert result.lpd is not None and abs(float(result.lpd.mean() - right.mean())) < 4 * float(spread)
    document = to_dict(global_one)
    assert document["evaluated_on"] == "training"
    assert document["estimators"]["trace"]["heldout_lpd"] == float(global_one.results["trace"].lpd.mean())
    json.dumps(finite(document), allow_nan=False)  # a model without parameters has no signal-to-noise ratio
    console = Console(record=True, width=110, file=io.StringIO())
    console.print(table(global_one))
    text = console.export_text()
    assert "training ELBO" in text and "held-out log predictive density" in text
    assert "heldout_elbo" not in global_one.results["trace"].run.history[-1]


def mixture(x):
    """Both components have parameters of their own; nothing is left to the guide."""
    locs = pyro.param("locs", torch.tensor([-1.0, 1.0]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)


def nothing(x):
    pass


def test_a_mixture_under_enumeration_without_held_out_data():
    """All latents are summed: ELBO and evidence are log p(x) of the training data, and the gap is 0."""
    data = load(scalars(30).float(), heldout=0.0)
    found = compare(mixture, nothing, data, elbos=["enum"], **{**FITS, "compile": False})
    result = found.results["enum"]
    locs = result.run.model.get_parameter("locs").detach()
    (x,) = data.train()
    exact = (dist.Normal(locs, 1.0).log_prob(x[:, None]) + torch.tensor([0.3, 0.7]).log()).logsumexp(1)
    np.testing.assert_allclose(result.evaluation.elbo_per_datum, exact, rtol=1e-5)
    np.testing.assert_allclose(result.evidence.log_evidence, exact, rtol=1e-5)
    assert result.evidence.attrs["method"] == "enum" and abs(result.gap) < 1e-6
    assert found.on == "training" and to_dict(found)["estimators"]["enum"]["kl"] is None
    Console(quiet=True).print(table(found))
    assert abs(result.run.history[-1]["elbo"] - float(exact.mean())) < 1e-5


def point(x):
    loc = pyro.param("loc", torch.tensor(0.3))
    pyro.sample("w", dist.Delta(loc))


def test_a_point_estimate_has_no_elbo_and_no_evidence():
    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    data = load(scalars(20).float(), heldout=0.0)
    found = compare(model, point, data, elbos=["trace"], **{**FITS, "compile": False})
    result = found.results["trace"]
    loc, (x,) = result.run.guide.get_parameter("loc").detach(), data.train()
    exact = float(dist.Normal(loc, 1.0).log_prob(x).mean() + dist.Normal(0.0, 1.0).log_prob(loc) / 20)
    document = to_dict(found)["estimators"]["trace"]
    assert document["objective"] == "log p(x, z)" and document["elbo"] is None and document["evidence"] is None
    assert abs(document["log_joint"] - exact) < 1e-5 and document["gap"] is None
    assert conclude(found) == [
        "trace: MAP: no ELBO, no evidence; the fit maximises log p(x, z), with a point estimate of 'w'."
    ]
    record = result.run.history[-1]
    assert math.isnan(record["elbo"]) and abs(record["log_joint"] - exact) < 1e-5
    Console(quiet=True).print(table(found))


def test_what_no_estimator_serves_is_refused_before_the_first_fit(tmp_path):
    """`trace` cannot sum the site that `enum` can."""
    with pytest.raises(InputError, match="'k'"):
        compare(mixture, nothing, scalars(30), elbos=["enum", "trace"], out=tmp_path / "both", **FITS)
    assert not (tmp_path / "both").exists()


def test_without_audits():
    found = compare(LINEAR, DIAGONAL, load(columns(80)), **FITS)
    assert found.audits == {} and to_dict(found)["estimators"]["trace"]["audits"] == []
    assert len(conclude(found)) == 1


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"elbos": ()}, UsageError, "name at least one"),
        ({"elbo": "trace"}, UsageError, "compare has no option 'elbo'; did you mean 'elbos'?"),
        ({"snapshots": (0.5,)}, UsageError, "compare has no option 'snapshots'."),
        ({"elbos": ("trace", "trace")}, UsageError, "named twice"),
        ({"elbos": (Trace_ELBO(), "trace")}, UsageError, "named twice"),
        ({"audit_draws": 5}, UsageError, "audit_draws must be at least 20, or 0 for no audits, not 5"),
        ({"particles": 1}, UsageError, "particles must be a whole number of at least 2, not 1"),
        ({"draws": 0}, UsageError, "draws must be a whole number of at least 1, not 0"),
        ({"audit_batch": 0}, UsageError, "audit_batch must be a whole number of at least 1, not 0"),
        ({"epochs": 3}, UsageError, "give steps or epochs, not both"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(options, kind, text, tmp_path):
    data = options.pop("data", None) or load(columns(80))
    with pytest.raises(kind) as caught:
        compare(LINEAR, DIAGONAL, data, out=tmp_path / "both", **{**QUICK, **options})
    assert text in str(caught.value)
    assert not (tmp_path / "both").exists()


def test_each_fit_has_a_run_folder(linear):
    assert {path.name for path in linear.out.iterdir()} == {"trace", "mean_field"}
    assert all((linear.out / name / "checkpoint.pt").is_file() for name in ("trace", "mean_field"))

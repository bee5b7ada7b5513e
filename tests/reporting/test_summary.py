"""What a comparison says in words: differences within their error are said to be none, ratios are those of the numbers."""

import dataclasses
import io
import math
import re
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import xarray as xr
from catalogue import columns
from rich.console import Console

from pyro_vi import Comparison, compare
from pyro_vi.auditing.auditor import audit as measure
from pyro_vi.auditing.result import PARTS
from pyro_vi.data.loading import load
from pyro_vi.elbo.heldout import Evaluation
from pyro_vi.reporting.summary import audit_table, conclude, table

NAMES = ("trace", "mean_field")


@pytest.fixture(scope="module")
def base() -> Comparison:
    """A comparison whose numbers the tests replace."""
    options: dict[str, Any] = {"steps": 2, "audit_draws": 0, "draws": 2, "progress": False}
    return compare("linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))", load(columns(80)), **options)


def audit(variance: dict[str, dict[str, tuple[float, float]]]) -> xr.Dataset:
    """The part of an audit that is read: variance and its standard error, by part and estimator; all take a second."""
    parts, names = ["model", "guide"], list(variance["guide"])
    column = [[[variance[part][name][i] for part in parts] for name in names] for i in (0, 1)]
    dims = ("elbo", "part")
    return xr.Dataset(
        {
            "part_grad_var": (dims, column[0]),
            "part_grad_var_se": (dims, column[1]),
            "part_work_var": (dims, column[0]),
            "seconds": ("elbo", [1.0] * len(names)),
            "seconds_se": ("elbo", [0.0] * len(names)),
            "bias_p": (("elbo", "parameter"), [[math.nan]] * len(names)),
        },
        coords={"elbo": names, "part": parts, "target": ("elbo", ["elbo"] * len(names))},
    )


def with_elbos(base: Comparison, **elbos: torch.Tensor) -> Comparison:
    """The comparison with given ELBOs of the held-out data (and a KL of 1)."""
    results = {
        name: dataclasses.replace(base.results[old], evaluation=Evaluation(values + 1, torch.ones_like(values)))
        for (name, values), old in zip(elbos.items(), NAMES * 2, strict=False)
    }
    return dataclasses.replace(base, results=results)


DATA = torch.linspace(-30.0, -20.0, 100).double()
NOISE = torch.tensor([1.0, -1.0] * 50).double()


@pytest.mark.parametrize("swap", [False, True])
def test_the_better_fit_is_named_with_the_paired_difference(base, swap):
    """The data spread by 3 nats; the differences are 0.5 ± 0.1, whose standard error over 100 data is 0.1005 / 10."""
    better, worse = DATA + 0.5 + 0.1 * NOISE, DATA
    values = {"mean_field": better, "trace": worse} if swap else {"trace": better, "mean_field": worse}
    sentence = conclude(with_elbos(base, **values))[0]
    best, other = values
    assert sentence == (
        f"On held-out data, the fit under {best} has the highest ELBO of 2 fits: beyond error, {other} is behind by "
        "0.500 ± 0.010 nats per datum (paired over 100 held-out data); this is one seed, and another may differ by as much."
    )


@pytest.mark.parametrize(("shift", "apart"), [(0.19, False), (0.21, True), (-0.19, False), (-0.21, True)])
def test_two_standard_errors_make_a_difference(base, shift, apart):
    """Differences of ± 1 over 100 data: the standard error is √(100 / 99) / 10 = 0.1005, twice that 0.201."""
    sentence = conclude(with_elbos(base, trace=DATA + shift + NOISE, mean_field=DATA))[0]
    assert ("has the highest ELBO" in sentence) == apart
    assert ("cannot tell" in sentence) == (not apart)
    assert f"{abs(shift):.2f} ± 0.10 nats per datum" in sentence


def test_of_three_all_are_compared_with_the_best(base):
    found = with_elbos(base, a=DATA, b=DATA + 2, c=DATA + 1)
    assert "the fit under b has the highest ELBO of 3 fits: beyond error, c is behind by 1" in conclude(found)[0]
    assert "and a by 2" in conclude(found)[0]


def test_elbos_of_shared_latents_are_paired_over_draws(base):
    """One number for the data set; its 40 draws differ by 0.5 ± 0.1, whose standard error is √(40 / 39) / 10 / √40 = .016."""
    draws = torch.linspace(-30.0, -20.0, 40).double()
    ahead = draws + 0.5 + 0.1 * torch.tensor([1.0, -1.0] * 20).double()
    results = {
        name: dataclasses.replace(
            base.results[name],
            evaluation=Evaluation(torch.zeros(1), torch.zeros(1), of_draws=values),
            shared=True,
        )
        for name, values in zip(NAMES, (ahead, draws), strict=True)
    }
    sentence = conclude(dataclasses.replace(base, results=results))[0]
    assert "0.50 ± 0.02 nats per datum" in sentence or "0.500 ± 0.016 nats per datum" in sentence
    assert "(paired over 40 draws)" in sentence


START = {
    "guide": {"trace": (3.0, 0.03), "mean_field": (0.1, 0.001)},
    "model": {"trace": (1.0, 0.1), "mean_field": (1.1, 0.1)},
}
END = {
    "guide": {"trace": (0.8, 0.08), "mean_field": (1.6, 0.16)},
    "model": {"trace": (2.0, 0.1), "mean_field": (2.0, 0.1)},
}


def test_ratios_of_gradient_variances_are_those_of_the_numbers(base):
    """Relative errors add in squares: 30 · √(.01² + .01²) = 0.42 and 0.5 · √(.1² + .1²) = 0.07."""
    found = dataclasses.replace(with_elbos(base, trace=DATA, mean_field=DATA), audits={0: audit(START), 5: audit(END)})
    sentence = conclude(found)[1]
    assert sentence.startswith(
        "Against mean_field, the guide's gradient variance under trace is 30 ± 0.4 times as large at"
    )
    assert "and 0.5 ± 0.07 times as large at the end" in sentence
    assert (
        "the model's gradient variance under trace is equal within error (0.91 ± 0.12 times) at the start" in sentence
    )
    assert "and the same at the end" in sentence


@pytest.mark.parametrize(("ratio", "equal"), [(1.3, True), (1.36, False), (1 / 1.3, True), (1 / 1.36, False)])
def test_a_ratio_within_two_standard_errors_is_called_equal(base, ratio, equal):
    """On the scale of logarithms: 2 · √(.1065² + .1065²) = .301, and e^.301 = 1.351."""
    same = {"model": {"trace": (1.0, 0.1), "mean_field": (1.0, 0.1)}}
    one = {**same, "guide": {"trace": (ratio, 0.1065 * ratio), "mean_field": (1.0, 0.1065)}}
    found = dataclasses.replace(with_elbos(base, trace=DATA, mean_field=DATA), audits={0: audit(one), 5: audit(one)})
    guide = conclude(found)[1].split(", the model's")[0]
    assert guide.count("equal within error") == (2 if equal else 0)
    assert guide.count("times as large") == (0 if equal else 2)


def test_a_variance_of_zero_makes_no_ratio(base):
    one = {
        "guide": {"trace": (2.0, 0.1), "mean_field": (0.0, 0.0)},
        "model": {"trace": (0.0, 0.0), "mean_field": (0.0, 0.0)},
    }
    found = dataclasses.replace(with_elbos(base, trace=DATA, mean_field=DATA), audits={0: audit(one), 5: audit(one)})
    sentence = conclude(found)[1]
    assert "is 2 (against 0) at the start" in sentence
    assert "the model's gradient variance under trace is the same at the start" in sentence


def test_a_sampled_kl_is_told_with_its_reason(base):
    source = {"z": "sampled (no closed form of KL(Normal || StudentT) is registered)"}
    results = {name: dataclasses.replace(result, kl_source=source) for name, result in base.results.items()}
    found = conclude(dataclasses.replace(base, results=results))
    assert (
        "Under mean_field the KL of site 'z' is sampled (no closed form of KL(Normal || StudentT) is registered)."
        in found
    )
    assert not any("KL of site" in sentence for sentence in conclude(base))


def test_evidence_from_few_effective_draws_is_warned_of(base):
    def evidence(ess: float) -> xr.Dataset:
        attrs = {"method": "iw", "value": -20.0, "se": 0.1, "particles": 50}
        columns = {"ess": ("datum", [1.0, ess, 40.0]), "log_evidence": ("datum", [-20.0, -19.0, -21.0])}
        return xr.Dataset(columns, attrs=attrs)

    for ess, told in ((9.0, True), (11.0, False)):
        results = {name: dataclasses.replace(result, evidence=evidence(ess)) for name, result in base.results.items()}
        sentences = conclude(dataclasses.replace(base, results=results))
        assert any("fewer than 10 effective draws" in sentence for sentence in sentences) == told


def shown(comparison: Comparison) -> dict[str, list[str]]:
    """Cells of the table by the label of their row."""
    console = Console(width=200, file=io.StringIO())
    console.print(table(comparison))
    lines = [line.strip("│┃") for line in console.file.getvalue().splitlines() if line[:1] in "│┃"]
    cells = [[cell.strip() for cell in line.replace("┃", "│").split("│")] for line in lines]
    return {label: rest for label, *rest in cells}


def test_cells_of_the_table(base):
    attrs = {"method": "iw", "value": -24.0, "se": 0.25, "particles": 500}
    found = with_elbos(base, trace=DATA, mean_field=DATA - 1)
    results = {
        name: dataclasses.replace(result, evidence=xr.Dataset(attrs=attrs)) for name, result in found.results.items()
    }
    found = dataclasses.replace(found, results=results, audits={0: audit(START), 5: audit(END)})
    rows = shown(found)
    error = float(DATA.std()) / math.sqrt(100)
    assert rows[""] == ["trace", "mean_field"]
    assert rows["Pyro class"] == ["Trace_ELBO", "TraceMeanField_ELBO"]
    assert rows["KL"][0] in ("sampled", "1.00")  # two rows have this label: the source, and the value
    assert rows["held-out ELBO"] == [f"-25.00 ± {error:.2f}", f"-26.00 ± {error:.2f}"]
    assert rows["reconstruction"] == ["-24.00", "-25.00"]
    assert rows["evidence (importance, K = 500)"] == ["-24.00 ± 0.25"] * 2
    assert rows["gap (evidence - ELBO)"] == ["1.00", "2.00"]
    assert rows["gradient variance, guide, start"] == ["3 ± 0.03", "0.1 ± 0.001"]
    assert rows["gradient variance, guide, end"] == ["0.8 ± 0.08", "1.6 ± 0.2"]
    assert rows["gradient variance, model, end"] == ["2 ± 0.1", "2 ± 0.1"]
    run = base.results["trace"].run
    assert rows["ms per step"][0] == f"{1000 * run.seconds / run.steps:.2f}"


def test_the_exact_evidence_is_said_to_be_exact(base):
    rows = shown(base)
    value = base.results["trace"].evidence
    assert value is not None
    assert rows["evidence (exact)"][0] == f"{value.attrs['value']:.2f} ± {value.attrs['se']:.2f}"
    assert not any("gradient variance" in label for label in rows)


def test_fits_of_different_bounds_are_compared_by_their_evidence_too(base):
    """The ELBO prefers the first by 0.5, the evidence the second by 1; both paired, over 100 data."""

    def exact(values: torch.Tensor) -> xr.Dataset:
        attrs = {"method": "exact", "value": float(values.mean()), "se": 0.3, "particles": 0}
        return xr.Dataset({"log_evidence": ("datum", values.numpy())}, attrs=attrs)

    found = with_elbos(base, trace=DATA + 0.5 + 0.1 * NOISE, iwae=DATA)
    evidence = {"trace": exact(DATA + 1), "iwae": exact(DATA + 2 + 0.1 * NOISE)}
    targets = {"trace": "elbo", "iwae": "iwae(5)"}
    results = {
        name: dataclasses.replace(result, evidence=evidence[name], target=targets[name])
        for name, result in found.results.items()
    }
    first, second, *_ = conclude(dataclasses.replace(found, results=results))
    assert "the fit under trace has the highest ELBO of 2 fits: beyond error, iwae is behind by 0.500 ± 0.010" in first
    assert (
        "the fit under iwae has the highest evidence of 2 fits: beyond error, trace is behind by 1.000 ± 0.010"
        in second
    )
    same = {name: dataclasses.replace(result, target="elbo") for name, result in results.items()}
    assert not any("evidence" in sentence for sentence in conclude(dataclasses.replace(found, results=same)))


def test_gradients_are_compared_among_estimators_of_one_bound(base):
    """dreg's gradient is that of another bound: 30 and not 3000 times is what trace has over mean_field."""
    names = {"trace": "elbo", "mean_field": "elbo", "dreg": "iwae(5)"}
    variance = {part: {"trace": (3.0, 0.03), "mean_field": (0.1, 0.001), "dreg": (0.001, 1e-5)} for part in PARTS}
    made = audit(variance).assign_coords(target=("elbo", list(names.values())))
    results = {
        name: dataclasses.replace(base.results["trace"], target=target, evidence=None) for name, target in names.items()
    }
    sentences = conclude(dataclasses.replace(base, results=results, audits={0: made}))
    (sentence,) = [s for s in sentences if s.startswith("Against")]
    assert sentence.startswith(
        "Against mean_field, the guide's gradient variance under trace is 30 ± 0.4 times as large"
    )


@pytest.mark.slow
def test_the_audit_table_shows_what_has_parameters_and_what_each_site_adds():
    """w ~ N(0, 1), z_n ~ N(w, 1), x_n ~ N(z_n, 1): no parameter in the model, draws at two sites."""

    def model(x):
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(w, 1.0)), 1.0), obs=x)

    def guide(x):
        loc, width = pyro.param("loc", torch.tensor(0.5)), pyro.param("width", torch.tensor(0.7))
        pyro.sample("w", dist.Normal(loc, 0.3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, width))

    x = torch.linspace(-1.0, 2.0, 7)
    found = measure(model, guide, x, elbos=["trace", "mean_field"], draws=400)
    console = Console(width=200, file=io.StringIO())
    console.print(audit_table(found, "two sites"))
    text = console.file.getvalue()
    assert "guide parameters" in text and "model parameters" not in text
    assert "KL of z: analytic under mean_field." in text and "KL of z: sampled under trace." in text
    shares = re.findall(r"due to each site's draws, (\w+): w (\d+) %, z (\d+) %", text)
    assert [name for name, *_ in shares] == ["trace", "mean_field"]
    for name, w, z in shares:
        here = found.sel(elbo=name, part="guide")
        assert (int(w), int(z)) == tuple(round(100 * float(v / here.part_grad_var)) for v in here.site_var)
        assert int(w) + int(z) + 8 >= 100  # total effects add up to the variance or more, to their error on 200 pairs

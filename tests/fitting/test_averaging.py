"""Averages of the iterates: their values, their place in records, results and checkpoints, and what is refused."""

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from small_fits import in_main_thread, interrupting, quick, same, same_fit, untimed
from torch import nn

import pyro_vi
from pyro_vi import UsageError
from pyro_vi.data.loading import load
from pyro_vi.fitting.averaging import at_evaluation, averaging, evaluated
from pyro_vi.fitting.named_optimizers import named
from pyro_vi.fitting.rate_free import DoG
from pyro_vi.fitting.reading import load_parameters

ETAS = [8.0, 3.0, 0.0]


def of_steps(optimizer: torch.optim.Optimizer, *parameters: nn.Parameter, steps: int = 50, first: int = 1) -> None:
    """Each step adds the learning rate; the last parameter has no gradient before step ``first``."""
    for step in range(1, steps + 1):
        for p in parameters:
            late = p is parameters[-1] and step < first
            p.grad = None if late else -torch.ones_like(p)
        optimizer.step()


@pytest.mark.parametrize("eta", ETAS)
def test_the_average_of_equal_steps_has_its_closed_form(eta):
    """θₜ = t gives ((η + 1) T + 1) / (η + 2)."""
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = averaging(torch.optim.SGD([x], lr=1.0), f"polynomial(eta={eta})")
    of_steps(optimizer, x)
    torch.testing.assert_close(
        evaluated(optimizer)[id(x)], torch.full_like(x, ((eta + 1) * 50 + 1) / (eta + 2)), rtol=0, atol=1e-10
    )
    assert torch.equal(x.detach(), torch.full((3,), 50.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_parameter_that_moves_later_has_the_average_since_the_first_step(kind):
    one, two = (nn.Parameter(torch.zeros((), dtype=torch.float64)) for _ in range(2))
    optimizer = averaging(kind([one, two], lr=1.0), "polynomial")
    of_steps(optimizer, one, two, steps=20, first=8)
    expected = 0.0
    for t in range(1, 21):  # at rest until step 7
        expected += 9 / (t + 8) * (max(0, t - 7) - expected)
    assert float(evaluated(optimizer)[id(two)]) == pytest.approx(
        expected, abs=1e-6 if kind is torch.optim.Adam else 1e-12
    )


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.RMSprop, DoG, "prodigy"])
def test_an_optimizer_takes_the_same_steps_with_an_average(kind):
    if kind == "prodigy":
        pytest.importorskip("pytorch_optimizer")
        kind, _ = named(kind)
    plain, averaged = (nn.Parameter(torch.ones(2)) for _ in range(2))
    one, two = kind([plain]), averaging(kind([averaged]), "polynomial")
    for optimizer, value in ((one, plain), (two, averaged)):
        for _ in range(10):
            optimizer.zero_grad()
            ((value - 3) ** 2).sum().backward()
            optimizer.step()
    assert torch.equal(plain, averaged) and not torch.equal(evaluated(two)[id(averaged)], averaged)
    assert isinstance(two, kind) and type(two).__name__ == kind.__name__


def test_the_parameters_have_their_bits_again_after_an_evaluation():
    x = nn.Parameter(torch.rand(5))
    optimizer = averaging(torch.optim.SGD([x], lr=0.1), "polynomial")
    of_steps(optimizer, x, steps=3)
    before, average = x.detach().clone(), evaluated(optimizer)[id(x)].clone()
    with pytest.raises(ZeroDivisionError), at_evaluation(optimizer):
        assert torch.equal(x, average) and not torch.equal(x, before)
        raise ZeroDivisionError
    assert torch.equal(x, before)


@pytest.mark.slow
def test_the_result_is_the_average_and_the_last_iterate_is_there(few_records, tmp_path):
    plain = quick(steps=12, snapshots=(0.5, 1.0))
    run = quick(steps=12, average="polynomial", out=tmp_path / "run", snapshots=(0.5, 1.0))
    assert same(run.last.state_dict(), plain.pair.state_dict()) and same(
        plain.last.state_dict(), plain.pair.state_dict()
    )
    assert not same(run.pair.state_dict(), plain.pair.state_dict())
    assert same(run.at(12).state_dict(), run.pair.state_dict())
    last, before = run.history[-1], run.history[-2]
    for name in ("elbo", "heldout_elbo"):
        assert last[f"last_{name}"] == plain.history[-1][name] != last[name] and f"last_{name}" not in before
    assert last["loss"] == plain.history[-1]["loss"]
    assert "iterate    elbo " in repr(run) and "iterate" not in repr(plain)
    opened = pyro_vi.open(tmp_path / "run", data=run.data).run
    assert same_fit(opened, run) and same(opened.last.state_dict(), run.last.state_dict())
    again = pyro_vi.fit(
        "linear_gaussian(latent_dim=2)", "diag_normal(hidden=(4,))", run.data, steps=1, progress=False
    ).pair
    load_parameters(again, tmp_path / "run")
    assert same(again.state_dict(), run.pair.state_dict())


def test_a_run_in_memory_is_saved_with_both(tmp_path):
    run = quick(average="polynomial")
    pyro_vi.open(run).save(tmp_path / "run")
    opened = pyro_vi.open(tmp_path / "run").run
    assert same_fit(opened, run) and same(opened.last.state_dict(), run.last.state_dict())
    more = pyro_vi.open(run).more(steps=1, average="none", lr=1e-9).run
    for name, value in more.pair.state_dict().items():
        torch.testing.assert_close(value, run.pair.state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.slow
@in_main_thread
def test_an_interrupted_fit_ends_with_the_same_bits(few_records, tmp_path):
    options: dict[str, Any] = {"steps": 12, "average": "polynomial(eta=2)", "snapshots": (0.25, 1.0)}
    whole = quick(optimizer=interrupting(), **options)
    with pytest.raises(KeyboardInterrupt):
        quick(optimizer=interrupting(7), out=tmp_path / "run", **options)
    resumed = quick(optimizer=interrupting(), out=tmp_path / "run", resume=True, **options)
    assert same_fit(resumed, whole) and same(resumed.last.state_dict(), whole.last.state_dict())
    again = quick(optimizer=interrupting(), out=tmp_path / "run", resume=True, **options)
    assert same_fit(again, whole) and same(again.last.state_dict(), whole.last.state_dict())


@pytest.mark.slow
def test_a_run_without_an_average_goes_on_as_it_is_and_may_get_one(few_records, tmp_path):
    plain = quick(steps=12)
    quick(steps=6, out=tmp_path / "run", average="none")
    allowed: dict[str, Any] = {"steps": 12, "resume": True, "allow": ("steps", "kept", "average")}
    with pytest.raises(UsageError, match=r"average was None, is 'polynomial\(eta=8.0\)'\); .*--allow average$"):
        quick(out=tmp_path / "run", resume=True, average="polynomial")
    averaged = quick(out=tmp_path / "run", average="polynomial", schedule=None, **allowed)
    assert not same(averaged.pair.state_dict(), averaged.last.state_dict())
    ended = quick(out=tmp_path / "run", **{**allowed, "steps": 13})
    assert ended.last_state is None and ended.steps == 13 and plain.steps == 12


@pytest.mark.slow
def test_the_optimizers_without_a_rate_average_by_default(few_records):
    run, plain = quick(optimizer="dog"), quick(optimizer="dog", average="none")
    assert run.config["average"] == "polynomial(eta=8.0)" and plain.config["average"] is None
    assert same(run.last.state_dict(), plain.pair.state_dict()) and plain.last_state is None
    assert quick(optimizer=DoG).last_state is not None and quick().last_state is None


@pytest.mark.parametrize(
    ("average", "message"),
    [
        ("polinomial", "no average named 'polinomial'; did you mean 'polynomial'?"),
        ("polynomial(eta=-1)", "eta must be"),
        ("polynomial(power=2)", "average 'polynomial' has no option 'power'"),
    ],
)
def test_an_unknown_average_is_refused(average, message):
    with pytest.raises(UsageError) as caught:
        quick(average=average)
    assert message in str(caught.value)


def test_callbacks_and_resumed_records_are_those_of_the_average(few_records):
    seen: list[dict[str, Any]] = []
    run = quick(average="polynomial", callbacks=[seen.append])
    assert untimed(seen) == untimed(run.history)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adam", "dog", "sgd(momentum=0.9)"])
def test_compiled_steps_average_as_eager_ones(name, few_records, tmp_path):
    settings: dict[str, Any] = {"optimizer": name, "average": "polynomial", "warmup": 10, "batch_size": 20}
    eager, compiled = (quick(compile=on, steps=40, **settings) for on in (False, True))
    assert compiled.compiled, compiled.choice
    for one, two in ((eager.pair, compiled.pair), (eager.last, compiled.last)):
        for key, value in one.state_dict().items():
            torch.testing.assert_close(two.state_dict()[key], value, rtol=1e-4, atol=1e-6)
    for key in ("elbo", "last_elbo"):
        assert compiled.history[-1][key] == pytest.approx(eager.history[-1][key], rel=1e-4)
    if name == "dog":  # a cosine decay would be another one for fewer steps
        quick(compile=True, out=tmp_path / "run", steps=23, **settings)
        resumed = quick(compile=True, out=tmp_path / "run", resume=True, steps=40, allow=("steps", "kept"), **settings)
        assert same(resumed.pair.state_dict(), compiled.pair.state_dict())
        assert same(resumed.last.state_dict(), compiled.last.state_dict())


@pytest.mark.slow
def test_compiled_steps_go_on_with_an_average_or_another_optimizer(few_records, tmp_path):
    options: dict[str, Any] = {"compile": True, "out": tmp_path / "run", "schedule": "constant"}
    quick(steps=5, **options)
    allowed: dict[str, Any] = {"resume": True, "allow": ("steps", "kept", "average", "optimizer")}
    averaged = quick(steps=15, average="polynomial", **allowed, **options)
    assert averaged.compiled and averaged.last_state is not None
    assert quick(steps=25, optimizer="sgd", **allowed, **options).compiled


class Normalized(nn.Module):
    """A bias before a batch norm has a gradient of rounding only, which Adam enlarges to whole steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))

    def model(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1).expand([len(x), 3]).to_event(1), obs=x)

    def forward(self, x: torch.Tensor) -> None:
        pyro.module("guide", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.net(x), 1).to_event(1))


@pytest.mark.slow
def test_rounding_that_adam_enlarges_is_no_reason_against_compiled_steps(few_records):
    program = Normalized()
    data = load(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), heldout=0.0)
    run = quick(program.model, program, data, steps=20, batch_size=20, average="polynomial", compile=True, check=False)
    assert run.compiled

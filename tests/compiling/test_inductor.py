"""Compiled graphs are the graphs: results, in-place changes and draws; and what is said where there is no compiler."""

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_vi.compiling import inductor
from pyro_vi.compiling.decompositions import _addmm, _power
from pyro_vi.compiling.inductor import compile_graph, why_not
from pyro_vi.errors import NoGraph

EXACT = {"rtol": 1e-12, "atol": 1e-12}
MISSING = "there is no C++ compiler that works; install g++ (or set CXX to a C++ compiler)"


def values(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def graph_of(function: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The graph of a function, traced on copies, as it may change its inputs; the generator is left as it is."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        return make_fx(function)(*(value.clone() for value in inputs))


def runs(call: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor], times: int = 2) -> list[list[Tensor]]:
    """Results and inputs after each of some calls from one seed, and the state of the generator after the last."""
    kept, found = [value.clone() for value in inputs], []
    torch.manual_seed(11)
    for _ in range(times):
        with torch.no_grad():
            results = call([*kept])
        found.append([value.clone() for value in (*results, *kept)])
    return [*found, [torch.get_rng_state()]]


def assert_same(function: Callable[..., Any], inputs: Sequence[Tensor], times: int = 2) -> list[list[Tensor]]:
    """Compiled and not, in all calls; gives what was found."""
    graph = graph_of(function, *inputs)
    compiled = runs(compile_graph(graph, inputs), inputs, times)
    torch.testing.assert_close(compiled, runs(lambda given: graph(*given), inputs, times), **EXACT)
    return compiled


@pytest.mark.slow
def test_results_and_inputs_that_change_in_place():
    """A momentum step: the second call goes on from what the first has left."""

    def step(weight: Tensor, moment: Tensor, count: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        residual = (x @ weight).tanh() - 1
        moment.mul_(0.9).add_(x.mT @ residual)
        count.add_(1)
        weight.sub_(0.1 * moment / (1 - 0.9**count))
        return residual.square().sum(), weight.norm()

    inputs = values(3, 2), torch.zeros(3, 2, dtype=torch.float64), torch.zeros((), dtype=torch.float64), values(5, 3)
    first, second, _ = assert_same(step, inputs)
    assert torch.equal(second[4], torch.tensor(2.0, dtype=torch.float64))
    assert not torch.equal(first[2], second[2])
    assert torch.equal(first[5], inputs[3])


@pytest.mark.slow
def test_the_list_of_inputs_is_emptied():
    compiled = compile_graph(graph_of(lambda x: (x + 1,), values(2)), [values(2)])
    given = [values(2)]
    compiled(given)
    assert not given


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "normal_": lambda p: torch.empty_like(p).normal_(),
    "rand": lambda p: torch.rand(p.shape, dtype=p.dtype),
    "bernoulli": lambda p: torch.bernoulli(p),
    "bernoulli across": lambda p: torch.bernoulli(p.mT).mT,
    "bernoulli in single precision": lambda p: torch.bernoulli(p.float()).double(),
    "randperm": lambda p: torch.randperm(12).reshape(p.shape).to(p.dtype),
    "exponential_": lambda p: torch.empty_like(p).exponential_(),
    "unused": lambda p: (torch.randn_like(p), torch.bernoulli(p), p)[2],
    "gamma": lambda p: torch._standard_gamma(1 + p),
    "randn_like": lambda p: torch.randn_like(p),
    "rand_like": lambda p: torch.rand_like(p),
    "dirichlet": lambda p: torch._sample_dirichlet(1 + p),
    "uniform_": lambda p: torch.zeros_like(p).uniform_(),
    "bernoulli_": lambda p: torch.zeros_like(p).bernoulli_(0.4),
    "cauchy_": lambda p: torch.zeros_like(p).cauchy_(),
    "log_normal_": lambda p: torch.zeros_like(p).log_normal_(),
    "randint_like": lambda p: torch.randint_like(p, 1000),
    "multinomial": lambda p: torch.multinomial(p, 4).to(p.dtype),
    "dropout": lambda p: torch.nn.functional.dropout(p),
}
DRAWN = torch.linspace(0.1, 0.9, 12, dtype=torch.float64).reshape(3, 4)


@pytest.mark.slow
def test_draws_are_those_of_the_graph():
    """All kinds in one graph, each twice, so that order, number and kind count; the next call goes on from there."""

    def draw(p: Tensor) -> tuple[Tensor, ...]:
        return tuple(scale * make(p) for scale in (1, 2) for make in OPERATIONS.values())

    first, second, _ = assert_same(draw, [DRAWN])
    kinds = list(OPERATIONS)
    for i, name in enumerate(kinds):
        if name == "unused":
            continue
        assert not torch.equal(2 * first[i], first[i + len(kinds)]), f"{name}: two draws are the same"
        assert not torch.equal(first[i], second[i]), f"{name}: the draws of two calls are the same"


@pytest.mark.slow
def test_a_bias_is_added_afterwards():
    """Whatever it is broadcast over; a sum with weights is left to Inductor."""
    bias, one, two = values(4), values(5, 3), values(3, 4, seed=4)
    torch.testing.assert_close(_addmm(bias, one, two), torch.addmm(bias, one, two), **EXACT)
    assert _addmm(bias, one, two, beta=0.5) is NotImplemented
    assert _addmm(bias, one, two, alpha=2) is NotImplemented

    def sums(bias: Tensor, one: Tensor, two: Tensor) -> tuple[Tensor, ...]:
        column = bias[: len(one), None] if len(bias) >= len(one) else bias.new_ones(len(one), 1)
        return (
            torch.addmm(bias, one, two),
            torch.addmm(bias, one, two, beta=0.3),
            torch.addmm(bias, one, two, beta=0.3, alpha=-1.7),
            torch.addmm(column, one, two, alpha=2),
            torch.addmm(bias.sum(), one, two, beta=0),
        )

    assert_same(sums, [bias, one, two])


@pytest.mark.slow
def test_a_power_of_a_number():
    """Of steps that were taken, as a scalar tensor; anything else is left to Inductor."""
    for count in (0.0, 1.0, 7.0, 500.0, -2.5):
        exponent = torch.tensor(count, dtype=torch.float64)
        torch.testing.assert_close(_power(0.999, exponent), torch.pow(0.999, exponent), **EXACT)
    for base, exponent in ((0.9, values(2)), (0.9, torch.tensor(3)), (-2.0, values(1)[0]), (0.0, values(1)[0])):
        assert _power(base, exponent) is NotImplemented

    def powers(count: Tensor, whole: Tensor, several: Tensor) -> tuple[Tensor, ...]:
        return 0.999**count, 2.0**whole, 0.5**several, 0.0**count, torch.pow(-2.0, whole), (-2.0) ** count

    assert_same(powers, [torch.tensor(3.0, dtype=torch.float64), torch.tensor(3), values(2)])


def surroundings() -> dict[str, Any]:
    from torch._functorch import compile_utils
    from torch._inductor import config

    return {
        "config": config.get_config_copy(),
        "filters": list(warnings.filters),
        "gradients": torch.is_grad_enabled(),
        "draws": torch.get_rng_state().tolist(),
        "never merged": list(compile_utils.rand_ops),
        "level": logging.getLogger("torch._inductor").level,
        "threads": torch.get_num_threads(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("gradients", [True, False])
def test_nothing_outlives_a_call(monkeypatch, fails, gradients):
    import torch._inductor.compile_fx as module

    def broken(*_: Any, **__: Any) -> Any:
        warnings.simplefilter("ignore")
        raise ValueError("it breaks")

    graph = graph_of(lambda x: (x + torch.rand_like(x),), values(2))
    with torch.set_grad_enabled(gradients):
        before = surroundings()
        if fails:
            monkeypatch.setattr(module, "compile_fx_inner", broken)
            monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
            with pytest.raises(NoGraph):
                compile_graph(graph, [values(2)])
        else:
            compile_graph(graph, [values(2)])
        assert surroundings() == before


@pytest.mark.slow
def test_nothing_is_written_while_compiling(capfd):
    """Inductor logs each operation that it has no C++ for, unless it finds the graph in its cache."""
    from torch._inductor import config

    with config.patch({"force_disable_caches": True}):
        compile_graph(graph_of(lambda x: (torch._sample_dirichlet(x.exp()) - 3,), values(3)), [values(3)])
    assert capfd.readouterr() == ("", "")


def test_an_error_is_one_line(monkeypatch):
    def broken(*_: Any) -> Any:
        raise ValueError("\n  the first line\nand\nmore")

    monkeypatch.setattr(inductor, "_compile", broken)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    with pytest.raises(NoGraph) as caught:
        compile_graph(graph_of(lambda x: (x + 1,), values(2)), [values(2)])
    assert str(caught.value) == "ValueError: the first line"


@pytest.mark.slow
def test_a_compiler_that_does_not_know_all_instructions(monkeypatch):
    """The last try asks the compiler what it knows."""
    compile_once, tried = inductor._compile, []

    def picky(graph: Any, inputs: Any, settings: dict[str, Any]) -> Any:
        tried.append(settings["cpp.vec_isa_ok"])
        if settings["cpp.vec_isa_ok"] is True:
            raise RuntimeError("unrecognized command-line option '-mamx-tile'")
        # Without asking: that takes 10 seconds.
        return compile_once(graph, inputs, {**settings, "cpp.vec_isa_ok": True})

    monkeypatch.setattr(inductor, "_compile", picky)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    graph = graph_of(lambda x: (x.exp() + 1,), values(3))
    (found,) = compile_graph(graph, [values(3)])([values(3)])
    torch.testing.assert_close(found, values(3).exp() + 1, **EXACT)
    assert tried == [True, True, None]


def test_what_is_missing():
    assert why_not(torch.device("cpu")) == ""
    assert why_not(torch.device("meta")) == "there is no compiler for device 'meta'; use device='cpu' or 'cuda'"


def test_a_compiler_that_fails():
    from torch._inductor import config

    inductor._no_compiler.cache_clear()
    with config.patch({"cpp.cxx": (None, "false")}):
        assert why_not(torch.device("cpu")) == MISSING
    inductor._no_compiler.cache_clear()


def without_compiler(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "CXX": "nonsense", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_no_compiler(tmp_path):
    code = "import torch; from pyro_vi.compiling.inductor import why_not; print(why_not(torch.device('cpu')))"
    done = without_compiler("-c", code, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{MISSING}\n", "")


@pytest.mark.slow
def test_a_fit_without_a_compiler(tmp_path):
    fit = ("-m", "pyro_vi", "fit", "--steps", "3", "--out", "run", "--compile")
    done = without_compiler(*fit, "yes", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    error = f"error: the step cannot be compiled: {MISSING}; or fit with compile='auto'"
    assert [line for line in done.stderr.splitlines() if not line.startswith("mean_field ")] == [error]
    fit = (*fit[:-2], "eager", "--compile")
    done = without_compiler(*fit, "auto", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert '"compiled": false' in done.stdout

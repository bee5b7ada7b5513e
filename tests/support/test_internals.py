"""Without a private part of torch or Pyro: what still works, and what is said. Two modules alone use such parts."""

import ast
import configparser
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from packaging.requirements import Requirement
from pyro.nn import PyroModule
from torch import Tensor

import pyro_vi
from pyro_vi.auditing.timing import peak_bytes
from pyro_vi.compiling import inductor, products
from pyro_vi.compiling.cost import SECONDS
from pyro_vi.data.loading import load
from pyro_vi.errors import InputError
from pyro_vi.estimators.table import get
from pyro_vi.estimators.traits import estimator_of
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.copying import Copies
from pyro_vi.programs.isolation import isolated
from pyro_vi.support import inductor_internals, pyro_internals, torch_internals
from pyro_vi.support.private import TESTED, Missing, part
from pyro_vi.tracing import graph as tracing

ROOT = Path(__file__).resolve().parents[2]
PROXY = "torch.fx.experimental.proxy_tensor"

TRACING = [f"{PROXY}.make_fx", f"{PROXY}.get_proxy_mode", "torch._ops.OpOverload._schema"]
"""Without the last there is no graph at all, and without the others none of what cannot be recorded."""
STEPS = [
    "torch.utils._python_dispatch._disable_current_modes",
    "torch.compiler._is_compiling_flag",
    "torch.Tensor._version",
]
"""Without them no step is traced."""
COMPILING = [
    "torch._functorch.compile_utils.rand_ops",
    "torch._functorch.compile_utils.fx_graph_cse",
    "torch._guards.tracing",
    "torch._guards.TracingContext",
    "torch._inductor.compile_fx.compile_fx_inner",
    "torch._inductor.config",
    "torch._inductor.decomposition.select_decomp_table",
    "torch._inductor.virtualized.V",
    "torch._inductor.cpp_builder.get_cpp_compiler",
]
"""Without them nothing is compiled; audits evaluate many draws at once all the same."""
ONLY_COMPILED = [*COMPILING, *TRACING[:2], "torch.compiler._is_compiling_flag"]
"""Without them steps are captured and not compiled."""
PYRO = [
    "pyro.infer.trace_elbo.torch_item",
    "pyro.infer.trace_elbo.warn_if_nan",
    "pyro.infer.trace_mean_field_elbo.torch_item",
    "pyro.infer.trace_mean_field_elbo.warn_if_nan",
    "pyro.infer.traceenum_elbo.warn_if_nan",
    "pyro.infer.tracetmc_elbo.warn_if_nan",
    "pyro.infer.util.Dice.compute_expectation",
    "pyro.infer.util._fulldot",
    "pyro.infer.traceenum_elbo._get_common_scale",
    "torch.distributions.Binomial.enumerate_support",
    "pyro.distributions.BetaBinomial.enumerate_support",
]
"""Names for which others stand in a trace."""
MEASURING = "torch.utils._python_dispatch.TorchDispatchMode"
"""Without it nothing tells what compiling would save."""
OPTIONAL = [
    "torch.autograd._profiler_enabled",
    "torch._inductor.lowering.lowerings",
    "torch._inductor.ir",
    "torch._inductor.mkldnn_ir.LinearUnary",
    "torch._inductor.inductor_prims.force_stride_order",
    "torch._inductor.codecache.CppWrapperCodeCache",
    "torch._inductor.cpp_builder.CppBuilder",
    "torch._inductor.cpp_builder.CppTorchDeviceOptions",
    "torch._inductor.cpu_vec_isa.pick_vec_isa",
    "torch._inductor.cpu_vec_isa.invalid_vec_isa",
    "torch._inductor.cpu_vec_isa.valid_vec_isa_list",
    "torch._inductor.cpu_vec_isa.VecISA",
    "torch._inductor.cpu_vec_isa.VecAVX512",
    "torch._inductor.cpu_vec_isa.VecAVX512VNNI",
    "torch._inductor.cpu_vec_isa.VecAMX",
    "torch._inductor.codegen.common.DtypePropagationOpsHandler",
    "torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors",
    "torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs",
    "torch._C._profiler.ProfilerConfig",
    "torch._C._profiler.ProfilerState.CPU",
    "torch._C._profiler._ExperimentalConfig",
    "torch.autograd._enable_profiler_legacy",
    "torch.autograd._disable_profiler_legacy",
    f"{PROXY}.get_proxy_slot",
    f"{PROXY}.extract_val",
    "torch._fused_adam_",
    "torch._fused_adamw_",
    "torch._foreach_add_",
    "torch._inductor.config._config",
    "torch.UntypedStorage._cdata",
    "torch.utils._triton.has_triton",
    "pyro.infer.TraceGraph_ELBO._loss_and_surrogate_loss",
    "pyro.distributions.MaskedDistribution._mask",
    "pyro.ops.packed._pyro_dims",
    "torch.Tensor._backward_hooks",
    "torch.Tensor._post_accumulate_grad_hooks",
]
"""Without them a fit is compiled all the same; what else they are for has a test of its own."""
ESSENTIAL = [
    "torch.nn.Module._parameters",
    "torch.nn.Module._buffers",
    "torch.nn.Module._forward_pre_hooks",
    "torch.nn.Module._forward_hooks",
    "torch.optim.Optimizer._optimizer_step_pre_hooks",
    "torch.optim.Optimizer._optimizer_step_post_hooks",
    "torch.distributions.Distribution._validate_args",
    "torch.Tensor._backward_hooks",
    "torch.Tensor._post_accumulate_grad_hooks",
    "pyro.optim.PyroOptim._state_waiting_to_be_consumed",
]
"""Attributes of each module, parameter, optimizer and distribution, that torch and Pyro themselves cannot do without."""


class Normals(torch.nn.Module):
    """A model or a guide with one latent number per datum."""

    def __init__(self, observed: bool) -> None:
        super().__init__()
        self.observed, self.loc = observed, torch.nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        self.held = (torch.ones((), dtype=torch.float64),)  # no buffer, so that changes have to be looked for

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.loc) if self.observed else self.loc, self.scale))
            if self.observed:
                pyro.sample("x", dist.Normal(z * self.loc, self.held[0]), obs=x)


def pair() -> tuple[Normals, Normals]:
    return Normals(True), Normals(False)


def values(rows: int = 8) -> Tensor:
    return torch.linspace(-1, 2, rows, dtype=torch.float64)


def fitted(compile: Any, **options: Any) -> Any:
    settings = {"elbo": "trace", "steps": 3, "batch_size": 8, "progress": False, "check": False, **options}
    return pyro_vi.fit(*pair(), load(values(), heldout=0.0), compile=compile, **settings)


def line(name: str) -> str:
    """The message for a missing name; if a module is missing, it may name any part of it."""
    package = "pyro-ppl" if name in PYRO or name.startswith("pyro") else "torch"
    return f"this {package} ({version(package)}) has no {name}; install {package} {TESTED[package]}"


@cache
def with_everything(what: str) -> Any:
    """The result with every name present."""
    if what == "fit":
        return fitted(False)
    if what == "audit":
        return pyro_vi.audit(*pair(), values(), elbos="trace", draws=20)
    return pyro_vi.evidence(*pair(), values(), compile=False, method="iw", particles=50, seed=1)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Takes a name away from pyro_vi, and leaves it to torch and Pyro, which a version without it would not need it for."""
    for name in SECONDS:  # so that compiling always pays
        monkeypatch.setitem(SECONDS, name, 0.0)
    monkeypatch.setattr("pyro_vi.diagnostics.weights.to_compile", lambda operations: 0.0)
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")  # a graph that is kept needs no compiler
    caches = (tracing.stand_ins, torch_internals.schema, inductor._no_compiler)

    def hide(name: str) -> None:
        for cached in caches:
            cached.cache_clear()
        for internals in (torch_internals, inductor_internals, pyro_internals):
            whole = internals._attribute

            def attribute(owner: Any, last: str, at: str, whole: Any = whole) -> Any:
                return whole(object() if at == name else owner, last, at)

            monkeypatch.setattr(internals, "_attribute", attribute)
        path = name.split(".")
        many = max((n for n in range(1, len(path) + 1) if ".".join(path[:n]) in sys.modules), default=0)
        module, rest = ".".join(path[:many]), path[many:]
        if not rest:
            monkeypatch.setitem(sys.modules, module, None)
            return
        poorer = ModuleType(module)
        vars(poorer).update({k: v for k, v in vars(sys.modules[module]).items() if k != rest[0]})
        if len(rest) > 1:
            setattr(poorer, rest[0], object())
        monkeypatch.setitem(sys.modules, module, poorer)

    yield hide
    monkeypatch.undo()
    for cached in caches:
        cached.cache_clear()


@pytest.fixture(scope="module", autouse=True)
def everything_is_imported() -> None:
    inductor_internals.inductor()
    inductor_internals.lowering()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRACING, *STEPS, *COMPILING, *PYRO])
def test_a_fit_goes_on_without_a_part_and_says_what_is_missing(name, without):
    expected = with_everything("fit")
    without(name)
    run = fitted("auto")
    if name in ONLY_COMPILED:
        assert run.choice.note.startswith("captured steps: ready in ")
    else:
        assert run.choice.note == f"eager steps: {line(name)}"
    for one, two in zip(run.pair.parameters(), expected.pair.parameters(), strict=True):
        assert torch.equal(one, two)
    with pytest.raises(InputError) as caught:
        fitted(True)
    assert str(caught.value) == f"the step cannot be compiled: {line(name)}; or fit with compile='auto'"


@pytest.mark.slow
def test_a_fit_that_cannot_be_measured_goes_on_eagerly_and_can_be_compiled_all_the_same(without):
    without(MEASURING)
    assert fitted("auto").choice.note == f"eager steps: {line(MEASURING)}"
    assert pyro_vi.evidence(*pair(), values(), method="iw", particles=50).note == f"eager draws: {line(MEASURING)}"
    assert fitted(True).compiled


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRACING, *PYRO])
def test_an_audit_takes_draws_one_by_one(name, without):
    at_once = with_everything("audit")
    assert at_once.method.values.tolist() == ["vmap"]
    without(MEASURING)  # a graph is recorded with it, or else traced with the others
    without(name)
    found = pyro_vi.audit(*pair(), values(), elbos="trace", draws=20)
    assert found.method.values.tolist() == ["loop"]
    np.testing.assert_allclose(found.value_mean, at_once.value_mean, rtol=1e-12)
    np.testing.assert_allclose(found.grad_var, at_once.grad_var, rtol=1e-9)
    with pytest.raises(InputError) as caught:
        pyro_vi.audit(*pair(), values(), elbos="trace", draws=20, vectorize=True)
    assert str(caught.value) == f"these draws cannot be evaluated at once: {line(name)}; leave vectorize out"


def test_an_audit_does_not_need_what_compiles(without):
    for name in (*STEPS, *COMPILING):
        without(name)
    assert pyro_vi.audit(*pair(), values(), elbos="trace", draws=20).method.values.tolist() == ["vmap"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TRACING, *COMPILING, *PYRO])
def test_the_evidence_is_of_the_same_draws_and_says_what_is_missing(name, without):
    options = {"method": "iw", "particles": 50, "seed": 1}
    expected = with_everything("evidence")
    without(name)
    found = pyro_vi.evidence(*pair(), values(), compile="auto", **options)
    assert found.note == f"eager draws: {line(name)}"
    assert found.log_evidence.values.tolist() == expected.log_evidence.values.tolist()
    with pytest.raises(InputError, match=r"the draws cannot be compiled: this (torch|pyro-ppl) "):
        pyro_vi.evidence(*pair(), values(), compile=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OPTIONAL if "profiler" in name.lower() and "enabled" not in name])
def test_peak_memory_that_is_not_recorded_is_nan(name, without):
    assert peak_bytes(lambda: torch.ones(1000)) >= 4000
    without(name)
    assert np.isnan(peak_bytes(lambda: torch.ones(1000)))
    assert np.isnan(pyro_vi.audit(*pair(), values(), elbos="trace", draws=20).peak_bytes).all()


@pytest.mark.parametrize(
    "name", ["torch.autograd._profiler_enabled", "torch.optim.Optimizer._optimizer_step_pre_hooks"]
)
def test_a_step_is_the_optimizers_own_where_torch_does_not_say_what_hangs_on_it(name, without):
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], 0.5)
    assert torch_internals.bare_step(optimizer) is not None
    without(name)
    assert torch_internals.bare_step(optimizer) is None
    parameter.grad = torch.ones(2)
    torch_internals.take_step(optimizer)
    assert parameter.tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    "name",
    [name for name in OPTIONAL if name.startswith(("torch._inductor.l", "torch._inductor.i", "torch._inductor.m"))],
)
def test_products_are_torchs_own_where_the_compiler_cannot_be_asked(name, without):
    one, two = torch.ones(4, 5), torch.ones(4, 5).t()
    without(name)
    with products.multiplying():
        pass
    if name.endswith("force_stride_order"):
        assert products.product(one, two) is NotImplemented
        assert products.product(one, two.contiguous()).shape == (4, 4)
        return
    table = inductor_internals.lowering()
    assert table is None


def test_without_a_look_at_triton_a_gpu_is_not_compiled_for(without):
    without("torch.utils._triton.has_triton")
    assert inductor.why_not(torch.device("cuda")) == line("torch.utils._triton.has_triton")


def test_without_a_look_at_what_is_traced_nothing_is_read(without):
    without(f"{PROXY}.get_proxy_slot")
    with pytest.raises(Missing, match="get_proxy_slot"):
        torch_internals.varies(torch.ones(1))


def test_a_factor_without_its_dimensions_is_named():
    with pytest.raises(Missing, match="_pyro_dims"):
        pyro_internals.dims_of(torch.ones(1))


def test_graph_without_its_loss_is_refused(without):
    name = "pyro.infer.TraceGraph_ELBO._loss_and_surrogate_loss"
    without(name)
    for call in (lambda: fitted("auto", elbo="graph"), lambda: pyro_vi.audit(*pair(), values(), elbos="graph")):
        with pytest.raises(InputError) as caught:
            call()
        assert str(caught.value) == f"{line(name)}; or use estimator 'score' in place of 'graph'"


def test_a_mask_that_cannot_be_seen_has_a_sampled_kl(without):
    def masked(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0).mask(x > 0))

    name, x = "pyro.distributions.MaskedDistribution._mask", values()
    bound = pair_of(masked, Normals(False), (x,))

    def source(elbo: str) -> Any:
        with isolated(0, validation=False):
            return estimator_of(get(elbo)).sources_of_pair(bound, (x,))["z"]

    assert {source("analytic").kind, source("mean_field").kind} == {"analytic"}
    without(name)
    assert str(source("analytic")) == f"sampled (its mask cannot be seen: {line(name)})"


def doubling(parameter: Tensor) -> None:
    parameter.grad.mul_(2)


@pytest.mark.parametrize("name", [name for name in OPTIONAL if name.startswith("torch.Tensor.")])
def test_copies_of_programs_lose_the_hooks_that_cannot_be_seen(name, without):
    before, after = Normals(False), Normals(False)
    before.loc.register_hook(lambda gradient: 2 * gradient)
    after.loc.register_post_accumulate_grad_hook(doubling)

    def doubled() -> list[float]:
        copies = [Copies().of(program) for program in (before, after)]
        for program in copies:
            (3 * program.loc).backward()
        return [float(program.loc.grad) for program in copies]

    assert doubled() == [6.0, 6.0]
    without(name)
    assert sorted(doubled()) == [3.0, 6.0]


def test_modules_of_pyro_are_copied_where_their_state_cannot_be_seen(monkeypatch):
    monkeypatch.setattr(pyro_internals, "_context_class", lambda: None)
    module = PyroModule[torch.nn.Linear](1, 1)
    copied = Copies().of(module)
    with pyro.get_param_store().scope():
        expected = module(torch.ones(1))
    with pyro.get_param_store().scope():
        assert torch.equal(copied(torch.ones(1)), expected)
    assert copied.weight is not module.weight


EVERYTHING = """
import sys
import torch, pyro.infer, pyro.distributions

for name in {names!r}:
    *path, last = name.split(".")
    if name.startswith(("torch._inductor", "torch._functorch.compile_utils", "torch.utils._triton")):
        sys.modules[name if last == "config" else ".".join(path)] = None
        continue
    many = max(n for n in range(1, len(path) + 1) if ".".join(path[:n]) in sys.modules)
    owner = sys.modules[".".join(path[:many])]
    for step in path[many:]:
        owner = getattr(owner, step)
    if last in vars(owner):
        delattr(owner, last)

import pyro_vi, pyro_vi.cli.entry
print("imported")
"""


def process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.slow
def test_the_package_is_imported_without_any_of_them():
    """Here they are taken from torch and Pyro too, but for what cannot be: what objects are given as they are made."""
    names = [*STEPS[:2], *TRACING[:2], *COMPILING, *PYRO, *OPTIONAL, MEASURING]
    names = [name for name in names if name not in ("torch._C._profiler.ProfilerState.CPU",)]
    done = process(EVERYTHING.format(names=names))
    assert (done.stdout, done.returncode) == ("imported\n", 0), done.stderr


@pytest.mark.slow
def test_the_command_line_without_the_compiler(tmp_path):
    hidden = "sys.modules['torch._inductor.compile_fx'] = None"
    code = f"import sys; from pyro_vi.cli import entry as cli; {hidden}; sys.exit(cli.main(sys.argv[1:]))"
    fit = ("fit", "--steps", "2", "--out", str(tmp_path / "run"), "--compile", "yes")
    done = process(code, *fit)
    assert done.returncode == 1
    said = line("torch._inductor.compile_fx")
    assert done.stderr.splitlines()[-1] == f"error: the step cannot be compiled: {said}; or fit with compile='auto'"


def test_part():
    assert part("torch", "torch.nn", "Linear.forward") is torch.nn.Linear.forward
    for module, name, missing in (
        ("torch.nn", "Lineal", "torch.nn.Lineal"),
        ("torch.nn", "Linear.backwards", "torch.nn.Linear.backwards"),
        ("torch.nonsense", "Linear", "torch.nonsense"),
    ):
        with pytest.raises(Missing) as caught:
            part("torch", module, name)
        assert str(caught.value) == line(missing)


# ---- the lists are complete, and no other module uses such parts

INTERNALS = ("torch_internals.py", "inductor_internals.py", "pyro_internals.py")
FILES = [path for top in ("pyro_vi", "models", "guides") for path in sorted((ROOT / top).rglob("*.py"))]
UNPROMISED = (
    "torch.fx.experimental",
    "torch.autograd.profiler_legacy",
    "pyro.infer.util",
    "pyro.infer.trace_elbo",
    "pyro.infer.trace_mean_field_elbo",
    "pyro.infer.traceenum_elbo",
    "pyro.infer.tracetmc_elbo",
    "pyro.infer.tracegraph_elbo",
)
"""Modules without an underscore that are not promised either."""


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def texts(call: ast.Call) -> list[str]:
    return [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]


def looked_up() -> set[str]:
    """The names that the two modules look up."""
    found = {f"{module}.{name}" for _, module, name in pyro_internals.LOOKS}
    for path in FILES:
        if path.name not in INTERNALS:
            continue
        for node in ast.walk(parsed(path)):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if called == "_part" and texts(node):
                found.add(".".join(texts(node)))
            elif called == "_attribute":
                found.add(texts(node)[-1])
    return found - {"torch._functorch.compile_utils"}  # the module of two of them


def test_each_name_that_is_looked_up_is_taken_away_in_these_tests():
    assert looked_up() == {*TRACING, *STEPS, *COMPILING, *PYRO, *OPTIONAL, *ESSENTIAL, MEASURING}


def own_names() -> set[str]:
    """Names with an underscore that this package defines."""
    found = set()
    for path in FILES:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
    return found


def private(name: str) -> bool:
    promised = ("_fields", "_repr_png_", "_repr_html_")  # by named tuples, and by what shows objects in notebooks
    return name.startswith("_") and not name.endswith("__") and name not in promised


def unpromised(module: str) -> bool:
    foreign = module.split(".")[0] in ("torch", "pyro", "numpy", "zuko")
    return foreign and (any(map(private, module.split("."))) or module.startswith(UNPROMISED))


def private_uses(tree: ast.AST, own: set[str]) -> list[str]:
    """Uses of parts of other packages that these do not promise."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if unpromised(alias.name)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name for name in names if unpromised(name)]
        elif isinstance(node, ast.Attribute) and private(node.attr):
            path = ast.unparse(node)
            if path != "sys._getframe" and (node.attr not in own or unpromised(path)):
                found.append(path)
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called.rpartition(".")[2] in ("getattr", "hasattr", "setattr", "delattr", "object", "attrgetter"):
                found += [text for text in texts(node) if private(text) and text not in own]
    return found


@pytest.mark.parametrize(
    ("code", "uses"),
    [
        ("import torch._guards", ["torch._guards"]),
        ("from torch._ops import OpOverload", ["torch._ops.OpOverload"]),
        ("from torch.fx.experimental.proxy_tensor import make_fx", [f"{PROXY}.make_fx"]),
        ("from pyro.infer import util as infer_util", ["pyro.infer.util"]),
        ("torch.autograd._enable_profiler_legacy()", ["torch.autograd._enable_profiler_legacy"]),
        ("operation._schema.name", ["operation._schema"]),
        ("getattr(module, '_buffers')", ["_buffers"]),
        ("mock.patch.object(torch.compiler, '_is_compiling_flag', True)", ["_is_compiling_flag"]),
        ("torch._mine", ["torch._mine"]),
        ("self._mine.__dict__; torch.nn.Linear; sys._getframe(); import torch", []),
    ],
)
def test_what_counts_as_a_private_use(code, uses):
    assert private_uses(ast.parse(code), {"_mine"}) == uses


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in FILES if path.name not in INTERNALS], ids=lambda path: path.stem)
def test_no_other_module_uses_private_parts(path, own=own_names()):  # noqa: B008
    assert private_uses(parsed(path), own) == []


def test_the_versions_that_are_named_are_the_tested_ones():
    """And the next ones, whose private parts nobody has seen, are not installed."""
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    required = [Requirement(text) for text in setup["options"]["install_requires"].splitlines() if text.strip()]
    for package, tested in TESTED.items():
        assert any(pin.startswith(f"{package}=={tested}.") for pin in constraints)
        (range_of,) = (requirement.specifier for requirement in required if requirement.name == package)
        major, minor = map(int, tested.split("."))
        assert range_of.contains(f"{tested}.99") and not range_of.contains(f"{major}.{minor + 1}.0")

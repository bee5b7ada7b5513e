"""Functions as modules that own their parameters: copies, constraints, sharing, and originals that never change."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from binding_toys import bind_one
from catalogue import (
    CATALOGUE,
    BoundVAE,
    PyroGuide,
    PyroModel,
    closure_pair,
    columns,
    number,
    scalars,
)
from pyro import poutine
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule
from torch import nn

from pyro_vi.elbo.decomposition import terms
from pyro_vi.errors import InputError
from pyro_vi.programs.binding import FunctionProgram
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.isolation import isolated, kept_buffers


def scale_guide(x):
    scale = pyro.param("scale", torch.full((2,), 0.5, dtype=torch.float64), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        return pyro.sample("z", dist.Normal(torch.zeros(2, dtype=torch.float64), scale).to_event(1))


def norm_pair():
    """A guide with a batch norm in its closure."""
    encoder = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).double()

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(encoder(x), 1.0).to_event(1))

    return closure_pair()[0], guide, encoder


def closed_over(function):
    return [c.cell_contents for c in function.__closure__ if isinstance(c.cell_contents, nn.Module)]


def test_parameters_have_their_names_and_start_where_the_function_says():
    model = bind_one(closure_pair()[0], (columns(),))
    (decoder,) = closed_over(model._hidden[0])
    found = dict(model.named_parameters())
    assert sorted(found) == ["decoder.bias", "decoder.weight", "noise"]
    assert torch.equal(found["decoder.weight"], decoder.weight)
    torch.testing.assert_close(found["noise"].exp(), number(0.5), rtol=1e-12, atol=0)  # held unconstrained


def test_names_of_the_store_become_paths():
    def guide(x):
        pyro.param("encoder$$$fc.weight", number(2.0))

    assert [name for name, _ in bind_one(guide, (columns(),)).named_parameters()] == ["encoder.fc.weight"]


def test_the_gradient_reaches_the_copy_and_not_the_original():
    model, guide = closure_pair()
    pair = pair_of(model, guide, (columns(),))
    with isolated(0):
        Trace_ELBO().differentiable_loss(pair.model, pair.guide, columns()).backward()
    assert all(p.grad is not None and bool(p.grad.ne(0).any()) for p in pair.parameters())
    assert all(p.grad is None for net in closed_over(model) + closed_over(guide) for p in net.parameters())


def test_originals_never_change():
    model, guide = closure_pair()
    before = [copy.deepcopy(net.state_dict()) for net in closed_over(model) + closed_over(guide)]
    pair = pair_of(model, guide, (columns(),))
    optimizer = torch.optim.SGD(pair.parameters(), 0.01)
    for _ in range(3):
        with isolated():
            Trace_ELBO().differentiable_loss(pair.model, pair.guide, columns()).backward()
        optimizer.step()
    after = [net.state_dict() for net in closed_over(model) + closed_over(guide)]
    assert all(torch.equal(old[k], new[k]) for old, new in zip(before, after, strict=True) for k in old)
    assert not torch.equal(pair.guide.get_parameter("encoder.weight"), after[1]["weight"])
    assert len(pyro.get_param_store()) == 0


def test_values_follow_the_copy():
    """What the function computes is computed with the module's own parameters."""
    program = bind_one(scale_guide, (columns(),))
    with torch.no_grad():
        program.get_parameter("scale").copy_(torch.tensor([1.0, 2.0]).log())
    with isolated():
        site = pyro.poutine.trace(program).get_trace(columns()).nodes["z"]
    torch.testing.assert_close(site["fn"].base_dist.scale[0], torch.tensor([1.0, 2.0], dtype=torch.float64))


@pytest.mark.parametrize(
    "constraint",
    [
        dist.constraints.positive,
        dist.constraints.unit_interval,
        dist.constraints.simplex,
        dist.constraints.lower_cholesky,
        dist.constraints.interval(-1.0, 2.0),
    ],
    ids=str,
)
def test_a_constraint_is_kept_wherever_the_parameter_goes(constraint):
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    start = torch.eye(3, dtype=torch.float64) if constraint is dist.constraints.lower_cholesky else third
    program = bind_one(lambda: pyro.param("a", start, constraint=constraint), ())
    torch.testing.assert_close(program(), start, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        program.get_parameter("a").add_(torch.tensor([5.0, -3.0, 1.0])[: program.get_parameter("a").shape[-1]])
    value = program()
    assert bool(constraint.check(value).all())
    assert not torch.allclose(value, start)


def test_deepcopies_are_apart():
    guide = closure_pair()[1]
    first = bind_one(guide, (columns(),))
    second = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1.0)
    assert all(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    shifted, kept = (pyro.poutine.trace(program).get_trace(columns()).nodes["z"]["fn"] for program in (first, second))
    assert not torch.allclose(shifted.mean, kept.mean)
    (encoder,) = closed_over(guide)
    torch.testing.assert_close(kept.mean, encoder(columns()))


def test_a_deepcopied_pair_keeps_what_its_programs_share():
    vae = BoundVAE()
    pair = copy.deepcopy(pair_of(vae.model, vae.guide, (columns(),)))
    model, guide = dict(pair.model.named_parameters()), dict(pair.guide.named_parameters())
    assert sorted(model) == sorted(guide)
    assert all(model[name] is guide[name] for name in model)
    assert len(list(pair.parameters())) == 4


def test_model_and_guide_share_a_parameter_of_the_same_name():
    def model(x):
        shift = pyro.param("shift", number(0.5))  # the guide runs first: this start is not used
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(shift, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        shift = pyro.param("shift", number(7.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(shift, 1.0))

    pair = pair_of(model, guide, (scalars(),))
    assert pair.model.get_parameter("shift") is pair.guide.get_parameter("shift")
    assert float(pair.guide.get_parameter("shift").detach()) == 7.0


def test_a_module_of_plain_parameters_is_given_back_as_it_is():
    model, _ = CATALOGUE["linear_gaussian_wrong"].build()
    assert pair_of(model, model, (columns(),), copied=False).model is model
    for program in (model, PyroModel(), PyroGuide()):
        args = (columns() if program is model else scalars(),)
        assert type(bind_one(program, args)) is type(program)


def test_frozen_parameters_stay_frozen():
    model, _ = closure_pair()
    (decoder,) = closed_over(model)
    decoder.eval().bias.requires_grad_(False)  # in training mode Pyro warns of it
    bound = bind_one(model, (columns(),))
    assert sorted(n for n, p in bound.named_parameters() if p.requires_grad) == ["decoder.weight", "noise"]
    assert not decoder.bias.requires_grad


def test_a_parameter_that_comes_later_is_refused():
    calls = []

    def guide(x):
        calls.append(1)
        if len(calls) > 2:
            pyro.param("late", number(1.0))

    bound = bind_one(guide, (columns(),))
    with pytest.raises(InputError, match="'late' is created only after the first call"):
        bound(columns())


def test_names_that_hide_each_other_are_refused():
    def guide(x):
        pyro.param("a", number(1.0))
        pyro.param("a.b", number(1.0))

    with pytest.raises(InputError, match="rename one of them"):
        bind_one(guide, (columns(),))


def test_running_statistics_of_a_hidden_network_do_not_move():
    model, guide, encoder = norm_pair()
    before = copy.deepcopy(encoder.state_dict())
    pair = pair_of(model, guide, (columns(),))
    with isolated(0):
        pair.guide(columns())
    after = encoder.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    # The copy starts from the same statistics, and has seen one batch.
    assert int(pair.guide.get_buffer("encoder.1.num_batches_tracked")) == 1


def test_running_statistics_do_not_move_when_a_pair_is_only_looked_at():
    model, guide, _ = norm_pair()
    pair = pair_of(model, guide, (columns(),))
    terms(pair.model, pair.guide, columns())
    assert int(pair.guide.get_buffer("encoder.1.num_batches_tracked")) == 0


def test_evaluation_mode_of_the_program_is_that_of_its_networks():
    _, guide, encoder = norm_pair()
    bound = bind_one(guide, (columns(),))
    with isolated(0):
        training = pyro.poutine.trace(bound).get_trace(columns()).nodes["z"]["fn"].mean
        bound.eval()
        evaluated = pyro.poutine.trace(bound).get_trace(columns()).nodes["z"]["fn"].mean
    assert not torch.allclose(training, evaluated)
    assert encoder.training
    assert encoder[1].training


def test_in_training_a_network_keeps_the_mode_that_it_was_given():
    _, guide, encoder = norm_pair()
    encoder.eval()
    bound = bind_one(guide, (columns(),))
    assert bound.training
    with isolated(0):
        mean = pyro.poutine.trace(bound).get_trace(columns()).nodes["z"]["fn"].mean
    torch.testing.assert_close(mean, encoder(columns()))


def test_kept_buffers_puts_them_back_on_an_error():
    norm = nn.BatchNorm1d(3).double()
    with pytest.raises(RuntimeError, match="stop"), kept_buffers(norm):
        norm(columns())
        raise RuntimeError("stop")
    assert int(norm.num_batches_tracked) == 0
    assert not norm.running_mean.any()


def test_kept_buffers_writes_to_none_that_has_not_changed():
    """A write would spoil the gradients of what has been computed with it."""
    norm = nn.BatchNorm1d(3).double().eval()
    with kept_buffers(norm):
        loss = norm(columns()).sum()
    loss.backward()
    assert bool(norm.weight.grad.isfinite().all())


def test_a_pyro_module_in_a_closure_is_bound_under_its_registered_name():
    net = PyroModule[nn.Linear](3, 2).double()

    def guide(x):
        pyro.module("encoder", net)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    bound = bind_one(guide, (columns(),))
    assert sorted(n for n, _ in bound.named_parameters()) == ["encoder.bias", "encoder.weight"]
    with isolated(0):
        trace = pyro.poutine.trace(bound).get_trace(columns())
        trace.nodes["z"]["value"].sum().backward()
    assert bound.get_parameter("encoder.weight").grad is not None
    assert net.weight.grad is None


def test_a_pyro_module_that_is_only_called_is_registered_under_its_class():
    net = PyroModule[nn.Linear](3, 2, bias=False).double()

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(net(x), 1.0).to_event(1))

    bound = bind_one(guide, (columns(),))
    assert [n for n, _ in bound.named_parameters()] == ["PyroLinear.weight"]
    with isolated(0):
        bound(columns())


def test_a_pyro_module_with_a_param_statement_owns_it_too():
    class Guide(PyroModule):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(number(0.2))

        def forward(self, x):
            scale = pyro.param("scale", number(0.5), constraint=dist.constraints.positive)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.loc, scale))

    guide = Guide()
    bound = bind_one(guide, (scalars(),))
    assert isinstance(bound, FunctionProgram)
    assert sorted(n for n, _ in bound.named_parameters()) == ["loc", "scale"]
    with isolated(0):
        trace = pyro.poutine.trace(bound).get_trace(scalars())
        trace.log_prob_sum().backward()
    assert bound.get_parameter("loc").grad is None or guide.loc.grad is None
    assert bound.get_parameter("scale").grad is not None
    assert len(pyro.get_param_store()) == 0


def test_pyros_automatic_guides_are_programs():
    model, _ = CATALOGUE["global"].build()
    guide = AutoNormal(model)
    found = terms(model, guide, scalars(), kl="sampled", seed=1)
    assert found.elbo.shape == (8,)
    assert len(pyro.get_param_store()) == 0


def test_the_generator_runs_on_as_if_nothing_had_run():
    state = torch.get_rng_state()
    bind_one(scale_guide, (columns(),))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_generators_are_where_they_were():
    """Python's is not looked at: under pytest the type checker draws from it."""

    def program(x):
        pyro.param("a", torch.randn(3) + float(np.random.normal()))

    states = torch.get_rng_state(), np.random.get_state()[1].copy(), np.random.get_state()[2]
    bind_one(program, (torch.zeros(2),))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all() and np.random.get_state()[2] == states[2]


def test_a_parameter_read_by_name_keeps_the_constraint_that_the_other_program_gave_it():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, pyro.param("noise")), obs=x)

    def guide(x):
        noise = pyro.param("noise", number(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("noise") * x, noise))

    pair = pair_of(model, guide, (scalars(),))
    assert float(pair.values()["noise"]) == pytest.approx(0.5, rel=1e-12)
    site = poutine.trace(pair.model).get_trace(scalars()).nodes["x"]
    torch.testing.assert_close(site["fn"].scale, torch.full_like(site["fn"].scale, 0.5), rtol=1e-12, atol=0)


def test_a_program_that_reads_the_store_itself_is_refused():
    def guide(x):
        loc = pyro.get_param_store().get_param("loc")
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, 1.0))

    with pytest.raises(InputError, match=r"read the parameter by pyro.param\(name\)"):
        bind_one(guide, (scalars(),))

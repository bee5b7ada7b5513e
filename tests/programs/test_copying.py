"""Copies own what holds parameters, whatever way leads there, and share all else; originals stay as they are."""

import copy
import types
import weakref
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns
from pyro import poutine
from pyro.contrib.easyguide import easy_guide
from pyro.infer.autoguide import AutoDelta, AutoGuideList, AutoNormal
from pyro.nn import PyroModule, PyroParam
from torch import nn

from pyro_vi.programs.build import pair_of
from pyro_vi.programs.copying import LONGEST, Copies
from pyro_vi.programs.isolation import isolated

NET = nn.Linear(1, 1)
Nets = namedtuple("Nets", ["encoder", "decoder"])


class Holder:
    """An object that holds a network, and methods that use it."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def model(self, x: Any) -> Any:
        return self.net(x)

    def __call__(self, x: Any) -> Any:
        return self.net(x)


class Slots:
    __slots__ = ("empty", "net")

    def __init__(self, net: Any) -> None:
        self.net = net

    def model(self, x: Any) -> Any:
        return self.net(x)


class Below(Slots):
    __slots__ = ("own",)


def by_global(x: Any) -> Any:
    return NET(x)


def through_a_function(x: Any) -> Any:
    return by_global(x)


def by_default(x: Any, net: Any = NET) -> Any:
    return net(x)


def by_keyword(x: Any, *, net: Any = NET) -> Any:
    return net(x)


def by_attribute(x: Any) -> Any:
    return by_attribute.net(x)  # type: ignore[attr-defined]


by_attribute.net = NET  # type: ignore[attr-defined]


def closure(net: Any) -> Callable[[Any], Any]:
    def inner(x: Any) -> Any:
        return net(x)

    return lambda x: inner(x)


def within(held: Any, get: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda x: get(held)(x)


WAYS: dict[str, Any] = {
    "closure": closure(NET),
    "global": by_global,
    "global of another function": through_a_function,
    "default": by_default,
    "default of a keyword": by_keyword,
    "attribute of a function": by_attribute,
    "partial": partial(lambda net, x: net(x), NET),
    "partial, by keyword": partial(lambda x, net: net(x), net=NET),
    "bound method": Holder(NET).model,
    "object that is called": Holder(NET),
    "method of a network": NET.forward,
    "slots": Slots(NET).model,
    "slots of a base class": Below(NET).model,
    "list": within([0, NET], lambda held: held[1]),
    "tuple": within((NET,), lambda held: held[0]),
    "named tuple": within(Nets(None, NET), lambda held: held.decoder),
    "dictionary": within({"a": {"b": NET}}, lambda held: held["a"]["b"]),
    "ordered dictionary": within(OrderedDict(a=NET), lambda held: held["a"]),
    "set": within({NET}, lambda held: next(iter(held))),
    "frozen set": within(frozenset({NET}), lambda held: next(iter(held))),
    "deque": within(deque([NET], maxlen=3), lambda held: held[0]),
    "namespace": within(types.SimpleNamespace(net=NET), lambda held: held.net),
    "weak reference": within((weakref.ref(NET), NET), lambda held: held[0]()),
    "scaled": poutine.scale(by_global, 2.0),
    "blocked in a mask": poutine.block(poutine.mask(by_global, mask=torch.tensor(True))),
    "conditioned": pyro.condition(by_global, data={}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_copy_has_a_network_of_its_own(way):
    """Where the copy's parameters are changed, its values follow, and the program of the user does not."""
    program, copies, x = WAYS[way], Copies(), torch.ones(1)
    copied = copies.of(program)
    assert copied is not program
    (own,) = copies.outermost(nn.Module)
    assert own is not NET and torch.equal(own.weight, NET.weight)
    assert torch.equal(copied(x), program(x))
    before = program(x)
    with torch.no_grad():
        own.weight.add_(1.0)
    assert torch.allclose(copied(x), before + 1.0)
    assert torch.equal(program(x), before)
    assert (by_global.__globals__["NET"], NET.weight.grad) == (NET, None)


def test_what_holds_no_parameters_is_shared():
    data, settings, many = np.zeros(3), {"size": 3}, [0.0] * (LONGEST + 1)

    def without(x):
        return x + len(data) + len(settings) + len(many)

    def program(x):
        return NET(without(x)) * data.sum()

    copied = Copies().of(program)
    kept = dict(zip(copied.__code__.co_freevars, (cell.cell_contents for cell in copied.__closure__), strict=True))
    assert (kept["without"] is without, kept["data"] is data) == (True, True)
    assert copied.__globals__["NET"] is not NET and copied.__globals__["np"] is np
    assert Copies().of(without) is without


def test_a_loose_tensor_with_gradients_is_a_leaf_of_the_copy():
    loose, constant = torch.ones(2, requires_grad=True), torch.ones(2)
    left_over = loose * 2

    def program():
        return loose, constant, left_over

    copies = Copies()
    one, two, three = copies.of(program)()
    assert one is not loose and one.is_leaf and copies.leaves == {id(one)}
    assert two is constant  # data are shared
    assert three.tolist() == [2.0, 2.0] and not three.requires_grad


def test_tied_weights_stay_tied_and_cycles_end():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(2, 2), nn.Linear(2, 2)
            self.two.weight = self.one.weight
            self.rows = [self.one.bias]  # in a list too, which no `parameters()` knows
            self.above = (self,)

    tied = Tied()
    tied.register_buffer("buffer", torch.zeros(1))
    copied = Copies().of(tied)
    assert copied.two.weight is copied.one.weight is not tied.one.weight
    assert copied.rows[0] is copied.one.bias
    assert copied.above[0] is copied
    assert copied.buffer is not tied.buffer
    assert tied.rows[0] is tied.one.bias and tied.above[0] is tied

    def first(x):
        return second(x) if len(x) > 3 else NET(x)

    def second(x):
        return first(x[:1])

    assert torch.equal(Copies().of(first)(torch.ones(4)), NET(torch.ones(1)))


def test_several_programs_share_what_they_shared():
    net = nn.Linear(1, 1)
    copies = Copies()
    model, guide = copies.of(lambda: net), copies.of(lambda: net)
    assert model() is guide() is not net


def tripled(parameter: Any) -> None:
    parameter.grad.mul_(3)


def test_modes_and_hooks_are_copied():
    net = nn.Sequential(nn.Linear(1, 1), nn.Dropout())
    net[1].eval()
    net.register_forward_hook(lambda module, args, out: out + 1)
    net[0].weight.register_hook(lambda gradient: 2 * gradient)
    net[0].bias.register_post_accumulate_grad_hook(tripled)
    copied = Copies().of(net)
    assert (copied.training, copied[0].training, copied[1].training) == (True, True, False)
    for one in (copied, net):
        out = one(torch.ones(1))
        assert torch.equal(out, torch.nn.functional.linear(torch.ones(1), one[0].weight, one[0].bias) + 1)
        out.backward()
        assert (float(one[0].weight.grad), float(one[0].bias.grad)) == (2.0, 3.0)


def test_a_hook_that_holds_a_network_holds_its_copy():
    net, scale = nn.Linear(1, 1), nn.Parameter(torch.tensor(5.0))
    net.weight.register_hook(lambda gradient: gradient * scale.detach())
    copies = Copies()
    copied = copies.of(net)
    with torch.no_grad():
        scale.zero_()
    copied(torch.ones(1)).backward()
    assert float(copied.weight.grad) == 5.0


def test_a_module_of_pyro_keeps_its_constraints_and_is_changed_by_no_store():
    class Scale(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.scale = PyroParam(torch.tensor(2.0), constraint=dist.constraints.positive)

        def forward(self) -> Any:
            return self.scale

    module = Scale()
    copied = Copies().of(module)
    with torch.no_grad():
        copied.scale_unconstrained.fill_(0.0)
    with pyro.get_param_store().scope():
        pyro.param("scale", torch.tensor(9.0))  # of another program
        assert copied().item() == 1.0
    assert module.scale.item() == 2.0


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
def test_a_script_is_copied():
    script = torch.jit.script(nn.Linear(1, 1))
    copied = Copies().of(lambda: script)()
    with torch.no_grad():
        copied.weight.add_(1.0)
    assert torch.allclose(copied(torch.ones(1)), script(torch.ones(1)) + 1.0)


# ---- guides that hold their model


def model(x: Any) -> None:
    sd = pyro.param("sd", torch.tensor(1.0, dtype=torch.float64), constraint=dist.constraints.positive)
    w = pyro.sample("w", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))
    b = pyro.sample("b", dist.Normal(torch.zeros((), dtype=torch.float64), 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w + b, sd).to_event(1), obs=x)


def guide_list() -> Any:
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, hide=["b"])))
    guide.append(AutoDelta(poutine.block(model, expose=["b"])))
    return guide


def easy() -> Any:
    @easy_guide(model)
    def guide(self: Any, x: Any) -> None:
        self.map_estimate("b")
        group = self.group(match="w")
        loc = pyro.param("loc", torch.zeros(group.event_shape, dtype=torch.float64))
        group.sample("ws", dist.Normal(loc, 1.0).to_event(1))

    return guide


@pytest.mark.parametrize("made", [lambda: AutoNormal(model), guide_list, easy], ids=["AutoNormal", "list", "easy"])
def test_a_guide_that_holds_its_model_holds_the_copy(made):
    guide = made()
    pair = pair_of(model, guide, (columns(),))
    kept = getattr(pair.guide, "_hidden", (pair.guide,))[0]
    held = getattr(kept, "_model", None) or kept.model
    held = held[0] if isinstance(held, tuple) else held
    assert getattr(held, "args", (held,))[-1] is pair.model  # AutoNormal holds it in a handler
    assert type(kept) is type(guide) and kept is not guide
    assert list(guide.parameters()) == []  # the user's guide is not set up
    before = copy.deepcopy(pair.state_dict())
    with isolated(0):
        pair.guide(columns())
        pair.model(columns())
    assert all(torch.equal(before[name], value) for name, value in pair.state_dict().items())


def test_parts_of_a_list_of_guides_refer_to_the_copy_of_the_list():
    guide = guide_list()
    copied = Copies().of(guide)
    assert all(part.master() is copied for part in copied)
    assert all(part.master() is guide for part in guide)


SHARED = nn.Linear(1, 1).double()


class ReadsGlobal(nn.Module):
    """A guide by a class, which reads a network of its Python module; classes are not copied."""

    def forward(self, x):
        pyro.module("shared", SHARED)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(SHARED(x[:, None])[:, 0], 1.0))


def _reads_global(x):
    pyro.module("shared", SHARED)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(SHARED(z[:, None])[:, 0], 1.0), obs=x)


def test_a_network_that_is_not_copied_keeps_its_values_in_copies_and_when_bound_again():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    before = copy.deepcopy(SHARED.state_dict())
    pair = pair_of(_reads_global, ReadsGlobal(), (x,))
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.fill_(0.25)
    again = pair_of(pair.model, pair.guide, (x,))
    for each in (pair, copy.deepcopy(pair), again):
        # Both programs have one network: a value for each weight, and means x / 4 + 1/4.
        assert len(list(each.parameters())) == 2
        loc = poutine.trace(each.guide).get_trace(x).nodes["z"]["fn"].loc
        torch.testing.assert_close(loc, x / 4 + 0.25, rtol=1e-12, atol=0)
    assert all(torch.equal(SHARED.state_dict()[name], value) for name, value in before.items())

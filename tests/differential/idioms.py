"""Ways of writing a program: parameters, wrappers, containers, arguments, sites that are no data."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from differential.harness import Program
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal, init_to_value
from pyro.infer.reparam import LocScaleReparam
from pyro.nn import PyroModule, PyroParam, pyro_method
from torch import Tensor, nn

N = 6


def data() -> Tensor:
    return 1 + torch.randn(N)


def _local(x: Tensor) -> None:
    """A latent of each row."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.7), obs=x)


def _mean(x: Tensor) -> None:
    """A latent of all rows."""
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


def _normal(name: str = "m", loc: float = 0.2) -> None:
    scale = pyro.param(f"{name}_scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample(name, dist.Normal(pyro.param(f"{name}_loc", torch.tensor(loc)), scale))


def pyro_module_methods() -> Program:
    """A PyroModule with methods model and guide; its parameters are PyroParams and those of networks."""

    class Both(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = PyroModule[nn.Linear](1, 1)
            self.scale = PyroParam(torch.tensor(0.5), constraint=constraints.positive)

        @PyroParam(constraint=constraints.positive)
        def noise(self) -> Tensor:
            return torch.tensor(0.8)

        @pyro_method
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, self.noise), obs=x)

        @pyro_method
        def guide(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.net(x[:, None])[:, 0], self.scale))

    both = Both()
    return Program(both.model, both.guide, (data(),), rows=N)


def pyro_modules() -> Program:
    """Two PyroModules that are called; one holds an nn.Parameter, an nn.Linear and a simplex."""

    class Model(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.1))
            self.weights = PyroParam(torch.tensor([0.3, 0.7]), constraint=constraints.simplex)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.shift, 1.0))
                pyro.sample("x", dist.Normal(self.weights[0] * z, self.weights[1]), obs=x)

    class Guide(PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.linear(x[:, None]).squeeze(-1), 0.5))

    return Program(Model(), Guide(), (data(),), elbo=TraceMeanField_ELBO, rows=N)


def attribute_as_parameter() -> Program:
    """`pyro.param("h", self.h)`, after which the program reads self.h."""

    class Holder:
        def __init__(self) -> None:
            self.h, self.w = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(0.5))

        def model(self, x: Tensor) -> None:
            pyro.param("h", self.h)
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.h, 1.0))
                pyro.sample("x", dist.Normal(z, 0.7), obs=x)

        def guide(self, x: Tensor) -> None:
            pyro.param("w", self.w)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.w * x, 0.5))

    holder = Holder()
    return Program(holder.model, holder.guide, (data(),), rows=N)


def partials() -> Program:
    """`functools.partial` of both programs; options, a network and the data are bound by it."""

    def model(noise: float, x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, noise), obs=x)

    def guide(x: Tensor, *, net: nn.Module) -> None:
        pyro.module("net", net)
        pyro.sample("m", dist.Normal(net(x.mean()[None])[0], 0.3))

    x = data()
    return Program(partial(model, 0.8, x), partial(guide, x, net=nn.Linear(1, 1)), rows=N)


def found_through_containers() -> Program:
    """Networks in a dictionary, a list and an object; statements in functions that the guide calls."""
    nets = {"encoder": [nn.Linear(1, 2), nn.Linear(2, 1)]}
    settings = SimpleNamespace(scale=nn.Linear(1, 1), floor=0.1)

    def scale_of(x: Tensor) -> Tensor:
        pyro.module("scale", settings.scale)
        return settings.scale(x)[:, 0].exp() + settings.floor

    def loc_of(x: Tensor) -> Tensor:
        for number, layer in enumerate(nets["encoder"]):
            pyro.module(f"encoder_{number}", layer)
            x = layer(x)
        return x[:, 0]

    class Guide:
        def __init__(self) -> None:
            self.parts = (loc_of, scale_of)

        def __call__(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(*(part(x[:, None]) for part in self.parts)))

    return Program(_local, Guide(), (data(),), rows=N)


def one_network_in_both() -> Program:
    """Model and guide share an embedding of the rows' labels, and a named parameter."""
    embedding = nn.Embedding(2, 1)

    def model(label: Tensor, x: Tensor) -> None:
        net = pyro.module("embedding", embedding)
        noise = pyro.param("noise", torch.tensor(0.6), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(net(label)[:, 0], 1.0))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    def guide(label: Tensor, x: Tensor) -> None:
        net = pyro.module("embedding", embedding)
        noise = pyro.param("noise", torch.tensor(0.6), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x + net(label)[:, 0]) / 2, noise))

    return Program(model, guide, (torch.arange(N) % 2, data()), rows=N)


def blocked() -> Program:
    """`poutine.block` hides a nuisance site, `config_enumerate` sums it out."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            wrong = pyro.sample("outlier", dist.Bernoulli(0.1))
            pyro.sample("x", dist.Normal(m, 1 + 4 * wrong), obs=x)

    model = config_enumerate(model)
    guide = AutoNormal(
        poutine.block(model, hide=["outlier"]), init_loc_fn=init_to_value(values={"m": torch.tensor(0.5)})
    )
    return Program(model, guide, (data(),), elbo=lambda: TraceEnum_ELBO(max_plate_nesting=1), rows=N)


def keyword_arguments() -> Program:
    def model(*, x: Tensor, noise: float = 1.0, options: dict[str, bool] | None = None) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m if options else -m, noise), obs=x)

    return Program(model, lambda **_: _normal(), (), {"x": data(), "noise": 0.7, "options": {"positive": True}}, rows=N)


def arguments_of_all_kinds() -> Program:
    """None, an int, a dictionary of tensors, a mask, a string."""

    def model(x: Tensor, weights: None, power: int, columns: dict[str, Tensor], mask: Tensor, link: str) -> None:
        b = pyro.sample("b", dist.Normal(0.0, 1.0))
        mean = b * columns["u"] ** power
        with pyro.plate("data", len(x)), poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(mean.exp() if link == "log" else mean, 1.0), obs=x)

    args = (data(), None, 2, {"u": torch.linspace(0, 1, N), "v": torch.ones(2)}, torch.arange(N) > 1, "log")
    return Program(model, lambda *_: _normal("b"), args, rows=N)


def deterministic_and_factor() -> Program:
    """Sites that are no data, and stand outside of the data's plate."""

    def model(x: Tensor) -> None:
        a, b = pyro.sample("a", dist.Normal(0.0, 1.0)), pyro.sample("b", dist.Normal(0.0, 1.0))
        total = pyro.deterministic("total", a + b)
        pyro.factor("soft_constraint", -2 * (a - b) ** 2)
        with pyro.plate("data", len(x)):
            mean = pyro.deterministic("mean", total.expand(len(x)))
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        _normal("a")
        _normal("b", -0.1)

    return Program(model, guide, (data(),), rows=N)


def validate_args_false() -> Program:
    """Values outside of the support, with `validate_args=False`."""

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(logits=p, validate_args=False), obs=x)

    return Program(model, lambda x: _normal("p"), (torch.linspace(0.1, 0.9, N),), rows=N)


def improper_prior() -> Program:
    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.ImproperUniform(constraints.real, (), ()))
        s = pyro.sample("s", dist.ImproperUniform(constraints.positive, (), ()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, s), obs=x)

    values = {"m": torch.tensor(0.5), "s": torch.tensor(1.5)}
    return Program(model, AutoNormal(model, init_loc_fn=init_to_value(values=values)), (data(),), rows=N)


def scaled() -> Program:
    """Both programs under `poutine.scale`, as for a loss per datum."""
    model, guide = poutine.scale(_mean, scale=1 / N), poutine.scale(lambda x: _normal(), scale=1 / N)
    return Program(model, guide, (data(),), rows=N)


def conditioned() -> Program:
    """`poutine.condition` gives the data."""

    def joint() -> None:
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        with pyro.plate("data", N):
            pyro.sample("x", dist.Normal(m, 1.0))

    return Program(poutine.condition(joint, data={"x": data()}), lambda: _normal(), rows=N)


def nested_plates() -> Program:
    """Replicates of rows in a second plate, with the data's plate on the left."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", x.shape[0], dim=-2):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            with pyro.plate("replicates", x.shape[1], dim=-1):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x: Tensor) -> None:
        _normal()
        with pyro.plate("rows", x.shape[0], dim=-2):
            w = pyro.param("w", torch.tensor(0.5))
            pyro.sample("z", dist.Normal(w * x.mean(-1, keepdim=True), 0.5))

    return Program(model, guide, (torch.randn(5, 5),), rows=5)


def map_and_maximum_likelihood() -> Program:
    """A Delta for one latent, a parameter of the model for the other."""

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
        noise = pyro.param("noise", torch.tensor(1.2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, noise), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("m", dist.Delta(pyro.param("m_map", lambda: torch.tensor(0.1))))

    return Program(model, guide, (data(),), rows=N)


def reparametrized() -> Program:
    """`poutine.reparam`: an auxiliary latent takes the place of a hierarchy's."""

    def plain(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    model: Any = poutine.reparam(plain, config={"z": LocScaleReparam(0.0)})

    def start(site: Any) -> Tensor:
        return torch.full(site["fn"].shape(), 0.3)

    return Program(model, AutoNormal(model, init_loc_fn=start), (data(),), rows=N)


PROGRAMS = [
    pyro_module_methods,
    pyro_modules,
    attribute_as_parameter,
    partials,
    found_through_containers,
    one_network_in_both,
    blocked,
    keyword_arguments,
    arguments_of_all_kinds,
    deterministic_and_factor,
    validate_args_false,
    improper_prior,
    scaled,
    conditioned,
    nested_plates,
    map_and_maximum_likelihood,
    reparametrized,
]

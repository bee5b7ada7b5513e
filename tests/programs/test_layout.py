"""The sites and plates of a program, from a run of it."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import BATCH, CATALOGUE, NUM_DATA, ConjugateGuide, Entry, columns, number, scalars
from pyro.infer.reparam import LocScaleReparam

from pyro_vi.errors import InputError
from pyro_vi.programs.build import pair_of
from pyro_vi.programs.layout import Plate, data_plate, prototype, role_of
from pyro_vi.programs.messages import describe, title
from pyro_vi.programs.pair import Pair

every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)


@every_entry
def test_prototype_finds_the_latent_sites(entry: Entry):
    pair = pair_of(*entry.build(), entry.batch)
    model = prototype(pair.model, entry.batch)
    guide = prototype(pair.guide, entry.batch)
    auxiliary = {name for name, site in guide.sites.items() if site.auxiliary}
    assert set(guide.latents) | auxiliary == set(entry.local)
    assert set(model.latents) == set(entry.local) - auxiliary
    assert set(model.observed) == set(model.sites) - set(model.latents)
    plate = model.data_plate
    for name, site in model.latents.items():
        assert (plate is not None and plate.name in site.plates) == entry.local[name]
        assert site.dtype == torch.float64


@pytest.mark.parametrize(
    ("name", "plates"),
    [
        ("masked", [Plate("data", -1, BATCH, BATCH)]),
        ("global", [Plate("data", -1, NUM_DATA, BATCH)]),
        ("nested_inside", [Plate("features", -2, 3, 3), Plate("data", -1, NUM_DATA, BATCH)]),
        ("nested_outside", [Plate("data", -2, NUM_DATA, BATCH), Plate("features", -1, 3, 3)]),
        ("no_plate", []),
        ("sequential", []),
    ],
)
def test_plates_have_a_size_of_their_own_or_that_of_the_batch(name, plates):
    entry = CATALOGUE[name]
    pair = pair_of(*entry.build(), entry.batch)
    found = prototype(pair.model, entry.batch)
    assert sorted(found.plates.values(), key=lambda p: p.dim) == plates
    data = found.data_plate
    assert data == (next(p for p in plates if p.name == "data") if plates else None)


def test_a_subsample_drawn_inside_the_program_is_seen():
    entry = CATALOGUE["inner_subsample"]
    found = prototype(pair_of(*entry.build(), entry.batch).model, entry.batch)
    assert found.sites["z"].batch_shape == (BATCH,)
    assert found.data_plate.name == "data"


def test_a_plate_without_a_subsample_has_its_own_length():
    guide = ConjugateGuide((0.1, 1.0), (0.2, 1.0), (0.3, 1.0))
    assert prototype(guide, (scalars(3),)).plates == {"data": Plate("data", -1, 3, 3)}


@pytest.mark.parametrize(
    ("names", "local", "subsampled", "found"),
    [
        (("features", "rows"), "rows", None, "rows"),  # the latent site is in it
        (("features", "data"), None, None, "data"),  # by its name
        (("features", "rows"), None, None, "features"),  # the one that is entered first
        (("data", "rows"), "data", "rows", "rows"),  # the one that subsamples
    ],
)
@pytest.mark.parametrize("width", [2, 8])
def test_the_data_plate_is_found_by_frames_and_names_and_not_by_lengths(names, local, subsampled, found, width):
    def model(x):
        outer, inner = (
            pyro.plate(name, 99 if name == subsampled else size, subsample=torch.arange(size), dim=dim)
            for name, size, dim in zip(names, (width, 8), (-2, -1), strict=True)
        )
        if local is not None:
            with outer if names[0] == local else inner:
                pyro.sample("z", dist.Normal(number(0.0), 1.0))
        with outer, inner:
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)

    assert prototype(model, (torch.zeros(width, 8).double(),)).data == found


def test_only_data_have_a_data_plate():
    def model(x):
        with pyro.plate("parameters", 3):
            w = pyro.sample("w", dist.Normal(number(0.0), 1.0))
        pyro.deterministic("total", w.sum())
        pyro.factor("penalty", -w.square().sum())
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    assert prototype(model, (scalars(),)).data == "rows"
    assert prototype(lambda x: pyro.sample("z", dist.Normal(number(0.0), 1.0)), (scalars(),)).data_plate is None


def test_a_site_says_what_it_is():
    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("p", dist.Dirichlet(torch.ones(3, dtype=x.dtype)))
            pyro.sample("k", dist.Categorical(torch.ones(4, dtype=x.dtype)))

    found = prototype(model, (scalars(),)).sites
    p, k = found["p"], found["k"]
    assert (p.distribution, p.batch_shape, p.event_shape, p.numel, p.reparametrized) == (
        "Dirichlet",
        (8,),
        (3,),
        24,
        True,
    )
    assert (k.distribution, k.event_shape, k.reparametrized, k.support.is_discrete) == ("Categorical", (), False, True)
    assert (p.plates, p.observed, p.auxiliary) == (("data",), False, False)


@pytest.mark.parametrize(
    ("distribution", "name"),
    [
        (dist.Normal(0.0, 1.0), "Normal"),
        (dist.Normal(torch.zeros(2), 1.0).to_event(1), "Independent(Normal)"),
        (dist.Normal(torch.zeros(2), 1.0).mask(False), "MaskedDistribution(Normal)"),
        (
            dist.TransformedDistribution(dist.Normal(0.0, 1.0), [dist.transforms.SigmoidTransform()]),
            "Transformed(Normal)",
        ),
        (dist.LogNormal(0.0, 1.0), "LogNormal"),
        (dist.MultivariateNormal(torch.zeros(2), torch.eye(2)), "MultivariateNormal"),
    ],
)
def test_distributions_are_named_as_people_write_them(distribution, name):
    assert describe(distribution) == name


@pytest.mark.parametrize(
    ("size", "length", "full", "scale"), [(50, 8, 50, 50 / 8), (None, 8, 8, 1.0), (8, 8, 8, 1.0), (5, 8, 8, 1.0)]
)
def test_data_plate_scales_a_minibatch_to_the_full_size(size, length, full, scale):
    """Without a size, or with a batch longer than it (held-out data), it is as long as the batch."""

    def model(x):
        with data_plate(size, x, "rows", -2):
            pyro.sample("x", dist.Normal(number(0.0), 1.0), obs=x)

    node = pyro.poutine.trace(model).get_trace(scalars(length).unsqueeze(-1)).nodes["x"]
    (frame,) = node["cond_indep_stack"]
    assert (frame.name, frame.dim, frame.full_size, frame.size) == ("rows", -2, full, length)
    torch.testing.assert_close(float(node["scale"]), scale)


def test_a_program_that_fails_is_named_with_the_shape_of_its_batch():
    with pytest.raises(InputError, match=r"conjugate fails on a batch of shape \(8,\).*no good"):

        def conjugate(x):
            raise RuntimeError("no good")

        prototype(conjugate, (scalars(),))


def test_titles():
    assert title(ConjugateGuide()) == "ConjugateGuide"
    assert title(Pair) == "Pair"
    assert "closure_pair.<locals>.model" in title(pair_of(*CATALOGUE["closure"].build(), (columns(),)).model)


def test_the_role_of_each_kind_of_site():
    def program() -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.deterministic("twice", 2 * w)
        pyro.factor("penalty", -w.square())
        with pyro.plate("data", 4, subsample_size=2):
            pyro.sample("local", dist.Normal(w, 1.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=torch.zeros(2))

    moved = pyro.poutine.reparam(program, config={"local": LocScaleReparam(0.0)})
    roles = {n: role_of(node) for n, node in pyro.poutine.trace(moved).get_trace().nodes.items() if "fn" in node}
    assert {name: role for name, role in roles.items() if not name.startswith("_")} == {
        "w": "latent",
        "u": "auxiliary",
        "twice": "deterministic",
        "penalty": "factor",
        "data": "subsample",
        "local_decentered": "latent",
        "local": "deterministic",
        "x": "observed",
    }


def test_a_program_that_is_given_a_list_says_what_to_give():
    def model(x):
        x.mean()

    words = "'list' object has no attribute 'mean'.*; give an array with a row for each datum"
    with pytest.raises(InputError, match=words):
        prototype(model, ([1.0, 2.0],))

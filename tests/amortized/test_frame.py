"""The latent sites as a guide serves them: dtypes, plates of any length, steps of series, and what is refused."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from amortized_toys import GROUPS, MEMBERS, gauss, groups, sequence, started, table, there, time_first
from binding_toys import bind_one
from catalogue import columns, number, scalars
from pyro import poutine

from pyro_vi.amortized.frame import Frame
from pyro_vi.errors import InputError
from pyro_vi.guides.diag_normal import DiagNormal


def frame_of(model, *batch, **options):
    return Frame(bind_one(model, batch), batch, "toy", **options)


def test_rows_are_those_of_the_data_plate_and_of_elements():
    frame = frame_of(groups, table())
    assert (frame.data, frame.elements) == ("groups", ("groups", "members"))
    rows = {name: frame.rows(site) for name, site in frame.sites.items()}
    assert rows == {"top": (), "mu": ("groups",), "z": ("groups", "members")}
    assert {name: shape.rows for name, shape in frame.shapes.items()} == {"top": (), "mu": (-2,), "z": (-2, -1)}


def test_plates_are_as_long_as_the_batch_and_as_large_as_the_model_says():
    for size in (None, 50):

        def model(x, size=size):
            with pyro.plate("data", size or len(x), subsample=torch.arange(len(x)), dim=-2):
                z = pyro.sample("z", gauss(0.0))
                with pyro.plate("members", x.shape[1], dim=-1):
                    pyro.sample("m", gauss(0.0))
                    pyro.sample("x", gauss(z), obs=x)

        frame = frame_of(model, table())
        for rows, members in ((GROUPS, MEMBERS), (3, 9)):
            plates = frame.call((table(rows, members),), {}).plates
            found = {name: (plate.size, plate.subsample_size) for name, plate in plates.items()}
            assert found == {"data": (size or rows, rows), "members": (members, members)}


def test_the_series_of_a_sequence_are_aligned_with_its_steps():
    assert frame_of(sequence, table()).shifts == {"z_": 0}
    assert frame_of(time_first, columns(5, 6).reshape(5, 3, 2)).shifts == {"z_": 0, "s_": 0}
    assert frame_of(started, table()).shifts == {"z_": -1}
    assert not frame_of(started, table(6, 9)).steps.keys() ^ {f"z_{t}" for t in range(10)}


def test_a_sequence_may_be_observed_as_a_whole():
    def model(x):
        with pyro.plate("data", len(x)):
            z = [pyro.sample(f"z_{t}", gauss(0.0)) for t in range(x.shape[1])]
            mean = torch.stack(z, -1).unsqueeze(-1).expand(x.shape)
            pyro.sample("x", dist.Normal(mean, 1.0).to_event(2), obs=x)

    x = columns(3, 8).reshape(3, 4, 2)
    frame = frame_of(model, x)
    assert [(c.steps, c.site) for c in frame.columns] == [(True, "x")] and list(frame.steps) == [
        "z_0",
        "z_1",
        "z_2",
        "z_3",
    ]


def test_which_values_count_is_known_step_by_step_and_element_by_element():
    lengths = torch.tensor([4, 1, 2, 3, 4, 2])
    frame = frame_of(sequence, table(), lengths)
    present, whole = frame.present((table(), lengths))
    assert present.equal(torch.arange(4) < lengths.unsqueeze(-1)) and whole is None
    longer = frame.call((table(6, 9), lengths), {}).present[0]
    assert longer.equal(torch.arange(9) < lengths.unsqueeze(-1))
    shorter = frame.call((table(6, 2), lengths), {}).present[0]
    assert shorter.equal(torch.arange(2) < lengths.unsqueeze(-1))
    members = frame_of(groups, table(), there()).present((table(), there()))
    assert members[0].equal(there())


@pytest.mark.parametrize(
    ("latent", "expected"),
    [
        (lambda: dist.Normal(torch.zeros(()), 1.0), torch.float32),
        (lambda: gauss(0.0), torch.float64),
        (lambda: dist.Bernoulli(number(0.3)), torch.float64),
        (lambda: dist.Categorical(torch.ones(3)), torch.float64),
    ],
)
def test_the_dtype_is_that_of_the_latents_or_of_the_data(latent, expected):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", latent())
            pyro.sample("x", gauss(z.double()), obs=x)

    guide = DiagNormal(bind_one(model, (scalars(),)), (scalars(),))
    assert {p.dtype for p in guide.parameters()} == {expected}


def test_sites_have_the_mask_and_the_scale_of_the_batch():
    seen = there()
    guide = DiagNormal(bind_one(groups, (table(), seen)), (table(), seen))
    trace = poutine.trace(guide).get_trace(table(), ~seen)
    trace.compute_log_prob()
    node = trace.nodes["z"]
    torch.testing.assert_close(node["log_prob"], torch.where(seen, 0, node["fn"].log_prob(node["value"])))


def rows_in_a_closure(subsample=None):
    with pyro.plate("data", 50, subsample=torch.arange(8)):
        z = pyro.sample("z", gauss(0.0))
        pyro.sample("x", gauss(z), obs=scalars())


def unnumbered(x):
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Poisson(number(2.0)))
        pyro.sample("x", gauss(k), obs=x)


REFUSED = {
    "no bijection": (
        lambda x: pyro.sample("z", dist.ProjectedNormal(x.new_ones(3))),
        (scalars(),),
        "guide 'toy' knows no bijection to the support of site 'z' (ProjectedNormal); write a guide for this site, or draw it "
        "from another distribution in the model",
    ),
    "infinitely many states": (
        unnumbered,
        (scalars(),),
        "guide 'toy' cannot serve site 'k': Poisson is discrete with infinitely many values, or with values "
        "that differ between rows; sum it out in the model, or write a guide for this site",
    ),
    "rows of which nothing is known": (
        rows_in_a_closure,
        (),
        "guide 'toy' cannot know which 8 of the 50 rows of plate 'data' site 'z' belongs to, as no column of the batch has 8 "
        "rows; pass all rows",
    ),
    "no latents": (
        lambda x: pyro.sample("x", gauss(0.0), obs=x.sum()),
        (scalars(),),
        "the model has no latent site, so there is nothing for a guide to do; use a guide without sites",
    ),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_cannot_be_served_is_refused_with_the_site_the_reason_and_what_would_serve(fault):
    model, batch, message = REFUSED[fault]
    with pytest.raises(InputError) as error:
        frame_of(model, *batch)
    assert str(error.value) == message


def test_columns_of_different_lengths_are_refused():
    frame = frame_of(lambda x, y: groups(x) if y is None else groups(x + y), table(), table(seed=8))
    with pytest.raises(InputError, match="have 6, 4 rows; give all columns the same number of rows"):
        frame.call((table(), table(4, seed=8)), {})

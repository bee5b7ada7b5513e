"""What an opened run says is what its closed form says, of its own rows and of new ones."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns
from closed_forms import PPCA, closed_form
from data_toys import message

import pyro_vi
from pyro_vi import OpenedRun, Run
from pyro_vi.elbo import facts_of, measure

NEW = columns(41, seed=1)


def test_an_embedding_is_the_posterior_mean(run, opened):
    means, _ = closed_form(run, run.data.heldout[0])
    assert np.abs(opened.embed() - means.numpy()).max() < 1e-10
    means, _ = closed_form(run, NEW)
    for given in (NEW, NEW.numpy(), (NEW,), pd.DataFrame(NEW.numpy()), pyro_vi.load(NEW)):
        found = opened.embed(given)
        assert found.shape == (41, 2)  # all rows, never a tenth of them
        wanted = np.sort(means.numpy(), 0) if isinstance(given, pyro_vi.Data) else means.numpy()
        assert np.abs((np.sort(found, 0) if isinstance(given, pyro_vi.Data) else found) - wanted).max() < 1e-10


@pytest.mark.slow
def test_a_reconstruction_is_the_decoder_of_it(run, opened):
    """E_q[A z + b] = A E[z | x] + b; the error of 400 draws is σ_z A / 20."""
    means, _ = closed_form(run, NEW)
    weight, bias = run.params["weight"], run.params["bias"]
    precision = torch.eye(2).double() + weight.T @ weight / (2 * run.params["log_scale"]).exp()
    spread = (weight @ torch.linalg.inv(precision) @ weight.T).diagonal().sqrt() / math.sqrt(400)
    found = torch.as_tensor(opened.reconstruct(NEW, draws=400))
    z = (found - (means @ weight.T + bias)) / spread
    assert found.shape == NEW.shape and float(z.abs().max()) < 4.5  # of 123 numbers
    assert abs(float(z.square().mean()) - 1) < 4 * math.sqrt(2 / 82)


def test_the_evidence_is_exact_and_of_all_rows(run, opened):
    for x, rows in ((None, run.data.heldout[0]), (NEW, NEW)):
        found = opened.log_evidence(x)
        assert np.abs(found.log_evidence.values - closed_form(run, rows)[1].numpy()).max() < 1e-10
    assert opened.named() == "the 6 held-out rows" and opened.named(NEW) == "all 41 new rows"


def test_samples_have_the_moments_of_the_model(run, opened):
    found = torch.as_tensor(opened.sample(4000, seed=2))
    weight, bias = run.params["weight"], run.params["bias"]
    covariance = weight @ weight.T + (2 * run.params["log_scale"]).exp() * torch.eye(3).double()
    z = (found.mean(0) - bias) / (covariance.diagonal() / 4000).sqrt()
    assert found.shape == (4000, 3) and float(z.abs().max()) < 4
    ratio = found.var(0) / covariance.diagonal()
    assert float((ratio - 1).abs().max()) < 4 * math.sqrt(2 / 4000)
    assert np.array_equal(opened.sample(5, seed=2), opened.sample(5, seed=2))
    assert not np.array_equal(opened.sample(5, seed=2), opened.sample(5, seed=3))


def test_the_posterior_is_a_tree_of_all_rows(run, opened):
    tree = opened.posterior(NEW, draws=50)
    assert dict(tree["posterior"].z.sizes) == {"chain": 1, "draw": 50, "data": 41, "z_dim_0": 2}
    assert np.array_equal(tree["observed_data"].x.values, NEW.numpy())
    assert "ask for" in message(opened.posterior, NEW, draws=10**8)


def test_the_history_is_a_frame(run, opened):
    assert opened.history.index.name == "step" and opened.history.elbo.iloc[-1] == run.history[-1]["elbo"]
    assert run.history[-1]["step"] == 12 == opened.history.index[-1]


@pytest.mark.slow
def test_what_is_shown_is_short(run, opened):
    for text in (repr(run), repr(opened)):
        assert len(text.splitlines()) <= 12 and len(text) < 1500 and "elbo" in text
    assert run._repr_html_().startswith("<div><b>Run: linear_gaussian") and "<table>" in opened._repr_html_()
    figures = pyro_vi.plot(run, only="training_curves")
    assert figures["training_curves"]._repr_png_().startswith(b"\x89PNG") and "image/png" in figures._repr_html_()


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.zeros((4, 2)), "new rows have shape (4, 2), not (rows, 3)"),
        (np.zeros(3), "(a single row has a first dimension of 1)"),
        ((np.zeros((4, 3)), np.zeros(4)), "the programs take 1 column (x), and 2 are given"),
        (np.full((4, 3), np.nan), "NaN or infinite"),
        (np.zeros((0, 3)), "0 rows cannot be scored"),
        ("absent.npy", "there is no file 'absent.npy'"),
        (3, "cannot take rows from a int"),
    ],
)
def test_wrong_rows_give_one_line(opened, x, text):
    assert text in message(opened.embed, x, error=pyro_vi.InputError)


@pytest.mark.slow
def test_new_rows_are_standardised_by_the_moments_of_the_training_rows():
    data = pyro_vi.load(5 + 3 * columns(60), standardize=True)
    run = pyro_vi.fit(PPCA, "exact", data, steps=3, compile=False, progress=False)
    opened, new = pyro_vi.open(run), 5 + 3 * NEW
    loc, scale = data.standard
    means, _ = closed_form(run, (new - loc) / scale)
    assert np.abs(opened.embed(new) - means.numpy()).max() < 1e-10
    assert np.abs(opened.embed(pyro_vi.load(new, standardize=True, heldout=0.0)) - means.numpy()).max() < 1e-10
    wanted = (means @ run.params["weight"].T + run.params["bias"]) * scale + loc
    assert float((torch.as_tensor(opened.reconstruct(new, draws=400)) - wanted).abs().mean()) < 0.2  # in raw units
    assert abs(float(opened.sample(500).mean()) - 5) < 0.6


def test_a_table_is_read_by_the_names_of_its_columns(tmp_path):
    x = columns(60).numpy()
    frame = pd.DataFrame({"a": x[:, 0], "kind": ["u", "v"] * 30, "b": x[:, 1]})
    run = pyro_vi.fit(PPCA, "exact", pyro_vi.load(frame, label="kind"), steps=2, compile=False, progress=False)
    opened = pyro_vi.open(run)
    new = pd.DataFrame({"b": [1.0, 2.0], "more": ["x", "y"], "a": [3.0, 4.0]})
    assert np.array_equal(opened.embed(new), opened.embed(np.array([[3.0, 1.0], [4.0, 2.0]])))
    new.to_csv(tmp_path / "new.csv", index=False)
    assert np.array_equal(opened.embed(tmp_path / "new.csv"), opened.embed(new))
    assert "the new table has no column 'a'; give the columns of the run: a, b" in message(opened.embed, new[["b"]])


def shared(x, y=None):
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)


def around(x, y=None):
    loc = pyro.param("loc", torch.tensor([2.0, -1.0]))
    pyro.sample("w", dist.Normal(loc, 0.01).to_event(1))


def test_a_regression_predicts_its_target_and_draws_new_ones():
    x = torch.randn(50, 2)
    y = x @ torch.tensor([2.0, -1.0]) + 0.5 * torch.randn(50)
    run = pyro_vi.fit(shared, around, (x, y), steps=2, lr=1e-6, compile=False, progress=False)
    opened = pyro_vi.open(run)
    loc = run.params["loc"]
    found = opened.reconstruct((x[:7], y[:7]))
    assert found.shape == (7,) and float((torch.as_tensor(found) - x[:7] @ loc).abs().max()) < 0.02
    drawn = torch.as_tensor(opened.sample(50))
    assert drawn.shape == (50,) and abs(float((drawn - x @ loc).std()) - 0.5) < 4 * 0.5 / math.sqrt(100)
    assert "no latent site belongs to single data" in message(opened.embed)


def mixture(x):
    locs = pyro.param("locs", torch.tensor([-5.0, 5.0]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(locs[k], 1.0), obs=x)


def assigned(x):
    logits = pyro.param("logits", torch.tensor(0.7))
    with pyro.plate("data", len(x)):
        both = torch.stack([torch.zeros_like(x), logits.expand(len(x))], -1)
        pyro.sample("k", dist.Categorical(logits=both), infer={"enumerate": "parallel"})


def test_a_discrete_latent_is_embedded_by_the_probabilities_of_its_states():
    x = torch.cat([torch.full((20,), -5.0), torch.full((20,), 5.0)])
    options = {"elbo": "enum", "steps": 1, "compile": False, "progress": False, "heldout": 0.0, "check": False}
    found = pyro_vi.open(pyro_vi.fit(mixture, assigned, x, **options))
    wanted = torch.softmax(torch.tensor([0.0, float(found.run.params["logits"])]), 0)
    assert found.embed().shape == (40, 2) and np.abs(found.embed() - wanted.numpy()).max() < 1e-6
    summed = pyro_vi.open(pyro_vi.fit(mixture, lambda x: None, x, **options)).embed(draws=20)
    assert np.abs(summed - np.repeat(np.eye(2), 20, 0)).max() < 1e-6  # e⁻⁵⁰ from certain


def test_more_continues_from_the_same_parameters(run, opened):
    before = {name: value.clone() for name, value in run.pair.state_dict().items()}
    child = opened.more(steps=3, lr=0.01, snapshots=(0,), progress=False)
    start = child.run.at(0)
    assert all(torch.equal(start.state_dict()[name], value) for name, value in before.items())
    assert all(torch.equal(run.pair.state_dict()[name], value) for name, value in before.items())  # the parent stays
    assert not torch.equal(child.run.params["weight"], run.params["weight"])
    args = child.data.example(54)
    facts = facts_of(start, args)
    again = measure(start, args, facts, num_data=54, draws=1, seed=12, rows=54)
    assert abs(again.elbo_mean - run.history[-1]["elbo"]) < 1e-10
    assert child.parent["steps"] == 12 and child.config["lr"] == 0.01 and child.run.steps == 3
    assert "give epochs=... or steps=..." in message(opened.more, error=pyro_vi.UsageError)
    assert "more keeps the rows" in message(opened.more, steps=1, seed=2, error=pyro_vi.UsageError)
    assert "stepz" in message(opened.more, steps=1, stepz=2, error=pyro_vi.UsageError)


def test_more_asks_for_options_that_were_objects():
    def adam(parameters):
        return torch.optim.Adam(parameters, 0.01)

    run = pyro_vi.fit(PPCA, "exact", columns(40), steps=2, optimizer=adam, compile=False, progress=False)
    text = message(pyro_vi.open(run).more, steps=1)
    assert "was made with optimizer as Python objects" in text and text.endswith(
        "give them again: more(optimizer=..., ...)"
    )
    assert pyro_vi.open(run).more(steps=1, optimizer=adam, progress=False).run.steps == 1


@pytest.mark.slow
def test_a_longer_fit_has_no_second_cycles_and_keeps_free_bits_and_batches():
    options = {"batch_size": 10, "accumulate": 2, "cycles": 2, "free_bits": 0.2, "compile": False, "progress": False}
    run = pyro_vi.fit(PPCA, "diag_normal", columns(60), steps=6, **options)
    child = pyro_vi.open(run).more(steps=2, progress=False).run
    assert [record["beta"] for record in child.history] == [1.0, 1.0]
    kept = {name: child.config[name] for name in ("batch_size", "accumulate", "cycles", "free_bits")}
    assert kept == {"batch_size": 10, "accumulate": 2, "cycles": None, "free_bits": 0.2}


def test_an_opened_run_is_what_it_was_made_of(run, opened):
    assert isinstance(run, Run) and isinstance(opened, OpenedRun)
    assert opened.pair is run.pair and opened.model is run.model and opened.guide is run.guide
    assert opened.data is run.data and opened.parent is None and opened.config["seed"] == 3

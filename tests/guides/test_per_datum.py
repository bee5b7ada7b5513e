"""Free parameters for each datum, by row number: the right rows in any batch, and the best q of a family for each datum."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import columns, exact_elbo, global_pair, linear_gaussian, number
from data_toys import message, on_disk
from pyro.infer import TraceMeanField_ELBO
from small_fits import in_main_thread, interrupting, quick, same_fit
from torch import nn

import pyro_vi
from pyro_vi.data import numbered
from pyro_vi.data.loading import load
from pyro_vi.elbo import evaluate
from pyro_vi.errors import UsageError
from pyro_vi.fitting import plan as planning
from pyro_vi.fitting.plan import plan
from pyro_vi.programs import build_pair

ROWS = 12


def given(rows=ROWS):
    return load(columns(rows), heldout=0.0)


def fitted(batch_size, steps, guide="per_datum", **options):
    """A fit of free parameters to a fixed model."""
    model = linear_gaussian(learn=False, num_data=ROWS)
    return quick(model, guide, given(), batch_size=batch_size, steps=steps, **options)


def parameters_of(run):
    """Loc and scale of each row."""
    with torch.no_grad():
        return run.guide.family.parameters_of(*run.data.train())["z"]


def best(model, x):
    """The diagonal normal nearest to the posterior: its mean, and the diagonal of its precision."""
    posterior = model.posterior(x)["z"]
    return posterior.mean, posterior.precision_matrix.diagonal(dim1=-2, dim2=-1).rsqrt()


def with_own_values(pair):
    """Give the rows' locs values by which they can be told."""
    block = pair.guide.family.q["z"]
    with torch.no_grad():
        block.loc.copy_(torch.arange(block.loc.numel(), dtype=torch.float64).reshape(block.loc.shape))
    return block.loc.detach() * block.rate


def test_a_row_has_its_parameters_in_every_batch():
    data = numbered(given())
    pair = build_pair(linear_gaussian(num_data=ROWS), "per_datum", data)
    table = with_own_values(pair)
    for index, (x, numbers) in data.batches(epoch=3, batch_size=5):
        assert torch.equal(index, numbers)
        loc, _ = pair.guide.family.parameters_of(x, numbers)["z"]
        assert torch.equal(loc, table[index])


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [ROWS, 5])
def test_each_datum_gets_the_best_q_of_its_family(batch_size):
    """In order and in full, and in shuffled minibatches, the last of which is smaller: the same q for the same rows."""
    elbo = TraceMeanField_ELBO(num_particles=20, vectorize_particles=True)
    run = fitted(batch_size, {ROWS: 200, 5: 600}[batch_size], elbo=elbo)
    (loc, scale), x = parameters_of(run), given().train()[0]
    mean, sd = best(run.model, x)
    assert ((loc - mean) / sd).abs().max() < 0.1
    assert (scale / sd).log().abs().max() < 0.1
    found, wanted = (exact_elbo(run.model, dist.Normal(*q).to_event(1), x) for q in ((loc, scale), (mean, sd)))
    assert (wanted - found).min() > -1e-10
    assert (wanted - found).max() < 0.02


@pytest.mark.slow
def test_a_full_normal_of_each_datum_is_the_posterior():
    run = fitted(5, 600, "per_datum(family='full_normal')", elbo="stl", lr=0.01)
    # Under the posterior, log p(x, z) − log q(z) is the evidence at each draw.
    evaluation = evaluate(run.pair, run.data.train(), draws=50, kl="sampled")
    gap = run.model.log_evidence(given().train()[0]) - evaluation.elbo_per_datum
    assert gap.abs().max() < 0.01


def test_rows_outside_of_the_batch_have_no_gradient():
    data = numbered(given())
    pair = build_pair(linear_gaussian(num_data=ROWS), "per_datum", data)
    estimator = pyro_vi.estimators.get("mean_field")
    x, numbers = data.gather(data.stored(0), torch.tensor([7, 2]))
    estimator.differentiable_loss(pair.model, pair.guide, x, numbers).backward()
    for name, (owner, parameter) in pair.owned().items():
        if owner == "guide":
            moved = parameter.grad.abs().sum(-1) > 0
            assert moved.nonzero().flatten().tolist() == [2, 7], name


def test_what_adam_does_to_rows_outside_of_the_batch():
    """It moves them on by their momentum: by lr √1000 in all, at most, and to no other side."""
    p = torch.nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.Adam([p], 0.01)
    p.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    p.grad = torch.zeros(2)
    for _ in range(200):
        optimizer.step()
    assert -0.01 * 0.1 * 1000**0.5 * 10 < p[0] < -0.01


@pytest.mark.parametrize("size", [1, 5, 100])
def test_row_numbers_come_last_in_every_batch_and_example(size, tmp_path):
    values = columns(ROWS).numpy()
    for source in (values, on_disk(tmp_path / "x.npy", values), (values, "word"), {"x": values, "w": values[:, 0]}):
        plain = load(source, heldout=0.25, seed=3)
        data = numbered(plain)
        for (index, batch), (_, other) in zip(data.batches(2, size), plain.batches(2, size), strict=True):
            assert torch.equal(batch[-1], index)
            assert all(
                torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(batch[:-1], other, strict=True)
            )
        assert torch.equal(data.example(size)[-1], torch.arange(min(size, data.spec.num_data)))
        assert torch.equal(data.train()[-1], torch.arange(data.spec.num_data))
        assert torch.equal(data.to(dtype=torch.float32).train()[-1], data.train()[-1])
        assert data.num_heldout == 0
        assert plain.num_heldout == 3


def test_pixels_that_are_redrawn_are_drawn_once():
    data = numbered(load("digits"))
    index, (x, numbers) = next(data.batches(1, 7))
    assert torch.equal(index, numbers)
    assert torch.equal(x, data.train(0)[0][index])
    assert torch.equal(data.train(0)[0], load("digits").train(0)[0])


def local(x, scale=None):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(number(0.0), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0 if scale is None else scale), obs=x)


@pytest.mark.parametrize(
    "source", [columns(20)[:, 0], (columns(20)[:, 0], 2.0), {"scale": columns(20)[:, 0].exp(), "x": columns(20)[:, 0]}]
)
def test_minibatches_of_a_model_whose_plate_is_the_batch(source, monkeypatch):
    monkeypatch.setattr(planning, "MINIBATCH", 8)
    planned = plan(local, "per_datum", source)
    assert planned.note == "20 rows in batches of 8, shuffled; none held out"
    assert {tuple(p.shape) for p in planned.pair.guide.parameters()} == {(20, 1)}
    run = quick(local, "per_datum", source, steps=3, batch_size=8)
    assert run.data.spec.num_data == 20
    assert run.history[-1]["elbo"] < 0


def test_a_model_that_needs_all_rows_gets_them():
    planned = plan(global_pair()[0], "per_datum", columns(20)[:, 0], batch_size=None)
    assert planned.note.startswith("all 20 rows in each step, in the given order (all data share 'w')")


def test_held_out_rows_that_come_with_the_data_are_left_out():
    planned = plan("vae(latent_dim=2)", "per_datum", "digits")
    assert planned.note == (
        "1498 rows in batches of 128, shuffled; 299 others left out, as the guide has parameters for the rows that it is "
        "fitted to only"
    )


def test_refusals():
    run = fitted(5, 2)
    (x,) = given().train()
    assert message(run.guide, x) == (
        "guide 'diag_normal' has parameters for each of the 12 rows that it is fitted to, and none for others: give the "
        "numbers of the rows as a last argument (argument 1), such as torch.arange(12) with all rows in the order of the fit"
    )
    model = linear_gaussian(num_data=ROWS)
    said = "guide 'per_datum' has parameters for the rows that it is fitted to, and none for others"
    assert message(plan, model, "per_datum", columns(ROWS), heldout=0.2, error=UsageError) == (
        f"{said}; leave heldout out"
    )
    assert message(plan, model, "per_datum", columns(ROWS), shuffle=False, drop_last=True, error=UsageError) == (
        f"{said}; with shuffle=False, leave drop_last out, which drops the same rows in each epoch"
    )
    for family in ("exact", "laplace", "per_datum"):
        assert message(plan, model, f"per_datum(family='{family}')", columns(ROWS)) == (
            f"family '{family}' of guide 'per_datum' cannot have parameters for each row; use 'diag_normal'"
        )


def test_the_model_keeps_the_names_of_its_parameters_and_can_be_called_alone():
    run = fitted(5, 2)
    plain = quick(linear_gaussian(num_data=ROWS), "diag_normal(hidden=(4,))", given(), steps=2)
    assert dict(run.model.named_buffers()).keys() == {"weight", "bias", "log_scale"}
    assert {n for n in plain.params if n in ("weight", "bias", "log_scale")} == {"weight", "bias", "log_scale"}
    x, numbers = run.data.example(4)
    assert torch.equal(run.model(x, numbers), run.model(x))


@pytest.mark.slow
def test_evidence_audit_and_check_of_fitted_rows():
    run = fitted(5, 2, "per_datum(init_scale=1.0)")
    batch, (x,) = run.data.example(6), given().example(6)
    exact = pyro_vi.evidence(run.model, run.guide, batch)
    assert torch.allclose(torch.as_tensor(exact.log_evidence.values), run.model.log_evidence(x))
    drawn = pyro_vi.evidence(run.model, run.guide, batch, method="iw", particles=4000, rows=4, compile=False)
    assert (abs(drawn.log_evidence - exact.log_evidence) < 4 * drawn.mc_se + 0.02).all()
    assert pyro_vi.check(run.model, run.guide, batch) == []
    assert pyro_vi.audit(run.model, run.guide, batch, draws=20).sizes["elbo"] == 2


def test_rows_are_evaluated_a_few_at_a_time():
    """All rows of the data are as many as the rows of the table, which no network is."""
    run = fitted(5, 2)
    assert run.pair.separable(run.data.train(), 5)
    few, all_rows = (evaluate(run.pair, run.data.train(), draws=400, rows=r) for r in (5, ROWS))
    assert (few.elbo_per_datum - all_rows.elbo_per_datum).abs().mean() < 0.5
    assert torch.allclose(few.kl, all_rows.kl)


@pytest.mark.slow
@in_main_thread
def test_a_resumed_fit_has_the_bits_of_an_uninterrupted_one(tmp_path):
    def run(name, *stops, resume=False):
        optimizer = interrupting(*stops)
        return fitted(5, 9, out=tmp_path / name, resume=resume, optimizer=optimizer, schedule="cosine", drop_last=True)

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("part", 4)
    assert same_fit(run("part", resume=True), whole)


@pytest.mark.slow
def test_compiled_steps_address_the_same_rows():
    eager, compiled = (fitted(5, 40, compile=c) for c in (False, True))
    assert compiled.compiled
    for one, two in zip(parameters_of(eager), parameters_of(compiled), strict=True):
        assert torch.allclose(one, two, atol=1e-6)


class Named(nn.Module):
    """A guide of a person's own that takes row numbers."""

    row_numbers = True

    def __init__(self, model, batch, num_data):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(num_data, dtype=torch.float64))

    def forward(self, x, numbers):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc[numbers], 0.7))


def test_a_guide_of_ones_own_takes_row_numbers():
    run = quick(local, Named, columns(20)[:, 0], steps=1, batch_size=8, optimizer="sgd")
    (index, _), *_ = run.data.batches(0, 8)
    assert run.guide.loc.nonzero().flatten().tolist() == index.sort().values.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, -1])
def test_guides_are_compared_on_the_same_rows(order, tmp_path):
    guides = ["per_datum", "diag_normal(hidden=(4,))", "exact"][::order]
    found = pyro_vi.compare(
        linear_gaussian(num_data=ROWS), guides, columns(ROWS), steps=10, batch_size=5, progress=False, out=tmp_path
    )
    assert found.on == "training"
    assert not found.refused
    assert found.note == "No rows are held out, as guide 'per_datum' has parameters for each row."
    x = given().train()[0]
    for result in found.results.values():
        assert torch.equal(result.run.data.train()[0], x)
        assert len(result.evaluation.elbo_per_datum) == ROWS


@pytest.mark.slow
def test_a_comparison_is_on_the_rows_of_the_fit(tmp_path):
    found = pyro_vi.compare(
        linear_gaussian(num_data=ROWS),
        "per_datum",
        columns(ROWS),
        steps=10,
        audit_draws=20,
        progress=False,
        out=tmp_path,
    )
    assert found.on == "training"
    assert all(result.evidence is not None for result in found.results.values())


@pytest.mark.slow
def test_it_is_not_worse_than_an_encoder_in_shuffled_minibatches():
    """The digits with pixels drawn once: ELBOs of the training data, paired over them, after enough visits of each row."""
    x = load("digits").example(256)[0]
    found = {}
    for guide in ("diag_normal", "per_datum"):
        options = {"epochs": 400, "batch_size": 64, "heldout": 0.0, "compile": False, "progress": False}
        run = pyro_vi.fit("vae(latent_dim=4)", guide, x, **options)
        assert run.data.shuffle
        found[guide] = evaluate(run.pair, run.data.train(), draws=100, seed=1).elbo_per_datum
    ahead = found["per_datum"] - found["diag_normal"]
    assert float(ahead.mean()) > 0  # .26 ± .04 nats: no encoder is between a datum and its optimum

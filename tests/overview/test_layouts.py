"""The layout of pairs whose sites, owners, sources of the KL and rows are known."""

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from catalogue import CATALOGUE, Entry, columns
from differential import mixtures, sequences
from differential.harness import float64, made
from torch import nn
from torch.distributions import constraints

import pyro_vi
from pyro_vi.errors import InputError, UsageError
from pyro_vi.estimators import Bound
from pyro_vi.overview.layouts import LaidParameter

every_entry = pytest.mark.parametrize("entry", CATALOGUE.values(), ids=CATALOGUE)


@every_entry
def test_sites_owners_and_sources_of_the_catalogue(entry: Entry):
    # Under this gradient any latent will do, and each KL is analytic where it can be.
    estimator = Bound(gradient="mixed", kl="analytic", num_particles=2)
    layout = pyro_vi.show(*entry.build(), entry.batch, elbo=estimator, heldout=0.0)
    latents = {name: site for name, site in layout.sites.items() if site.guide is not None}
    auxiliary = {name for name, site in latents.items() if site.role == "auxiliary"}
    roles = {name: "local latent" if local else "global latent" for name, local in entry.local.items()}
    assert {name: site.role for name, site in latents.items()} == roles | dict.fromkeys(auxiliary, "auxiliary")
    assert {name: site.kl for name, site in latents.items()} == entry.sources
    assert all(site.why for site in latents.values())
    owners = {name.removesuffix("_unconstrained"): owner for name, owner in entry.owners.items()}
    assert {name: one.owner for name, one in layout.parameters.items()} == owners
    assert layout.refused == ""


def test_a_hierarchy_has_its_rows_plates_and_constraints():
    """A batch of 8 rows under a plate of 50, with one latent that all share."""
    entry = CATALOGUE["pyro_module"]
    layout = pyro_vi.show(*entry.build(), entry.batch)
    assert layout.rows.why == "all data share 'w'" and layout.rows.plate == "data"
    assert (layout.rows.num_data, layout.rows.batch_size, layout.rows.heldout, layout.rows.shuffled) == (8, 8, 0, False)
    assert (layout.plates["data"].dim, layout.plates["data"].size, layout.plates["data"].length) == (-1, 50, 8)
    assert layout.sites["w"].plates == () and layout.sites["z"].plates == ("data",)
    assert layout.sites["z"].batch_shape == (8,) and layout.sites["z"].event_shape == ()
    assert layout.parameters["noise"] == LaidParameter("model", (), 1, "positive")
    assert layout.parameters["encoder.weight"] == LaidParameter("guide", (1, 1), 1, "real")


def test_a_vae_is_taken_in_minibatches_of_a_known_size():
    layout = pyro_vi.show("vae(latent_dim=2, hidden=(4,))", "diag_normal(hidden=(5,))", (columns(200, 3) > 0).double())
    assert layout.rows.note == "180 rows in batches of 128, shuffled; 20 held out"
    assert layout.rows.why == "every latent site belongs to a row" and layout.rows.shuffled
    z, x = layout.sites["z"], layout.sites["x"]
    assert (z.role, z.model, z.guide, z.support, z.batch_shape, z.event_shape) == (
        "local latent",
        "Normal",
        "Normal",
        "real",
        (128,),
        (2,),
    )
    assert (x.role, x.model, x.guide, x.support, x.kl) == ("observed", "Bernoulli", None, "0 or 1", None)
    count = {"model": 0, "guide": 0}
    for one in layout.parameters.values():
        count[one.owner] += one.count
    assert count == {"model": (2 + 1) * 4 + (4 + 1) * 3, "guide": (3 + 1) * 5 + (5 + 1) * 4}
    given = pyro_vi.show("vae", "diag_normal", (columns(200, 3) > 0).double(), batch_size=50, heldout=0.5)
    assert given.rows.note == "100 rows in batches of 50, shuffled; 100 held out"


def test_why_a_kl_is_sampled_or_enumerated():
    model, guide = CATALOGUE["closure"].build()
    trace = pyro_vi.show(model, guide, columns(), elbo="trace").sites["z"]
    assert (trace.kl, trace.why) == (
        "sampled",
        "trace takes log q - log p of the draw; analytic would use the closed form",
    )
    iwae = pyro_vi.show(model, guide, columns(), elbo="iwae").sites["z"]
    assert (iwae.kl, iwae.why) == ("sampled", "iwae takes log q - log p of the draw")
    entry = CATALOGUE["lognormal_halfcauchy"]
    assert pyro_vi.show(*entry.build(), entry.batch).sites["z"].why == (
        "no closed form of KL(LogNormal || HalfCauchy) is registered"
    )
    with float64():
        program = made(mixtures.gmm_assignments_in_the_guide)
        found = pyro_vi.show(program.model, program.guide, program.args, elbo="enum").sites["assignment"]
    assert (found.kl, found.enumerated, found.guide) == ("enumerated", True, "Categorical")
    assert found.why == "the site is marked for enumeration, and enum sums over its values"


def test_an_estimator_that_cannot_serve_the_pair_is_said_and_no_error():
    entry = CATALOGUE["discrete"]
    layout = pyro_vi.show(*entry.build(), entry.batch)
    assert "the guide's Bernoulli at 'z' cannot be reparameterised" in layout.refused
    assert layout.sites["z"].kl is None
    assert "mean_field cannot serve this pair" in str(layout)
    lacking = pyro_vi.show(entry.build()[0], lambda x: None, entry.batch)
    assert lacking.sites["z"].guide is None and "the guide has no site 'z'" in lacking.refused
    assert "not in the guide" in str(lacking)


def test_masked_and_shared_parameters_of_a_sequence_belong_to_their_owners():
    """Both programs register the whole object; gradients are off where it is called."""
    with float64(), torch.no_grad():
        program = made(sequences.deep_markov)
        layout = pyro_vi.show(program.model, program.guide, program.args, elbo="trace")
    owners = {name.split(".")[1]: one.owner for name, one in layout.parameters.items()}
    model = dict.fromkeys(("z_0", "emit", "move"), "model")
    assert owners == model | dict.fromkeys(("rnn", "combine", "z_q_0"), "guide")
    assert layout.sites["z_0"].model == layout.sites["z_0"].guide == "Normal, masked"
    assert "z_0 … z_3 (4)" in str(layout) and "z_1 " not in str(layout)


def test_a_parameter_in_its_constraint_has_the_shape_that_the_program_sees():
    def model(x):
        pyro.param("root", torch.eye(3), constraint=constraints.corr_cholesky)
        pyro.sample("x", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=x)

    layout = pyro_vi.show(model, lambda x: None, torch.zeros(4))
    assert layout.parameters["root"] == LaidParameter("model", (3, 3), 3, "Cholesky factor of a correlation")


class Described(nn.Module):
    """A guide that says where its sites come from, unless ``says`` is something else."""

    def __init__(self, says: object) -> None:
        super().__init__()
        self.says, self.loc = says, nn.Parameter(torch.zeros(()))

    def describe(self, *needed: object) -> object:
        if isinstance(self.says, Exception):
            raise self.says
        return self.says

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 1.0))


def local(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_the_encoder_is_in_the_guides_own_words():
    layout = pyro_vi.show(local, Described({"z": "MLP 64-64 of x, standardised"}), torch.zeros(9))
    assert layout.sites["z"].encoder == "MLP 64-64 of x, standardised" and layout.sites["x"].encoder is None
    assert "made from" in str(layout) and "MLP 64-64 of x" in str(layout)
    for other in (None, {"z": 3}, "a text", ValueError("not now")):
        layout = pyro_vi.show(local, Described(other), torch.zeros(9))
        assert layout.sites["z"].encoder is None and "made from" not in str(layout)


def test_nothing_changes_and_the_layout_is_plain():
    guide = Described({"z": "one number"})
    norm = nn.BatchNorm1d(1)

    def model(x):
        pyro.module("norm", norm)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(norm(z[:, None])[:, 0], 1.0), obs=x)

    before = torch.get_rng_state(), {name: value.clone() for name, value in norm.state_dict().items()}
    layout = pyro_vi.show(model, guide, torch.arange(9.0))
    assert torch.equal(before[0], torch.get_rng_state())
    assert all(torch.equal(value, before[1][name]) for name, value in norm.state_dict().items())
    assert guide.loc.grad is None and norm.weight.grad is None
    assert json.loads(json.dumps(layout.to_dict()))["sites"]["z"]["role"] == "local latent"


def test_bad_input_is_refused():
    with pytest.raises(UsageError, match="did you mean 'vae'"):
        pyro_vi.show("vea", "diag_normal", torch.zeros(9, 3))
    with pytest.raises(UsageError, match="no ELBO estimator named 'tracee'"):
        pyro_vi.show("vae", "diag_normal", torch.zeros(9, 3), elbo="tracee")
    with pytest.raises(UsageError, match="batch_size must be a whole number"):
        pyro_vi.show("vae", "diag_normal", torch.zeros(9, 3), batch_size=0)
    with pytest.raises(InputError, match="needs a model with a closed form"):
        pyro_vi.show("vae", "exact", torch.zeros(9, 3))

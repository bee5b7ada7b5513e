"""The Gaussian mixture against scikit-learn's, and its posterior against Bayes' rule."""

import pyro
import pytest
import torch
from catalogue import columns, spec
from sklearn.datasets import load_iris, load_wine
from sklearn.mixture import GaussianMixture as Peer

import pyro_vi
from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.guides.exact import Exact
from pyro_vi.models.mixture import COVARIANCES, GaussianMixture

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def table(load=load_iris) -> torch.Tensor:
    x = torch.as_tensor(load().data, dtype=torch.float64)
    return (x - x.mean(0)) / x.std(0)


def handed_over(peer: Peer, **options) -> GaussianMixture:
    return GaussianMixture(
        spec(150, peer.n_features_in_),
        components=peer.n_components,
        covariance=peer.covariance_type,
        weights=peer.weights_,
        means=peer.means_,
        covariances=peer.covariances_,
        **options,
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_evidence_and_posterior_are_scikit_learns_at_equal_parameters(covariance):
    x = table()
    peer = Peer(3, covariance_type=covariance, random_state=0, max_iter=20).fit(x.numpy())
    model = handed_over(peer, learn=False)
    torch.testing.assert_close(model.log_evidence(x), torch.as_tensor(peer.score_samples(x.numpy())), **EXACT)
    probs = model.posterior(x)["component"].probs
    torch.testing.assert_close(probs, torch.as_tensor(peer.predict_proba(x.numpy())), **EXACT)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_terms_of_the_pair_with_the_exact_posterior_are_the_evidence(covariance):
    """Summed over components by the estimator ``enum``; a single draw has the same value too."""
    x = table()[::10]
    model = handed_over(Peer(2, covariance_type=covariance, random_state=0).fit(table().numpy()))
    model.data = spec(len(x), 4)
    with (
        pyro.get_param_store().scope(),
        pyro.validation_enabled(False),
    ):  # a mark is not followed by ``trace``, which warns
        for name in ("enum", "trace"):
            loss = pyro_vi.estimators.get(name, max_plate_nesting=1).loss(model, Exact(model, (x,)), x)
            assert -loss == pytest.approx(float(model.log_evidence(x).sum().detach()), rel=1e-10)


def test_numbers_instead_of_vectors():
    x = columns(6, 1)[:, 0]
    data = DataSpec("numbers", 6, (), "real", torch.float64, "made up")
    options = {"components": 2, "means": [[-1.0], [1.0]], "covariances": [0.3, 2.0], "covariance": "spherical"}
    one, many = GaussianMixture(data, **options), GaussianMixture(spec(6, 1), **options)
    torch.testing.assert_close(one.log_evidence(x), many.log_evidence(x[:, None]), **EXACT)
    assert one.decode(torch.tensor([1, 0])).tolist() == [1.0, -1.0]


@pytest.mark.slow
@pytest.mark.parametrize(("guide", "load"), [("exact", load_iris), ("diag_normal", load_iris), ("exact", load_wine)])
def test_a_fit_reaches_scikit_learns_score(guide, load):
    """The best of 20 starts of scikit-learn, less .05 nats per datum."""
    x = table(load)
    kind = "full" if load is load_iris else "diag"
    best = Peer(3, covariance_type=kind, n_init=20, random_state=0).fit(x.numpy()).score(x.numpy())
    options = {
        "steps": 400 if guide == "exact" else 1000,
        "lr": 0.02,
        "heldout": 0,
        "batch_size": len(x),
        "compile": False,
        "progress": False,
    }
    run = pyro_vi.fit(f"mixture(covariance={kind!r})", guide, x, elbo="enum", **options)
    assert float(run.model.log_evidence(x).mean().detach()) > best - 0.05


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_start_is_the_clusters_of_data_far_apart(covariance):
    centres = torch.tensor([[-9.0, 0, 0], [9.0, 0, 0], [0, 9.0, 0]], dtype=torch.float64)
    x = (centres[:, None] + columns(300).reshape(3, 100, 3)).flatten(0, 1)
    torch.manual_seed(0)
    model = GaussianMixture(spec(300), covariance=covariance)
    model.start(x)
    order = torch.cdist(centres, model.means.detach()).argmin(1)
    assert sorted(order.tolist()) == [0, 1, 2]
    clusters = x.reshape(3, 100, 3).mean(1)
    torch.testing.assert_close(model.means.detach()[order], clusters, rtol=0, atol=0.1)  # one datum of the mean, of 101
    torch.testing.assert_close(model.logits.softmax(-1).detach(), torch.full((3,), 1 / 3, dtype=x.dtype), **EXACT)
    kept = GaussianMixture(spec(300), covariance=covariance, means=centres)
    kept.start(x)
    assert torch.equal(kept.means.detach(), centres)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"components": 0}, "at least 1"),
        ({"covariance": "round"}, "must be one of full, diag, tied, spherical, not 'round'"),
        ({"means": [[1.0]]}, r"means must have shape \(3, 3\), not \(1, 1\)"),
        ({"weights": [0.5, 0.5, 0.0]}, "weights must be positive"),
        ({"covariance": "diag", "covariances": [[1.0, 0.0, 1.0]] * 3}, "positive definite"),
        ({"covariance": "spherical", "covariances": [1e-10] * 3}, "smaller floor"),
    ],
)
def test_what_does_not_fit_is_refused(options, words):
    with pytest.raises(InputError, match=words):
        GaussianMixture(spec(), **options)


def test_binary_data_and_images_are_refused():
    with pytest.raises(InputError, match="is binary"):
        GaussianMixture(spec(support="boolean"))
    with pytest.raises(InputError, match="flatten the data"):
        GaussianMixture(DataSpec("made up", 5, (2, 2), "real", torch.float64, "made up"))

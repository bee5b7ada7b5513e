"""The semi-supervised VAE M2 of Kingma et al. (2014, arXiv:1406.5298): classes that are known for some rows only."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.likelihoods import likelihood_of
from pyro_vi.models.conditional_vae import check_labels, classes_of, one_hot
from pyro_vi.networks import mlp
from pyro_vi.programs import data_plate

ENTERS = ("decoder", "prior")


class SemiSupervisedVAE(nn.Module):
    """Semi-supervised VAE: y ~ Categorical(π), z ~ N(0, I), x | z, y ~ p(x | f(z, y)), f an MLP that reads z and one-hot y.

    With ``enters="prior"``, the class is in the prior of z and not in the decoder: z | y ~ N(m_y, diag s_y²), x | z ~
    p(x | f(z)), a `mixture_vae` with labels. Its sum over y needs one run of the decoder, and that of M2 one for each class.

    A batch is ``(x, y)``, y of shape ``(B,)`` with whole numbers from 0, and −1 where the class is not known. The model marks y
    for enumeration, so that the estimator is ``enum``. With a guide q(z | x) from the shelf, the bound of a row is

        E_q[log Σ_y p(x, z, y) − log q] without a label, and  E_q[log p(x, z, y) − log q] with the label y.

    The first is at least the bound of M2, E_q[Σ_y r(y | x) (log p(x, z, y) − log r(y | x)) − log q]: they differ by
    E_q KL(r(y | x) ‖ p(y | x, z)). M2 trains the classifier r through this term, and through α log r(y | x) on rows with a
    label. With ``alpha``, the model owns r, an MLP, and the factor ``classifier`` adds −KL(r ‖ p(y | x, z)) for a row without
    label, and α log r(y | x) for one with label. The objective is then that of M2 for every guide of z, and `classify` gives r.
    r reads x alone: an encoder that reads the labels too cannot mislead it. Without r, Bayes' rule is a classifier: `classify`
    with a guide.

    Args:
        data: description of the data set: shape, support, size.
        classes: number of classes; by default that of the label column of the data.
        latent_dim: dimension of z.
        hidden: widths of the hidden layers of the decoder, and of the classifier.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        enters: ``"decoder"`` or ``"prior"``: what reads the class.
        alpha: α; 0 for a model without a classifier.
        dropout: fraction of the hidden units of the classifier that each step leaves out.
        learn_prior: learn π; otherwise all classes have the same probability.
        likelihood: a name of `pyro_vi.likelihoods`, or ``"auto"``, which chooses by the support of the data.
        scale: standard deviation of x for the Gaussian likelihoods; the initial value if it is learned.
        floor: the smallest standard deviation of ``"gaussian_scale"``.
        levels: the largest value of data with levels, for the likelihoods that need it.

    Raises:
        InputError: the number of classes is not known, an option is out of range, or the likelihood has no density at the
            values of the data.

    Example:
        >>> from pyro_vi.data import load
        >>> model = SemiSupervisedVAE(load("digits").spec, classes=10, latent_dim=2, alpha=10.0)
        >>> model.classify(torch.zeros(3, 64)).shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        classes: int | None = None,
        latent_dim: int = 8,
        hidden: tuple[int, ...] = (64,),
        activation: str = "tanh",
        enters: str = "decoder",
        alpha: float = 0.0,
        dropout: float = 0.0,
        learn_prior: bool = False,
        likelihood: str = "auto",
        scale: float = 1.0,
        floor: float = 0.01,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        if not (isinstance(latent_dim, int) and latent_dim > 0):
            raise InputError(f"latent_dim must be a whole number of at least 1, not {latent_dim!r}")
        if not alpha >= 0:
            raise InputError(f"alpha is a weight and must not be negative, not {alpha!r}")
        if enters not in ENTERS:
            raise InputError(f"enters must be 'decoder' or 'prior', not {enters!r}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be a fraction from 0 to below 1, not {dropout!r}")
        self.data, self.latent_dim, self.alpha, self.enters = data, latent_dim, float(alpha), enters
        self.classes = classes_of(data, classes)
        self.law = likelihood_of(likelihood, data, scale=scale, floor=floor, levels=levels)
        self.likelihood = self.law.name
        inputs = latent_dim + (self.classes if enters == "decoder" else 0)
        self.decoder = mlp(inputs, hidden, self.law.numbers, activation)
        self.law.register(self)
        self.classifier: nn.Module | None = None
        if alpha:
            layers = mlp(self.law.features, hidden, self.classes, activation)
            dropped = [[nn.Dropout(dropout), layer] if isinstance(layer, nn.Linear) else [layer] for layer in layers]
            self.classifier = nn.Sequential(*[layer for part in dropped for layer in part][1:] if dropout else layers)
        if enters == "prior":
            self.loc = nn.Parameter(0.5 * torch.randn(self.classes, latent_dim))
            self.log_scale_of_z = nn.Parameter(torch.zeros(self.classes, latent_dim))
        logits = torch.zeros(self.classes)
        if learn_prior:
            self.prior_logits = nn.Parameter(logits)
        else:
            self.register_buffer("prior_logits", logits)
        self.to(data.dtype)

    def start(self, x: Tensor, y: Tensor | None = None) -> None:
        """Check the labels of rows; nothing of the model depends on them."""
        check_labels("semi_supervised_vae", self.data, y, self.classes)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Draw z and y, and score a batch ``x`` of shape ``(B, *event_shape)`` and its labels ``y``, ``(B,)``; return ``x``."""
        known, log_prior = y >= 0, self.prior_logits.log_softmax(-1)
        every = torch.arange(self.classes, device=x.device)
        with data_plate(self.data.num_data, x):
            z = pyro.sample("z", self.prior_of(every[:1])) if self.enters == "decoder" else None
            # Not by a mask, which a guide would have to read from a run of the model on each batch.
            pyro.sample("label", Labels(logits=log_prior), obs=y)
            # Where the label is known, y is the label.
            fixed = one_hot(y.clamp(min=0), self.classes, x.dtype).log()
            state = dist.Categorical(logits=torch.where(known.unsqueeze(-1), fixed, log_prior))
            drawn = pyro.sample("y", state, infer={"enumerate": "parallel"})
            if z is None:
                z = pyro.sample("z", self.prior_of(drawn))
            law = None
            if self.classifier is not None:
                # All classes along a dimension on the left of z, where enumeration puts them.
                every = every.reshape(-1, *(1 for _ in z.shape[:-1]))
                law = self.observation(z, every)
                scores = self.prior_of(every).log_prob(z) + law.log_prob(x)
                pyro.factor("classifier", self._classified(x, y, scores, log_prior))
            if law is None or (self.enters == "decoder" and drawn.shape != every.shape):
                law = self.observation(z, drawn)
            value: Tensor = pyro.sample("x", law, obs=x)
        return value

    def prior_of(self, y: Tensor) -> Any:
        """Distribution of z given y, for y of shape ``(...)``."""
        if self.enters == "prior":
            return dist.Normal(self.loc[y], self.log_scale_of_z[y].exp()).to_event(1)
        return dist.Normal(torch.zeros(self.latent_dim, dtype=self.data.dtype, device=y.device), 1.0).to_event(1)

    def observation(self, z: Tensor, y: Tensor) -> Any:
        """Distribution of x given z, ``(..., latent_dim)``, and y, ``(...)``; their leading dimensions broadcast."""
        return self.law(self._natural(z, y), self.law.kept(self))

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """E[x | z, y], for z of shape ``(..., latent_dim)`` and y of shape ``(...)``: shape ``(..., *event_shape)``."""
        return self.law.mean(self._natural(z, y), self.law.kept(self))

    def sample(self, y: Tensor) -> Tensor:
        """Draw z from the prior for each class in ``y``, ``(...)``, and return E[x | z, y], ``(..., *event_shape)``."""
        return self.decode(self.prior_of(y).expand(y.shape).sample(), y)

    def classify(self, x: Tensor, guide: nn.Module | None = None, draws: int = 10) -> Tensor:
        """Return the probabilities of the classes of rows ``x``, ``(B, *event_shape)``: shape ``(B, classes)``.

        Args:
            x: the rows.
            guide: None for the classifier r(y | x). With a guide, Bayes' rule: the bound of log p(x, y) for each y, the
                guide being told that y is the label, normalised over y.
            draws: draws of z for each bound.

        Raises:
            InputError: the model has no classifier, and no guide is given.
        """
        with torch.no_grad():
            if guide is not None:
                bounds = [
                    self._bound(x, torch.full((len(x),), k, device=x.device), guide, draws) for k in range(self.classes)
                ]
                return torch.stack(bounds, -1).softmax(-1)
            if self.classifier is None:
                raise InputError(
                    "the model has no classifier, as alpha is 0; give the guide, as in classify(x, run.pair.guide), or alpha=10"
                )
            training = self.classifier.training
            self.classifier.eval()  # without dropout
            found = self._log_r(x).exp()
            self.classifier.train(training)
            return found

    def _bound(self, x: Tensor, y: Tensor, guide: nn.Module, draws: int) -> Tensor:
        """The mean of log p(x, y, z) − log q(z) over draws of each row, ``(B,)``."""
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        prior = self.prior_logits.log_softmax(-1)[y]
        for _ in range(draws):
            with poutine.block():
                site: Any = poutine.trace(guide).get_trace(x, y).nodes["z"]
            z = site["value"]
            total += prior + self.prior_of(y).log_prob(z) + self.observation(z, y).log_prob(x) - site["fn"].log_prob(z)
        return total / draws

    def _classified(self, x: Tensor, y: Tensor, scores: Tensor, log_prior: Tensor) -> Tensor:
        """α log r(y | x) of a row with a label, −KL(r(y | x) ‖ p(y | x, z)) of one without: shape ``(..., B)``.

        Args:
            scores: log p(x, z | y) with all classes along the first dimension.
        """
        log_r = self._log_r(x)
        posterior = (scores.movedim(0, -1) + log_prior).log_softmax(-1)
        distance = (log_r.exp() * (log_r - posterior)).sum(-1)
        labelled = log_r.gather(-1, y.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        return torch.where(y >= 0, self.alpha * labelled, -distance)

    def _log_r(self, x: Tensor) -> Tensor:
        assert self.classifier is not None
        found: Tensor = self.classifier(x.reshape(len(x), -1)).log_softmax(-1)
        return found

    def _natural(self, z: Tensor, y: Tensor) -> Tensor:
        if self.enters == "prior":
            alone: Tensor = self.decoder(z)
            return alone
        known = one_hot(y, self.classes, z.dtype)
        wide = torch.broadcast_shapes(z.shape[:-1], known.shape[:-1])
        both = torch.cat([z.expand(*wide, z.shape[-1]), known.expand(*wide, known.shape[-1])], -1)
        found: Tensor = self.decoder(both)
        return found


class Labels(dist.Categorical):
    """Categorical of labels, in which −1 means that a label is not known and has the log-density 0."""

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> Any:
        """−1, 0, …, number of classes − 1."""
        return constraints.integer_interval(-1, self.logits.shape[-1] - 1)

    def log_prob(self, value: Tensor) -> Tensor:
        """log π of each label."""
        found: Tensor = super().log_prob(value.clamp(min=0))
        return torch.where(value >= 0, found, 0.0)

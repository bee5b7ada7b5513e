"""Topic models of word counts: latent Dirichlet allocation with its topics summed out, and products of experts (ProdLDA)."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.programs import data_plate

RATE = 10.0
"""The parameter is β / RATE, so that β moves ten times as far in a step of Adam as the weights of an encoder: otherwise the
posterior collapses, as the topics learn to differ later than the encoder learns to ignore the document."""
PRIORS = ("logistic_normal", "dirichlet")
WORDS = ("mixture", "product")


class Topic(nn.Module):
    """Topic model: shares θ of the topics of a document, word counts x | θ ~ Multinomial(n, p(θ)), n the words of the document.

    With ``words="mixture"``, p(θ) = Σ_k θ_k softmax(β_k): latent Dirichlet allocation with the topic of each word summed out
    (Blei, Ng and Jordan 2003). With ``words="product"``, p(θ) = softmax(b + Σ_k θ_k β_k), b one number per word: ProdLDA
    (Srivastava and Sutton 2017, arXiv:1703.01488).

    The shares are θ ~ Dirichlet(α), or θ = softmax(η) with η ~ N(m, diag s²), the logistic normal of neural topic models (Miao,
    Grefenstette and Blunsom 2017, arXiv:1706.00359). Then the latent site is ``eta``, otherwise it is ``theta``. β (and b) are
    parameters, and so are m and s, or α, if ``learn_prior``.

    Args:
        data: description of the data set: vectors of whole numbers, one for each word of the vocabulary.
        topics: number of topics K.
        prior: ``"logistic_normal"`` or ``"dirichlet"``.
        words: ``"mixture"`` or ``"product"``.
        scale: s of the logistic normal, whose m is 0; the initial value if it is learned.
        concentration: α of each topic under ``prior="dirichlet"``; the initial value if it is learned.
        learn_prior: learn the parameters of the prior.

    Raises:
        InputError: the data are no counts, or an option is out of range.

    Example:
        >>> from pyro_vi.data import DataSpec
        >>> model = Topic(DataSpec("texts", 9, (5,), "nonnegative_integer", torch.float32, "made up"), topics=2)
        >>> model.decode(torch.zeros(3, 2)).shape
        torch.Size([3, 5])
        >>> [len(words) for words in model.top_words(3, ["a", "b", "c", "d", "e"])]
        [3, 3]
    """

    loc: Tensor
    log_scale: Tensor
    log_concentration: Tensor

    def __init__(
        self,
        data: DataSpec,
        *,
        topics: int = 20,
        prior: str = "logistic_normal",
        words: str = "mixture",
        scale: float = 1.0,
        concentration: float = 0.1,
        learn_prior: bool = False,
    ) -> None:
        super().__init__()
        if len(data.event_shape) != 1 or data.support not in ("nonnegative_integer", "boolean"):
            raise InputError(
                f"topic takes vectors of word counts, but a datum of '{data.name}' has shape {data.event_shape} and support "
                f"{data.support}; give one number for each word of the vocabulary, in an array of whole numbers"
            )
        for name, value, allowed in (("prior", prior, PRIORS), ("words", words, WORDS)):
            if value not in allowed:
                raise InputError(f"{name} must be {' or '.join(map(repr, allowed))}, not {value!r}")
        least = 2 if prior == "dirichlet" else 1  # a single share has no density on the simplex
        if not (isinstance(topics, int) and topics >= least):
            raise InputError(f"topics must be a whole number of at least {least}, not {topics!r}")
        for name, number in (("scale", scale), ("concentration", concentration)):
            if not number > 0:
                raise InputError(f"{name} must be positive, not {number!r}")
        self.data, self.topics, self.prior, self.words = data, topics, prior, words
        vocabulary = data.event_shape[0]
        self.scaled = nn.Parameter(0.1 / RATE * torch.randn(topics, vocabulary))
        if words == "product":
            self.background = nn.Parameter(torch.zeros(vocabulary))  # b / RATE
        zeros = torch.zeros(topics, dtype=data.dtype)
        start = {"loc": zeros, "log_scale": zeros + math.log(scale)}
        if prior == "dirichlet":
            start = {"log_concentration": zeros + math.log(concentration)}
        for name, tensor in start.items():
            if learn_prior:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)
        self.to(data.dtype)

    @property
    def weights(self) -> Tensor:
        """β, one row for each topic: ``(K, V)``."""
        return RATE * self.scaled

    def forward(self, x: Tensor) -> Tensor:
        """Draw the shares and score the counts ``x`` of shape ``(B, V)``; return ``x``."""
        with data_plate(self.data.num_data, x):
            if self.prior == "dirichlet":
                code = pyro.sample("theta", dist.Dirichlet(self.log_concentration.exp()))
            else:
                code = pyro.sample("eta", dist.Normal(self.loc, self.log_scale.exp()).to_event(1))
            value: Tensor = pyro.sample("x", self.observation(code, x.sum(-1)), obs=x)
        return value

    def observation(self, code: Tensor, total: Tensor | float = 1.0) -> Any:
        """Distribution of the counts of ``total`` words given the latent code, η or θ, of shape ``(..., K)``."""
        return WordCounts(self.log_words(self.shares(code)), torch.as_tensor(total, dtype=code.dtype))

    def shares(self, code: Tensor) -> Tensor:
        """θ, the shares of the topics, ``(..., K)``: softmax(η) of a logistic normal, and θ itself of a Dirichlet."""
        return code if self.prior == "dirichlet" else code.softmax(-1)

    def log_words(self, theta: Tensor) -> Tensor:
        """log p(word | θ), ``(..., V)``, for shares of shape ``(..., K)``."""
        if self.words == "product":
            return (RATE * self.background + theta @ self.weights).log_softmax(-1)
        smallest = torch.finfo(theta.dtype).tiny  # the softmax of a word that no topic has may be 0
        return (theta @ self.weights.softmax(-1)).clamp(min=smallest).log()

    def decode(self, z: Tensor) -> Tensor:
        """p(word | z) for the latent code, η or θ, of shape ``(..., K)``: the mean counts of one word, ``(..., V)``."""
        return self.log_words(self.shares(z)).exp()

    def top_words(self, n: int = 10, vocabulary: Sequence[str] | None = None) -> list[list[str]]:
        """Return the n words with the largest weights in each topic, the first one first.

        Args:
            n: number of words.
            vocabulary: the words, as many as a datum has numbers; by default those of the data, or else their numbers.

        Raises:
            InputError: the vocabulary has another length, or n is out of range.
        """
        size = self.data.event_shape[0]
        names = list(vocabulary or self.data.features or map(str, range(size)))
        if len(names) != size:
            raise InputError(
                f"the vocabulary has {len(names)} words, and a datum {size} counts; give one word for each"
            )
        if not 0 < n <= size:
            raise InputError(f"n must be a whole number from 1 to {size}, not {n!r}")
        best = self.weights.detach().topk(n, -1).indices
        return [[names[i] for i in row] for row in best.tolist()]


class WordCounts(dist.TorchDistribution):
    """Multinomial whose number of words differs between rows: log p(x) = log n! − Σ_w log x_w! + Σ_w x_w log p_w.

    Args:
        log_probs: log p, ``(..., V)``.
        total: n, ``(...)``; draws have this many words, and the density is for n = Σ_w x_w.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = constraints.independent(constraints.nonnegative_integer, 1)

    def __init__(self, log_probs: Tensor, total: Tensor) -> None:
        batch = torch.broadcast_shapes(log_probs.shape[:-1], total.shape)
        self.log_probs, self.total = log_probs, total
        super().__init__(batch, log_probs.shape[-1:], validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "WordCounts":
        """Return the distribution with further dimensions on the left."""
        batch = torch.Size(batch_shape)
        return WordCounts(self.log_probs.expand(*batch, *self.event_shape), self.total.expand(batch))

    @property
    def mean(self) -> Tensor:
        """n p."""
        return self.total.unsqueeze(-1) * self.log_probs.exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-density of counts, ``(..., V)``: shape ``(...)``."""
        value = value.to(self.log_probs.dtype)
        orders = torch.lgamma(value.sum(-1) + 1) - torch.lgamma(value + 1).sum(-1)
        return orders + (value * self.log_probs).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw counts, with the total of each row."""
        shape = (*torch.Size(sample_shape), *self.batch_shape)
        probs = self.log_probs.detach().exp().expand(*shape, *self.event_shape).reshape(-1, *self.event_shape)
        totals = self.total.expand(shape).reshape(-1)
        drawn = torch.zeros_like(probs)
        for row, count in enumerate(totals.tolist()):
            if count:
                words = torch.multinomial(probs[row], int(count), replacement=True)
                drawn[row] = torch.bincount(words, minlength=len(probs[row])).to(probs.dtype)
        return drawn.reshape(*shape, *self.event_shape)

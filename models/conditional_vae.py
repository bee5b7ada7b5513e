"""The conditional VAE: a decoder, and if asked a prior, that reads the known class of a datum."""

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vi.data import DataSpec
from pyro_vi.errors import InputError
from pyro_vi.likelihoods import likelihood_of
from pyro_vi.networks import mlp
from pyro_vi.programs import data_plate

PRIORS = ("shared", "class")


class ConditionalVAE(nn.Module):
    """Conditional VAE: z ~ N(0, I), x | z, y ~ p(x | f(z, y)), with a known class y and f an MLP that reads z and one-hot y.

    With ``prior="class"``, z | y ~ N(m_y, diag s_y²) with learned m and s (Sohn, Lee and Yan 2015, "Learning structured output
    representation using deep conditional generative models"; Kingma et al. 2014, arXiv:1406.5298). A batch is ``(x, y)``, y of
    shape ``(B,)`` with whole numbers from 0. Nothing is said of p(y): the ELBO is a bound of log p(x | y).

    Args:
        data: description of the data set: shape, support, size.
        classes: number of classes; by default that of the label column of the data.
        latent_dim: dimension of z.
        hidden: widths of the decoder's hidden layers.
        activation: ``"tanh"``, ``"relu"``, ``"elu"``, ``"gelu"`` or ``"softplus"``.
        prior: ``"shared"`` by all classes, or one for each ``"class"``.
        likelihood: a name of `pyro_vi.likelihoods`, or ``"auto"``, which chooses by the support of the data.
        scale: standard deviation of x for the Gaussian likelihoods; the initial value if it is learned.
        floor: the smallest standard deviation of ``"gaussian_scale"``.
        levels: the largest value of data with levels, for the likelihoods that need it.

    Raises:
        InputError: the number of classes is not known, an option is out of range, or the likelihood has no density at the
            values of the data.

    Example:
        >>> from pyro_vi.data import load
        >>> model = ConditionalVAE(load("digits").spec, classes=10, latent_dim=2)
        >>> model.decode(torch.zeros(3, 2), torch.tensor([0, 1, 9])).shape
        torch.Size([3, 64])
        >>> model.sample(torch.tensor([7, 7])).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        data: DataSpec,
        *,
        classes: int | None = None,
        latent_dim: int = 8,
        hidden: tuple[int, ...] = (64,),
        activation: str = "tanh",
        prior: str = "shared",
        likelihood: str = "auto",
        scale: float = 1.0,
        floor: float = 0.01,
        levels: int | None = None,
    ) -> None:
        super().__init__()
        if not (isinstance(latent_dim, int) and latent_dim > 0):
            raise InputError(f"latent_dim must be a whole number of at least 1, not {latent_dim!r}")
        if prior not in PRIORS:
            raise InputError(f"prior must be 'shared' or 'class', not {prior!r}")
        self.data, self.latent_dim, self.prior = data, latent_dim, prior
        self.classes = classes_of(data, classes)
        self.law = likelihood_of(likelihood, data, scale=scale, floor=floor, levels=levels)
        self.likelihood = self.law.name
        self.decoder = mlp(latent_dim + self.classes, hidden, self.law.numbers, activation)
        self.law.register(self)
        if prior == "class":
            self.loc = nn.Parameter(torch.zeros(self.classes, latent_dim))
            self.log_scale_of_z = nn.Parameter(torch.zeros(self.classes, latent_dim))
        self.to(data.dtype)

    def start(self, x: Tensor, y: Tensor | None = None) -> None:
        """Check the labels of rows; nothing of the model depends on them."""
        check_labels("conditional_vae", self.data, y, self.classes)
        if y is not None and bool((y < 0).any()):
            raise InputError(
                f"conditional_vae takes rows whose class is known, and {int((y < 0).sum())} of {len(y)} rows of "
                f"'{self.data.name}' have none; leave them out, or use model 'semi_supervised_vae'"
            )

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Draw z and score the batch ``x`` of shape ``(B, *event_shape)``, given classes ``y``, ``(B,)``; return ``x``."""
        with data_plate(self.data.num_data, x):
            z = pyro.sample("z", self.prior_of(y))
            value: Tensor = pyro.sample("x", self.observation(z, y), obs=x)
        return value

    def prior_of(self, y: Tensor) -> Any:
        """Distribution of z given y, for y of shape ``(...)``."""
        if self.prior == "class":
            return dist.Normal(self.loc[y], self.log_scale_of_z[y].exp()).to_event(1)
        zeros = torch.zeros(self.latent_dim, dtype=self.data.dtype, device=y.device)
        return dist.Normal(zeros, 1.0).to_event(1)

    def observation(self, z: Tensor, y: Tensor) -> Any:
        """Distribution of x given z, ``(..., latent_dim)``, and y, ``(...)``; their leading dimensions broadcast."""
        return self.law(self.natural(z, y), self.law.kept(self))

    def natural(self, z: Tensor, y: Tensor) -> Tensor:
        """The decoder's numbers, ``(..., numbers)``."""
        known = one_hot(y, self.classes, z.dtype)
        wide = torch.broadcast_shapes(z.shape[:-1], known.shape[:-1])
        both = torch.cat([z.expand(*wide, z.shape[-1]), known.expand(*wide, known.shape[-1])], -1)
        found: Tensor = self.decoder(both)
        return found

    def decode(self, z: Tensor, y: Tensor) -> Tensor:
        """E[x | z, y], for z of shape ``(..., latent_dim)`` and y of shape ``(...)``: shape ``(..., *event_shape)``."""
        return self.law.mean(self.natural(z, y), self.law.kept(self))

    def sample(self, y: Tensor) -> Tensor:
        """Draw z from the prior for each class in ``y``, ``(...)``, and return E[x | z, y], ``(..., *event_shape)``."""
        z = self.prior_of(y).expand(y.shape).sample()
        return self.decode(z, y)


def classes_of(data: DataSpec, classes: int | None) -> int:
    """Return the number of classes: the given one, or that of the label column of the data.

    Raises:
        InputError: it is not known, or less than 1.
    """
    if classes is None:
        columns = [column for column in getattr(data, "others", ()) if column.name == "label"]
        if not columns or not columns[0].classes:
            raise InputError(
                f"the data '{data.name}' do not say how many classes they have; give the model their labels, as in "
                "'mnist(labels=True)' or \"table.csv(label='kind', labels=True)\", or classes=10"
            )
        classes = len(columns[0].classes)
    if not (isinstance(classes, int) and classes > 0):
        raise InputError(f"classes must be a whole number of at least 1, not {classes!r}")
    return classes


def check_labels(model: str, data: DataSpec, y: Tensor | None, classes: int) -> None:
    """Check that a batch has labels, whole numbers from −1 to ``classes`` − 1.

    Raises:
        InputError: it has none, or others.
    """
    if y is None:
        raise InputError(
            f"{model} takes (x, y) with labels y, and '{data.name}' has none; give the model labels, as in "
            "'digits(labels=True)'"
        )
    if y.dim() != 1 or y.is_floating_point():
        raise InputError(f"labels are whole numbers of shape (rows,), not {y.dtype} of shape {tuple(y.shape)}")
    if len(y) and (int(y.max()) >= classes or int(y.min()) < -1):
        raise InputError(
            f"the labels of '{data.name}' go from {int(y.min())} to {int(y.max())}, and {model} has {classes} classes, "
            f"0 to {classes - 1}; give classes={int(y.max()) + 1}, and -1 where the class is not known"
        )


def one_hot(y: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    """Return one-hot vectors, ``(..., classes)``, of classes ``(...)``; an IndexError for a number that is no class.

    `torch.nn.functional.one_hot` decides by the values, so that a step with it has no graph.

    >>> one_hot(torch.tensor([1]), 3, torch.float32)
    tensor([[0., 1., 0.]])
    """
    return nn.functional.embedding(y.long(), torch.eye(classes, dtype=dtype, device=y.device))

"""The straight-through Gumbel-softmax gradient for discrete latents: cheap, low in variance, and biased."""

from pyro_vi.estimators.bound import Bound


class Relaxed(Bound):
    """∂ELBO through discrete draws, as if they were their relaxation softmax((logits + Gumbel noise) / temperature).

    The value is that of the ELBO at true discrete draws; the gradient of the guide is *biased*, the more so the higher the
    temperature, and its variance grows as the temperature falls. For Bernoulli and OneHotCategorical sites. Source: Jang, Gu
    and Poole (2017, arXiv:1611.01144).

    Args:
        temperature: of the relaxation, positive.
        num_particles: K draws of each datum.
        kl: see `Bound`.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> Relaxed(temperature=0.3).temperature
        0.3
    """

    def __init__(
        self,
        *,
        temperature: float | int = 0.5,
        num_particles: int = 1,
        kl: str = "sampled",
        vectorize_particles: bool | None = None,
    ) -> None:
        super().__init__(
            bound="elbo",
            gradient="relaxed",
            temperature=temperature,
            num_particles=num_particles,
            kl=kl,
            vectorize_particles=vectorize_particles,
        )

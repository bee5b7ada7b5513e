"""Score-function gradients of the ELBO, for latents that cannot be reparameterised."""

from pyro_vi.estimators.bound import Bound


class Score(Bound):
    """E Σ_k (L_k − mean of the other L) ∂ log q(z_k | x)/∂φ / K, with L = log p(x, z) − log q(z | x), datum by datum.

    The mean of the other draws is a baseline that costs nothing and keeps the gradient unbiased. The signal of a
    local site is L of its own datum alone.

    Sources: Williams (1992); Mnih and Rezende (2016, arXiv:1602.06725); Kool et al. (2019).

    Args:
        num_particles: K draws of each datum; at least 2.
        kl: see `Bound`; ``"analytic"`` takes the KL out of the signal where it can.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> Score(num_particles=1)
        Traceback (most recent call last):
            ...
        pyro_vi.errors.UsageError: gradient 'score' takes its baseline from the other draws; set num_particles to 2 or more
    """

    def __init__(self, *, num_particles: int = 5, kl: str = "sampled", vectorize_particles: bool | None = None) -> None:
        super().__init__(
            bound="elbo", gradient="score", num_particles=num_particles, kl=kl, vectorize_particles=vectorize_particles
        )


class Mixed(Bound):
    """Through the draws at sites that can be reparameterised, the score function of `Score` at the others.

    Args:
        num_particles: K draws of each datum; at least 2.
        kl: see `Bound`; ``"analytic"`` takes the KL out of the signal where it can.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> Mixed().gradient
        'mixed'
    """

    def __init__(self, *, num_particles: int = 5, kl: str = "sampled", vectorize_particles: bool | None = None) -> None:
        super().__init__(
            bound="elbo", gradient="mixed", num_particles=num_particles, kl=kl, vectorize_particles=vectorize_particles
        )

"""The importance-weighted bound with its total derivative."""

from pyro_vi.estimators.bound import Bound


class IWAE(Bound):
    """E log (1/K) Σ_k p(x_n, z_k) / q(z_k | x_n), for each datum by itself; it rises to log p(x_n) with K.

    With K = 1 it is the ELBO of `Trace_ELBO`. The signal-to-noise ratio of its guide gradient falls as K^(−1/2) (Rainforth
    et al. 2018, arXiv:1802.04537): see `pyro_vi.estimators.dreg.DReG`. Source: Burda, Grosse and Salakhutdinov (2016,
    arXiv:1509.00519).

    Args:
        num_particles: K draws of each datum.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> IWAE(num_particles=8).bound
        'iwae'
    """

    def __init__(self, *, num_particles: int = 5, vectorize_particles: bool | None = None) -> None:
        super().__init__(
            bound="iwae", gradient="total", num_particles=num_particles, vectorize_particles=vectorize_particles
        )

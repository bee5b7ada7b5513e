"""The Rényi bound."""

from pyro_vi.estimators.bound import Bound


class Renyi(Bound):
    """(1 − α)⁻¹ E log (1/K) Σ_k w_k^(1 − α), w_k = p(x_n, z_k) / q(z_k | x_n), for each datum by itself.

    α = 0 is the importance-weighted bound, α → 1 the ELBO, α < 0 may pass over the evidence. Unlike Pyro's `RenyiELBO` the
    scale of a subsampled plate stays outside the logarithm. Source: Li and Turner (2016, arXiv:1602.02311).

    Args:
        alpha: order, not 1.
        num_particles: K draws of each datum.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> Renyi(alpha=0.5, num_particles=8).alpha
        0.5
    """

    def __init__(
        self, *, alpha: float | int = 0.5, num_particles: int = 5, vectorize_particles: bool | None = None
    ) -> None:
        super().__init__(
            bound="renyi",
            gradient="total",
            alpha=alpha,
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
        )

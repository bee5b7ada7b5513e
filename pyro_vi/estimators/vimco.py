"""Score-function gradients of the importance-weighted bound."""

from pyro_vi.estimators.bound import Bound


class VIMCO(Bound):
    """E [Σ_k (L − L_{−k}) ∂ log q(z_k)/∂φ + Σ_k w̃_k ∂ log w_k], L the log of the mean weight of a datum.

    L_{−k} is L with w_k replaced by the geometric mean of the other weights: a baseline for each draw. For discrete latents
    under a many-sample bound. Source: Mnih and Rezende (2016, arXiv:1602.06725).

    Args:
        num_particles: K draws of each datum; at least 2.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> VIMCO().bound
        'iwae'
    """

    def __init__(self, *, num_particles: int = 5, vectorize_particles: bool | None = None) -> None:
        super().__init__(
            bound="iwae", gradient="vimco", num_particles=num_particles, vectorize_particles=vectorize_particles
        )

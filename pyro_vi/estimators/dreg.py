"""The importance-weighted bound with the doubly reparameterised gradient."""

from pyro_vi.estimators.bound import Bound


class DReG(Bound):
    """Guide: E Σ_k w̃_k² ∂ log w_k/∂z_k · ∂z_k/∂φ; model: E Σ_k w̃_k ∂ log w_k/∂θ; w̃ the normalised weights.

    Unbiased for the gradient of the importance-weighted bound, with a signal-to-noise ratio that rises as K^(1/2). With K = 1
    it is `pyro_vi.estimators.stl.STL`. Source: Tucker et al. (2018, arXiv:1810.04152).

    Args:
        num_particles: K draws of each datum.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> DReG(num_particles=8).gradient
        'doubly'
    """

    def __init__(self, *, num_particles: int = 5, vectorize_particles: bool | None = None) -> None:
        super().__init__(
            bound="iwae", gradient="doubly", num_particles=num_particles, vectorize_particles=vectorize_particles
        )

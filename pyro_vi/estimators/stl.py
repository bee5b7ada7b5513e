"""Sticking the landing: the path-derivative gradient of the ELBO."""

from pyro_vi.estimators.bound import Bound


class STL(Bound):
    """∂ELBO/∂φ through the draws alone: E[∂(log p(x, z) − log q_φ'(z))/∂z · ∂z/∂φ] with φ' = φ held fixed.

    The score E[∂ log q_φ(z)/∂φ] that it leaves out is 0, so it is unbiased; and where q is the posterior, log p − log q is
    constant in z and its gradient is exactly 0. Away from there it can vary more than the total derivative: at a guide that
    is too narrow, 100 times more. Pyro's `Trace_ELBO` is the total derivative. Source: Roeder, Wu and Duvenaud (2017,
    arXiv:1703.09194).

    Args:
        num_particles: K draws of each datum.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> STL(num_particles=2).gradient
        'path'
    """

    def __init__(self, *, num_particles: int = 1, vectorize_particles: bool | None = None) -> None:
        super().__init__(
            bound="elbo", gradient="path", num_particles=num_particles, vectorize_particles=vectorize_particles
        )

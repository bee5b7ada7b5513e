"""The ELBO with the KL in closed form at every site where that is right."""

from pyro_vi.estimators.bound import Bound


class Analytic(Bound):
    """E_q[log p(x | z)] − Σ KL(q(z_i | ·) ‖ p(z_i | ·)), each KL in closed form, or sampled where it cannot be.

    As Pyro's `TraceMeanField_ELBO`, but a site's KL is taken in closed form only where model and guide depend on each other in
    an order that allows it, which is found from the values and not from the order of the statements, and where both scale
    the site alike. ``kl="strict"`` makes an error of every KL that is not analytic.

    Args:
        kl: ``"analytic"``, or ``"strict"``: an error where it cannot be.
        num_particles: K draws of each datum.
        vectorize_particles: make the draws in one run; by default where the programs allow it.

    Example:
        >>> Analytic(kl="strict").kl
        'strict'
    """

    def __init__(
        self, *, kl: str = "analytic", num_particles: int = 1, vectorize_particles: bool | None = None
    ) -> None:
        super().__init__(
            bound="elbo", gradient="total", kl=kl, num_particles=num_particles, vectorize_particles=vectorize_particles
        )

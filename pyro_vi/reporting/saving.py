"""All pictures of a comparison, written to a folder."""

from pathlib import Path

from pyro_vi.comparison import Comparison
from pyro_vi.errors import InputError
from pyro_vi.reporting import plots_of_draws as pictures
from pyro_vi.reporting import plots_of_fits as plots


def save(comparison: Comparison, out: Path) -> list[Path]:
    """Write every picture that applies to the comparison as PNG into a folder, which is made if it is not there.

    Args:
        comparison: fits and audits.
        out: the folder.

    Returns:
        The paths, in the order in which the pictures are to be read.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = [plots.training_curves]
    if comparison.audits:
        drawn += [plots.gradient_variance, plots.value_against_gradient]
    drawn += [pictures.reconstructions, pictures.prior_samples, pictures.latent_traversal]
    paths = []
    for picture in drawn:
        try:
            figure = picture(comparison)
        except InputError:
            continue  # not of this kind of model; what it needs stands in its docstring
        path = out / f"{picture.__name__}.png"
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths

"""Writing of all figures of a comparison to a folder."""

from pathlib import Path

from pyro_vi.comparing import Comparison
from pyro_vi.errors import InputError
from pyro_vi.reporting import plots_of_draws as pictures
from pyro_vi.reporting import plots_of_fits as plots
from pyro_vi.reporting.plots_of_standings import behind_the_best


def save(comparison: Comparison, out: Path) -> list[Path]:
    """Write every figure that applies to the comparison as a PNG file.

    Args:
        comparison: fits and audits.
        out: the folder, which is made if it does not exist.

    Returns:
        The paths, in reading order.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = [plots.training_curves]
    if comparison.across == "guides" or comparison.repeats:
        drawn.append(behind_the_best)
    if comparison.audits:
        drawn += [plots.gradient_variance, plots.value_against_gradient]
    drawn += [pictures.reconstructions, pictures.prior_samples, pictures.latent_traversal]
    paths = []
    for picture in drawn:
        try:
            figure = picture(comparison)
        except InputError:
            continue  # the figure does not apply to this model; its docstring says when it does
        path = out / f"{picture.__name__}.png"
        figure.savefig(path, dpi=150)
        paths.append(path)
    return paths

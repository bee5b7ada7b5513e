"""All pictures of a comparison are written to its folder."""

from pathlib import Path

import pytest
from made_comparisons import comparison
from PIL import Image

from pyro_vi.auditing.auditor import audit
from pyro_vi.comparing import Comparison
from pyro_vi.reporting.saving import save


@pytest.mark.slow
def test_save_writes_what_applies_in_order(tmp_path: Path) -> None:
    made = comparison()
    pair = made.results["trace"].run.pair
    real = audit(pair.model, pair.guide, made.data.example(8), draws=20)
    made = Comparison("linear_gaussian", "diag_normal", made.data, 0, made.results, {0: real})
    paths = save(made, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "training_curves.png",
        "gradient_variance.png",
        "value_against_gradient.png",
        "reconstructions.png",
        "prior_samples.png",
        "latent_traversal.png",
        "latent_means.png",
    ]
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG" and round(image.info["dpi"][0]) == 150
    without = save(Comparison("m", "g", made.data, 0, made.results, {}), tmp_path)
    assert [path.stem for path in without] == [
        "training_curves",
        "reconstructions",
        "prior_samples",
        "latent_traversal",
        "latent_means",
    ]

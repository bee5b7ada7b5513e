"""Images in a grid, as one picture."""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from pyro_vi.comparing import Comparison


def image_shape(comparison: Comparison, values: np.ndarray) -> tuple[int, int] | None:
    """Return height and width of the data's images, or None if rows of ``values`` are no such images."""
    shape: tuple[int, int] | None = comparison.data.spec.image_shape
    return shape if shape is not None and values.shape[1] == math.prod(shape) else None


def draw_images(axes: Axes, images: np.ndarray, comparison: Comparison) -> tuple[int, int]:
    """Draw images of shape ``(rows, columns, height, width)`` as one mosaic; return the height and width of a cell."""
    gap = max(1, images.shape[3] // 14)
    cells = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap)), constant_values=np.nan)
    rows, columns, height, width = cells.shape
    mosaic = cells.transpose(0, 2, 1, 3).reshape(rows * height, columns * width)[:-gap, :-gap]
    # All images share the grey scale of the data, so that equal greys are equal numbers.
    x, support = comparison.pictured()[1][0], comparison.data.spec.support
    low, high = (0.0, 1.0) if support in ("boolean", "unit_interval") else (float(x.min()), float(x.max()))
    grey = matplotlib.colormaps["gray"].with_extremes(bad="white")
    axes.imshow(mosaic, cmap=grey, vmin=low, vmax=high, interpolation="none")
    axes.autoscale(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return height, width

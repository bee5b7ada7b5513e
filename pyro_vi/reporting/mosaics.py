"""Images in a grid, as one picture."""

import math

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from pyro_vi.comparing import Comparison


def image_shape(comparison: Comparison, values: np.ndarray) -> tuple[int, int] | None:
    """Return height and width of the data's images, or None if rows of ``values`` are no such images."""
    spec = comparison.data.spec
    shape: tuple[int, int] | None = spec.image_shape
    sizes = () if shape is None else (math.prod(shape), math.prod(spec.event_shape))  # the second with channels
    return shape if values.shape[1] in sizes else None


def draw_images(axes: Axes, values: np.ndarray, grid: tuple[int, int], comparison: Comparison) -> tuple[int, int]:
    """Draw images as one mosaic, and return the height and width of a cell.

    Three channels are red, green and blue; of other channels the mean is shown.

    Args:
        axes: where to draw.
        values: images of shape ``(height, width)`` or ``(channels, height, width)``, flat or not, one for each
            cell of the grid.
        grid: rows and columns.
        comparison: the comparison, whose data have an ``image_shape``.
    """
    spec = comparison.data.spec
    assert spec.image_shape is not None
    images = np.moveaxis(values.reshape(*grid, -1, *spec.image_shape), 2, -1)  # channels last
    # All images share the scale of the data, so that equal greys are equal numbers.
    x = comparison.pictured()[1][0]
    low, high = (0.0, 1.0) if spec.support in ("boolean", "unit_interval") else (float(x.min()), float(x.max()))
    coloured = images.shape[-1] == 3
    images = np.clip((images - low) / max(high - low, 1e-12), 0, 1) if coloured else images.mean(-1, keepdims=True)
    gap = max(1, images.shape[3] // 14)
    empty = 1.0 if coloured else np.nan
    cells = np.pad(images, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=empty)
    rows, columns, height, width, channels = cells.shape
    mosaic = cells.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)[:-gap, :-gap]
    grey = matplotlib.colormaps["gray"].with_extremes(bad="white")
    axes.imshow(mosaic if coloured else mosaic[..., 0], cmap=grey, vmin=low, vmax=high, interpolation="none")
    axes.autoscale(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return height, width

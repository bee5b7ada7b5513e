"""The normals of a mean-field guide, whatever wrote it: mean and standard deviation of each number on the unconstrained scale.

* `normals_of` reads them from runs of the guide at chosen draws, and refuses any other guide.
"""

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vi.amortized.frame import Frame
from pyro_vi.data import Batch, fresh
from pyro_vi.elbo import quoted, unwrapped
from pyro_vi.errors import InputError
from pyro_vi.programs import Give, Pair, isolated, trace_of_guide

REFUSED = (
    "linear response repairs independent normals with free parameters on the unconstrained scale, as those of 'diag_normal' or "
    "AutoNormal"
)


def normals_of(pair: Pair, args: Batch, frame: Frame) -> tuple[Tensor, Tensor]:
    """Return means and standard deviations of the latent numbers, (D,) each, in the order of the sites of the frame.

    The guide runs with its normals at their means, and one standard deviation above and below: that moves the numbers of the
    model's sites by their standard deviations, on the scale on which they are normal.

    Raises:
        InputError: a site of the guide is no independent normal on the unconstrained scale, or depends on other draws.
    """
    first, second = (_normals(pair, args, seed) for seed in (0, 1))
    for name, (loc, scale, _) in first.items():
        other = second.get(name)
        if other is None or not (_same(loc, other[0]) and _same(scale, other[1])):
            raise InputError(f"the guide draws '{name}' given its other draws, and {REFUSED}")
    points = []
    for k in (0.0, 1.0, -1.0):
        given = {name: place(loc + k * scale) for name, (loc, scale, place) in first.items()}
        with isolated(0, validation=False), torch.no_grad(), Give(given):
            nodes = trace_of_guide(pair.guide, fresh(args)).nodes
        points.append(torch.cat([_numbers(frame, name, nodes) for name in frame.sites]))
    loc, up, down = points
    scale = up - loc
    if not (_same(up + down, 2 * loc, scale) and bool((scale > 0).all())):
        wrong = [
            n
            for n, v in _by_site(frame, ((up + down - 2 * loc).abs() > 1e-3 * scale.abs()) | (scale <= 0)).items()
            if v
        ]
        raise InputError(f"the guide is not normal on the unconstrained scale at {quoted(wrong)}, and {REFUSED}")
    return loc, scale


Normal = tuple[Tensor, Tensor, Any]
"""Mean, standard deviation, and the function from normal numbers to the values of the site."""


def _normals(pair: Pair, args: Batch, seed: int) -> dict[str, Normal]:
    """The independent normals that the guide draws, by site."""
    with isolated(seed, validation=False), torch.no_grad():
        nodes = trace_of_guide(pair.guide, fresh(args)).nodes
    found: dict[str, Normal] = {}
    for name, node in nodes.items():
        if node["type"] != "sample" or node["is_observed"] or type(node["fn"]).__name__ == "_Subsample":
            continue
        fn = unwrapped(node["fn"])
        transforms: list[Any] = []
        while isinstance(fn, torch.distributions.TransformedDistribution) and not isinstance(fn, dist.Delta):
            transforms = [*fn.transforms, *transforms]
            fn = unwrapped(fn.base_dist)
        if isinstance(fn, dist.Delta):
            continue
        if not isinstance(fn, torch.distributions.Normal):
            raise InputError(f"the guide draws '{name}' from {type(fn).__name__}, and {REFUSED}")
        value = node["value"]

        def place(normal: Tensor, transforms: list[Any] = transforms, shape: Any = value.shape) -> Tensor:
            for transform in transforms:
                normal = transform(normal)
            return normal.expand(shape)

        found[name] = fn.loc.expand(fn.batch_shape), fn.scale.expand(fn.batch_shape), place
    return found


def _numbers(frame: Frame, name: str, nodes: Mapping[str, Any]) -> Tensor:
    """The numbers of a site of the model on the unconstrained scale, float64."""
    site = frame.sites[name]
    if name not in nodes:
        raise InputError(f"the guide does not draw '{name}', and {REFUSED}")
    if site.bijection is None:
        raise InputError(f"site '{name}' is discrete, and {REFUSED}")
    value = nodes[name]["value"]
    return site.bijection_on(value.device).inv(value).double().reshape(-1)


def _by_site(frame: Frame, flags: Tensor) -> dict[str, bool]:
    sizes = [site.start.numel() for site in frame.sites.values()]
    return {name: bool(part.any()) for name, part in zip(frame.sites, flags.split(sizes), strict=True)}


def _same(one: Tensor, other: Tensor, scale: Tensor | None = None) -> bool:
    size = other.abs() if scale is None else scale.abs()
    return one.shape == other.shape and bool(((one - other).abs() <= 1e-3 * size + 1e-12).all())

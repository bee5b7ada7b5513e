"""The rules of `check`: each is a function from one run of a pair (`View`) to findings, and has one code.

* `STRUCTURE` are the rules that need no densities: the sites of both programs and their shapes. Where one of them finds an
  error, the others would find its consequences.
* `RULES` are all others.
"""

from collections.abc import Callable, Iterator

from pyro_vi.checking.closed_forms import fallback, points, site_order
from pyro_vi.checking.findings import Finding, View
from pyro_vi.checking.gradients import reparametrized, unregistered
from pyro_vi.checking.probes import batch_norm, vectorized
from pyro_vi.checking.scaling import masks, scales, sizes, tensor_monte_carlo
from pyro_vi.checking.sites import missing, observed_shape, observed_twice, shapes
from pyro_vi.checking.values import guide_support, observed_support, unknown_support

Rule = Callable[[View], Iterator[Finding]]

STRUCTURE: tuple[Rule, ...] = (observed_twice, missing, shapes)
RULES: tuple[Rule, ...] = (
    observed_shape,
    observed_support,
    guide_support,
    reparametrized,
    masks,
    scales,
    sizes,
    tensor_monte_carlo,
    unregistered,
    batch_norm,
    vectorized,
    points,
    site_order,
    fallback,
    unknown_support,
)

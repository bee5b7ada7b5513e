"""The table of the rules of `check`: each is a function from one run of a pair (`View`) to findings.

* `STRUCTURE` are the rules that need no densities: the sites of both programs and their shapes.
* `DECLARED` compare the shapes of densities with the plates.
* `RULES` need densities.
* `PROBES` run the pair again. Of one group the first rule that finds something ends the group, as the others would find its
  consequences.

An error in one part ends the check, for the same reason.
"""

from collections.abc import Callable, Iterator

from pyro_vi.checking.closed_forms import fallback, points, site_order
from pyro_vi.checking.encoders import ignores_data, saturated
from pyro_vi.checking.findings import Finding, View
from pyro_vi.checking.gradients import idle, no_gradient, reparametrized, unregistered
from pyro_vi.checking.logarithms import data_in_event, renyi, scale_inside, tensor_monte_carlo
from pyro_vi.checking.options import clipped, refused, traced, warmup
from pyro_vi.checking.probes import batch_norm, last_batch, rows_shuffled, vectorized
from pyro_vi.checking.scaling import masks, scales, sizes
from pyro_vi.checking.sites import missing, nesting, observed_shape, observed_twice, plates, shapes, undeclared
from pyro_vi.checking.values import counts, guide_support, not_finite, observed_support, unknown_support
from pyro_vi.checking.vanishing import unbounded

Rule = Callable[[View], Iterator[Finding]]

STRUCTURE: tuple[Rule, ...] = (traced, observed_twice, missing, shapes, plates, observed_shape)
DECLARED: tuple[tuple[Rule, ...], ...] = ((nesting, undeclared),)
RULES: tuple[Rule, ...] = (
    observed_support,
    guide_support,
    reparametrized,
    masks,
    scales,
    sizes,
    tensor_monte_carlo,
    renyi,
    scale_inside,
    unregistered,
    batch_norm,
    vectorized,
    points,
    site_order,
    fallback,
    unknown_support,
    counts,
    clipped,
    warmup,
)
PROBES: tuple[tuple[Rule, ...], ...] = (
    (not_finite,),  # the rules that move parameters come last, as they spoil the gradients of the first run
    (no_gradient, idle),
    (unbounded,),
    (rows_shuffled,),
    (last_batch,),
    (refused,),
    (saturated, ignores_data),
    (data_in_event,),
)

"""Stacked draws for a captured graph: independent, antithetic, or randomised quasi-Monte Carlo.

An estimate that averages over S draws of a guide need not take independent ones. Whatever the kind, each single draw has the
distribution that the programs give it, so that the average stays unbiased; what changes is how the draws depend on each other,
and with that the variance. `pyro_vi.auditing.captured.Captured.many` evaluates what `noise` makes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from pyro_vi.auditing.captured import Captured, Draw
from pyro_vi.auditing.evaluator import seed_draw
from pyro_vi.errors import InputError, UsageError
from pyro_vi.support import kept_generators, unknown

KINDS = ("independent", "antithetic", "sobol")
CPU = torch.device("cpu")
STEP = 2.0**-SobolEngine.MAXBIT
"""The coordinates of torch's Sobol points are multiples of this."""


def noise(captured: Captured, draws: int, *, kind: str = "independent", seed: int = 0) -> list[Tensor]:
    """Draws for ``draws`` evaluations of a captured graph.

    * ``"independent"``: one after the other from the generator; the first are what one evaluation makes from that seed.
    * ``"antithetic"``: at 2i independent draws and at 2i + 1 their mirror images, ε and 2 mean − ε of a normal, u and
      low + high − u of a uniform (Hammersley and Morton 1956). With f = even + odd about the centre of all draws, Var of the
      average is 2 Var(even) / S in place of (Var(even) + Var(odd)) / S: what is odd goes, what is even doubles.
    * ``"sobol"``: draw i is the i-th point of one scrambled Sobol sequence (Owen 1998, J. Complexity 14:466) over all elements
      of all draws jointly, in program order, through the inverse distribution functions. Each scrambled point is uniform (on
      the middles of 2³⁰ cells), so that the mean over seeds is right; the variance of smooth integrands of low effective
      dimension falls faster than 1 / S (L'Ecuyer and Lemieux 2002; in variational inference: Buchholz, Wenzel and Mandt 2018,
      arXiv:1807.01604). Take a power of 2 as ``draws``: other numbers of points are not balanced, though still unbiased. torch
      has 21,201 dimensions: elements after the first 21,201 get independent draws.

    Draws that stayed in the graph (``captured.lifted`` is false) are none of these: the graph makes them as it runs.

    Args:
        captured: the graph.
        draws: number of evaluations S.
        kind: one of `KINDS`.
        seed: equal seeds give equal bits. Draws are made on the CPU and then moved to where the graph takes them, so that they
            are the same numbers on every device. The global generators are not touched.

    Returns:
        One tensor of shape ``(draws, *shape)`` for each of ``captured.draws``, in their order and of their dtype.

    Raises:
        UsageError: no such kind, ``draws`` below 1, or an odd number of antithetic draws.
        InputError: a draw is neither normal nor uniform, so that it can only be independent.

    Example:
        >>> from pyro_vi.auditing.captured import capture
        >>> from pyro_vi.data import load
        >>> from pyro_vi.estimators.table import get
        >>> from pyro_vi.programs import isolated
        >>> from pyro_vi.programs import build_pair
        >>> digits = load("digits")
        >>> pair, x = build_pair("vae", "diag_normal", digits), digits.example(16)
        >>> parameters = list(pair.parameters())
        >>> with isolated(0, validation=False):
        ...     captured = capture(get("trace"), pair, x, parameters)
        >>> draws = noise(captured, 4, kind="antithetic")
        >>> [tuple(d.shape) for d in draws], float(draws[0].sum(0).abs().max())
        ([(4, 16, 8)], 0.0)
        >>> losses, *gradients = captured.many(parameters, noise(captured, 16, kind="sobol", seed=1), x)
        >>> losses.shape
        torch.Size([16])
    """
    if kind not in KINDS:
        raise unknown("kind of draws", kind, KINDS)
    if draws < 1:
        raise UsageError(f"the number of draws must be at least 1, not {draws}")
    if kind == "antithetic" and draws % 2:
        raise UsageError(f"antithetic draws come in pairs: ask for {draws + 1} or another even number, not {draws}")
    lifted = captured.draws
    if not lifted:
        return []
    if kind == "independent":
        made = _independent(lifted, draws, seed)
    elif kind == "antithetic":
        laws = [_law(draw, kind) for draw in lifted]
        halves = _independent(lifted, draws // 2, seed)
        # Interleaved, so that every even chunk of draws is antithetic itself.
        made = [torch.stack([h, _mirror(h, *law)], 1).flatten(0, 1) for h, law in zip(halves, laws, strict=True)]
    else:
        laws = [_law(draw, kind) for draw in lifted]
        like = [draw.like for draw in lifted]
        points = _points(draws, sum(one.numel() for one in like), seed).split([one.numel() for one in like], 1)
        made = [
            _through(u.reshape(draws, *one.shape), one.dtype, *law)
            for u, one, law in zip(points, like, laws, strict=True)
        ]
    return [values.to(draw.device) for values, draw in zip(made, lifted, strict=True)]


def _law(draw: Draw, kind: str) -> tuple[str, float, float]:
    if draw.law is None:
        site = "a draw outside of all sites" if draw.site is None else f"the draw of site '{draw.site}'"
        raise InputError(
            f"{site} is made by {draw.operation}, which is neither normal nor uniform: it has no {kind} draws; use "
            "kind='independent'"
        )
    return draw.law


def _independent(lifted: Sequence[Draw], draws: int, seed: int) -> list[Tensor]:
    with kept_generators():
        seed_draw(seed, CPU)
        rows = [[draw.make(CPU) for draw in lifted] for _ in range(draws)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _mirror(values: Tensor, law: str, first: float, second: float) -> Tensor:
    if law == "normal":
        return 2 * first - values  # exactly −ε where the mean is 0
    return _inside(first + second - values.double(), values.dtype, first, second)


def _points(draws: int, size: int, seed: int) -> Tensor:
    """Points of shape ``(draws, size)`` in the open unit cube, in double precision: Sobol's as far as torch has them."""
    # The Sobol engine seeds its own generator, so the remaining columns must come from another stream.
    generator = torch.Generator().manual_seed(seed)
    scrambling = int(torch.randint(2**62, (), generator=generator))
    covered = min(size, SobolEngine.MAXDIM)
    engine = SobolEngine(covered, scramble=True, seed=scrambling)
    points = engine.draw(draws, dtype=torch.float64)
    # torch holds the first point in the default dtype, in which it may round up to 1.
    points[0] = engine.shift.double() * STEP
    points += STEP / 2  # the middle of its cell: never 0 or 1, and on average exactly ½
    if covered == size:
        return points
    rest = torch.rand(draws, size - covered, generator=generator, dtype=torch.float64)
    return torch.cat([points, rest.clamp_(min=2.0**-54)], 1)


def _through(u: Tensor, dtype: torch.dtype, law: str, first: float, second: float) -> Tensor:
    if law == "normal":
        return (first + second * torch.special.ndtri(u)).to(dtype)
    return _inside(first + (second - first) * u, dtype, first, second)


def _inside(values: Tensor, dtype: torch.dtype, low: float, high: float) -> Tensor:
    """Move points that rounding has put on 0 or 1 to the next number inside; quantile functions are infinite at the ends."""
    ends = torch.tensor([low, high], dtype=dtype)
    inner = torch.nextafter(ends, ends.flip(0))
    return values.to(dtype).clamp(*inner.tolist())

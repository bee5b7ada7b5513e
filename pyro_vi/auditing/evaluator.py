"""Losses and gradients of one estimator for draws that are named by their seeds: many at once, or one by one.

`Evaluator` captures the estimator on a pair where that pays, checks that captured and single evaluations agree, and gives the
same numbers either way; `stacked` makes the draws of a captured graph for several seeds.
"""

from collections.abc import Sequence
from contextlib import suppress

import torch
from pyro.infer import ELBO
from torch import Tensor

from pyro_vi.auditing.captured import Captured, capture, loss_and_gradients
from pyro_vi.data import Batch, device_of, length_of
from pyro_vi.errors import InputError, NoGraph, first_line
from pyro_vi.programs import Pair
from pyro_vi.tracing import Replay

MOST, NUMBERS = 50, 2**22
"""Most draws in a chunk, and most numbers in its gradients."""
REPEATED = 1e8
"""Numbers that all evaluations compute from which a flat graph of a chunk saves more time than it takes to make."""
WORTH = 2**23
"""Parameters × rows × particles up to which many draws at once are faster than one by one."""


class Evaluator:
    """Losses and gradients of one estimator for draws that are named by their seeds.

    Attributes:
        captured: the graph of one evaluation; None if draws are evaluated one by one.
        chunk: the number of draws in which many draws are best handed over.
    """

    def __init__(
        self,
        elbo: ELBO,
        pair: Pair,
        args: Batch,
        parameters: Sequence[Tensor],
        vectorize: bool | None,
        draws: int = 0,
    ) -> None:
        self.elbo, self.pair, self.args, self.parameters = elbo, pair, args, parameters
        self.size = sum(parameter.numel() for parameter in parameters)
        self.chunk = max(1, min(MOST, draws, NUMBERS // max(1, self.size)))
        work = self.size * length_of(args) * elbo.num_particles
        wanted = work <= WORTH if vectorize is None else vectorize
        self.captured: Captured | None = None
        self._replay: Replay | None = None
        if wanted:
            try:
                self.captured = self._capture()
                self._replay = self._repeated(draws)
            except NoGraph as error:  # then draws are evaluated one by one
                if vectorize:
                    raise InputError(
                        f"these draws cannot be evaluated at once: {error}; leave vectorize out"
                    ) from error

    def _capture(self) -> Captured:
        if not self.parameters:
            raise NoGraph("the pair has no parameters")
        captured = capture(self.elbo, self.pair, self.args, self.parameters)
        if not captured.lifted:
            raise NoGraph("the programs draw from what depends on parameters")
        if not captured.draws:
            raise NoGraph("the programs draw nothing")
        self._apart = self._loop([0, 1])
        for one in (captured.faster(), captured):
            try:
                together = _flat(one.many(self._values(), stacked(one, [0, 1], self.args), self.args))
            except RuntimeError as error:
                raise NoGraph(f"an operation cannot be batched ({first_line(error)})") from error
            if self._proved(together):
                return one
        raise NoGraph("evaluated at once they give other numbers than one by one")

    def _repeated(self, draws: int) -> Replay | None:
        """Chunks of draws as a flat graph, if making it costs less time than it saves, and if it gives the same numbers."""
        captured, values = self.captured, self._values()
        assert captured is not None
        if self.chunk < 2 or draws * captured.numbers < REPEATED:
            return None
        with suppress(Exception):  # what can be batched may still have no flat graph
            some = stacked(captured, [*range(self.chunk)], self.args)
            replay = captured.replay(values, some, self.args)
            if self._proved(tuple(part[:2] for part in _flat(replay(*some)))):
                return replay
        return None

    def _proved(self, together: tuple[Tensor, ...]) -> bool:
        digits = 1e-4 if self.parameters[0].dtype == torch.float32 else 1e-8
        return all(_agree(one, two, digits) for one, two in zip(together, self._apart, strict=True))

    def _values(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters]

    def __call__(self, seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Losses of shape ``(draws,)`` and gradients ``(draws, size)``, in double precision."""
        if self.captured is None:
            return self._loop(seeds)
        return self.at(stacked(self.captured, seeds, self.args))

    def at(self, draws: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The same for given draws, of the captured graph."""
        assert self.captured is not None
        if self._replay is not None and len(draws[0]) == self.chunk:
            return _flat(self._replay(*draws))
        return _flat(self.captured.many(self._values(), draws, self.args))

    def once(self) -> tuple[Tensor, list[Tensor]]:
        """One loss and its gradients, as a fit would take them."""
        return loss_and_gradients(self.elbo, self.pair, self.args, self.parameters)

    def _loop(self, seeds: list[int]) -> tuple[Tensor, Tensor]:
        losses, gradients = [], []
        for seed in seeds:
            seed_draw(seed, device_of(self.args))
            loss, parts = self.once()
            losses.append(loss.double().cpu())
            empty = torch.zeros(0, dtype=torch.float64)
            gradients.append(torch.cat([p.reshape(-1) for p in parts]).double().cpu() if parts else empty)
        return torch.stack(losses), torch.stack(gradients)


def stacked(captured: Captured, seeds: list[int], args: Batch) -> list[Tensor]:
    """Draws of a captured graph for several seeds: the ones that single evaluations make from those seeds."""
    draws = []
    for seed in seeds:
        seed_draw(seed, device_of(args))
        draws.append(captured.draw())
    return [torch.stack(column) for column in zip(*draws, strict=True)]


def _agree(one: Tensor, two: Tensor, digits: float) -> bool:
    largest = float(two.nan_to_num(0, 0, 0).abs().max())  # the audit itself rejects values that are not finite
    return torch.allclose(one, two, rtol=digits, atol=digits * largest, equal_nan=True)


def _flat(results: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    losses, *gradients = results
    count = len(losses)
    flat = torch.empty(count, sum(g[0].numel() for g in gradients), dtype=torch.float64)
    place = 0
    for part in gradients:
        width = part[0].numel()
        flat[:, place : place + width].view(count, *part.shape[1:]).copy_(part)
        place += width
    return losses.double().cpu(), flat


def seed_draw(seed: int, device: torch.device) -> None:
    """Set torch's generator for one draw."""
    if device.type == "cpu":
        # torch.manual_seed costs as much as a small model: it formats a stack.
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)

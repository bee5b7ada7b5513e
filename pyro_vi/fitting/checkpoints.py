"""The state of a fit in a checkpoint: parameters, optimizer, scheduler, generators, position and losses, in plain values."""

from collections.abc import Collection, Mapping
from typing import Any

from pyro_vi.compiling import Choice
from pyro_vi.errors import InputError, kind_and_line
from pyro_vi.fitting.averaging import evaluated, named
from pyro_vi.fitting.best import BestSoFar
from pyro_vi.fitting.convergence import Watch
from pyro_vi.fitting.reading import RESULT, put_into
from pyro_vi.fitting.settings import Position, Settings
from pyro_vi.fitting.stepping import Stepper
from pyro_vi.programs import Pair
from pyro_vi.support import generators, set_generators


def state_of(
    pair: Pair, stepper: Stepper, position: Position, choice: Choice | None, watch: Watch, best: BestSoFar
) -> dict[str, Any]:
    """Return the state from which a fit can continue with the same bits.

    Args:
        pair: the pair.
        stepper: its optimizer and scheduler.
        position: the progress of the fit.
        choice: the choice of compiled steps, if it is made.
        watch: the test for convergence.
        best: the best record so far.
    """
    result = named(pair, evaluated(stepper.optimizer))
    return {
        "pair": pair.state_dict(),
        **({RESULT: result} if result else {}),
        **stepper.state_dict(),
        "generators": generators(),
        "position": vars(position),
        "convergence": watch.state(),
        "best": best.state(),
        "compiled": None if choice is None else choice.record(),
    }


def put_back(
    state: Mapping[str, Any],
    pair: Pair,
    stepper: Stepper,
    watch: Watch,
    best: BestSoFar,
    settings: Settings,
    batches: int,
    changed: Collection[str] = (),
) -> Position:
    """Put a state back into a pair, its optimizer and the generators; return the position of the fit.

    Args:
        state: what `state_of` returned.
        pair: the pair.
        stepper: its optimizer and scheduler. If they have changed, they start anew.
        watch: the test for convergence.
        best: the best record so far.
        settings: the settings of the fit.
        batches: number of batches of an epoch.
        changed: the settings that are other ones than those of the state.

    Raises:
        InputError: the state is of another pair, or its position is not one of this fit.
    """
    position = _position(state.get("position"), settings, batches)
    put_into(pair, state, "the checkpoint")
    try:
        stepper.load_state_dict(state, changed)
        set_generators(state["generators"])
    except Exception as error:  # of any kind, from what another optimizer, or someone who means harm, has left
        raise InputError(
            f"the checkpoint is of another optimizer ({kind_and_line(error)}); start the run again"
        ) from error
    watch.restore(state.get("convergence"))
    watch.stopped = watch.stopped and settings.stop == "converged"
    best.restore(state.get("best"))
    return position


def _position(found: Any, settings: Settings, batches: int) -> Position:
    try:
        position = Position(**found)
        whole = [position.step, position.epoch, position.batch]
        fits = all(type(n) is int and n >= 0 for n in whole) and position.step >= position.epoch
        fits &= all(type(n) in (int, float) for n in (position.seconds, position.total, *position.losses))
    except TypeError:
        fits = False
    if not fits or position.batch > batches:
        raise InputError(
            f"the checkpoint has no position in this fit ({batches} batches per epoch); continue with the data and "
            "the batch_size that it was made with"
        )
    if position.step > settings.steps:
        raise InputError(f"the run is at step {position.step} already, and steps is {settings.steps}; give more steps")
    return position

"""The state of a fit in a checkpoint: parameters, optimizer, scheduler, generators and position, in plain values."""

from collections.abc import Mapping
from typing import Any

from pyro_vi.compiling import Choice
from pyro_vi.fitting.settings import Position
from pyro_vi.fitting.stepping import Stepper
from pyro_vi.programs import Pair
from pyro_vi.support import generators, set_generators


def state_of(pair: Pair, stepper: Stepper, position: Position, choice: Choice | None) -> dict[str, Any]:
    """Return the state from which a fit can continue with the same bits.

    Args:
        pair: the pair.
        stepper: its optimizer and scheduler.
        position: the progress of the fit.
        choice: the choice of compiled steps, if it is made.
    """
    return {
        "pair": pair.state_dict(),
        **stepper.state_dict(),
        "generators": generators(),
        "position": vars(position),
        "compiled": None if choice is None else choice.record(),
    }


def put_back(state: Mapping[str, Any], pair: Pair, stepper: Stepper) -> Position:
    """Put a state back into a pair, its optimizer and the generators; return the position of the fit."""
    pair.load_state_dict(state["pair"])
    stepper.load_state_dict(state)
    set_generators(state["generators"])
    return Position(**state["position"])

"""Pictures of a pair's programs by `pyro.render_model`, where graphviz is installed: its Python package and its ``dot``."""

import importlib.util
import shutil
from pathlib import Path

import pyro
import torch
from pyro.infer.inspect import render_model

from pyro_vi.data import Batch, fresh
from pyro_vi.errors import kind_and_line
from pyro_vi.programs import Pair, isolated, kept_buffers


def missing() -> str:
    """Return the part of graphviz that is not installed, and how to get it; empty if both parts are."""
    if importlib.util.find_spec("graphviz") is None:
        return "the Python package graphviz is not installed: pip install graphviz"
    if shutil.which("dot") is None:
        return "graphviz's program dot is not installed: apt install graphviz, or brew install graphviz"
    return ""


def draw_pictures(pair: Pair, args: Batch, folder: Path) -> tuple[list[Path], str]:
    """Draw the model and the guide of a pair.

    Args:
        pair: the pair.
        args: a batch.
        folder: an existing folder.

    Returns:
        The files ``model.png`` and ``guide.png``, as far as they were written; and why one was not, in one line.
    """
    note = missing()
    if note:
        return [], f"no picture, as {note}"
    written = []
    for what, program in (("model", pair.model), ("guide", pair.guide)):
        path = folder / f"{what}.png"
        flag = pyro.settings.get("validate_distributions_torch")
        try:
            # Pyro's own look-up leaves another flag in its place.
            with (
                isolated(seed=0, validation=False),
                pyro.settings.context(validate_distributions_torch=flag),
                kept_buffers(pair),
                torch.no_grad(),
            ):
                render_model(program, fresh(args), filename=str(path), render_distributions=True)
        except Exception as error:  # torch's own code does not always accept the tensors that Pyro tracks
            note = note or f"no picture of the {what}, as pyro.render_model fails: {kind_and_line(error)}"
            continue
        written.append(path)
    return written, note

"""Proofs and times of captured and compiled steps on this device: `python scripts/check_device.py`.

By default the device is the GPU if there is one, and else the CPU. A run takes less than ten minutes on a GPU: a part that
would start after the time of ``--minutes`` is left out, and the table says so. ``--small`` takes a few steps of few pairs.
The parts:

* ``proof``: each pair of a table is fitted by eager steps, and again by captured (on a GPU: replayed as a CUDA graph) and by
  compiled ones. Draws are the same, so that losses and parameters must agree to rounding, here in double precision; and in
  single precision for the VAE.
* ``same``: two fits with the same seed have the same bits, and so has a fit that was interrupted and resumed.
* ``device``: bytes per second of a copy, floating-point operations per second of a matrix product in single precision, and
  seconds of the smallest operation.
* ``steps``: the time of a step of three VAEs, over the size of the batch, against PyTorch by hand, eager and under
  `torch.compile`; beside it, the floor: the larger of the time for its operations (three products for each weight and datum,
  less that for the gradient of the data) and the time for its bytes (parameters and the two moments of Adam read and written
  once, the batch read once), at the measured rates. What stays in a cache moves faster than a copy.
* ``draws``: draws per second of an audit, and data per second of an evidence.

A failed proof gives exit status 1.
"""

import json
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from device_times import Mode, Times, title
from rich.console import Console
from rich.table import Table

import pyro_vi
from pyro_vi import FitError, InputError
from pyro_vi.support import versions

PAIRS: dict[str, tuple[str, str, Any, dict[str, Any]]] = {
    "vae, mean_field": ("vae", "diag_normal", "digits", {"elbo": "mean_field"}),
    "vae, trace, clipped": ("vae", "diag_normal", "digits", {"elbo": "trace", "clip_norm": 5.0}),
    "vae, iwae, rmsprop": ("vae", "diag_normal", "digits", {"elbo": "iwae", "optimizer": "rmsprop"}),
    "vae, trace, momentum": ("vae", "diag_normal", "digits", {"elbo": "trace", "optimizer": "sgd(momentum=0.9)", "lr": 1e-4}),
    "vae, flow guide": ("vae(latent_dim=4)", "flow", "digits", {"elbo": "trace"}),
    "conv_vae": ("conv_vae(latent_dim=4)", "diag_normal", "digits", {"elbo": "mean_field"}),
    "hierarchical_vae": ("hierarchical_vae", "structured", "digits", {"elbo": "trace"}),
    "linear_gaussian": ("linear_gaussian(latent_dim=2)", "full_normal", "digits(standardize=True)", {"elbo": "trace"}),
    "mixture, enumerated": ("mixture", "diag_normal", "digits(standardize=True)", {"elbo": "enum", "batch_size": 128}),
    "regression": ("regression", "diag_normal", "diabetes(target=True)", {"elbo": "mean_field", "lr": 0.05}),
    "deep_markov": ("deep_markov(latent_dim=4)", "structured", "robot(sequences=40, steps=8)", {"elbo": "trace"}),
}  # fmt: skip
FEW = ("vae, mean_field", "regression")
TOLERANCE = {torch.float64: 1e-6, torch.float32: 5e-3}
"""Largest relative difference of losses and of each tensor of parameters after the steps of a proof; Adam enlarges rounding."""
Part = Literal["proof", "same", "device", "steps", "draws"]


@dataclass(frozen=True)
class Options:
    """Options of the check.

    Attributes:
        device: "cuda" or "cpu"; by default the GPU if there is one.
        parts: what is checked.
        steps: steps of each fit of a proof.
        rounds: turns of each contender.
        minutes: no part of a part starts later than this.
        small: few pairs, the smallest VAE, one batch, few draws, and the compiler for one pair only.
        out: folder for the numbers.
    """

    device: str | None = None
    parts: tuple[Part, ...] = ("proof", "same", "device", "steps", "draws")
    steps: int = 40
    rounds: int = 5
    minutes: float = 8.0
    small: bool = False
    out: Path = Path("runs/check_device")


def modes() -> tuple[Mode, ...]:
    """Return the modes of `pyro_vi.fit` whose steps are no eager ones."""
    return "captured", True


class Check:
    """The proofs on one device: each part is a method that yields its rows.

    Args:
        options: options of the check.
        device: the device.
        late: whether nothing more is to be started.
    """

    def __init__(self, options: Options, device: torch.device, late: Callable[[], bool]) -> None:
        self.options, self.device, self.late = options, device, late

    def fitted(self, name: str, dtype: torch.dtype, mode: Mode, **more: Any) -> pyro_vi.Run:
        """Return a fit of a pair of the table."""
        model, guide, data, options = PAIRS[name]
        loaded = pyro_vi.load(data, dtype=dtype)
        options = {"steps": self.options.steps, "batch_size": None, **options, **more}
        return pyro_vi.fit(
            model, guide, loaded, compile=mode, device=self.device, progress=False, check=False, **options
        )

    def proof(self) -> Iterator[dict[str, Any]]:
        """Fits by captured and compiled steps, against eager ones."""
        names = FEW if self.options.small else tuple(PAIRS)
        cases = [(name, torch.float64) for name in names] + [("vae, mean_field", torch.float32)]
        for number, (name, dtype) in enumerate(cases):
            if self.late():
                yield {"pair": name, "ok": None, "note": "left out: no time"}
                continue
            eager = self.fitted(name, dtype, False)
            for mode in modes():
                if mode is True and self.options.small and number:
                    continue
                row = {"pair": name, "dtype": str(dtype).removeprefix("torch."), "mode": title(mode)}
                start = time.perf_counter()
                try:
                    other = self.fitted(name, dtype, mode)
                except (InputError, FitError) as error:
                    yield {**row, "ok": False, "note": str(error)}
                    continue
                seconds, (losses, parameters) = time.perf_counter() - start, differences(eager, other)
                chosen = other.choice
                used = chosen is not None and bool(chosen.captured if mode == "captured" else chosen.lengths)
                ok = max(losses, parameters) <= TOLERANCE[dtype] and used
                note = other.choice.note if other.choice else ""
                yield {**row, "ok": ok, "losses": losses, "parameters": parameters, "seconds": seconds, "note": note}

    def same(self) -> Iterator[dict[str, Any]]:
        """Equal seeds, and an interruption."""
        for mode in (False, *modes()):
            if self.late() or (mode is True and self.options.small):
                yield {"what": "equal bits", "mode": title(mode), "ok": None, "note": "left out"}
                continue
            first, second = (self.fitted(FEW[0], torch.float32, mode) for _ in range(2))
            yield {"what": "equal seeds", "mode": title(mode), "ok": equal_bits(first, second), "note": ""}
            with tempfile.TemporaryDirectory() as folder:
                middle = max(1, self.options.steps // 2)

                def interrupt(record: dict[str, Any], middle: int = middle) -> None:
                    if record["step"] == middle:
                        signal.raise_signal(signal.SIGINT)

                out, note = Path(folder) / "run", "the fit was not interrupted"
                try:
                    self.fitted(FEW[0], torch.float32, mode, out=out, callbacks=interrupt)
                except KeyboardInterrupt:
                    note = f"at step {middle}"
                resumed = self.fitted(FEW[0], torch.float32, mode, out=out, resume=True)
            ok = note.startswith("at") and equal_bits(first, resumed)
            yield {"what": "interrupted and resumed", "mode": title(mode), "ok": ok, "note": note}


def differences(one: pyro_vi.Run, two: pyro_vi.Run) -> tuple[float, float]:
    """Return the largest relative difference of the losses of two fits, and of their tensors of parameters."""
    losses = max(
        abs(a["loss"] - b["loss"]) / max(1e-12, abs(a["loss"])) for a, b in zip(one.history, two.history, strict=True)
    )
    first, second = one.pair.state_dict(), two.pair.state_dict()
    parts = [
        float((first[name] - second[name]).abs().max() / first[name].abs().max().clamp(min=1e-3))
        for name in first
        if first[name].is_floating_point() and first[name].numel()
    ]
    return losses, max(parts)


def equal_bits(one: pyro_vi.Run, two: pyro_vi.Run) -> bool:
    """Return whether two fits have the same parameters and the same records, but for the time."""
    first, second = one.pair.state_dict(), two.pair.state_dict()
    records = [[{k: v for k, v in r.items() if k != "seconds"} for r in run.history] for run in (one, two)]
    return all(torch.equal(first[name], second[name]) for name in first) and str(records[0]) == str(records[1])


def table_of(rows: list[dict[str, Any]], heading: str) -> Table:
    """Return rows as a table; a key is a column."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*keys, title=heading, title_justify="left")
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in keys))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def step_table(rows: list[dict[str, Any]]) -> Table:
    """Return the times of a step in microseconds, with the floor, and how many times the floor the fastest takes."""
    names = list(dict.fromkeys(row["contender"] for row in rows if "seconds" in row))
    table = Table("size", "batch", *names, "floor", title="steps: µs, medians", title_justify="left")
    for size, batch in dict.fromkeys((row["size"], row["batch"]) for row in rows):
        found = {row["contender"]: row for row in rows if (row["size"], row["batch"]) == (size, batch)}
        cells = [_cell(1e6 * found[name]["seconds"]) if name in found else "-" for name in names]
        floor = next((row["floor"] for row in found.values() if "floor" in row), None)
        table.add_row(size, str(batch), *cells, "-" if floor is None else _cell(1e6 * floor))
    return table


def main(options: Options) -> int:
    """Check, print the tables and write the numbers after each part; return 1 if a proof failed."""
    began, console = time.perf_counter(), Console(highlight=False, width=140)

    def late() -> bool:
        return time.perf_counter() - began > 60 * options.minutes

    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    check, times = Check(options, device, late), Times(device, modes(), options.rounds, options.small, late)
    named = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    heading = f"{device.type} {named}, torch {torch.__version__}, modes: {', '.join(map(title, modes()))}"
    console.print(heading, markup=False)
    options.out.mkdir(parents=True, exist_ok=True)
    written: dict[str, Any] = {"device": heading, "versions": versions(), "small": options.small}
    parts: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
        "proof": check.proof, "same": check.same, "device": times.rates, "steps": times.steps, "draws": times.draws
    }  # fmt: skip
    for part in options.parts:
        written[part] = rows = list(parts[part]())
        console.print(step_table(rows) if part == "steps" else table_of(rows, part))
        written["seconds"] = time.perf_counter() - began
        (options.out / "check.json").write_text(json.dumps(written, indent=1), encoding="utf-8")
    failed = [row for part in ("proof", "same") for row in written.get(part, ()) if row["ok"] is False]
    console.print(f"{written['seconds']:.0f} s; {len(failed)} failed; {options.out / 'check.json'}", markup=False)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options, description=__doc__)))

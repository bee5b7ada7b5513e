"""Progress on stderr: steps, rate and time left."""

import math

import rich.progress as bars
from rich.console import Console


class Progress:
    """A progress bar for one fit; if stderr is not a terminal, a single line at the end."""

    def __init__(self, title: str, total: int, show: bool) -> None:
        self._bar = bars.Progress(
            bars.TextColumn("{task.description:12s}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[rate]}"),
            bars.TextColumn("{task.fields[elbo]}"),
            bars.TimeElapsedColumn(),
            bars.TextColumn("left"),
            bars.TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not show,
        )
        self._task = self._bar.add_task(title, total=total, rate="", elbo="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, step: int, elbo: float) -> None:
        """Show the number of steps done and the last ELBO, in nats per datum; a point estimate has none."""
        task = self._bar.tasks[self._task]
        rate = f"{task.speed:.0f} steps/s" if task.speed else ""
        self._bar.update(self._task, completed=step, rate=rate, elbo="" if math.isnan(elbo) else f"ELBO {elbo:.2f}")

    def say(self, line: str) -> None:
        """Print a line above the bar, unless it is empty."""
        if line and not self._bar.disable:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)

"""The terminal: the commands' registry, progress bars and small tables."""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from qbee.job.watcher import Watcher

app = typer.Typer(
    name="qbee",
    help="Take a bee-buzz detector from field recordings to a microcontroller.",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console()


class Terminal(Watcher):
    """Shows the stages of a job as progress bars."""

    def __init__(self) -> None:
        self.bars = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
        )
        self._task: Any = None

    def __enter__(self) -> Terminal:
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.bars.stop()

    def _close(self) -> None:
        if self._task is not None:
            total = self.bars.tasks[self._task].total or 1
            self.bars.update(self._task, total=total, completed=total)

    def stage(self, title: str) -> None:
        """Begin a new bar."""
        self._close()
        self._task = self.bars.add_task(title, total=None, text="")

    def progress(self, done: int, total: int, text: str) -> None:
        """Move the current bar."""
        if self._task is not None:
            self.bars.update(self._task, completed=done, total=total, text=text)

    def note(self, text: str) -> None:
        """Print a line above the bars."""
        self.bars.console.print(text, markup=False)


def percent(value: float | None) -> str:
    """A share in percent, or a dash."""
    return "–" if value is None else f"{100 * value:.1f} %"


def print_line(text: str) -> None:
    """Print a line as it is: no markup, no folding."""
    console.print(text, markup=False, soft_wrap=True)

"""What a run says: lines, kept in a log too, and progress bars where someone watches."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Advance = Callable[[int], None]
NewBar = Callable[[str, int], Advance]


class Console:
    """Prints lines to standard output and appends them, with the time, to a log file.

    Args:
        log_file: The log; its folder is made if it is missing.
    """

    def __init__(self, log_file: Path) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = log_file
        self._watched = _is_watched()

    def say(self, line: str) -> None:
        """Print and log a line."""
        print(line, flush=True)
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")

    @contextmanager
    def bars(self) -> Iterator[NewBar]:
        """Show progress bars while the block runs; see `progress_bars`."""
        with progress_bars(self._watched) as new_bar:
            yield new_bar


@contextmanager
def progress_bars(watched: bool | None = None) -> Iterator[NewBar]:
    """Show progress bars with rows/s and time left while the block runs; nothing where no one watches.

    Args:
        watched: Whether someone watches. Defaults to whether standard output and standard error are a terminal.

    Yields:
        A function that starts a bar, told its title and its rows (0 where they are not known), and returns the
        function to call with the number of rows just done.
    """
    progress = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:>13,.0f} rows"),
        _Rate(),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
        transient=True,
        disable=not (_is_watched() if watched is None else watched),
    )

    def new_bar(title: str, rows: int) -> Advance:
        task = progress.add_task(title, total=rows or None)
        return lambda done: progress.advance(task, done)

    with progress:
        yield new_bar


def _is_watched() -> bool:
    return sys.stdout.isatty() and sys.stderr.isatty()


class _Rate(ProgressColumn):
    """Rows per second."""

    def render(self, task: Task) -> Text:
        """Return the rate of the last seconds, right-aligned."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:>11,.0f}/s", style="progress.data.speed")


class Stopwatch:
    """Seconds since it was made.

    Attributes:
        seconds: Up to now.
    """

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds since the watch was made."""
        return time.perf_counter() - self._start

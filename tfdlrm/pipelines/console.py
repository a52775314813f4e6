"""What a run says: lines, kept in a log too; progress bars where someone watches, a line now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from tfdlrm.pipelines.manner import manner, say, tell_progress

Advance = Callable[[int], None]
NewBar = Callable[[str, int], Advance]
FIRST_LINE, NEXT_LINES = 30.0, 60.0
"""Seconds: where no one watches, short commands stay quiet, and a day's log stays readable."""


class Console:
    """Prints lines to standard output and appends them, with the time, to a log file.

    Args:
        log_file: The log; its folder is made if it is missing. Defaults to none.
        quiet: Print nothing and show no bars: the log is all. Defaults to `False`.
    """

    def __init__(self, log_file: Path | None = None, quiet: bool = False) -> None:
        if log_file is not None:
            log_file.parent.mkdir(parents=True, exist_ok=True)
        self._log_file = log_file
        self._quiet = quiet
        self._watched = is_watched()

    def say(self, line: str) -> None:
        """Print and log a line."""
        if not self._quiet:
            say(line)
        if self._log_file is None:
            return
        with self._log_file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")

    @contextmanager
    def bars(self) -> Iterator[NewBar]:
        """Show progress bars while the block runs; see `progress_bars`."""
        if self._quiet:
            yield lambda title, rows: lambda done: None
            return
        with progress_bars(self._watched) as new_bar:
            yield new_bar


@contextmanager
def progress_bars(
    watched: bool | None = None, first_line: float | None = None, next_lines: float | None = None
) -> Iterator[NewBar]:
    """Show progress bars with rows/s and time left while the block runs; plain lines where no one watches.

    Lines go to standard error, for the log of a long run: one once a phase is seen to last, then one a minute.

    Args:
        watched: Whether someone watches. Defaults to whether standard output and standard error are a terminal.
        first_line: Seconds of a phase before its first line; a phase that is over by then has none. Defaults to 30, a
            tenth of it for `--verbose`.
        next_lines: Seconds between its lines. Defaults to 60, a tenth of it for `--verbose`.

    Yields:
        A function that starts a bar, told its title and its rows (0 where they are not known), and returns the
        function to call with the number of rows just done.
    """
    if manner().quiet:
        yield lambda title, rows: lambda done: None
        return
    if manner().json_logs or not (is_watched() if watched is None else watched):
        often = 0.1 if manner().verbose else 1.0
        first_line = often * FIRST_LINE if first_line is None else first_line
        next_lines = often * NEXT_LINES if next_lines is None else next_lines
        with _progress_lines(first_line, next_lines) as new_line:
            yield new_line
        return
    progress = Progress(
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:>13,.0f} rows"),
        _Rate(),
        TimeRemainingColumn(),
        console=RichConsole(stderr=True),
        transient=True,
    )

    def new_bar(title: str, rows: int) -> Advance:
        task = progress.add_task(title, total=rows or None)
        return lambda done: progress.advance(task, done)

    with progress:
        yield new_bar


@contextmanager
def _progress_lines(first_line: float, next_lines: float) -> Iterator[NewBar]:
    """Print how far the latest phase is, first and then again after so many seconds, while the block runs."""
    running: list[_Phase] = []

    def end_phase() -> None:
        if running:
            running.pop().end()

    def new_bar(title: str, rows: int) -> Advance:
        end_phase()
        running.append(_Phase(title, rows, first_line, next_lines))
        return running[-1].advance

    try:
        yield new_bar
    finally:
        end_phase()


class _Phase:
    """Prints its lines from a thread of its own, for a phase may be at work for long without a row to tell of.

    Rates count from the first report on: where a run goes on, that one tells what was done before.
    """

    def __init__(self, title: str, rows: int, first_line: float, next_lines: float) -> None:
        self._title = title
        self._rows = rows
        self._done = 0
        self._first: tuple[int, float] | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell, args=(first_line, next_lines), daemon=True)
        self._thread.start()

    def advance(self, rows: int) -> None:
        self._done += rows
        if self._first is None:  # last, and read first: so what is done is never behind it
            self._first = rows, time.perf_counter()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()

    def _tell(self, first_line: float, next_lines: float) -> None:
        wait, told = first_line, None
        while not self._ended.wait(wait):
            since = told or self._first
            done, now = self._done, time.perf_counter()
            share = f" of {self._rows:,} rows ({done / self._rows:.1%})" if self._rows else " rows"
            rate = _speed(since, done, now, standing=told is not None)
            known = {"rows": done, "of": self._rows or None, "rows_per_second": None if rate is None else round(rate)}
            speed = "" if rate is None else f", {rate:,.0f} rows/s"
            tell_progress(f"{self._title}: {done:,}{share}{speed}", **known)
            wait, told = next_lines, (done, now)


def _speed(since: tuple[int, float] | None, done: int, now: float, standing: bool) -> float | None:
    if since is None or (done == since[0] and not standing):
        return None  # one report alone is no rate
    return (done - since[0]) / (now - since[1])


def is_watched() -> bool:
    """Return whether someone watches: standard output and standard error are a terminal."""
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

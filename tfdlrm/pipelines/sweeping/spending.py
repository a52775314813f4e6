"""What a trial has cost so far, kept in its folder as it goes: whatever ends its process, it was spent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.console import Console, NewBar
from tfdlrm.spec.errors import DataError, SpecError
from tfdlrm.tuning.results import Spending, Spent

_OFTEN = 0.5


def spent_by(folder: Path) -> Spending:
    """Return what the trial of a folder has spent; nothing where it has not begun.

    Raises:
        DataError: the file cannot be read.
    """
    path = folder / "spent.json"
    try:
        return Spending.from_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return Spending()
    except SpecError as error:
        raise DataError(f"{path}: {error} Delete it, and what the trial has spent counts from now on.") from None


class Meter:
    """Counts what a trial spends while it is entered, from where an earlier process of it left off.

    Args:
        folder: The trial's.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "spent.json"
        before = spent_by(folder)
        self._seconds = before.seconds
        self._seeds = {own.seed: own for own in before.seeds}
        self._training: tuple[int, float] | None = None
        self._started = time.monotonic()
        self._ended = threading.Event()
        self._lock = threading.RLock()
        self._thread = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
        self._write()

    @property
    def spent(self) -> Spending:
        """What has been spent by now."""
        with self._lock:
            seeds = dict(self._seeds)
            if self._training is not None:
                seed, since = self._training
                seconds = seeds[seed].seconds + time.monotonic() - since
                seeds[seed] = seeds[seed].model_copy(update={"seconds": seconds})
        seconds = self._seconds + time.monotonic() - self._started
        return Spending(seconds=seconds, seeds=tuple(seeds.values()))

    @contextmanager
    def training(self, seed: int, before: Spent | None) -> Iterator[float]:
        """Count what the block trains, through `console`.

        Args:
            seed: Of the training.
            before: What the training that it goes on with has spent; `None` for one that begins.

        Yields:
            Seconds that this training has taken so far, in other processes and as part of other trials.
        """
        began = Spent(seed=seed)
        if before is not None:
            began = Spent(seed=seed, rows=before.rows, seconds=before.seconds, rows_before=before.rows)
        with self._lock:
            own = self._seeds.setdefault(seed, began)
            self._training = (seed, time.monotonic())
        self._write()
        try:
            yield own.seconds
        finally:
            with self._lock:
                self._seeds = {own.seed: own for own in self.spent.seeds}
                self._training = None
            self._write()

    def console(self, log_file: Path) -> Console:
        """Return a console for what the block trains: it prints nothing, and its bars are counted."""
        return _Counting(log_file, self)

    def note_rows(self, rows: int) -> None:
        """Note how many samples the training has seen by now; those that it sees again count once."""
        with self._lock:
            assert self._training is not None
            own = self._seeds[self._training[0]]
            self._seeds[own.seed] = own.model_copy(update={"rows": max(own.rows, rows)})

    def _keep(self) -> None:
        while not self._ended.wait(_OFTEN):
            self._write()

    def _write(self) -> None:
        with self._lock:
            write_atomic(self._file, self.spent.model_dump_json() + "\n")


class _Counting(Console):
    def __init__(self, log_file: Path, meter: Meter) -> None:
        super().__init__(log_file, quiet=True)
        self._meter = meter

    @contextmanager
    def bars(self) -> Iterator[NewBar]:
        """Count what the bar of training is told: samples seen, on resuming first those of before."""

        def new_bar(title: str, rows: int) -> Callable[[int], None]:
            seen = 0

            def advance(done: int) -> None:
                nonlocal seen
                seen += done
                self._meter.note_rows(seen)

            return advance

        yield new_bar

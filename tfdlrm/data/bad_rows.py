"""Bad raw rows: counted by reason, set aside, and fatal past a stated share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tfdlrm.data.files import publish, temporary_name
from tfdlrm.spec.errors import DataError


@dataclass(frozen=True)
class Problem:
    """What is wrong with a row.

    Attributes:
        reason: The rule it breaks; rows are counted by it.
        received: What was found instead, if that says more than the reason.
    """

    reason: str
    received: str = ""

    def __str__(self) -> str:
        return f"{self.reason}{self.received}."


class BadRows:
    """The bad rows of one pass over raw files.

    Args:
        limit: Returns how many bad rows are put up with; asked only once there is one.
        file: Where they go, one line each: file, line, reason, raw text, tab-separated, no header. `None` for
            nowhere. The file appears under its name when the pass ends, and only if there are any.

    Attributes:
        total: Number of bad rows.
        counts: Number of bad rows by reason.
    """

    def __init__(self, limit: Callable[[], int] = lambda: 0, file: Path | None = None) -> None:
        self.total = 0
        self.counts: Counter[str] = Counter()
        self._limit = limit
        self._file = file
        self._first = ""
        self._out: IO[bytes] | None = None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Collect within this block; what was set aside is kept if the block ends well and removed if it raises."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
        try:
            yield
            if self._file is not None and self._out is not None:
                self._out.close()
                publish(Path(self._out.name), self._file)
        finally:
            if self._out is not None:
                self._out.close()
                Path(self._out.name).unlink(missing_ok=True)
                self._out = None

    @property
    def state(self) -> dict[str, Any]:
        """What was counted so far, for JSON; setting it makes this one go on from there."""
        return {"counts": dict(self.counts), "first": self._first}

    @state.setter
    def state(self, state: dict[str, Any]) -> None:
        self.counts, self._first = Counter(state["counts"]), state["first"]
        self.total = sum(self.counts.values())

    def cut(self, file: Path) -> None:
        """Give the rows set aside since the last cut a file of their own, if there are any."""
        if self._out is not None:
            self._out.close()
            publish(Path(self._out.name), file)
            self._out = None
        elif self._file is not None and self._file.exists():  # the pass has ended
            publish(self._file, file)

    def merge(self, state: Mapping[str, Any]) -> None:
        """Add the counts that another one, of later rows, has as its `state`.

        Raises:
            DataError: one bad row too many, as in `add`.
        """
        self.counts.update(state["counts"])
        self.total = sum(self.counts.values())
        self._first = self._first or state["first"]
        if self.total:
            self._refuse_too_many()

    def add(self, path: object, line: int, problem: Problem, raw: bytes) -> None:
        """Count a row and set it aside.

        Args:
            path: File it is in, as messages call it.
            line: Its line there, from 1, a header counted.
            problem: What is wrong with it.
            raw: Its text without the line end.

        Raises:
            DataError: one bad row too many; the message gives file, line and reason of the first.
        """
        self.total += 1
        self.counts[problem.reason] += 1
        self._first = self._first or f"{path}:{line}: {problem}"
        self._refuse_too_many()
        if self._file is None:
            return
        if self._out is None:
            self._out = open(temporary_name(self._file), "wb")  # noqa: SIM115, closed by `open`
        self._out.write(f"{path}\t{line}\t{problem}\t".encode() + raw + b"\n")

    def _refuse_too_many(self) -> None:
        if self.total > self._limit():
            raise DataError(self._first + self._excess())

    def _excess(self) -> str:
        limit = self._limit()
        if limit == 0:
            return ""
        reasons = "; ".join(f"{reason}: {count}" for reason, count in self.counts.most_common(5))
        return f" This is the first of more than {limit} bad rows, the most that `max_bad_share` allows ({reasons})."

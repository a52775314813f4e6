"""How the commands of a process speak: plain lines, next to nothing, much, or JSON objects for whatever reads logs."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO


@dataclass(frozen=True)
class Manner:
    """How to speak.

    Attributes:
        quiet: Only errors are told; a run's results are in its files.
        verbose: Progress is told more often, libraries' notes are shown, an error comes with its traceback.
        json_logs: Lines are JSON objects: `time` (UTC), `level`, `message`, and what else is known.
    """

    quiet: bool = False
    verbose: bool = False
    json_logs: bool = False


_manner = Manner()


def manner() -> Manner:
    """Return how this process speaks."""
    return _manner


def speak(new: Manner) -> None:
    """Set how this process speaks from now on."""
    global _manner
    _manner = new


def say(line: str, **known: object) -> None:
    """Tell a line of a run on standard output.

    Args:
        line: The line.
        known: What JSON lines hold beside it, for machines.
    """
    if not _manner.quiet:
        _tell(line, "info", sys.stdout, known)


def tell_progress(line: str, **known: object) -> None:
    """Tell on standard error how far something is."""
    if not _manner.quiet:
        _tell(line, "info", sys.stderr, known)


def tell_error(line: str, **known: object) -> None:
    """Tell an error on standard error, in every manner."""
    _tell(line, "error", sys.stderr, known)


def _tell(line: str, level: str, stream: TextIO, known: dict[str, object]) -> None:
    if _manner.json_logs:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "level": level, "message": line.strip(), **known}, ensure_ascii=False)
    print(line, file=stream, flush=True)

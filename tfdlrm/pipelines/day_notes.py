"""What should be told before raw files are split by days: which is held out, and whether that may be a slip."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePath

from tfdlrm.spec.raw import Split

_USES = {
    "test_first": "its first half tests, its second validates",
    "validation_first": "its first half validates, its second tests",
    "test": "all of it tests",
}


def day_notes(split: Split, raw: Sequence[object]) -> list[str]:
    """Return lines about a split by days of several raw files; none for other splits, or one file.

    Args:
        split: How rows are split.
        raw: Paths or URLs of the raw files, in the order given.

    Example:
        >>> day_notes(Split(by="days", days=0), ["day_0", "day_1"])
        ['held out: day_1, the last of 2 files; its first half tests, its second validates']
    """
    if split.by != "days" or len(raw) < 2:
        return []
    if split.days:
        return [
            f"WARNING: {len(raw)} files are cut into {split.days} equal days as if they were one, and the last "
            "of these is held out. Where each file is a day, set data.split.days=0 (or --dataset terabyte)."
        ]
    paths = [str(path) for path in raw]
    lines = [f"held out: {_name(paths[-1])}, the last of {len(paths)} files; {_USES[split.last_day]}"]
    ordered = sorted(paths, key=_natural)
    if ordered != paths:
        lines.append(
            f"WARNING: the files are not in the order of the numbers in their names, which ends with "
            f"{_name(ordered[-1])}. A shell's * puts day_10 before day_9; day_{{0..23}} keeps the order."
        )
    return lines


def _natural(path: str) -> list[tuple[int, str]]:
    """Return a key that puts numbers in a name in their order."""
    parts = re.split(r"([0-9]+)", path)  # every second one is a number
    return [(int(part), "") if place % 2 else (-1, part) for place, part in enumerate(parts)]


def _name(path: str) -> str:
    return PurePath(path).name

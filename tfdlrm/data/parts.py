"""Parts of a prepared data set to hold against one another: days or files where their rows are known, else shards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple

import numpy as np

from tfdlrm.data.manifest import Manifest
from tfdlrm.data.splits import EVERYWHERE, SPLIT_NAMES, TRAIN, SplitPlan, equal_parts
from tfdlrm.spec.raw import Split

MOST_PARTS = 200
"""More shards than this are taken together in groups: every part has histograms of its own."""
_SLICES = 10


class Part(NamedTuple):
    """Consecutive rows of a split.

    Attributes:
        name: What they are: a day, a file, a shard.
        split: Name of the split.
        start: First row, counted within the split.
        stop: Row after the last.
    """

    name: str
    split: str
    start: int
    stop: int


class Parts(NamedTuple):
    """All rows of the splits looked at, in parts.

    Attributes:
        kind: `"day"`, `"file"` or `"slice"` (of raw rows, in their order), or `"shard"`.
        items: The parts; where they are not shards, in the order of the raw rows.
    """

    kind: str
    items: tuple[Part, ...]


def parts_of(manifest: Manifest, splits: Sequence[str]) -> Parts:
    """Return the parts of splits.

    Which day or raw file a prepared row is from is known where splits are consecutive rows and no row was bad.

    Args:
        manifest: Manifest of the data set.
        splits: Names of the splits to cut up.
    """
    known = _raw_parts(manifest)
    kind, items = ("shard", _shard_parts(manifest)) if known is None else known
    return Parts(kind, tuple(part for part in items if part.split in splits))


def _shard_parts(manifest: Manifest) -> list[Part]:
    shards = sum(len(split.shards) for split in manifest.splits.values())
    together = -(-shards // MOST_PARTS)
    items = []
    for split, info in manifest.splits.items():
        row = 0
        for first in range(0, len(info.shards), together):
            group = info.shards[first : first + together]
            names = [shard.file.removesuffix(".tfrecord") for shard in group]
            name = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
            stop = row + sum(shard.rows for shard in group)
            items.append(Part(name, split, row, stop))
            row = stop
    return items


def _raw_parts(manifest: Manifest) -> tuple[str, list[Part]] | None:
    raw, settings = manifest.recipe.get("raw"), manifest.recipe.get("settings", {})
    if not raw or "split" not in settings or manifest.statistics.get("bad_rows"):
        return None
    split, rows = Split.model_validate(settings["split"]), [file["rows"] for file in raw]
    stretches = None if split.by in ("time", "hash") else SplitPlan.make(split, rows).stretches()
    if stretches is None:
        return None
    kind, names, lengths = _slices(split, [PurePath(file["path"]).name for file in raw], rows)
    if len(names) > MOST_PARTS:
        return None
    cuts = np.cumsum([0, *lengths])
    seen = dict.fromkeys(SPLIT_NAMES, 0)
    items = []
    begin = 0
    for end, code in stretches:
        in_splits = SPLIT_NAMES if code == EVERYWHERE else SPLIT_NAMES[code : code + 1]
        for name, (first, last) in zip(names, pairwise(cuts.tolist()), strict=True):
            length = min(end, last) - max(begin, first)
            if length <= 0:
                continue
            # Rows of several splits are looked at once.
            chosen = SPLIT_NAMES[TRAIN] if code == EVERYWHERE else in_splits[0]
            items.append(Part(name, chosen, seen[chosen], seen[chosen] + length))
            for each in in_splits:
                seen[each] += length
        begin = end
    if any(seen.get(name, 0) != info.rows for name, info in manifest.splits.items()):
        return None
    return kind, items


def _slices(split: Split, files: list[str], rows: list[int]) -> tuple[str, list[str], list[int]]:
    """Return the kind, names and lengths of what raw rows are cut into."""
    if split.by == "days" and split.days:
        return "day", [f"day {day + 1}" for day in range(split.days)], equal_parts(sum(rows), split.days)
    if len(files) > 1:
        return "file", files, rows
    names = [f"rows {100 * i // _SLICES} to {100 * (i + 1) // _SLICES}%" for i in range(_SLICES)]
    return "slice", names, equal_parts(rows[0], _SLICES)

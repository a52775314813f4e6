"""Which rows of which chunk make which shard: known before a shard is written, so that each can be written alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tfdlrm.data.splits import SPLIT_NAMES

Ends = npt.NDArray[np.int64]


class ChunkRows(NamedTuple):
    """Rows of a chunk.

    Attributes:
        read: Rows of the raw files read for it, the bad ones included.
        kept: Rows that are left.
        splits: Of these, those in each split.
        file: Number of the raw file that they are of.
    """

    read: int
    kept: int
    splits: tuple[int, ...]
    file: int = 0


class Shard(NamedTuple):
    """A shard to be."""

    split: str
    number: int

    @property
    def note(self) -> str:
        """Name of the file that says that the shard is finished."""
        return f"{self.split}-{self.number:05d}.json"


class Slice(NamedTuple):
    """Rows `start` to `stop` of those that a chunk has in a split."""

    chunk: int
    start: int
    stop: int


@dataclass
class ShardPlan:
    """Shards of `rows_per_shard` rows in the order of the raw files, the last of a split shorter.

    Attributes:
        rows_per_shard: Rows of a shard.
        chunks: The chunks known so far; may be added to.
    """

    rows_per_shard: int
    chunks: list[ChunkRows] = field(default_factory=list)
    _known_ends: dict[tuple[str, int], Ends] = field(default_factory=dict)

    def shards(self, final: bool = True) -> list[Shard]:
        """Return the shards whose rows are all known; `final` says that no more chunks will come."""
        found = []
        for split in SPLIT_NAMES:
            rows = int(self.ends(split)[-1]) if self.chunks else 0
            count = -(-rows // self.rows_per_shard) if final else rows // self.rows_per_shard
            found += [Shard(split, number) for number in range(count)]
        return found

    def slices(self, shard: Shard) -> list[Slice]:
        """Return what a shard consists of, in order."""
        return list(self._slices(shard))

    def _slices(self, shard: Shard) -> Iterator[Slice]:
        ends = self.ends(shard.split)
        first, last = shard.number * self.rows_per_shard, (shard.number + 1) * self.rows_per_shard
        chunk = int(np.searchsorted(ends, first, side="right"))
        while chunk < len(ends):
            begin = int(ends[chunk - 1]) if chunk else 0
            if begin >= last:
                return
            start, stop = max(first - begin, 0), min(last, int(ends[chunk])) - begin
            if start < stop:
                yield Slice(chunk, start, stop)
            chunk += 1

    def ends(self, split: str) -> Ends:
        """Return how many rows of a split there are up to the end of each chunk."""
        key = (split, len(self.chunks))
        if key not in self._known_ends:
            place = SPLIT_NAMES.index(split)
            self._known_ends = {known: ends for known, ends in self._known_ends.items() if known[1] == key[1]}
            self._known_ends[key] = np.cumsum([chunk.splits[place] for chunk in self.chunks], dtype=np.int64)
        return self._known_ends[key]

    def users(self, shards: Sequence[Shard]) -> dict[int, set[Shard]]:
        """Return, by chunk, those of the shards that need it."""
        needed: dict[int, set[Shard]] = {}
        for shard in shards:
            for part in self._slices(shard):
                needed.setdefault(part.chunk, set()).add(shard)
        return needed

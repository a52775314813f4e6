"""Ids in the order of their last use, with O(log n) access by how many others came since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_BLOCK = 1024


class RecencyList:
    """A list, the least recently used first, from which a value at any depth is taken and put at the end.

    The last values lie in one plain list, all before it in blocks of 1,024 below a binary tree of their sizes. When the
    free blocks are used up, all is laid out anew, which is O(1) a value.

    Args:
        values: What is there, the least recently used first.
    """

    def __init__(self, values: Iterable[int] = ()) -> None:
        self._lay_out(list(values))

    def __len__(self) -> int:
        return self._sizes[1] + len(self._recent)

    def values(self) -> list[int]:
        """Return what is there, the least recently used first."""
        return [value for block in self._blocks for value in block] + self._recent

    def replay(self, depths: Iterable[int], fresh: Sequence[int]) -> list[int]:
        """Take values one after the other, putting each at the end.

        Args:
            depths: 1 for the most recently used one, and so on; 0 for one of `fresh` or, once there is none left, the
                least recently used one.
            fresh: Values that are not in the list, in the order of their use.

        Returns:
            The values.
        """
        taken = []
        waiting = iter(fresh)
        recent, sizes = self._recent, self._sizes
        for depth in depths:
            value: int | None = None
            if depth == 0:
                value = next(waiting, None)
                if value is None:
                    depth = sizes[1] + len(recent)
            if value is None:
                value = recent.pop(-depth) if depth <= len(recent) else self._take(depth)
            recent.append(value)
            taken.append(value)
            if len(recent) >= 2 * _BLOCK:
                self._put_away()
                recent, sizes = self._recent, self._sizes
        return taken

    def _take(self, depth: int) -> int:
        """Remove and return a value that lies in a block."""
        sizes, leaves = self._sizes, len(self._blocks)
        rank = sizes[1] + len(self._recent) - depth
        node = 1
        sizes[1] -= 1
        while node < leaves:
            node += node
            if rank >= sizes[node]:
                rank -= sizes[node]
                node += 1
            sizes[node] -= 1
        return self._blocks[node - leaves].pop(rank)

    def _put_away(self) -> None:
        """Make a block of the older half of the recent values."""
        if self._used == len(self._blocks):
            self._lay_out(self.values())
            return
        self._blocks[self._used] = self._recent[:_BLOCK]
        del self._recent[:_BLOCK]
        node = len(self._blocks) + self._used
        while node:
            self._sizes[node] += _BLOCK
            node //= 2
        self._used += 1

    def _lay_out(self, values: list[int]) -> None:
        kept = max(0, len(values) - _BLOCK)
        blocks = [values[start : min(start + _BLOCK, kept)] for start in range(0, kept, _BLOCK)]
        leaves = 1 << (2 * len(blocks) + 1).bit_length()  # at least as many free as used
        self._used = len(blocks)
        self._blocks: list[list[int]] = blocks + [[] for _ in range(leaves - len(blocks))]
        # A heap: node 1 is the root, nodes 2n and 2n + 1 are below n, the last `leaves` ones are the blocks.
        self._sizes = [0] * leaves + [len(block) for block in self._blocks]
        for node in range(leaves - 1, 0, -1):
            self._sizes[node] = self._sizes[2 * node] + self._sizes[2 * node + 1]
        self._recent = values[kept:]

"""The memory that all requests may take together, and what one of them takes of it."""

from __future__ import annotations

import threading

# Bytes of what CPython makes of JSON: a number and its place in a list, half a string, a dict of up to five members, a
# list. Strings take their text besides.
_COMMA, _QUOTE, _OBJECT, _LIST = 40, 32, 240, 96


def parsed_bytes(body: bytes) -> int:
    """Return about how much memory a body and what its JSON becomes take at most, without parsing it.

    >>> parsed_bytes(b'{"instances": [1.0, 2.0]}')
    465
    """
    counts = ((b",", _COMMA), (b'"', _QUOTE), (b"{", _OBJECT), (b"[", _LIST))
    return len(body) + sum(size * body.count(sign) for sign, size in counts)


class Budget:
    """Bytes that may be held at a time; any thread may ask."""

    def __init__(self, most: int) -> None:
        """Begin with nothing held.

        Args:
            most: Bytes, over all shares.
        """
        self.most = most
        self._held = 0
        self._changing = threading.Lock()

    def take(self, size: int) -> bool:
        """Hold bytes; False, and nothing is held, where they would be too many."""
        with self._changing:
            if self._held + size > self.most:
                return False
            self._held += size
            return True

    def give(self, size: int) -> None:
        """Give bytes back."""
        with self._changing:
            self._held -= size


class Share:
    """What one request holds of a budget; in one thread's hands at a time."""

    def __init__(self, budget: Budget) -> None:
        """Begin with nothing."""
        self._budget = budget
        self.size = 0

    def add(self, size: int) -> bool:
        """Hold further bytes; False where there are no more."""
        if not self._budget.take(size):
            return False
        self.size += size
        return True

    def release(self) -> None:
        """Give all of them back."""
        self._budget.give(self.size)
        self.size = 0

"""What is made when it is first asked for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

Made = TypeVar("Made")


class Once:
    """Makes each thing once, whichever thread comes first."""

    def __init__(self) -> None:
        self._made: dict[Hashable, Any] = {}
        self._lock = threading.Lock()

    def __call__(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what `make()` returned when `key` was first asked for."""
        with self._lock:
            if key not in self._made:
                self._made[key] = make()
            made: Made = self._made[key]
            return made

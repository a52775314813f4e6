"""Which of the versions on disk a model is to have loaded: TensorFlow Serving's three policies."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Latest:
    """The newest versions.

    Attributes:
        count: How many; 0 means 1.
    """

    count: int = 1

    def aspired(self, versions: Iterable[int]) -> list[int]:
        """Return the versions wanted of those there are, newest first."""
        return sorted(versions, reverse=True)[: max(self.count, 1)]


@dataclasses.dataclass(frozen=True)
class All:
    """Every version there is."""

    def aspired(self, versions: Iterable[int]) -> list[int]:
        """Return the versions wanted of those there are, newest first."""
        return sorted(versions, reverse=True)


@dataclasses.dataclass(frozen=True)
class Specific:
    """Named versions.

    Attributes:
        versions: Their numbers.
    """

    versions: frozenset[int]

    def aspired(self, versions: Iterable[int]) -> list[int]:
        """Return the versions wanted of those there are, newest first."""
        return sorted(self.versions.intersection(versions), reverse=True)


VersionPolicy = Latest | All | Specific

# What is done where nothing is said.
LATEST = Latest()

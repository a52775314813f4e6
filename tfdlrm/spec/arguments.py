"""Types of command-line arguments: numbers in their ranges, lists of them."""

from __future__ import annotations

import argparse

_BEYOND = 2**63
"""No id, row or count of ours is as large: they are signed 64-bit numbers."""


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    return _at_least(text, 1)


def natural(text: str) -> int:
    """Return a whole number of at least 0."""
    return _at_least(text, 0)


def positive_number(text: str) -> float:
    """Return a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0. Received: {value}")
    return value


def positives(text: str) -> tuple[int, ...]:
    """Return whole numbers of at least 1 with commas between them.

    >>> positives("3, 10_000")
    (3, 10000)
    """
    return tuple(positive(part) for part in text.split(","))


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number. Received: {text!r}") from None
    if value < least:
        raise argparse.ArgumentTypeError(f"must be at least {least}. Received: {value}")
    if value >= _BEYOND:
        raise argparse.ArgumentTypeError(f"must be below 2^63. Received: {value}")
    return value

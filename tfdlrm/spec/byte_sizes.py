"""Sizes in words: `"512MB"`, `"1.5 GiB"`."""

from __future__ import annotations

import re

from tfdlrm.spec.errors import SpecError

_UNITS = {
    "b": 1,
    **{f"{letter}b": 1000**power for power, letter in enumerate("kmgt", 1)},
    **{f"{letter}ib": 1024**power for power, letter in enumerate("kmgt", 1)},
}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)
_STEPS = ((1024**4, "TiB"), (1024**3, "GiB"), (1024**2, "MiB"), (1024, "KiB"))


def parse_bytes(size: int | str, argument: str = "bytes") -> int:
    """Return a number of bytes.

    Args:
        size: The number itself, or a text such as `"512MB"` or `"1.5 GiB"`: kB, MB, GB and TB are powers of 1000, KiB,
            MiB, GiB and TiB of 1024, upper or lower case. A text without a unit is in bytes. Rounded down.
        argument: What the size is called, for the message.

    Raises:
        SpecError: it is no such text, or below one byte.

    Example:
        >>> parse_bytes("512MB"), parse_bytes("1.5 gib"), parse_bytes(7)
        (512000000, 1610612736, 7)
    """
    number: int | None = None
    if isinstance(size, int) and not isinstance(size, bool):
        number = size
    elif isinstance(size, str):
        found = _SIZE.fullmatch(size.strip())
        unit = found and _UNITS.get(found[2].lower() or "b")
        if found and unit:
            whole, _, rest = found[1].partition(".")
            number = int(whole + rest) * unit // 10 ** len(rest)
    if number is None or number < 1:
        raise SpecError(
            f'`{argument}` must be a positive number of bytes, or a text such as "512MB" or "1.5GiB" (B, kB, MB, GB, '
            f"TB, KiB, MiB, GiB, TiB). Received: {size!r}."
        )
    return number


def bytes_in_words(size: int) -> str:
    """Return a size for people.

    >>> bytes_in_words(2_160_804_928), bytes_in_words(100)
    ('2.01 GiB', '100 B')
    """
    for step, unit in _STEPS:
        if size >= step:
            return f"{size / step:,.2f} {unit}"
    return f"{size} B"

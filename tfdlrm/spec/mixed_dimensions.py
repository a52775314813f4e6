"""Mixed dimensions: the more rows a table has, the narrower they are (Ginart et al. 2019, arXiv 1909.11810)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import Field

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.frozen import Frozen


class MixedDimensions(Frozen):
    """The rule that gives each table a width of its own.

    Attributes:
        alpha: Temperature: a table's width falls as its rows to the power of -alpha. 0 leaves every width alone, at 1
            all tables take about the same bytes. Defaults to 0.3.
        threshold: Tables of up to so many rows keep the full width. Defaults to 0.
        round: Whether widths are rounded to the nearest power of two. Defaults to `True`.
    """

    alpha: float = Field(default=0.3, ge=0, le=1)
    threshold: int = Field(default=0, ge=0)
    round: bool = True


def mixed_dimensions(
    rows: Mapping[str, int], embedding_dim: int, alpha: float, threshold: int = 0, round_to_powers: bool = True
) -> dict[str, int]:
    """Return the width that each table is stored in.

    With d the full width and n the rows of the smallest table, a table of m rows has max(1, round(d (n / m)^alpha))
    columns: the power rule of the paper, as facebookresearch/dlrm has it. Halves are rounded to the even number.

    Args:
        rows: Rows of each table.
        embedding_dim: Full width; the smallest table has it, and none has more.
        alpha: Temperature, at least 0.
        threshold: Tables of up to so many rows keep the full width. They still count as the smallest.
        round_to_powers: Whether widths then go to the power of two that is nearest by logarithm.

    Raises:
        SpecError: `alpha` is below 0 or not finite.

    Example:
        >>> mixed_dimensions({"small": 10, "large": 1000, "huge": 100_000}, 16, alpha=0.3)
        {'small': 16, 'large': 4, 'huge': 1}
    """
    if not (alpha >= 0 and math.isfinite(alpha)):
        raise SpecError(f"`alpha` must be at least 0. Received: {alpha}.")
    smallest = min(rows.values(), default=1)
    widths = {}
    for name, count in rows.items():
        width = max(1, round(embedding_dim * (smallest / count) ** alpha))
        if round_to_powers:
            width = 1 << round(math.log2(width))
        widths[name] = embedding_dim if count <= max(smallest, threshold) else width
    return {name: min(width, embedding_dim) for name, width in widths.items()}

"""Settings of `[model]` that compress tables: one rule for all large ones."""

from __future__ import annotations

from pydantic import Field, model_validator

from tfdlrm.spec.compression import Compression, QuotientRemainder, TableDtype
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.frozen import Frozen


class CompressionRule(Frozen):
    """How every table above a size is stored.

    Attributes:
        threshold: Tables of up to so many rows stay whole. Defaults to 10,000.
        hash_rows: Rows that ids share: a number from 2 on, or a share of the table's own where it is below 1. A table
            that has no more rows than that is not hashed. `None` does not hash.
        exact_rows: First ids that keep rows of their own among the hashed ones: a number, or a share of them where it
            is below 1. Defaults to 0.
        quotient_remainder: Two tables in place of one. `None` for one.
        dim: Width that is stored. `None` for the full width.
        dtype: Type of the stored values. Defaults to `"float32"`.
    """

    threshold: int = Field(default=10_000, ge=0)
    hash_rows: int | float | None = Field(default=None, gt=0)
    exact_rows: int | float = Field(default=0, ge=0)
    quotient_remainder: QuotientRemainder | None = None
    dim: int | None = Field(default=None, ge=1)
    dtype: TableDtype = "float32"

    @model_validator(mode="after")
    def _shares_or_numbers(self) -> CompressionRule:
        for name, value in (("hash_rows", self.hash_rows), ("exact_rows", self.exact_rows)):
            if value is not None and value >= 1 and (value != int(value) or (isinstance(value, float) and value == 1)):
                raise SpecError(f"`{name}` must be a share below 1, or a whole number. Received: {value}.")
        if self.hash_rows == 1:
            raise SpecError("`hash_rows` must be at least 2 where it is a number of rows. Received: 1.")
        if self.exact_rows and self.hash_rows is None:
            raise SpecError(f"`exact_rows` must come with `hash_rows`. Received: {self.exact_rows} alone.")
        return self

    def of(self, rows: int) -> Compression | None:
        """Return what the rule makes of a table of so many rows; `None` where it stays whole."""
        if rows <= self.threshold:
            return None
        hashed = exact = None
        if self.hash_rows is not None:
            hashed = max(2, _number(self.hash_rows, rows))
            exact = _number(self.exact_rows, hashed)
        if hashed is None or hashed >= rows:
            hashed, exact = None, 0
        compression = Compression(
            hash_rows=hashed,
            exact_rows=exact or 0,
            quotient_remainder=self.quotient_remainder,
            dim=self.dim,
            dtype=self.dtype,
        )
        return None if compression == Compression() else compression


def _number(value: float, whole: int) -> int:
    return int(value * whole) if value < 1 else int(value)

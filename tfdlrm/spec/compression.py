"""How an embedding table is stored in less than one full row an id. Plain data and arithmetic, no TensorFlow."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.frozen import Frozen

TableDtype = Literal["float32", "bfloat16", "float16"]
Operation = Literal["mult", "add", "concat"]
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class QuotientRemainder(Frozen):
    """Two small tables in place of a large one (Shi et al. 2019, arXiv 1909.02107).

    An id's vector is composed of row id // collisions of the quotient table and row id mod collisions of the remainder
    table, so that every id has a vector of its own. Composed before a bag is pooled, as in the paper.

    Attributes:
        collisions: Ids that share a row of the quotient table, and rows of the remainder table. Defaults to 4.
        operation: `"mult"` multiplies the two rows elementwise, `"add"` adds them, `"concat"` puts them one after the
            other, each half as wide. Defaults to `"mult"`.
    """

    collisions: int = Field(default=4, ge=2)
    operation: Operation = "mult"


class Compression(Frozen):
    """What is done to one table, in this order; the parts compose.

    Attributes:
        hash_rows: Ids share this many rows: the first `exact_rows` ids keep their own, a hash spreads the others over
            the rest. `None` does not hash.
        exact_rows: Where ids are ordered by count, as vocabularies are, the frequent ones. Defaults to 0.
        quotient_remainder: Two tables in place of one, over the ids or their hashes. `None` for one.
        dim: Width that is stored; a learned matrix without bias projects it to `embedding_dim` (mixed dimensions,
            Ginart et al. 2019, arXiv 1909.11810). `None` for the full width.
        dtype: Type of the stored values. Rows are read as float32; updates are rounded stochastically, so that small
            ones are not lost. Defaults to `"float32"`.
    """

    hash_rows: int | None = Field(default=None, ge=2)
    exact_rows: int = Field(default=0, ge=0)
    quotient_remainder: QuotientRemainder | None = None
    dim: int | None = Field(default=None, ge=1)
    dtype: TableDtype = "float32"

    def refuse_misfit(self, table: str, rows: int, embedding_dim: int) -> None:
        """Raise `SpecError` unless the settings fit a table of `rows` rows and `embedding_dim` columns."""
        if self.hash_rows is not None and self.hash_rows >= rows:
            raise SpecError(
                f"`hash_rows` of table `{table}` must be below its {rows} rows. Received: {self.hash_rows}."
            )
        if self.exact_rows >= (self.hash_rows or 1):
            raise SpecError(
                f"`exact_rows` of table `{table}` must be below `hash_rows`. "
                f"Received: {self.exact_rows} and {self.hash_rows}."
            )
        if self.dim is not None and self.dim >= embedding_dim:
            raise SpecError(
                f"`dim` of table `{table}` must be below `embedding_dim`. Received: {self.dim} and {embedding_dim}."
            )
        parts = self.quotient_remainder
        if parts is None:
            return
        if parts.collisions >= (self.hash_rows or rows):
            raise SpecError(
                f"`collisions` of table `{table}` must be below its {self.hash_rows or rows} rows. "
                f"Received: {parts.collisions}."
            )
        if parts.operation == "concat" and (self.dim or embedding_dim) % 2:
            raise SpecError(
                f'`operation` "concat" of table `{table}` must have an even width to cut in two. '
                f"Received: {self.dim or embedding_dim}."
            )


class StoredPart(NamedTuple):
    """One array that holds (part of) a table.

    Attributes:
        part: `"rows"`, or `"quotient"` and `"remainder"`; `"projection"`; `"pooling_weight"`.
        rows: First dimension.
        dim: Second dimension.
        dtype: Type of its values.
    """

    part: str
    rows: int
    dim: int
    dtype: TableDtype

    @property
    def bytes(self) -> int:
        """Its size."""
        return self.rows * self.dim * BYTES[self.dtype]


def stored_parts(rows: int, embedding_dim: int, compression: Compression | None) -> tuple[StoredPart, ...]:
    """Return the arrays that hold a table.

    Args:
        rows: Rows of the table as ids see it.
        embedding_dim: Width of a vector as the network sees it.
        compression: How it is stored.

    Example:
        >>> [tuple(part) for part in stored_parts(100, 8, Compression(quotient_remainder={"collisions": 10}, dim=2))]
        [('quotient', 10, 2, 'float32'), ('remainder', 10, 2, 'float32'), ('projection', 2, 8, 'float32')]
    """
    if compression is None:
        return (StoredPart("rows", rows, embedding_dim, "float32"),)
    rows, dim = compression.hash_rows or rows, compression.dim or embedding_dim
    split = compression.quotient_remainder
    if split is None:
        parts = [StoredPart("rows", rows, dim, compression.dtype)]
    else:
        width = dim // 2 if split.operation == "concat" else dim
        parts = [
            StoredPart("quotient", -(-rows // split.collisions), width, compression.dtype),
            StoredPart("remainder", split.collisions, width, compression.dtype),
        ]
    if compression.dim is not None:
        parts.append(StoredPart("projection", dim, embedding_dim, "float32"))
    return tuple(parts)

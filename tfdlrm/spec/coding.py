"""How raw values become ids: the rules, without the vocabularies that training rows fill them with."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, field_validator, model_validator

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.frozen import Frozen

ValueKind = Literal["hex", "string", "number"]
TableKind = Literal["vocabulary", "hash", "modulo"]
IdOrder = Literal["count", "count_digits", "first_seen", "key"]
Unseen = Literal["missing", "rare", "zeros"] | Annotated[int, Field(ge=0)]
"""What serving takes a value for that has no row: see `TableCoding.serving`."""
NO_ROW = -1
"""Id of padding, and of a value that adds nothing."""


class TableCoding(Frozen):
    """How the values of one table become row ids.

    Rows below `first_id` are reserved. Ours: row 0 for missing values, row 1 for values that are rare in
    training or were never seen there. A `missing_row`, `oov_row` or `rare_row` from `first_id` on is shared with a
    value, as some published recipes have it.

    Attributes:
        kind: `"vocabulary"` gives each value seen in training rows at least `min_count` times a row of its own;
            `"hash"` spreads values over `buckets` rows by a hash of their keys; `"modulo"` gives a key, as an unsigned
            64-bit number, the row `first_id` + key mod `buckets`, hex only.
        value: `"hex"` reads up to 16 hexadecimal digits as one 64-bit key (case does not matter), `"string"` keys a
            value by its 64-bit fingerprint, `"number"` buckets a numeric column: floor(ln(x)^2) + 3 above 2,
            the value itself (floored) up to 2.
        min_count: Values seen fewer times in training rows share `rare_row`. Vocabulary only.
        max_values: Most values that get a row of their own, the most frequent ones; the others share `rare_row`.
            `None` for no limit. Vocabulary only.
        id_order: Which value gets the first rows: `"count"` the most frequent (equally frequent ones by key),
            `"count_digits"` the most frequent (equally frequent ones by the text of their keys' decimal digits, the
            last first: 9, 80, 8, 12), `"first_seen"` the one that is first in the raw files, `"key"` the one with the
            smallest key, as an unsigned number. Vocabulary only.
        modulus: Keys, as unsigned 64-bit numbers, are taken modulo this before anything else; `None` leaves them. Hex
            only.
        id_modulus: Rows are taken modulo this once they are given, so that values share rows; `None` leaves them.
            Vocabulary only.
        buckets: Rows for hashed values, reserved rows not included. Hash and modulo only.
        missing_row: Row of a missing value. Not used where `missing_key` is given.
        missing_key: A missing value counts as this key; `None` gives it `missing_row`. Hex only.
        oov_row: Row of a value never seen in training; `None`, in files `"none"`, where a published coding has none:
            such a value is then an error, and serving must be told what to do with it. -1: it adds nothing, as padding
            does.
        rare_row: Row of a value seen fewer than `min_count` times.
        first_id: First row that belongs to a single value (or bucket).
    """

    kind: TableKind = "vocabulary"
    value: ValueKind = "hex"
    min_count: int = Field(default=1, ge=1)
    max_values: int | None = Field(default=None, ge=1)
    id_order: IdOrder = "count"
    modulus: int | None = Field(default=None, ge=1, lt=2**63)
    id_modulus: int | None = Field(default=None, ge=1)
    buckets: int | None = Field(default=None, ge=1)
    missing_row: int = Field(default=0, ge=0)
    missing_key: int | None = Field(default=None, ge=0, lt=2**63)
    oov_row: int | None = Field(default=1, ge=-1)
    rare_row: int = Field(default=1, ge=0)
    first_id: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> TableCoding:
        if (self.kind == "vocabulary") != (self.buckets is None):
            raise SpecError(
                '`buckets` must be given for kind "hash" or "modulo" and only there. '
                f"Received: kind={self.kind!r}, buckets={self.buckets}."
            )
        if self.kind == "modulo" and self.value != "hex":
            raise SpecError(f'`kind` must not be "modulo" where `value` is not "hex". Received: value={self.value!r}.')
        if self.id_modulus is not None and any(row >= self.id_modulus for row in self.reserved_rows):
            raise SpecError(
                f"`id_modulus` must be above the reserved rows {sorted(self.reserved_rows)}. "
                f"Received: {self.id_modulus}."
            )
        for name, only in (("modulus", "hex"), ("missing_key", "hex")):
            if getattr(self, name) is not None and self.value != only:
                raise SpecError(f'`{name}` must be given for value "{only}" only. Received: value={self.value!r}.')
        if self.id_order == "first_seen" and self.value == "string":
            raise SpecError('`id_order` must not be "first_seen" for value "string". Received: both.')
        return self

    @field_validator("oov_row", mode="before")
    @classmethod
    def _none_in_words(cls, value: Any) -> Any:
        return None if value == "none" else value

    @field_serializer("oov_row", when_used="json")
    def _in_words(self, value: int | None) -> int | str:
        return "none" if value is None else value  # TOML has no null

    @property
    def has_rare(self) -> bool:
        """Whether values that training rows had may be denied a row of their own."""
        return self.kind == "vocabulary" and (self.min_count > 1 or self.max_values is not None)

    @property
    def reserved_rows(self) -> frozenset[int]:
        """Rows that missing, rare and unseen values get; from `first_id` on a value may have the row too."""
        rows = {self.missing_row} if self.missing_key is None else set()
        rows |= {self.rare_row} if self.has_rare else set()
        return frozenset(rows if self.oov_row in (None, NO_ROW) else rows | {self.oov_row})

    def serving(self, unseen: Unseen | None, missing_row: int | None = None) -> TableCoding:
        """Return the coding with a row for values never seen.

        Args:
            unseen: What such a value counts as where the coding has no `oov_row`: `"missing"`, `"rare"`, a row, or
                `"zeros"`: it adds nothing. So does a value that counts as `"missing"` where nothing was missing.
            missing_row: Row of a missing value where `missing_key` stands for it; `None` where that key has none.

        Raises:
            SpecError: nothing says which row it is.
        """
        if self.oov_row is not None:
            return self
        if unseen is None:
            raise SpecError(
                "`unseen` must say what a value without a row counts as, since the coding has no `oov_row`: "
                '"missing", "rare", "zeros" or a row. Received: none.'
            )
        if unseen == "rare" and not self.has_rare:
            raise SpecError('`unseen` must not be "rare" where no value is rare. Received: "rare".')
        if isinstance(unseen, int):
            row = unseen
        elif unseen == "missing" and self.missing_key is not None:
            row = NO_ROW if missing_row is None else missing_row
        else:
            row = {"missing": self.missing_row, "rare": self.rare_row, "zeros": NO_ROW}[unseen]
        return self.model_copy(update={"oov_row": row})


class Expand(Frozen):
    """How a single id becomes a bag of `hotness` ids: itself, then ids drawn once and for all from the same table.

    An id of -1, which adds nothing, becomes a bag of them. Draws differ from those of MLPerf's code in two ways. That
    code casts a Pareto draw to int32, where those from 2^31 on (1 of 215) do not fit: NumPy makes -2^31 of them all on
    x86, one row of the table; here they are reduced exactly. And it draws from all rows, those of missing, rare and
    unseen values too; here rows of single values alone are drawn.

    Attributes:
        distribution: `"uniform"` draws every row alike; `"pareto"` draws floor(x) modulo the number of rows, x of the
            Pareto (Lomax) distribution of shape 0.25, as the synthetic multi-hot data of MLPerf has it.
        seed: Another seed draws other ids.
    """

    distribution: Literal["uniform", "pareto"] = "uniform"
    seed: int = Field(default=0, ge=0)


class FeatureCoding(Frozen):
    """Where a sparse feature's raw value comes from.

    Attributes:
        source: Raw column name.
        separator: Splits one raw string into the ids of a bag; `None` for one value a row.
        expand: Makes a bag of the one id of a row; `None` leaves it alone.
        weights: Raw column with a number for each value of the bag, joined by the same separator; `None` for none.
    """

    source: str
    separator: str | None = Field(default=None, min_length=1)
    expand: Expand | None = None
    weights: str | None = None

    @model_validator(mode="after")
    def _one_kind_of_bag(self) -> FeatureCoding:
        if self.separator is not None and self.expand is not None:
            raise SpecError(
                f"`expand` must not be given beside `separator`: column `{self.source}` holds bags. Received: both."
            )
        if self.weights is not None and (self.separator is None or self.weights == self.source):
            raise SpecError(
                f"`weights` of column `{self.source}` must name another column and come with `separator`. "
                f"Received: {self.weights!r}, separator {self.separator!r}."
            )
        return self


class Encoding(Frozen):
    """The rules that turn a raw row into `dense` and `sparse`.

    Attributes:
        features: Coding of each sparse feature, by feature name.
        tables: Coding of each table, by table name.
    """

    features: dict[str, FeatureCoding]
    tables: dict[str, TableCoding]

    def check(self, spec: FeatureSpec) -> None:
        """Raise `SpecError` unless features and tables are exactly those of `spec`."""
        for label, have, want in (
            ("features", set(self.features), set(spec.sparse_names)),
            ("tables", set(self.tables), {t.name for t in spec.tables}),
        ):
            if have != want:
                raise SpecError(
                    f"`{label}` of the encoding must be those of the spec. "
                    f"Received: missing {sorted(want - have)}, unknown {sorted(have - want)}."
                )

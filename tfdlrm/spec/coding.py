"""How raw values become ids: the rules, without the vocabularies that training rows fill them with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.features import FeatureSpec, Frozen

ValueKind = Literal["hex", "string", "number"]
IdOrder = Literal["count", "first_seen", "key"]


class TableCoding(Frozen):
    """How the values of one table become row ids.

    Rows below `first_id` are reserved. Ours: row 0 for missing values, row 1 for values that are rare in
    training or were never seen there. A `missing_row`, `oov_row` or `rare_row` from `first_id` on is shared with a
    value, as some published recipes have it.

    Attributes:
        kind: `"vocabulary"` gives each value seen in training rows at least `min_count` times a row of its own;
            `"hash"` spreads values over `buckets` rows.
        value: `"hex"` reads up to 16 hexadecimal digits as one 64-bit key (case does not matter), `"string"` keys a
            value by its 64-bit fingerprint, `"number"` buckets a numeric column: floor(ln(x)^2) + 3 above 2,
            the value itself (floored) up to 2.
        min_count: Values seen fewer times in training rows share `rare_row`. Vocabulary only.
        max_values: Most values that get a row of their own, the most frequent ones; the others share `rare_row`.
            `None` for no limit. Vocabulary only.
        id_order: Which value gets the first rows: `"count"` the most frequent (equally frequent ones by key),
            `"first_seen"` the one that is first in the raw files, `"key"` the one with the smallest key, as an unsigned
            number. Vocabulary only.
        modulus: Keys, as unsigned 64-bit numbers, are taken modulo this before anything else; `None` leaves them. Hex
            only.
        buckets: Rows for hashed values, reserved rows not included. Hash only.
        missing_row: Row of a missing value. Not used where `missing_key` is given.
        missing_key: A missing value counts as this key; `None` gives it `missing_row`. Hex only.
        oov_row: Row of a value never seen in training; `None` where a published coding has none, which serving must
            then be told.
        rare_row: Row of a value seen fewer than `min_count` times.
        first_id: First row that belongs to a single value (or bucket).
    """

    kind: Literal["vocabulary", "hash"] = "vocabulary"
    value: ValueKind = "hex"
    min_count: int = Field(default=1, ge=1)
    max_values: int | None = Field(default=None, ge=1)
    id_order: IdOrder = "count"
    modulus: int | None = Field(default=None, ge=1, lt=2**63)
    buckets: int | None = Field(default=None, ge=1)
    missing_row: int = Field(default=0, ge=0)
    missing_key: int | None = Field(default=None, ge=0, lt=2**63)
    oov_row: int | None = Field(default=1, ge=0)
    rare_row: int = Field(default=1, ge=0)
    first_id: int = Field(default=2, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> TableCoding:
        if (self.kind == "hash") != (self.buckets is not None):
            raise SpecError(
                '`buckets` must be given for kind "hash" and only there. '
                f"Received: kind={self.kind!r}, buckets={self.buckets}."
            )
        for name, only in (("modulus", "hex"), ("missing_key", "hex")):
            if getattr(self, name) is not None and self.value != only:
                raise SpecError(f'`{name}` must be given for value "{only}" only. Received: value={self.value!r}.')
        if self.id_order == "first_seen" and self.value == "string":
            raise SpecError('`id_order` must not be "first_seen" for value "string". Received: both.')
        return self


class FeatureCoding(Frozen):
    """Where a sparse feature's raw value comes from.

    Attributes:
        source: Raw column name.
        separator: Splits one raw string into the ids of a bag; `None` for one value a row.
    """

    source: str
    separator: str | None = Field(default=None, min_length=1)


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

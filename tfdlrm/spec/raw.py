"""How raw rows lie in files: delimiter, columns, label rule, side tables, split."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, model_validator

from tfdlrm.spec.criteo import COLUMNS, LABEL
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.frozen import Frozen

_RULE = re.compile(r"^\s*(?P<column>[^<>=!]+?)\s*(?P<op>>=|<=|==|!=|>|<)\s*(?P<value>.+?)\s*$")


class LabelRule(Frozen):
    """A label rule taken apart: `column op value`, with no `op` where the column itself holds 0 and 1."""

    column: str
    op: Literal[">=", "<=", "==", "!=", ">", "<"] | None = None
    value: str | None = None


class SideTable(Frozen):
    """A file joined to the raw rows by a key: user attributes, item attributes.

    Attributes:
        file: Path; environment variables are expanded.
        key: Column found both in the raw rows and in this file. Its values here must be unique.
        delimiter: One character between fields.
        header: Whether the first line names the columns.
        columns: Column names in file order; required where there is no header.
        encoding: Text encoding of the file.
        collect: New multi-hot columns, each made from 0/1 flag columns of this file: name -> flag columns. The
            value is the names of the raised flags joined by `|`.
    """

    file: str
    key: str
    delimiter: str = Field(default="\t", min_length=1, max_length=1)
    header: bool = False
    columns: tuple[str, ...] = ()
    encoding: str = "utf-8"
    collect: dict[str, tuple[str, ...]] = {}

    @model_validator(mode="after")
    def _named(self) -> SideTable:
        if not self.header and not self.columns:
            raise SpecError(f"`columns` of side table `{self.file}` must be given where there is no header.")
        return self


class RawFormat(Frozen):
    """The shape of raw rows.

    Attributes:
        delimiter: One character between fields.
        header: Whether the first line of every file names the columns.
        columns: Column names in file order; required where there is no header. With a header, they must agree.
        quote: Quote character, or `None` where fields are never quoted. A quoted field may not hold a line end.
        label: A 0/1 column, or a rule on a column: `rating >= 4`.
        weight: Column of per-sample weights, if any.
        time: Column that orders rows for `split.by = "time"`, if any.
        side_tables: Files joined to the rows, in order.
    """

    delimiter: str = Field(default="\t", min_length=1, max_length=1)
    header: bool = False
    columns: tuple[str, ...] = ()
    quote: str | None = Field(default=None, min_length=1, max_length=1)
    label: str = LABEL
    weight: str | None = None
    time: str | None = None
    side_tables: tuple[SideTable, ...] = ()

    @model_validator(mode="after")
    def _named(self) -> RawFormat:
        if not self.header and not self.columns:
            raise SpecError("`columns` must be given where `header` is false.")
        return self

    @property
    def label_rule(self) -> LabelRule:
        """The label as column, comparison and value."""
        match = _RULE.match(self.label)
        if match is None:
            return LabelRule(column=self.label.strip())
        return LabelRule.model_validate(match.groupdict())


CRITEO_FORMAT = RawFormat(columns=COLUMNS)
"""Label, 13 integers, 26 hexadecimal strings; tab-separated, empty where missing."""


class Split(Frozen):
    """Which rows train, which choose, which judge.

    Attributes:
        by: `"order"`: consecutive shares, in file order, of train, validation, test. `"time"`: the same after
            ordering by the time column. `"hash"`: shares of the hash of `key`, so that no key falls on two
            sides. `"days"`: the rows are cut into `days` equal consecutive parts (one part a file where `days` is 0);
            all but the last part train, the first half of the last part tests, its second half validates (as the
            paper's code does).
            `"whole_and_half"`: every row trains, and the second half (the smaller one) validates and tests as well: a
            published leak, for comparison with results that have it.
            `"fold"`: `folds` equal consecutive parts, part `fold` tests, the others train, none validates.
            `"random"`: shares drawn for each row by `seed` and the row's number alone, so that about as many rows fall
            on each side; for rows without an order that matters.
        fractions: Shares of train, validation, test; they add up to 1. For order, time, hash and random.
        key: Column that is hashed. For hash.
        seed: Seed of the draw. Defaults to 0. For random.
        days: Number of parts. For days.
        last_day: What the last day is for: `"test_first"`, its first half tests and its second validates;
            `"validation_first"`, the other way round; `"test"`, all of it tests and nothing validates. For days.
        odd_row: Which half of the last day gets the row in the middle of an odd number, `"first"` or `"second"`. For
            days.
        folds: Number of parts. For fold.
        fold: The part that tests, from 0. For fold.
    """

    by: Literal["order", "time", "hash", "days", "fold", "whole_and_half", "random"] = "order"
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    key: str | None = None
    seed: int | None = Field(default=None, ge=0, lt=2**63)
    days: int = Field(default=7, ge=0)
    last_day: Literal["test_first", "validation_first", "test"] = "test_first"
    odd_row: Literal["first", "second"] = "first"
    folds: int = Field(default=5, ge=2)
    fold: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        if abs(sum(self.fractions) - 1) > 1e-9 or min(self.fractions) < 0 or self.fractions[0] <= 0:
            raise SpecError(
                "`fractions` must be three shares that add up to 1, the first above 0. "
                f"Received: {list(self.fractions)}."
            )
        if self.by == "hash" and self.key is None:
            raise SpecError('`key` must be given for split.by = "hash".')
        if self.fold >= self.folds:
            raise SpecError(f"`fold` must be below `folds`. Received: {self.fold} and {self.folds}.")
        return self

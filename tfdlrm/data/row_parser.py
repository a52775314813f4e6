"""Lines to typed rows: numbers, texts and labels are checked; what breaks a rule is told apart from what is good."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.bad_rows import Problem
from tfdlrm.data.fields import Layout, Lines, find_broken_lines, parse_fields
from tfdlrm.data.plain_fields import read_plain
from tfdlrm.spec.raw import LabelRule

_LONGEST_SHOWN = 60
_BLANKS = " \t"
_HEX_DIGITS = b"0123456789abcdefABCDEF"
_HEX_DIGITS_OF_A_KEY = 16


def number(column: str) -> pl.Expr:
    """Return a column as Float64, null where missing, by its name inside a parsed frame."""
    return pl.col(f"number:{column}")


def text(column: str) -> pl.Expr:
    """Return a column as String, `""` where missing, by its name inside a parsed frame."""
    return pl.col(f"text:{column}")


def key(column: str) -> pl.Expr:
    """Return a column of hexadecimal keys, 0 where missing, by its name inside a parsed frame.

    It is UInt32 where no key of the block needs more, else UInt64.
    """
    return pl.col(f"key:{column}")


def missing_key(column: str) -> pl.Expr:
    """Return, as Boolean, where a column of keys has none, by its name inside a parsed frame."""
    return pl.col(f"missing:{column}")


@dataclass(frozen=True)
class Check:
    """A rule that every row must keep.

    Attributes:
        column: The column it is about.
        rule: The rule in words, after the column's name.
        passes: Boolean, never null, over `number(...)` and `text(...)`.
        passes_if_hex: The same where the texts are known to hold hexadecimal digits only, if that is less work.
        passes_if_plain: Whether every plain field passes; see `plain_fields`.
    """

    column: str
    rule: str
    passes: pl.Expr
    passes_if_hex: pl.Expr | None = None
    passes_if_plain: bool = False


WEIGHT = r"[+-]?([0-9]+[.]?[0-9]*|[.][0-9]+)([eE][+-]?[0-9]+)?"
"""What the weight of a value in a bag looks like, as a regular expression."""


@dataclass(frozen=True)
class Parsed:
    """What became of a block of lines.

    Attributes:
        frame: The good rows; columns as `number(...)` and `text(...)` address them.
        good: Which lines they are, one entry per line.
        problems: What is wrong with each other line, by its index.
    """

    frame: pl.DataFrame
    good: npt.NDArray[np.bool_]
    problems: dict[int, Problem]


def readable(column: str) -> Check:
    """A number that is there can be read as one."""
    is_read = number(column).is_not_null() | (text(column).str.strip_chars(_BLANKS) == "")
    return Check(column, "must be a number", is_read, passes_if_plain=True)


def finite(column: str) -> Check:
    """NaN and infinities, in float32 too, are refused: one of them turns every weight into NaN."""
    is_finite = number(column).cast(pl.Float32).is_finite().fill_null(True)
    return Check(column, "must be finite", is_finite, passes_if_plain=True)


def filled(column: str) -> Check:
    """A text must be there."""
    return Check(column, "must not be empty", text(column) != "")


def sample_weight(column: str) -> Check:
    """A weight must be there and not below 0."""
    value = number(column)
    return Check(column, "must be a number of at least 0", (value.is_finite() & (value >= 0)).fill_null(False))


def hexadecimal(column: str, separator: str | None) -> Check:
    """Up to 16 hexadecimal digits: one 64-bit key; with a separator, any number of them."""
    rule = f"must be up to {_HEX_DIGITS_OF_A_KEY} hexadecimal digits"
    value = text(column)
    if separator is not None:
        digits = f"[0-9a-fA-F]{{0,{_HEX_DIGITS_OF_A_KEY}}}"
        return Check(column, rule, value.str.contains(f"^{digits}(?:{re.escape(separator)}{digits})*$"))
    # Reading the integer is several times faster than a regular expression, but lets a sign pass.
    is_read = value.str.to_integer(base=16, dtype=pl.UInt64, strict=False).is_not_null() & ~value.str.starts_with("+")
    is_short = value.str.len_bytes() <= _HEX_DIGITS_OF_A_KEY
    return Check(column, rule, (value == "") | (is_short & is_read), is_short, passes_if_plain=True)


def bag_weights(column: str, source: str, separator: str) -> Check:
    """A finite number for each value of the bag in `source`; empty parts count in neither."""
    parts = text(column).str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
    values = text(source).str.split(separator).list.eval(pl.element().filter(pl.element() != ""))
    numbers = pl.element().str.contains(f"^{WEIGHT}$") & pl.element().cast(pl.Float32, strict=False).is_finite()
    good = parts.list.eval(numbers.fill_null(False)).list.all() & (parts.list.len() == values.list.len())
    return Check(column, f"must hold a finite number for each value of `{source}`", good)


def label_is_number(rule: LabelRule) -> bool:
    """Tell whether the label column is read as numbers: it holds 0 and 1, or is compared with a number."""
    if rule.value is None:
        return True
    try:
        return math.isfinite(float(rule.value))
    except ValueError:
        return False


def label_value(rule: LabelRule) -> pl.Expr:
    """Return the label as Float32 0 or 1.

    A column compared with a number is compared as numbers; with anything else, or a number in quotes, as text.
    """
    if rule.op is None or rule.value is None:
        return number(rule.column).cast(pl.Float32)
    compared = number(rule.column) if label_is_number(rule) else text(rule.column)
    value = float(rule.value) if label_is_number(rule) else re.sub(r"""^(["'])(.*)\1$""", r"\2", rule.value)
    outcome = {
        ">=": compared >= value,
        "<=": compared <= value,
        ">": compared > value,
        "<": compared < value,
        "==": compared == value,
        "!=": compared != value,
    }[rule.op]
    return outcome.cast(pl.Float32)


def label_check(rule: LabelRule) -> Check:
    """Return what the label column must hold."""
    if rule.op is None:
        return Check(rule.column, "must be 0 or 1", number(rule.column).is_in([0.0, 1.0]).fill_null(False))
    if label_is_number(rule):
        return Check(rule.column, "must be a number", number(rule.column).is_finite().fill_null(False))
    return filled(rule.column)


class RowParser:
    """Parses lines of one layout.

    Blocks of plain numbers and keys are read straight from their bytes. Others without a fault, nearly all of them,
    are parsed in one go. One with a fault is parsed again as text, to find which field of which line breaks which rule.

    Args:
        layout: The columns of a line.
        numbers: Columns wanted as numbers; blanks around a number are ignored.
        texts: Columns wanted as text.
        checks: Rules, over wanted columns only. The first that a row breaks, in this order, is reported.
        keys: Columns wanted as keys, of one value each; `checks` must hold `hexadecimal` for each of them.
    """

    def __init__(
        self,
        layout: Layout,
        numbers: Collection[str],
        texts: Collection[str],
        checks: Sequence[Check],
        keys: Collection[str] = (),
    ) -> None:
        self._layout = layout
        self._numbers = sorted(set(numbers), key=layout.names.index)
        self._texts = sorted(set(texts), key=layout.names.index)
        self._keys = sorted(set(keys), key=layout.names.index)
        self._checks = list(checks)
        wanted = {f"number:{c}" for c in self._numbers} | {f"text:{c}" for c in {*self._texts, *self._keys}}
        # Where a column is read as numbers only, parsing itself checks that they are numbers.
        self._quick_checks = [c for c in checks if wanted.issuperset(c.passes.meta.root_names())]
        plain = {*self._numbers, *self._keys}.difference(self._texts)
        self._checks_if_plain = [c for c in self._quick_checks if not (c.passes_if_plain and c.column in plain)]

    def parse(self, lines: Lines) -> Parsed:
        """Parse lines and tell good from bad."""
        return self._parse_plain(lines) or self._parse_any(lines)

    def _parse_plain(self, lines: Lines) -> Parsed | None:
        """Parse a block without a fault whose numbers and keys are all plain; `None` if it is not one."""
        quote = self._layout.quote
        if self._texts or (quote is not None and quote.encode() in lines.block):
            return None
        # A line that is no text is bad even where nobody reads the column; the slower way says which one it is.
        if not lines.block.isascii():
            return None
        plain = read_plain(lines, self._layout, self._numbers, self._keys)
        if plain is None:
            return None
        columns = [
            pl.Series(f"number:{c}", values, nan_to_null=True)
            for c, values in zip(self._numbers, plain.numbers, strict=True)
        ]
        for name, values, missing in zip(self._keys, plain.keys, plain.missing, strict=True):
            columns += [pl.Series(f"key:{name}", values), pl.Series(f"missing:{name}", missing)]
        frame = pl.DataFrame(columns)
        if not frame.select(pl.all_horizontal(True, *(c.passes.all() for c in self._checks_if_plain))).item():
            return None
        return Parsed(frame, np.ones(frame.height, bool), {})

    def _parse_any(self, lines: Lines) -> Parsed:
        problems = find_broken_lines(lines, self._layout)
        good = np.ones(len(lines), bool)
        good[list(problems)] = False
        whole = lines.keep(good) if problems else lines
        texts = list(dict.fromkeys([*self._texts, *self._keys]))
        try:
            frame = self._read(whole, texts)
            if frame.select(pl.all_horizontal(True, *self._quick_expressions(whole, frame))).item():
                return Parsed(self._with_keys(frame), good, problems)
        except pl.exceptions.ComputeError:
            pass  # some number is none; found below
        frame = self._read(whole, list(dict.fromkeys([*texts, *self._numbers])))
        origin = np.flatnonzero(good)
        for check in self._checks:
            for row in np.flatnonzero(~frame.select(check.passes).to_series().to_numpy()).tolist():
                received = frame[f"text:{check.column}"][row]
                shown = received if len(received) <= _LONGEST_SHOWN else received[:_LONGEST_SHOWN] + "..."
                problem = Problem(f"`{check.column}` {check.rule}", f". Received: {shown!r}")
                problems.setdefault(int(origin[row]), problem)
        good[list(problems)] = False
        return Parsed(self._with_keys(frame.filter(pl.Series(good[origin]))), good, problems)

    def _with_keys(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the wanted columns, keys read from their texts."""
        keys = []
        for name in self._keys:
            column = frame[f"text:{name}"].str.to_integer(base=16, dtype=pl.UInt64, strict=False)
            is_short = not (column > 0xFFFFFFFF).any()
            column = column.cast(pl.UInt32) if is_short else column
            keys += [column.fill_null(0).alias(f"key:{name}"), column.is_null().alias(f"missing:{name}")]
        wanted = [*(number(c) for c in self._numbers), *(text(c) for c in self._texts)]
        return frame.select(wanted).with_columns(keys)

    def _quick_expressions(self, lines: Lines, frame: pl.DataFrame) -> list[pl.Expr]:
        """Return what is true if every row keeps every rule."""
        only_hex = any(c.passes_if_hex is not None for c in self._quick_checks) and self._only_hex(lines, frame)
        chosen = [c.passes if c.passes_if_hex is None or not only_hex else c.passes_if_hex for c in self._quick_checks]
        return [passes.all() for passes in chosen]

    def _only_hex(self, lines: Lines, frame: pl.DataFrame) -> bool:
        """Tell from the bytes of a block that no text holds anything but hexadecimal digits.

        A block of numbers and hexadecimal texts is left with nothing but the signs of its negative numbers once the
        digits are taken out. Anything else left means that the texts must be looked at one by one.
        """
        rest = lines.block.translate(None, _HEX_DIGITS + b"\n" + self._layout.delimiter.encode())
        negative = sum(int((frame[f"number:{name}"] < 0).sum()) for name in self._numbers)
        return len(rest) == negative == rest.count(b"-")

    def _read(self, lines: Lines, texts: Sequence[str]) -> pl.DataFrame:
        types: dict[str, pl.DataType] = {c: pl.Float64() for c in self._numbers}
        types.update({c: pl.String() for c in texts})
        blanks_ignored = pl.col(pl.String).str.strip_chars(_BLANKS).cast(pl.Float64, strict=False)
        raw = parse_fields(lines, self._layout, types)
        numbers = raw.select(self._numbers).with_columns(blanks_ignored)
        columns = [s.alias(f"number:{s.name}") for s in numbers] + [raw[c].alias(f"text:{c}") for c in texts]
        return pl.DataFrame(columns)

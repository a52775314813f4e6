"""Rows read from bytes equal rows read by way of text, and only plain ones are read so."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfdlrm.data import plain_fields
from tfdlrm.data.fields import Layout, Lines
from tfdlrm.data.plain_fields import read_plain
from tfdlrm.data.row_parser import RowParser, finite, hexadecimal, key, label_check, missing_key, readable
from tfdlrm.spec.raw import LabelRule

LAYOUT = Layout(("label", "a", "other", "c", "b", "d"), "\t")
CHECKS = [label_check(LabelRule(column="label"))]
CHECKS += [check(name) for name in ("a", "b") for check in (readable, finite)]
CHECKS += [hexadecimal(name, None) for name in ("c", "d")]


def parser() -> RowParser:
    return RowParser(LAYOUT, ["label", "a", "b"], [], CHECKS, ["c", "d"])


def by_text(block: bytes) -> tuple[list[tuple], list[int]]:
    """Parse with a text column among those wanted, which keeps the parser from the quick way."""
    checked = RowParser(LAYOUT, ["label", "a", "b"], ["other", "c", "d"], CHECKS)
    parsed = checked.parse(Lines(block))
    frame = parsed.frame
    rows = frame.select("number:label", "number:a", "number:b").rows()
    keys = [[int(text, 16) if text else None for text in frame[f"text:{name}"]] for name in ("c", "d")]
    return [(*row, *key) for row, key in zip(rows, zip(*keys, strict=True), strict=True)], sorted(parsed.problems)


def check(block: bytes) -> None:
    parsed = parser().parse(Lines(block))
    keys = [pl.when(~missing_key(name)).then(key(name)).alias(f"key:{name}") for name in ("c", "d")]
    frame = parsed.frame.select("number:label", "number:a", "number:b", *keys)
    expected, problems = by_text(block)
    # repr, as -0.0 must stay what it is
    assert repr(frame.rows()) == repr(expected)
    assert parsed.frame.filter(missing_key("c"))["key:c"].sum() == 0
    assert sorted(parsed.problems) == problems
    for name in ("key:c", "key:d"):
        longest = max([key or 0 for key in frame[name]], default=0)
        assert frame.schema[name] == (pl.UInt32 if longest < 2**32 else pl.UInt64)


plain_number = st.one_of(
    st.just(""), st.integers(-9_999_999, 99_999_999).map(str), st.from_regex(r"-?0{0,5}[0-9]", fullmatch=True)
)
odd_number = st.sampled_from(
    ["+1", " 1", "1.5", "1e3", "123456789", "-12345678", "-", "--1", "1-", "\u0661", "x", "/", ":"]
)
plain_key = st.text("0123456789abcdefABCDEF", max_size=8)
odd_key = st.sampled_from(
    ["0" * 9, "f" * 16, "0" * 17, "g", "-1", "+1", "@", "`", "G", "0x1", "\u00e9", "\x80a", "/", ":", "ab c"]
)
other = st.sampled_from(["", "x", "é", "12", "\x01"])


def test_a_column_nobody_reads_must_be_text_too():
    block = b"1\t5\t\xff\ta\t7\tc\n"
    assert sorted(parser().parse(Lines(block)).problems) == [0]
    assert sorted(parser().parse(Lines(block + b"1\t1.5\tx\ta\t7\tc\n")).problems) == [0]


def block_of(rows: list[tuple[str, ...]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


plain_rows = st.lists(
    st.tuples(st.sampled_from("01"), plain_number, other, plain_key, plain_number, plain_key), min_size=1
)
any_rows = st.lists(
    st.tuples(
        st.sampled_from(["0", "1", "2", ""]),
        plain_number | odd_number,
        other,
        plain_key | odd_key,
        plain_number,
        plain_key | odd_key,
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=150)
@given(rows=plain_rows, at_once=st.integers(1, 80))
@example(rows=[("1", "-0", "", "", "-1234567", "FFFFFFFF"), ("0", "", "", "0", "00000000", "0000000a")], at_once=1)
def test_plain_rows_equal_those_read_as_text(rows, at_once):
    before = plain_fields._BYTES_AT_ONCE
    plain_fields._BYTES_AT_ONCE = at_once
    try:
        check(block_of(rows))
        if not any("\x01" in row[2] for row in rows):
            assert read_plain(Lines(block_of(rows)), LAYOUT, ["a", "b"], ["c", "d"]) is not None
    finally:
        plain_fields._BYTES_AT_ONCE = before


@settings(deadline=None, max_examples=150)
@given(any_rows)
def test_any_rows_equal_those_read_as_text(rows):
    check(block_of(rows))


def is_plain(number: bytes = b"1", key: bytes = b"a") -> bool:
    block = b"0\t5\t\tb\t7\tc\n" + b"1\t%s\t\t%s\t7\tc\n" % (number, key) + b"0\t5\t\tb\t7\tc\n"
    return read_plain(Lines(block), LAYOUT, ["a", "b"], ["c", "d"]) is not None


@pytest.mark.parametrize("place", range(8))
def test_every_other_byte_is_refused_in_every_place(place):
    for byte in set(range(256)) - {ord("\t"), ord("\n")}:
        number, key = bytearray(b"12345678"), bytearray(b"12345678")
        number[place] = key[place] = byte
        digit = chr(byte) in "0123456789"
        assert is_plain(number=bytes(number)) is (digit or (place == 0 and byte == ord("-"))), (place, byte)
        assert is_plain(key=bytes(key)) is (digit or chr(byte) in "abcdefABCDEF"), (place, byte)


@pytest.mark.parametrize(
    "block",
    [
        b"1\t2\t\ta\t3\n",
        b"1\t2\t\ta\t3\tb\tc\n",
        b"1\t2\t\ta\t3\tb\tc\n1\t2\t\ta\t3\n",  # as many fields as two rows have
        b"1\t2\t\ta\t3\tb\n\n1\t2\t\ta\t3\tb\n",
        b"1\t2\t\0\ta\t3\tb\n",
        b"1\t2\t\0a\t3\tb\n",  # a NUL in the place of a delimiter
        b"\n",
    ],
)
def test_broken_lines_are_not_plain(block):
    assert read_plain(Lines(block), LAYOUT, ["a", "b"], ["c", "d"]) is None


def test_many_rows_of_every_length():
    rng = np.random.default_rng(0)
    rows = 5000
    numbers = rng.integers(-(10**7) + 1, 10**8, rows) // 10 ** rng.integers(0, 8, rows)
    keys = rng.integers(0, 2**32, rows) >> rng.integers(0, 32, rows)
    block = b"".join(b"%d\t%d\t\t%x\t\t\n" % (i % 2, n, k) for i, (n, k) in enumerate(zip(numbers, keys, strict=True)))
    plain = read_plain(Lines(block), LAYOUT, ["a", "b"], ["d", "c"])
    assert plain is not None
    np.testing.assert_array_equal(plain.numbers[0], numbers)
    assert np.isnan(plain.numbers[1]).all()
    np.testing.assert_array_equal(plain.keys[1], keys)
    assert plain.missing[0].all() and not plain.missing[1].any()

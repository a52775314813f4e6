"""Keys against int(text, 16), a farmhash written from its definition, and logarithms of thirty digits."""

from __future__ import annotations

import decimal
import math
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tfdlrm.data.columns import KeyColumn
from tfdlrm.data.keys import (
    hash_rows,
    hex_keys,
    keys_in_bulk,
    keys_of,
    modulo_keys,
    number_keys,
    shared_keys,
    string_keys,
)
from tfdlrm.spec.coding import TableCoding

WORD = (1 << 64) - 1
K0, K1, K2 = 0xC3A5C85C97CB3127, 0xB492B66FBE98F273, 0x9AE16A3B2F90404F


def signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def farmhash64(text: bytes) -> int:
    """Return farmhash's Fingerprint64 of up to 32 bytes."""
    n = len(text)

    def fetch(start: int, size: int = 8) -> int:
        return int.from_bytes(text[start : start + size], "little")

    def rotate(word: int, shift: int) -> int:
        word &= WORD
        return (word >> shift | word << (64 - shift)) & WORD

    def mix(u: int, v: int, mul: int) -> int:
        a = ((u ^ v) & WORD) * mul & WORD
        a ^= a >> 47
        b = ((v & WORD) ^ a) * mul & WORD
        b ^= b >> 47
        return b * mul & WORD

    mul = K2 + 2 * n & WORD
    if n > 16:
        a, b, c, d = fetch(0) * K1, fetch(8), fetch(n - 8) * mul, fetch(n - 16) * K2
        return mix(rotate(a + b, 43) + rotate(c, 30) + d, a + rotate(b + K2, 18) + c, mul)
    if n >= 8:
        a, b = fetch(0) + K2, fetch(n - 8)
        return mix(rotate(b, 37) * mul + a, (rotate(a, 25) + b) * mul, mul)
    if n >= 4:
        return mix(n + (fetch(0, 4) << 3), fetch(n - 4, 4), mul)
    if n:
        y, z = text[0] + (text[n >> 1] << 8), n + (text[n - 1] << 2)
        word = (y * K2 ^ z * K0) & WORD
        return (word ^ word >> 47) * K2 & WORD
    return K2


def expected_hex(text: bytes) -> int | None:
    return signed(int(text, 16)) if re.fullmatch(rb"[0-9a-fA-F]{1,16}", text) else None


def check_hex(texts: list[bytes]) -> None:
    values = tf.constant(texts, tf.string)
    in_graph = keys_in_bulk("hex", values)
    for keys, valid in (hex_keys(values), (in_graph.keys, in_graph.valid)):
        expected = [expected_hex(text) for text in texts]
        assert valid.numpy().tolist() == [key is not None for key in expected]
        assert [k for k, ok in zip(keys.numpy().tolist(), valid.numpy(), strict=True) if ok] == [
            key for key in expected if key is not None
        ]


hex_text = st.text("0123456789abcdefABCDEF", max_size=18).map(str.encode)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.one_of(hex_text, st.binary(max_size=18)), max_size=12))
@example([])
@example([b"", b"0", b"0A", b"a", b"0" * 16, b"f" * 16, b"8" + b"0" * 15, b"0" * 17, b"68fd1e64"])
def test_hex_is_int_base_16(texts):
    check_hex(texts)


@pytest.mark.parametrize("place", [0, 6, 7, 8, 15])
def test_hex_refuses_every_other_byte(place):
    digits = b"0123456789abcdef"
    check_hex([digits[:place] + bytes([byte]) + digits[place + 1 :] for byte in range(256)])
    check_hex([digits[:place] + bytes([byte]) for byte in range(256)])


def test_hex_keeps_the_shape():
    keys, valid = hex_keys(tf.constant([["1", "2", "x"], ["A", "b", ""]]))
    assert keys.shape == valid.shape == (2, 3)
    assert keys.numpy()[1, :2].tolist() == [10, 11]


@settings(deadline=None, max_examples=50)
@given(st.lists(st.binary(max_size=32), max_size=8))
def test_string_key_is_the_farmhash(texts):
    keys = string_keys(tf.constant(texts, tf.string)).numpy().tolist()
    assert keys == [signed(farmhash64(text)) for text in texts]


def test_string_keeps_the_shape():
    keys = string_keys(tf.constant([["a", "b"], ["c", "a"]])).numpy()
    assert keys.shape == (2, 2)
    assert keys[0, 0] == keys[1, 1] == signed(farmhash64(b"a"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=8), st.integers(1, 2**40))
def test_hash_row_is_the_farmhash_of_the_digits(keys, buckets):
    rows = hash_rows(tf.constant(keys, tf.int64), buckets).numpy().tolist()
    assert rows == [farmhash64(str(key).encode()) % buckets for key in keys]


@pytest.mark.parametrize(
    ("number", "key"),
    [(-2.0, -2), (-1.5, -2), (-0.0, 0), (0.0, 0), (0.9, 0), (1.0, 1), (2.0, 2), (2.5, 3), (3.0, 4), (1e4, 87)],
)
def test_number_key(number, key):
    assert number_keys(tf.constant([number])).numpy().tolist() == [key]


def test_number_key_changes_exactly_where_the_squared_logarithm_passes_an_integer():
    numbers, expected = [], []
    largest = decimal.Decimal(float(np.finfo(np.float32).max))
    with decimal.localcontext(prec=30):
        for key in range(1, 7872):
            edge = decimal.Decimal(key).sqrt().exp()  # the smallest number with this key
            if edge > largest:
                break
            above = np.float32(float(edge))
            if decimal.Decimal(float(above)) < edge:
                above = np.nextafter(above, np.float32(np.inf))
            numbers += [above, np.nextafter(above, np.float32(0))]
            expected += [key + 3, key + 2]
    assert len(numbers) > 15_000
    for order in (slice(None), slice(None, None, -1)):
        assert number_keys(tf.constant(np.array(numbers)[order])).numpy().tolist() == expected[order]


def test_numbers_beyond_all_integers_have_keys():
    largest = np.finfo(np.float32).max
    keys = number_keys(tf.constant([largest, -largest, -np.inf, np.inf, np.nan], tf.float32)).numpy().tolist()
    assert keys == [math.floor(math.log(largest) ** 2) + 3, -(2**62), 0, 0, 0]


def test_number_key_does_not_depend_on_the_place():
    numbers = np.random.default_rng(0).lognormal(5, 5, 1003).astype(np.float32)
    together = number_keys(tf.constant(numbers)).numpy()
    alone = [int(number_keys(tf.constant([number])).numpy()[0]) for number in numbers[:200]]
    assert together[:200].tolist() == alone


@pytest.mark.parametrize("call", [keys_of, keys_in_bulk])
def test_missing_and_invalid(call):
    texts = tf.constant(["", "0", "zz"])
    assert call("hex", texts).missing.numpy().tolist() == [True, False, False]
    assert call("hex", texts).valid.numpy().tolist() == [False, True, False]
    assert call("string", texts).missing.numpy().tolist() == [True, False, False]
    assert call("string", texts).valid.numpy().all()
    numbers = call("number", tf.constant([0.0, np.nan, np.inf, -np.inf]))
    assert numbers.missing.numpy().tolist() == [False, True, True, True]
    assert numbers.valid.numpy().all()


WIDE = [0, 1, 9, 10, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1]


@pytest.mark.parametrize("modulus", [1, 7, 10, 40_000_000, 2**62 + 3])
def test_moduli_are_those_of_unsigned_numbers(modulus):
    expected = [key % modulus for key in WIDE]
    assert modulo_keys(tf.constant(np.array(WIDE, np.uint64).view(np.int64)), modulus).numpy().tolist() == expected
    coding = TableCoding(modulus=modulus, missing_key=12)
    column = KeyColumn(np.array(WIDE, np.uint64), np.array([i == 2 for i in range(len(WIDE))]))
    keys, missing = shared_keys(column, coding)
    assert keys.tolist() == [12 % modulus if i == 2 else key for i, key in enumerate(expected)]
    assert not missing.any()
    assert column.keys.tolist() == WIDE  # untouched


def test_short_keys_take_a_long_missing_key():
    column = KeyColumn(np.array([5, 2**32 - 1], np.uint32), np.array([True, False]))
    assert shared_keys(column, TableCoding(missing_key=2**40)).keys.tolist() == [2**40, 2**32 - 1]
    assert shared_keys(column, TableCoding(modulus=2**40)).keys.tolist() == [5, 2**32 - 1]
    assert shared_keys(column, TableCoding()).missing.tolist() == [True, False]

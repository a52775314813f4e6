"""Vocabularies against counts in a dict, statistics against NumPy."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdlrm.data import vocabulary_builder
from tfdlrm.data.keys import string_keys
from tfdlrm.data.vocabulary import Vocabulary, table_rows
from tfdlrm.data.vocabulary_builder import VocabularyBuilder
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.errors import DataError, SpecError

# Two strings of one farmhash64 fingerprint, made by solving its mixing of 32-byte strings backwards.
COLLISION = ("user-agent: Mozilla/5.0 (X11; x)", "q6e~_sn&J..^M;V$W7n6%,9'iKaWJU<F")


def builder(coding: TableCoding, separator: str | None = None, **options) -> VocabularyBuilder:
    encoding = Encoding(features={"c": FeatureCoding(source="c", separator=separator)}, tables={"t": coding})
    return VocabularyBuilder(encoding, {"c": "t"}, **options)


def build(coding: TableCoding, values: list, separator: str | None = None) -> Vocabulary:
    counts = builder(coding, separator)
    counts.add(pl.DataFrame({"c": values}))
    return counts.build()[0]["t"]


def as_dict(vocabulary: Vocabulary) -> dict[int, int]:
    return dict(zip(vocabulary.keys.tolist(), vocabulary.ids.tolist(), strict=True))


def expected_ids(keys: list[int], coding: TableCoding) -> dict[int, int]:
    counts = Counter(keys)
    ranked = sorted(counts, key=lambda key: (-counts[key], key))
    kept = [key for key in ranked if counts[key] >= coding.min_count]
    ids = {key: coding.first_id + rank for rank, key in enumerate(kept)}
    if coding.rare_row != coding.oov_row:
        ids |= {key: coding.rare_row for key in ranked if key not in ids}
    return ids


def test_most_frequent_first_ties_by_key():
    vocabulary = build(TableCoding(), ["b", "c", "c", "a", "", "c", None, "a"])
    assert as_dict(vocabulary) == {0xC: 2, 0xA: 3, 0xB: 4}
    assert vocabulary.rows == 5


def test_case_and_leading_zeros_are_one_value():
    vocabulary = build(TableCoding(), ["0A", "0a", "A", "b", "b", "FFFFFFFFFFFFFFFF"])
    assert as_dict(vocabulary) == {10: 2, 11: 3, -1: 4}
    assert vocabulary.keys.tolist() == [-1, 10, 11]


def test_rare_values_need_no_entry_where_unknown_ones_share_their_row():
    vocabulary = build(TableCoding(min_count=2), ["a", "a", "b"])
    assert as_dict(vocabulary) == {0xA: 2}
    assert vocabulary.rows == 3


def test_rare_values_keep_an_entry_where_unknown_ones_differ():
    vocabulary = build(TableCoding(min_count=2, oov_row=1, rare_row=2, first_id=3), ["a", "a", "b"])
    assert as_dict(vocabulary) == {0xA: 3, 0xB: 2}
    assert vocabulary.rows == 4


def test_values_that_are_not_hexadecimal_get_no_row():
    assert as_dict(build(TableCoding(), ["zz", "1", "0x1"])) == {1: 2}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(["", "1", "2", "0A", "0a", "a", "B", "ffffffffffffffff"]), max_size=60),
    st.lists(st.integers(0, 60), max_size=4),
    st.integers(1, 3),
    st.sampled_from([(1, 1, 2), (1, 0, 2), (0, 0, 0)]),
    st.randoms(use_true_random=False),
)
def test_counts_do_not_depend_on_chunks_or_order(values, cuts, min_count, rows, random):
    coding = TableCoding(min_count=min_count, oov_row=rows[0], rare_row=rows[1], first_id=rows[2])
    keys = [int(value, 16) for value in values if value]
    expected = expected_ids([key - 2**64 if key >= 2**63 else key for key in keys], coding)
    whole = build(coding, values)
    assert as_dict(whole) == expected
    random.shuffle(values)
    counts = builder(coding)
    cuts = sorted(cuts)
    for start, stop in zip([0, *cuts], [*cuts, len(values)], strict=True):
        counts.add(pl.DataFrame({"c": values[start:stop]}, schema={"c": pl.String}))
    cut = counts.build()[0]["t"]
    np.testing.assert_array_equal(cut.keys, whole.keys)
    np.testing.assert_array_equal(cut.ids, whole.ids)
    assert cut.rows == whole.rows


def test_counts_survive_merging_on_the_way(monkeypatch):
    monkeypatch.setattr(vocabulary_builder, "_COMPACT_ABOVE", 8)
    rng = np.random.default_rng(0)
    values = [f"{v:x}" for v in rng.integers(0, 50, 1000)]
    counts = builder(TableCoding(min_count=18))
    for start in range(0, 1000, 7):
        counts.add(pl.DataFrame({"c": values[start : start + 7]}))
    expected = expected_ids([int(v, 16) for v in values], TableCoding(min_count=18))
    assert 0 < len(expected) < 50
    assert as_dict(counts.build()[0]["t"]) == expected


def test_of_large_tables_ordered_by_digits_one_is_built_at_a_time(tmp_path, monkeypatch):
    names = [f"t{number}" for number in range(4)]
    encoding = Encoding(
        features={name: FeatureCoding(source=name) for name in names},
        tables=dict.fromkeys(names, TableCoding(id_order="count_digits")),
    )
    within, most = [], []
    rank = vocabulary_builder.numbered

    def watched(*arguments):
        within.append(1)
        most.append(len(within))
        time.sleep(0.05)
        vocabulary = rank(*arguments)
        within.pop()
        return vocabulary

    monkeypatch.setattr(vocabulary_builder, "numbered", watched)
    monkeypatch.setattr(vocabulary_builder, "usable_cores", lambda: 4)
    found = []
    for memory_bytes in (4 * 60 * 100, 4 * 60 * 100 - 4):  # enough for each of four threads, and not quite
        counts = VocabularyBuilder(encoding, dict(zip(names, names, strict=True)))
        counts.add(pl.DataFrame({name: [f"{value:x}" for value in range(100)] for name in names}))
        most.clear()
        built, _ = counts.build((), tmp_path, memory_bytes)
        found.append(max(most))
        digits = sorted(range(100), key=str, reverse=True)
        assert as_dict(built["t3"]) == {value: 2 + place for place, value in enumerate(digits)}
    assert found[0] > 1 and found[1] == 1


def test_strings():
    coding = TableCoding(value="string")
    vocabulary = build(coding, ["new york", "zürich", "zürich", "", "a\0", "a"])
    new_york, zurich, nul, a = string_keys(tf.constant(["new york", "zürich", "a\0", "a"])).numpy().tolist()
    assert nul != a
    assert as_dict(vocabulary) == expected_ids([new_york, zurich, zurich, nul, a], coding)


def test_bags_are_split_and_empty_parts_skipped():
    coding = TableCoding(value="string")
    vocabulary = build(coding, ["Drama|War", "", "|", "War||Comedy|", "Drama|War"], separator="|")
    ids = as_dict(vocabulary)
    war, drama, comedy = string_keys(tf.constant(["War", "Drama", "Comedy"])).numpy().tolist()
    assert ids == {war: 2, drama: 3, comedy: 4}
    assert vocabulary.rows == 5


@pytest.mark.parametrize("text", ["a|||b", "||", "a||", "||a||b"])
def test_bags_are_split_as_tensorflow_splits_them(text):
    parts = [part.decode() for part in tf.strings.split([text], "||")[0].numpy().tolist() if part]
    vocabulary = build(TableCoding(value="string"), [text], separator="||")
    assert sorted(vocabulary.keys.tolist()) == sorted(int(key) for key in string_keys(tf.constant(parts, tf.string)))


def test_numbers_are_counted_by_bucket():
    vocabulary = build(TableCoding(value="number"), [1.0, 3.0, 4.0, 0.0, -1.0, None, float("nan"), float("inf"), 1e300])
    assert as_dict(vocabulary) == {4: 2, -1: 3, 0: 4, 1: 5}  # 3 and 4 share a bucket


def test_features_of_one_table_are_counted_together():
    features = {"a": FeatureCoding(source="x"), "b": FeatureCoding(source="y"), "again": FeatureCoding(source="x")}
    counts = VocabularyBuilder(
        Encoding(features=features, tables={"t": TableCoding(min_count=2)}), {"a": "t", "b": "t", "again": "t"}
    )
    counts.add(pl.DataFrame({"x": ["1", "2"], "y": ["2", "3"]}))
    assert as_dict(counts.build()[0]["t"]) == {2: 2}


def test_hashed_and_empty_tables_have_their_rows_only():
    hashed = build(TableCoding(kind="hash", buckets=100), ["1", "2"])
    assert (len(hashed.keys), hashed.rows) == (0, 102)
    empty = build(TableCoding(), ["", None, ""])
    assert (len(empty.keys), empty.rows) == (0, 2)
    assert table_rows(TableCoding(missing_row=0, oov_row=0, rare_row=0, first_id=0), 0) == 1


def test_colliding_strings_are_named():
    assert len(set(string_keys(tf.constant(COLLISION)).numpy().tolist())) == 1
    counts = builder(TableCoding(value="string"))
    counts.add(pl.DataFrame({"c": ["x", COLLISION[0]]}))
    counts.add(pl.DataFrame({"c": ["y", COLLISION[1]]}))
    with pytest.raises(DataError, match="table `t` must have distinct 64-bit fingerprints") as error:
        counts.build()
    assert all(repr(value) in str(error.value) for value in COLLISION)


def test_statistics_match_numpy_however_they_are_cut():
    rng = np.random.default_rng(0)
    values = (1e6 + rng.normal(0, 3, 5000)).astype(np.float32)
    raw = values.astype(np.float64)
    raw[::7] = np.nan
    kept = raw[np.isfinite(raw)]
    for size in (5000, 999, 101):
        counts = builder(TableCoding(), standardize=["x"])
        for start in range(0, 5000, size):
            part = raw[start : start + size]
            counts.add(pl.DataFrame({"c": [""] * len(part), "x": part}))
        stats = counts.build()[1]["x"]
        np.testing.assert_allclose([stats.mean, stats.std], [kept.mean(), kept.std()], rtol=1e-12)


@pytest.mark.parametrize(
    ("values", "mean"), [([0.1] * 10, np.float32(0.1)), ([None, None], 0.0), ([], 0.0), ([float("inf"), 5.0], 5.0)]
)
def test_a_constant_deviates_by_one(values, mean):
    counts = builder(TableCoding(), standardize=["x"])
    counts.add(pl.DataFrame({"c": [""] * len(values), "x": values}, schema={"c": pl.String, "x": pl.Float64}))
    stats = counts.build()[1]["x"]
    assert stats.mean == pytest.approx(float(mean), rel=1e-12)
    assert stats.std == 1.0


def test_twelve_bytes_an_entry():
    vocabulary = build(TableCoding(), [f"{v:x}" for v in range(1000)])
    assert vocabulary.nbytes == 12 * 1000


def test_save_and_load(tmp_path):
    vocabulary = build(TableCoding(), ["a", "b", "b"])
    vocabulary.save(tmp_path / "v.npz")
    loaded = Vocabulary.load(tmp_path / "v.npz")
    np.testing.assert_array_equal(loaded.keys, vocabulary.keys)
    np.testing.assert_array_equal(loaded.ids, vocabulary.ids)
    assert loaded.rows == vocabulary.rows
    assert [path.name for path in tmp_path.iterdir()] == ["v.npz"]


def test_load_names_the_file(tmp_path):
    with pytest.raises(DataError, match="none.npz: no such file"):
        Vocabulary.load(tmp_path / "none.npz")
    build(TableCoding(), ["a", "b", "b"]).save(tmp_path / "v.npz")
    (tmp_path / "v.npz").write_bytes((tmp_path / "v.npz").read_bytes()[:100])
    with pytest.raises(DataError, match="v.npz: not a vocabulary"):
        Vocabulary.load(tmp_path / "v.npz")


@pytest.mark.parametrize(
    ("keys", "ids", "message"),
    [
        (np.array([1, 2]), np.array([2], np.int32), "of one length"),
        (np.array([1, 2]), np.array([2, 3]), "int32"),
        (np.array([2, 1]), np.array([2, 3], np.int32), "ascending"),
        (np.array([1, 1]), np.array([2, 3], np.int32), "ascending"),
        (np.array([1, 2]), np.array([2, 4], np.int32), r"\[0, 4\)"),
    ],
)
def test_a_vocabulary_checks_itself(keys, ids, message):
    with pytest.raises(DataError, match=message):
        Vocabulary(keys, ids, 4)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="`frame` must have the column `c`"):
        builder(TableCoding()).add(pl.DataFrame({"d": ["1"]}))
    with pytest.raises(DataError, match="column `c` must hold strings. Received: Int64"):
        builder(TableCoding()).add(pl.DataFrame({"c": [1]}))
    with pytest.raises(DataError, match="column `c` must hold numbers. Received: String"):
        builder(TableCoding(value="number")).add(pl.DataFrame({"c": ["1"]}))
    with pytest.raises(SpecError, match="raw column `c` must be either a number or a string"):
        builder(TableCoding(), standardize=["c"])
    with pytest.raises(SpecError, match="`separator` of feature `c` must be absent"):
        builder(TableCoding(value="number"), separator="|")
    encoding = Encoding(features={"c": FeatureCoding(source="c")}, tables={"t": TableCoding()})
    with pytest.raises(SpecError, match="must name a coded table for feature `c`. Received: 'u'"):
        VocabularyBuilder(encoding, {"c": "u"})

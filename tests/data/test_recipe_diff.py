"""Two recipes compared on rows few enough to know the answer."""

from __future__ import annotations

import math

import pytest

from tfdlrm.data.recipe_diff import diff_recipes
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig, DenseColumn, SparseColumn
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.raw import RawFormat, Split

FORMAT = RawFormat(columns=("label", "n", "a", "b"))
# Ten rows; the first eight train under `OURS`. In column a, 2 and 12 fall together modulo 10, as 0 and missing do; e is
# in the last two rows only. Column b is one value for one value under both.
ROWS = """\
1\t0\t2\tf
0\t1\tc\tf
0\t-1\t2\te
1\t\t3\tf
0\t5\t0\te
0\t5\t\te
1\t7\tc\td
0\t0\t2\td
0\t0\te\td
1\t9\te\tf
"""
OURS = DataConfig(
    format=FORMAT,
    dense=(DenseColumn(name="n"),),
    sparse=(SparseColumn(name="a"), SparseColumn(name="b")),
    split=Split(fractions=(0.8, 0.0, 0.2)),
)
CODING = TableCoding(modulus=10, missing_key=0, id_order="first_seen", first_id=0, oov_row=None)
LEAKING = OURS.model_copy(update={"coding": CODING, "vocabulary_rows": "all", "split": Split(by="whole_and_half")})


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text(ROWS)
    return path


def compare(a, b, raw, tmp_path):
    (tmp_path / "between").mkdir()
    return diff_recipes(("ours", a), ("theirs", b), [raw], tmp_path / "between")


def test_splits_ids_and_leaks(raw, tmp_path):
    found = compare(OURS, LEAKING, raw, tmp_path)
    assert found.rows == 10
    assert found.places == {"train": {"train": 5, "all three": 3}, "test": {"all three": 2}}
    assert found.moved == 5
    assert not any(feature.differ for feature in found.dense)
    a, b = found.sparse
    # Ours: 2, c, 3, 0 have rows, missing and unseen (e) too: 6 rows. Theirs: keys 2, 3, 0, 4 (of e) have.
    assert (a.rows_a, a.rows_b, a.verdict, a.split, a.merged) == (6, 4, "regrouped", 0, 2)
    assert (b.rows_a, b.rows_b, b.verdict, b.split, b.merged) == (5, 3, "renumbered", 0, 0)
    assert (a.ids, b.differ) == (10, 10)
    assert found.leaks["ours"] == ()
    trained_on, counted_on = found.leaks["theirs"]
    assert trained_on.startswith("5 of 5 rows that validate or test are trained on")
    assert counted_on.startswith("the vocabulary is counted on 5 rows that validate or test; 0 ids in 0 of 2 tables")
    changed = {change.key: (change.a, change.b) for change in found.settings}
    assert changed == {
        "coding.id_order": ("count", "first_seen"),
        "coding.modulus": (None, 10),
        "coding.missing_key": (None, 0),
        "coding.oov_row": (1, "none"),
        "coding.first_id": (2, 0),
        "vocabulary_rows": ("train", "all"),
        "split.by": ("order", "whole_and_half"),
        "split.fractions": ([0.8, 0.0, 0.2], [0.8, 0.1, 0.1]),
    }
    assert found.as_dict()["sparse"][1]["verdict"] == "renumbered"


def test_values_of_test_rows_alone_are_counted(raw, tmp_path):
    """The value e of column a is in test rows only, and has a row where all rows are counted."""
    counted = OURS.model_copy(update={"vocabulary_rows": "all"})
    found = compare(OURS, counted, raw, tmp_path)
    assert found.moved == 0
    (leak,) = found.leaks["theirs"]
    assert leak.startswith("the vocabulary is counted on 2 rows that validate or test; 1 ids in 1 of 2 tables")
    # Each id is another id's new name: e, alone in the row of unseen values before, has one of its own.
    assert [(f.rows_a, f.rows_b, f.verdict) for f in found.sparse] == [(6, 7, "renumbered"), (5, 5, "renumbered")]


def test_numbers_and_rows_left_out(raw, tmp_path):
    other = OURS.model_copy(update={"dense": (DenseColumn(name="n", transform="log3"),), "drop_negatives": 0.5})
    found = compare(OURS, other, raw, tmp_path)
    left_out = sum(row.get("left out", 0) for row in found.places.values())
    assert 0 < left_out < 6  # of six rows without a click
    assert found.leaks["theirs"][0].startswith(f"{left_out} rows without a click are left out")
    (number,) = found.dense
    # Missing becomes 0 under both; among the others, 0 moves most: ln 1 to ln 3.
    assert number.largest == pytest.approx(math.log(3), rel=1e-6)
    assert number.differ == 10 - left_out - 1
    assert found.sparse[0].ids == 10 - left_out


def test_recipes_of_one_result_differ_in_nothing(raw, tmp_path):
    found = compare(OURS, OURS.model_copy(update={"rows_per_block": 3}), raw, tmp_path)
    assert (found.settings, found.moved) == ((), 0)
    assert {feature.verdict for feature in found.sparse} == {"equal"}
    assert found.only == {"ours": (), "theirs": ()}


def test_features_of_one_recipe_alone(raw, tmp_path):
    fewer = OURS.model_copy(update={"sparse": (SparseColumn(name="b"), SparseColumn(name="also b", source="b"))})
    found = compare(OURS, fewer, raw, tmp_path)
    assert found.only == {"ours": ("a",), "theirs": ("also b",)}
    assert [feature.name for feature in found.sparse] == ["b"]


def test_bags_of_other_lengths_are_named(raw, tmp_path):
    columns = (OURS.sparse[0], SparseColumn(name="b", separator="|", hotness=3))
    found = compare(OURS, OURS.model_copy(update={"sparse": columns}), raw, tmp_path)
    assert [feature.name for feature in found.sparse] == ["a"]
    assert found.bags == {"b": (1, 3)}
    assert found.only == {"ours": (), "theirs": ()}


def test_other_formats_are_refused(raw, tmp_path):
    other = OURS.model_copy(update={"format": RawFormat(columns=("label", "n", "a", "b"), delimiter=",")})
    with pytest.raises(ConfigError, match="`format` must be the same in both recipes"):
        compare(OURS, other, raw, tmp_path)

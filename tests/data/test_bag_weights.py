"""Weights of bags: read alike in a request, in a frame and from raw files, and refused where they do not fit."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.prepare import prepare
from tfdlrm.data.reader import RawReader
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.spec.coding import FeatureCoding
from tfdlrm.spec.config import DataConfig, SparseColumn
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import DataError, SpecError
from tfdlrm.spec.raw import RawFormat, Split

DATA = DataConfig(
    dense=[],
    sparse=[
        SparseColumn(name="user", value="hex"),
        SparseColumn(name="tags", value="hex", separator="|", hotness=3, weights="tag_weights"),
    ],
    format={"columns": ["label", "user", "tags", "tag_weights"], "delimiter": ","},
)
GOOD = [
    # tags, their weights, ids, weights of the ids
    ("a|b", "0.5|2", [2, 3, -1], [0.5, 2, 0]),
    ("b", "-1e-1", [3, -1, -1], [-0.1, 0, 0]),
    ("", "", [0, -1, -1], [1, 0, 0]),
    ("a||b|", "|1|.25", [2, 3, -1], [1, 0.25, 0]),
    ("a|b|a|ff", "1|2|3|4", [2, 3, 2], [1, 2, 3]),
    ("ff", "+3.", [1, -1, -1], [3, 0, 0]),
]
BAD = [
    ("a|b", "1"),
    ("a", "1|2"),
    ("", "1"),
    ("a", ""),
    ("a", "x"),
    ("a", "nan"),
    ("a", "inf"),
    ("a", "1e39"),
    ("a", " 1"),
]


@pytest.fixture(scope="module")
def encoder() -> FeatureEncoder:
    vocabulary = Vocabulary(np.array([10, 11]), np.array([2, 3], np.int32), 4)
    return FeatureEncoder(
        spec_of(DATA, {"user": 4, "tags": 4}, 8), encoding_of(DATA), {"user": vocabulary, "tags": vocabulary}, {}
    )


def frame_of(rows: list[tuple[str, str]]) -> pl.DataFrame:
    tags, weights = zip(*rows, strict=True)
    return pl.DataFrame({"user": ["a"] * len(rows), "tags": tags, "tag_weights": weights})


def raw_of(frame: pl.DataFrame) -> dict[str, tf.Tensor]:
    return {name: tf.constant(frame[name].to_list()) for name in frame.columns}


def test_weights_stand_beside_their_ids(encoder):
    frame = frame_of([row[:2] for row in GOOD])
    assert list(encoder.raw_signature()) == ["user", "tags", "tag_weights"]
    expected_ids = [[2, *row[2]] for row in GOOD]
    expected = np.array([[1, *row[3]] for row in GOOD], np.float32)
    in_graph = tf.function(encoder.encode)(raw_of(frame))
    for batch in (encoder.encode(raw_of(frame)), in_graph, encoder.encode_frame(frame)):
        assert set(batch) == {"dense", "sparse", "weights"}
        np.testing.assert_array_equal(batch["sparse"], expected_ids)
        np.testing.assert_array_equal(batch["weights"], expected)
        assert np.asarray(batch["weights"]).dtype == np.float32


def test_no_rows(encoder):
    assert encoder.encode_frame(frame_of([("a", "1")]).clear())["weights"].shape == (0, 4)
    assert encoder.encode({n: tf.constant([], tf.string) for n in encoder.raw_signature()})["weights"].shape == (0, 4)


@pytest.mark.parametrize(("tags", "weights"), BAD)
def test_a_request_that_does_not_fit_is_refused_by_name(encoder, tags, weights):
    frame = frame_of([("a|b", "1|2"), (tags, weights)])
    rule = "column `tag_weights` must hold a finite number for each value of `tags`. Received:"
    with pytest.raises(DataError) as caught:
        encoder.encode_frame(frame)
    assert str(caught.value) == f"{rule} {weights!r} for {tags!r}."
    for encode in (encoder.encode, tf.function(encoder.encode)):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"{rule[:-1]}.*{weights or ''}"):
            encode(raw_of(frame))


@pytest.mark.parametrize(("tags", "weights"), BAD)
def test_a_raw_row_that_does_not_fit_is_bad(tmp_path, tags, weights):
    path = tmp_path / "rows.csv"
    path.write_text(f"1,a,a|b,1|2\n0,a,{tags},{weights}\n1,b,,\n")
    reader = RawReader(
        RawFormat(**DATA.format.model_dump()),
        [path],
        strings=["user", "tags", "tag_weights"],
        hex_columns={"user": None, "tags": "|"},
        weights={"tag_weights": ("tags", "|")},
        max_bad_share=0.0,
    )
    with pytest.raises(DataError) as caught:
        list(reader)
    rule = "`tag_weights` must hold a finite number for each value of `tags`"
    assert str(caught.value) == f"{path}:2: {rule}. Received: {weights!r}."


def test_good_raw_rows_pass(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"1,a,{tags},{weights}\n" for tags, weights, *_ in GOOD))
    reader = RawReader(
        DATA.format, [path], strings=["user", "tags", "tag_weights"], weights={"tag_weights": ("tags", "|")}
    )
    (chunk,) = reader
    assert chunk.frame["tag_weights"].to_list() == [row[1] for row in GOOD]


def test_a_saved_encoder_has_weights(encoder, tmp_path):
    encoder.save(tmp_path)
    frame = frame_of([("a|b", "0.5|2")])
    loaded = FeatureEncoder.load(tmp_path)
    np.testing.assert_array_equal(loaded.encode_frame(frame)["weights"], [[1, 0.5, 2, 0]])


def test_misfits_are_refused():
    for fields in ({"separator": None, "weights": "w"}, {"separator": "|", "weights": "c"}):
        with pytest.raises(
            SpecError, match="`weights` of column `c` must name another column and come with `separator`"
        ):
            FeatureCoding(source="c", **fields)
    data = DataConfig(dense=[{"name": "w"}], sparse=[SparseColumn(name="c", separator="|", weights="w")])
    with pytest.raises(SpecError, match="raw column `w` must be either a number or a string"):
        FeatureEncoder(spec_of(data, {"c": 4}, 8), encoding_of(data), {}, {})


def test_prepared_rows_carry_the_weights(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("".join(f"{i % 2},a,{tags},{weights}\n" for i, (tags, weights, *_) in enumerate(GOOD * 5)))
    data = DATA.model_copy(update={"split": Split(by="order", fractions=(1.0, 0.0, 0.0)), "rows_per_block": 7})
    prepare(data, [path], tmp_path / "data", 8)
    ((features, _),) = packed_dataset(tmp_path / "data", "train", 30)
    np.testing.assert_allclose(features["weights"], [[1, *row[3]] for row in GOOD * 5], rtol=1e-7)
    present = features["sparse"].numpy()[:, 1:] >= 0
    np.testing.assert_array_equal(present, [[i >= 0 for i in row[2]] for row in GOOD * 5])


def test_a_bag_that_does_not_fit_stops_prepare(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("1,a,a|b,1|2\n" * 5 + "0,a,a|b,1\n")
    data = DATA.model_copy(update={"split": Split(by="order", fractions=(1.0, 0.0, 0.0))})
    with pytest.raises(
        DataError, match="`tag_weights` must hold a finite number for each value of `tags`. Received: '1'"
    ):
        prepare(data, [path], tmp_path / "data", 8)
    assert not (tmp_path / "data").exists()

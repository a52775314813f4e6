"""Named recipes equal the published rules, id by id, number by number, split by split."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tensorflow as tf

from tests.data.published_rules import (
    Expected,
    Row,
    Rule,
    fb,
    nvidia,
    read_rows,
    tfm,
    torchrec_kaggle,
    torchrec_terabyte,
    write_rows,
)
from tests.data.test_prepare import read_packed
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.prepare import prepare
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.criteo import DENSE_COLUMNS, MLPERF_V2, SPARSE_COLUMNS
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.raw import Split
from tfdlrm.spec.recipes import named_recipe

# Small files, so that a chunk ends within a day and a day within a chunk.
KAGGLE, TERABYTE = [1003], [300, 211, 1, 177]
CHUNK_BYTES = 20_000

CASES: dict[str, tuple[list[int], DataConfig, Rule]] = {
    "fb kaggle": (KAGGLE, named_recipe("fb"), partial(fb, kaggle=True)),
    "fb modulo": (KAGGLE, named_recipe("fb", max_ind_range=37), partial(fb, kaggle=True, max_ind_range=37)),
    "fb terabyte": (
        TERABYTE,
        named_recipe("fb", "terabyte").model_copy(update={"drop_negatives": 0.0}),
        partial(fb, kaggle=False, max_ind_range=10_000_000),
    ),
    "nvidia kaggle": (KAGGLE, named_recipe("nvidia"), partial(nvidia, kaggle=True, frequency_limit=15)),
    "nvidia terabyte": (
        TERABYTE,
        named_recipe("nvidia", "terabyte", min_count=3),
        partial(nvidia, kaggle=False, frequency_limit=3),
    ),
    "tfm kaggle": (KAGGLE, named_recipe("tfm"), partial(tfm, kaggle=True, max_vocab_size=5_000_000)),
    "tfm modulo": (
        TERABYTE,
        named_recipe("tfm", "terabyte", max_ind_range=1009),
        partial(tfm, kaggle=False, max_vocab_size=1009),
    ),
    "torchrec kaggle": (KAGGLE, named_recipe("torchrec"), partial(torchrec_kaggle, table_rows=MLPERF_V2)),
    "torchrec terabyte": (
        TERABYTE,
        named_recipe("torchrec", "terabyte"),
        partial(torchrec_terabyte, table_rows=MLPERF_V2, threshold=0),
    ),
    "torchrec rare": (
        TERABYTE,
        named_recipe("torchrec", "terabyte", max_ind_range=19, min_count=3),
        partial(torchrec_terabyte, table_rows=[19] * 26, threshold=3),
    ),
}


# One for each way of coding: a graph of 26 look-ups takes seconds to trace.
IN_GRAPH = ("fb modulo", "nvidia terabyte", "tfm modulo", "torchrec kaggle", "torchrec rare")
AS_TEXT = "fb modulo"


def raw_tensors(rows: list[Row]) -> dict[str, tf.Tensor]:
    numbers = np.array([[float(text) if text else np.nan for text in row.numbers] for row in rows], np.float32)
    columns = {name: tf.constant(numbers[:, i]) for i, name in enumerate(DENSE_COLUMNS)}
    return columns | {name: tf.constant([row.hashes[i] for row in rows]) for i, name in enumerate(SPARSE_COLUMNS)}


def numbers_frame(rows: list[Row]) -> pl.DataFrame:
    columns = {
        name: pl.Series([float(row.numbers[i]) if row.numbers[i] else None for row in rows], dtype=pl.Float64)
        for i, name in enumerate(DENSE_COLUMNS)
    }
    return pl.DataFrame(columns)


def text_frame(rows: list[Row]) -> pl.DataFrame:
    texts = [pl.Series(name, [row.hashes[i] for row in rows]) for i, name in enumerate(SPARSE_COLUMNS)]
    return numbers_frame(rows).with_columns(texts)


def keyed_frame(rows: list[Row]) -> pl.DataFrame:
    """Return hashes as numbers, as the reader gives them to `prepare`."""
    columns = []
    for i, name in enumerate(SPARSE_COLUMNS):
        columns.append(pl.Series(name, [int(row.hashes[i] or "0", 16) for row in rows], pl.UInt32))
        columns.append(pl.Series(f"missing:{name}", [not row.hashes[i] for row in rows]))
    return numbers_frame(rows).with_columns(columns)


def assert_prepared(data: DataConfig, paths: list[Path], expected: Expected, directory: Path) -> FeatureEncoder:
    manifest = prepare(data, paths, directory, 4, chunk_bytes=CHUNK_BYTES)
    for split, labels in expected.labels.items():
        assert manifest.splits[split].rows == len(labels)
        if not labels:
            continue
        got = read_packed(directory, manifest, split)
        np.testing.assert_array_equal(got["label"][:, 0], labels)
        np.testing.assert_array_equal(got["sparse"], expected.ids[split])
        # The sources take logarithms in float32, whose last bit depends on the library.
        np.testing.assert_array_max_ulp(got["dense"], np.array(expected.dense[split], np.float32), maxulp=2)
    return FeatureEncoder.load(directory)


@pytest.mark.parametrize("case", CASES)
def test_recipe_equals_the_published_rules(case, tmp_path):
    files, data, rule = CASES[case]
    paths = write_rows(tmp_path, files, seed=len(case))
    rows = read_rows(paths)
    expected = rule(rows)
    encoder = assert_prepared(data, paths, expected, tmp_path / "out")
    shares = Manifest.load(tmp_path / "out").statistics["shares"]["train"]
    trained = rows[: len(expected.labels["train"])]
    for i, name in enumerate(SPARSE_COLUMNS):  # though their row may be that of others, too
        assert shares[name]["missing"] == pytest.approx(np.mean([not row.hashes[i] for row in trained]))
    if case in IN_GRAPH:
        in_graph = tf.function(encoder.encode)(raw_tensors(rows))
        frames = [encoder.encode_frame(keyed_frame(rows))] + [encoder.encode_frame(text_frame(rows))] * (
            case == AS_TEXT
        )
        for in_frame in frames:
            np.testing.assert_array_equal(in_graph["sparse"], in_frame["sparse"])
            np.testing.assert_array_equal(in_graph["dense"], in_frame["dense"])


@pytest.mark.parametrize("case", ["fb kaggle", "fb modulo", "nvidia kaggle", "tfm kaggle", "torchrec kaggle"])
def test_recipe_equals_the_published_rules_on_real_rows(case, shared_data, tmp_path):
    path = shared_data("criteo_kaggle/train.txt")
    _, data, rule = CASES[case]
    rows = read_rows([path])
    assert len(rows) == 7200
    assert any(int(text, 16) >= 2**31 for row in rows for text in row.hashes if text)
    assert_prepared(data, [path], rule(rows), tmp_path / "out")


@pytest.mark.parametrize("case", ["fb terabyte", "nvidia terabyte", "torchrec terabyte"])
def test_recipe_equals_the_published_rules_on_real_days(case, shared_data, tmp_path):
    """One file trains, the other is the last day."""
    paths = [shared_data("criteo_kaggle/train.txt"), shared_data("criteo_terabyte/day_0")]
    _, data, rule = CASES[case]
    assert_prepared(data, paths, rule(read_rows(paths)), tmp_path / "out")


def test_half_precision_is_that_of_the_published_files(tmp_path):
    paths = write_rows(tmp_path, KAGGLE)
    manifest = prepare(named_recipe("nvidia"), paths, tmp_path / "out", 4)
    dense = read_packed(tmp_path / "out", manifest, "test")["dense"]
    expected = nvidia(read_rows(paths), kaggle=True, frequency_limit=15).dense["test"]
    np.testing.assert_array_equal(dense, np.array(expected, np.float32))
    np.testing.assert_array_equal(dense, dense.astype(np.float16).astype(np.float32))


def test_negatives_are_dropped_from_every_split_and_from_the_vocabulary(tmp_path):
    paths = write_rows(tmp_path, TERABYTE)
    rows = read_rows(paths)
    data = named_recipe("fb", "terabyte", max_ind_range=101)
    assert data.drop_negatives == 0.875
    # NumPy's Philox, drawn from the first row on: the rule that `kept_rows` follows from any row on.
    draws = np.random.Generator(np.random.Philox(key=data.drop_seed)).random(len(rows))
    kept = [row for row, u in zip(rows, draws, strict=True) if row.label or u >= 0.875]
    whole = fb(rows, kaggle=False, max_ind_range=101)
    manifest = prepare(data, paths, tmp_path / "out", 4, chunk_bytes=CHUNK_BYTES)

    known = [{} for _ in SPARSE_COLUMNS]
    ids = [
        [own.setdefault(int(text or "0", 16) % 101, len(own)) for own, text in zip(known, row.hashes, strict=True)]
        for row in kept
    ]
    got = [read_packed(tmp_path / "out", manifest, name) for name in ("train", "test", "validation")]
    np.testing.assert_array_equal(np.concatenate([part["sparse"] for part in got]), ids)
    np.testing.assert_array_equal(np.concatenate([part["label"][:, 0] for part in got]), [row.label for row in kept])
    for name in whole.labels:  # every click stays where it was
        assert manifest.splits[name].positives == sum(whole.labels[name])
    assert [table.vocabulary_size for table in manifest.spec.tables] == [len(own) for own in known]


def test_serving_shifts_by_the_smallest_minimum_of_training_files(tmp_path):
    """File 3 tests; its minimum, -3, is not that of files that train, where rows of file 1 have it too."""
    paths = write_rows(tmp_path, [50, 60, 40])
    rows = read_rows(paths)
    prepare(named_recipe("torchrec", "terabyte"), paths, tmp_path / "out", 4)
    encoder = FeatureEncoder.load(tmp_path / "out")
    smallest = [min(int(text or "0") for row in rows if row.file == file for text in row.numbers) for file in range(3)]
    stats = encoder.dense_stats["I1"]
    assert list(stats.file_minimums) == smallest
    assert stats.minimum == min(smallest[:2])
    row = Row(0, 1, ["7", "", "-2000000", *["0"] * 10], rows[0].hashes)
    dense = encoder.encode(raw_tensors([row]))["dense"].numpy()[0]
    np.testing.assert_allclose(dense[:3], np.log([7 - stats.minimum + 2, -stats.minimum + 2, 2]), rtol=1e-6)


def test_a_value_that_was_not_counted_stops_prepare(tmp_path):
    folder = tmp_path / "raw"
    folder.mkdir()
    (path,) = write_rows(folder, [70])
    lines = path.read_text().splitlines()
    fields = lines[-1].split("\t")
    fields[16] = "0badcafe"
    path.write_text("\n".join([*lines[:-1], "\t".join(fields)]) + "\n")
    data = named_recipe("fb").model_copy(
        update={"vocabulary_rows": "train", "split": Split(fractions=(0.9, 0.05, 0.05))}
    )
    with pytest.raises(DataError, match=r"column `C\d+` must hold values that table `C\d+` has rows for"):
        prepare(data, [path], tmp_path / "out", 4)
    assert not (tmp_path / "out").exists()


def test_unseen_values_are_an_error_until_serving_is_told(tmp_path):
    paths = write_rows(tmp_path, [200])
    rows = read_rows(paths)
    prepare(named_recipe("fb"), paths, tmp_path / "out", 4)
    encoder = FeatureEncoder.load(tmp_path / "out")
    strange = [Row(0, 0, row.numbers, ["0badcafe", "no hash", *row.hashes[2:]]) for row in rows[:3]]
    with pytest.raises(DataError, match="column `C1` must hold values that table `C1` has rows for.*'0badcafe'"):
        encoder.encode_frame(text_frame(strange))
    for encode in (encoder.encode, tf.function(encoder.encode)):
        with pytest.raises(
            tf.errors.InvalidArgumentError, match="every value must have a row in tables without `oov_row`"
        ):
            encode(raw_tensors(strange))

    known = encoder.encode_frame(text_frame(rows[:3]))["sparse"]
    missing = encoder.encode_frame(text_frame([Row(0, 0, rows[0].numbers, [""] * 26)]))["sparse"][0]
    for unseen, expected in (("missing", missing[:2]), (3, [3, 3]), ("zeros", [-1, -1])):
        served = FeatureEncoder.load(tmp_path / "out", unseen)
        for ids in (served.encode(raw_tensors(strange))["sparse"], served.encode_frame(text_frame(strange))["sparse"]):
            np.testing.assert_array_equal(ids[:, :2], np.tile(expected, (3, 1)))
            np.testing.assert_array_equal(ids[:, 2:], known[:, 2:])

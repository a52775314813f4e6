"""Rows of the TFDS builder against the raw fields, and batches from TFDS against `prepare`."""

from __future__ import annotations

import gzip
import math
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

import tfdlrm.data.tfds
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.prepare import prepare
from tfdlrm.data.tfds import DAYS, CriteoClickLogs, batches_of, learn_encoder
from tfdlrm.spec.config import DataConfig, DenseColumn, SparseColumn
from tfdlrm.spec.criteo import COLUMNS, DENSE_COLUMNS, SPARSE_COLUMNS
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import Split


def make_rows(count: int, seed: int) -> list[list[str]]:
    """Return invented rows: few distinct values, some missing."""
    rng = random.Random(seed)

    def row() -> list[str]:
        numbers = [rng.choice(["", "0", "-1", str(rng.randrange(10_000))]) for _ in DENSE_COLUMNS]
        categories = [
            rng.choice(["", f"{rng.randrange(20):08x}", f"{rng.getrandbits(32):08x}"]) for _ in SPARSE_COLUMNS
        ]
        return [rng.choice("01"), *numbers, *categories]

    return [row() for _ in range(count)]


def text_of(rows: list[list[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def write_raw(folder: Path) -> None:
    """Write Kaggle's file and 24 days, some compressed."""
    (folder / "train.txt").write_bytes(text_of(make_rows(30, 0)))
    for day in range(DAYS):
        content = text_of(make_rows(2, 1 + day))
        packed = day % 2 == 0
        (folder / (f"day_{day}.gz" if packed else f"day_{day}")).write_bytes(
            gzip.compress(content) if packed else content
        )


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    write_raw(folder)
    return folder


def load(folder: Path, name: str, raw: Path, beam_runner=None, **options):
    config = tfds.download.DownloadConfig(manual_dir=raw, beam_runner=beam_runner)
    options = {"download_and_prepare_kwargs": {"download_config": config}, **options}
    return tfds.load(f"criteo_click_logs/{name}", data_dir=folder, **options)


@pytest.fixture(scope="module")
def kaggle(tmp_path_factory):
    """Return 400 rows and their TFDS data set."""
    folder = tmp_path_factory.mktemp("tfds")
    rows = make_rows(400, 100)
    (folder / "train.txt").write_bytes(text_of(rows))
    return rows, load(folder / "data", "kaggle", folder, split="train"), folder


def assert_is_row(found: dict, row: list[str]) -> None:
    assert set(found) == set(COLUMNS)
    assert found["label"] == int(row[0])
    for name, text in zip(DENSE_COLUMNS, row[1:14], strict=True):
        assert math.isnan(found[name]) if text == "" else found[name] == float(text)
    assert [found[name].decode() for name in SPARSE_COLUMNS] == row[14:]


def test_rows_are_those_of_the_file_in_its_order(kaggle):
    rows, dataset, _ = kaggle
    found = list(tfds.as_numpy(dataset))
    assert len(found) == len(rows)
    for own, row in zip(found, rows, strict=True):
        assert_is_row(own, row)


def test_days_follow_each_other(raw, tmp_path):
    train, test = load(tmp_path, "terabyte", raw, split=["train", "test"])
    expected = [row for day in range(DAYS) for row in make_rows(2, 1 + day)]
    found = [*tfds.as_numpy(train), *tfds.as_numpy(test)]
    for own, row in zip(found, expected, strict=True):
        assert_is_row(own, row)


def test_a_missing_day_a_cut_one_and_a_bad_row_are_named(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    with pytest.raises(DataError, match=r"raw: must hold train.txt or train.txt.gz. Received: neither"):
        (raw / "other").touch()
        load(tmp_path / "a", "kaggle", raw)
    write_raw(raw)
    (raw / "day_7").unlink()
    with pytest.raises(DataError, match=r"raw: must hold day_7 or day_7.gz"):
        load(tmp_path / "b", "terabyte", raw)
    (raw / "day_7.gz").write_bytes(gzip.compress(text_of(make_rows(200, 5)))[:-20])
    with pytest.raises(DataError, match=r"day_7.gz: gzip data is cut short"):
        load(tmp_path / "c", "terabyte", raw)
    (raw / "train.txt").write_bytes(text_of(make_rows(5, 5)) + b"1\t2\n")
    with pytest.raises(DataError, match=r"train.txt:6: expected 40 fields, found 2"):
        load(tmp_path / "d", "kaggle", raw)
    with pytest.raises(AssertionError, match="Dataset criteo_click_logs"):
        load(tmp_path / "d", "kaggle", raw, download=False)  # nothing half-made is left to be read


def test_batches_equal_prepared_rows(kaggle):
    """Learning and encoding from TFDS gives the vocabularies and the rows that `prepare` makes of the raw file."""
    rows, dataset, folder = kaggle
    data = DataConfig(split=Split(by="order", fractions=(1.0, 0.0, 0.0)))
    manifest = prepare(data, [folder / "train.txt"], folder / "prepared", 8)
    seen = []
    encoder = learn_encoder(dataset, data, 8, progress=seen.append)
    assert sum(seen) == 400
    assert encoder.spec == manifest.spec
    prepared = FeatureEncoder.load(folder / "prepared")
    for name, vocabulary in prepared.vocabularies.items():
        np.testing.assert_array_equal(encoder.vocabularies[name].keys, vocabulary.keys)
        np.testing.assert_array_equal(encoder.vocabularies[name].ids, vocabulary.ids)
    frame = pl.DataFrame(rows, schema=list(COLUMNS), orient="row")
    frame = frame.with_columns(pl.col(DENSE_COLUMNS).cast(pl.Float64, strict=False))
    expected = prepared.encode_frame(frame)
    batches = list(batches_of(dataset, encoder, 64))
    assert [len(label) for _, label in batches] == [64] * 6 + [16]
    for name in ("dense", "sparse"):
        np.testing.assert_array_equal(np.concatenate([f[name] for f, _ in batches]), expected[name])
    labels = np.concatenate([label for _, label in batches])
    np.testing.assert_array_equal(labels, np.array([[float(row[0])] for row in rows]))
    assert labels.dtype == np.float32


def test_supervised_pairs_give_the_same_batches(kaggle):
    _, dataset, folder = kaggle
    pairs = load(folder / "data", "kaggle", folder, split="train", as_supervised=True)
    encoder = learn_encoder(pairs)
    first, second = (next(iter(batches_of(each, encoder, 400))) for each in (dataset, pairs))
    np.testing.assert_array_equal(first[0]["sparse"], second[0]["sparse"])
    np.testing.assert_array_equal(first[1], second[1])
    assert encoder.spec == learn_encoder(dataset).spec


FILMS = {"user": [3, 7, 7], "genres": [[1, 4], [4], []], "age": [20, 40, 60], "seen": [True, False, True]}


def films() -> tf.data.Dataset:
    rows = [dict(zip(FILMS, row, strict=True)) for row in zip(*FILMS.values(), strict=True)]
    types = {"user": tf.int64, "genres": tf.int64, "age": tf.int32, "seen": tf.bool}
    signature = {n: tf.TensorSpec([None] if n == "genres" else [], t) for n, t in types.items()}
    return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)


FILM_DATA = DataConfig(
    dense=[DenseColumn(name="age", transform="standardize")],
    sparse=[
        SparseColumn(name="user", value="string"),
        SparseColumn(name="genres", value="string", separator="|", hotness=3),
    ],
    format={"columns": ["seen", "user", "genres", "age"], "label": "seen"},
)


def test_any_data_set_with_whole_numbers_and_sequences():
    encoder = learn_encoder(films(), FILM_DATA, 4)
    ((features, label),) = batches_of(films(), encoder, 5, label="seen")
    assert label.numpy().tolist() == [[1], [0], [1]]
    np.testing.assert_allclose(features["dense"][:, 0], np.array([-1, 0, 1]) * 1.224745, rtol=1e-5)
    # Rows 0 and 1 are missing and unseen; of the others the most frequent comes first.
    ids = features["sparse"].numpy().tolist()
    assert [row[0] for row in ids] == [3, 2, 2]
    assert [row[1:] for row in ids] == [[3, 2, -1], [2, -1, -1], [0, -1, -1]]


def test_what_does_not_fit_is_refused_by_name():
    encoder = learn_encoder(films(), FILM_DATA, 4)
    with pytest.raises(ConfigError, match="`batch_size` must be at least 1. Received: 0"):
        batches_of(films(), encoder, 0)
    with pytest.raises(DataError, match="`dataset` must have the column `label`"):
        batches_of(films(), encoder, 4)
    with pytest.raises(DataError, match="`dataset` must have the column `user`.*Did you mean `usr`"):
        renamed = films().map(lambda row: {"usr" if name == "user" else name: v for name, v in row.items()})
        batches_of(renamed, encoder, 4, label="seen")
    with pytest.raises(DataError, match="column `user` must hold one text or whole number a row. Received: float32"):
        batches_of(films().map(lambda row: {**row, "user": 0.5}), encoder, 4, label="seen")
    with pytest.raises(DataError, match="column `age` must hold one number a row. Received: string"):
        batches_of(films().map(lambda row: {**row, "age": "x"}), encoder, 4, label="seen")
    with pytest.raises(DataError, match="column `user` must hold one text .* Received: bags of int64"):
        batches_of(films().map(lambda row: {**row, "user": row["genres"]}), encoder, 4, label="seen")
    with pytest.raises(DataError, match="`dataset` must yield dictionaries"):
        batches_of(films().map(lambda row: row["age"]), encoder, 4)


def test_module_registers_the_builder():
    assert tfdlrm.data.tfds.CriteoClickLogs.name == "criteo_click_logs"
    assert tfds.builder_cls("criteo_click_logs") is CriteoClickLogs


def test_beam_generates_the_same_rows_in_the_same_order(raw, tmp_path):
    pytest.importorskip("apache_beam", reason="needs the extra `beam`")
    from apache_beam.runners.portability.fn_api_runner import FnApiRunner

    rows = {}
    for how, runner in (("plain", None), ("beam", FnApiRunner())):
        dataset = load(tmp_path / how, "terabyte", raw, split="train", beam_runner=runner)
        rows[how] = [sorted((name, str(value)) for name, value in row.items()) for row in tfds.as_numpy(dataset)]
    assert rows["plain"] == rows["beam"]

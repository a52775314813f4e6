"""Prepared data equal a pure Python re-implementation, are reused when they are the same, and are never half there."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
import os
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tfdlrm.data.manifest import Manifest
from tfdlrm.data.prepare import prepare
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig, DenseColumn, SparseColumn
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import RawFormat, SideTable, Split

PADDING = -1


def read_packed(directory: Path, manifest: Manifest, split: str) -> dict[str, np.ndarray]:
    """Return all rows of a split, read with nothing but TensorFlow's record reader."""
    parts: dict[str, list[np.ndarray]] = {}
    for shard in manifest.splits[split].shards:
        for record in tf.data.TFRecordDataset(str(directory / shard.file)).as_numpy_iterator():
            example = tf.train.Example.FromString(record)
            for name, feature in example.features.feature.items():
                dtype = np.dtype("<i4" if name == "sparse" else "<f4")
                parts.setdefault(name, []).append(np.frombuffer(feature.bytes_list.value[0], dtype))
    rows = manifest.splits[split].rows
    return {name: np.concatenate(arrays).reshape(rows, -1) for name, arrays in parts.items()}


# The oracle: rows one by one, plain dictionaries, Python integers.


def hex_key(value: str) -> int:
    key = int(value, 16)
    return key - 2**64 if key >= 2**63 else key


def string_key(value: str) -> int:
    return int.from_bytes(tf.fingerprint([value]).numpy()[0].tobytes(), "little", signed=True)


def number_key(value: str) -> int:
    x = float(np.float32(value))
    return math.floor(math.log(x) ** 2) if x > 2 else math.floor(x)


def vocabulary(keys: list[int], min_count: int) -> dict[int, int]:
    counts = Counter(keys)
    kept = sorted((key for key, count in counts.items() if count >= min_count), key=lambda key: (-counts[key], key))
    return {key: 2 + place for place, key in enumerate(kept)}


def bag_ids(values: list[str], key_of, ids: dict[int, int], hotness: int) -> list[int]:
    found = [ids.get(key_of(value), 1) for value in values if value] or [0]
    return (found + [PADDING] * hotness)[:hotness]


def log1p(value: str) -> float:
    return math.log1p(max(float(value), 0.0)) if value else 0.0


CRITEO_ROWS = 400


def criteo_line(rng: random.Random) -> str:
    def number() -> str:
        return "" if rng.random() < 0.3 else str(rng.choice([-2, -1, 0, 1, rng.randint(0, 70_000)]))

    def category(column: int) -> str:
        place = int(rng.paretovariate(0.7) * 2) % (40 + column)
        high = rng.choice([0, 0, 0xFFFF << 48])  # keys of 16 digits, negative as int64, among short ones
        return "" if rng.random() < 0.1 else f"{high + 10 + place:08x}"

    return "\t".join([str(int(rng.random() < 0.3)), *(number() for _ in range(13)), *map(category, range(26))])


@pytest.fixture(scope="module")
def criteo(tmp_path_factory) -> tuple[list[Path], list[str]]:
    """Two raw files of 400 rows, three of them bad, and their lines."""
    rng = random.Random(7)
    lines = [criteo_line(rng) for _ in range(CRITEO_ROWS)]
    lines[20], lines[250], lines[399] = lines[20] + "\tff", "", "2" + lines[399][1:]
    folder = tmp_path_factory.mktemp("criteo")
    paths = [folder / "day_0", folder / "day_1.gz"]
    paths[0].write_text("\r\n".join(lines[:150]) + "\r\n", newline="")
    paths[1].write_bytes(gzip.compress("\n".join(lines[150:]).encode()))
    return paths, lines


CRITEO = DataConfig(
    coding=TableCoding(min_count=3),
    split=Split(by="days", days=4),
    max_bad_share=0.01,
    rows_per_block=16,
    rows_per_shard=100,
)


def test_criteo_equals_the_oracle(tmp_path, criteo):
    paths, lines = criteo
    manifest = prepare(CRITEO, paths, tmp_path / "data", 8, chunk_bytes=15_000)
    rows = {i: line.split("\t") for i, line in enumerate(lines) if i not in (20, 250, 399)}
    # Four days of 100 rows; the last day's first 50 test, the others validate.
    split_of = {i: "train" if i < 300 else "test" if i < 350 else "validation" for i in rows}
    columns = range(14, 40)
    ids = [vocabulary([hex_key(rows[i][c]) for i in rows if split_of[i] == "train" and rows[i][c]], 3) for c in columns]
    for split in ("train", "validation", "test"):
        expected = [row for i, row in rows.items() if split_of[i] == split]
        got = read_packed(tmp_path / "data", manifest, split)
        assert got["label"][:, 0].tolist() == [float(row[0]) for row in expected]
        np.testing.assert_array_equal(
            got["dense"], np.array([[log1p(v) for v in row[1:14]] for row in expected], np.float32)
        )
        assert got["sparse"].tolist() == [
            [bag_ids([row[c]], hex_key, ids[k], 1)[0] for k, c in enumerate(columns)] for row in expected
        ]

    assert [t.vocabulary_size for t in manifest.spec.tables] == [2 + len(table) for table in ids]
    assert {t.embedding_dim for t in manifest.spec.tables} == {8}
    statistics = manifest.statistics
    train = [rows[i] for i in rows if split_of[i] == "train"]
    assert statistics["rows"] == {"train": 298, "validation": 49, "test": 50}
    assert statistics["click_rate"]["train"] == sum(row[0] == "1" for row in train) / 298
    assert statistics["bad_rows"] == {"expected 40 fields": 1, "blank line": 1, "`label` must be 0 or 1": 1}
    share = statistics["shares"]["train"]
    assert share["I5"] == {"missing": sum(row[5] == "" for row in train) / 298}
    rare = sum(hex_key(row[16]) not in ids[2] for row in train if row[16])
    assert share["C3"] == {"missing": sum(row[16] == "" for row in train) / 298, "rare_or_unseen": rare / 298}
    assert statistics["rare_in_training"]["C3"] == rare > 0
    assert statistics["vocabulary_sizes"]["C3"] == 2 + len(ids[2])
    aside = (tmp_path / "data" / "bad_rows.tsv").read_text().splitlines()
    assert [line.split("\t")[:3] for line in aside] == [
        [str(paths[0]), "21", "expected 40 fields, found 41."],
        [str(paths[1]), "101", "blank line."],
        [str(paths[1]), "250", "`label` must be 0 or 1. Received: '2'."],
    ]
    manifest.verify(tmp_path / "data")
    assert Manifest.load(tmp_path / "data") == manifest


def tabular(tmp_path: Path, split: Split) -> tuple[DataConfig, Path, list[dict[str, str]]]:
    """Return a CSV of 300 rows with every kind of column, joined to a side table."""
    rng = random.Random(11)
    items = {
        f"i{k}": {"brand": rng.choice(["", "ä", "b", "c"]), "cost": rng.choice(["", "2.5", "-7"])} for k in range(20)
    }
    with open(tmp_path / "items.txt", "w", encoding="latin-1") as file:
        file.writelines(f"{item}|{row['brand']}|{row['cost']}\n" for item, row in items.items())
    rows = []
    for n in range(300):
        item = f"i{int(rng.paretovariate(0.5)) % 40}"  # some are not in the side table
        row = {
            "stars": str(rng.randint(1, 5)),
            "user": f"u,{int(rng.paretovariate(0.8))}",
            "item": item,
            "last": f"i{int(rng.paretovariate(0.5)) % 80}",
            "tags": "|".join(rng.choice(["x", "y", "z", "", 'q"']) for _ in range(rng.randint(0, 5))),
            "price": rng.choice(["", "0.5", "3", "1e3", "-4"]),
            "height": str(rng.randint(150, 200)) if rng.random() < 0.8 else "",
            "w": str(rng.choice([0, 0.5, 2])),
            "day": str(rng.randint(0, 30)),
        }
        rows.append(row | items.get(item, {"brand": "", "cost": ""}) | {"n": str(n)})
    raw = tmp_path / "rows.csv"
    with open(raw, "w", newline="") as file:
        names = ["stars", "user", "item", "last", "tags", "price", "height", "w", "day"]
        writer = csv.DictWriter(file, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    side = SideTable(
        file=str(tmp_path / "items.txt"),
        key="item",
        delimiter="|",
        columns=("item", "brand", "cost"),
        encoding="latin-1",
    )
    data = DataConfig(
        format=RawFormat(
            delimiter=",", header=True, quote='"', label="stars >= 4", weight="w", time="day", side_tables=(side,)
        ),
        dense=(
            DenseColumn(name="price"),
            DenseColumn(name="height", transform="standardize"),
            DenseColumn(name="cost", transform="identity"),
        ),
        sparse=(
            SparseColumn(name="user", kind="hash", buckets=50, min_count=1),
            SparseColumn(name="item"),
            SparseColumn(name="last", table="item"),
            SparseColumn(name="tags", separator="|", hotness=3, min_count=1),
            SparseColumn(name="brand"),
            SparseColumn(name="priced", source="price", value="number", min_count=1),
        ),
        coding=TableCoding(value="string", min_count=4, oov_row=2, first_id=3),
        split=split,
        rows_per_block=32,
    )
    return data, raw, rows


def oracle_of_tabular(rows: list[dict[str, str]], train: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    def ids_of(columns: list[str], key_of, min_count: int):
        counts = Counter(key_of(v) for row in train for c in columns for v in row[c].split("|") if v)
        ids = {key: place + 1 for key, place in vocabulary(list(counts.elements()), min_count).items()}
        return lambda value: ids.get(key_of(value), 1 if key_of(value) in counts else 2) if value else 0

    def user_id(value: str) -> int:
        return 3 + int(tf.strings.to_hash_bucket_fast(str(string_key(value)), 50)) if value else 0

    item, brand = ids_of(["item", "last"], string_key, 4), ids_of(["brand"], string_key, 4)
    tag, priced = ids_of(["tags"], string_key, 1), ids_of(["price"], number_key, 1)
    heights = np.array([float(row["height"]) for row in train if row["height"]])
    sparse, dense = [], []
    for row in rows:
        tags = [tag(v) for v in row["tags"].split("|") if v] or [0]
        tags = (tags + [PADDING] * 3)[:3]
        sparse.append(
            [
                user_id(row["user"]),
                item(row["item"]),
                item(row["last"]),
                *tags,
                brand(row["brand"]),
                priced(row["price"]),
            ]
        )
        height = (float(row["height"]) - heights.mean()) / heights.std() if row["height"] else 0.0
        dense.append([log1p(row["price"]), height, float(row["cost"] or 0)])
    return np.array(sparse), np.array(dense)


@pytest.mark.parametrize("by", ["order", "time", "hash", "fold"])
def test_tabular_equals_the_oracle(tmp_path, by):
    split = {
        "order": Split(by="order", fractions=(0.7, 0.2, 0.1)),
        "time": Split(by="time", fractions=(0.7, 0.2, 0.1)),
        "hash": Split(by="hash", key="user", fractions=(0.6, 0.2, 0.2)),
        "fold": Split(by="fold", folds=5, fold=1),
    }[by]
    data, raw, rows = tabular(tmp_path, split)
    manifest = prepare(data, [raw], tmp_path / "data", 4, chunk_bytes=7000)
    got = {name: read_packed(tmp_path / "data", manifest, name) for name in ("train", "validation", "test")}
    if by == "hash":

        def side(user: str) -> str:
            place = int(hashlib.blake2b(user.encode(), digest_size=8).hexdigest(), 16) / 2**64
            return "train" if place < 0.6 else "validation" if place < 0.8 else "test"

        parts = {name: [row for row in rows if side(row["user"]) == name] for name in got}
        assert min(len(part) for part in parts.values()) > 0
    elif by == "fold":
        parts = {"train": rows[:60] + rows[120:], "validation": [], "test": rows[60:120]}
    else:
        ordered = sorted(rows, key=lambda row: int(row["day"])) if by == "time" else rows
        parts = {"train": ordered[:210], "validation": ordered[210:270], "test": ordered[270:]}
    for name, part in parts.items():
        part = sorted(part, key=lambda row: int(row["n"]))  # in file order within a split
        assert manifest.splits[name].rows == len(part)
        if not part:
            continue
        sparse, dense = oracle_of_tabular(part, parts["train"])
        np.testing.assert_array_equal(got[name]["sparse"], sparse)
        np.testing.assert_allclose(got[name]["dense"], dense, rtol=1e-6, atol=1e-6)
        assert got[name]["label"][:, 0].tolist() == [float(int(row["stars"]) >= 4) for row in part]
        assert got[name]["sample_weight"][:, 0].tolist() == [float(row["w"]) for row in part]
    assert manifest.has_sample_weight
    dropped = sum(max(sum(map(bool, row["tags"].split("|"))) - 3, 0) for row in rows)
    assert manifest.statistics["dropped_values"] == {"tags": dropped} and dropped > 0
    item = manifest.statistics["shares"]["test"]["item"]
    assert item["rare"] == np.mean(got["test"]["sparse"][:, 1] == 1)
    assert item["unseen"] == np.mean(got["test"]["sparse"][:, 1] == 2)
    tags = got["train"]["sparse"][:, 3:6]
    assert manifest.statistics["shares"]["train"]["tags"]["missing"] == (tags == 0).sum() / (tags >= 0).sum()
    assert manifest.statistics["rare_in_training"]["item"] == (got["train"]["sparse"][:, 1:3] == 1).sum() > 0
    assert manifest.statistics["shares"]["train"]["user"] == {"missing": 0.0}


def test_published_numbering_is_kept(tmp_path):
    """A coding without reserved rows: a missing value is the value 0, as in the reference's own data."""
    raw = tmp_path / "rows.tsv"
    raw.write_text("1\ta\n0\t\n1\tb\n0\ta\n")
    data = DataConfig(
        format=RawFormat(columns=("label", "c")),
        dense=(),
        sparse=(SparseColumn(name="c"),),
        coding=TableCoding(missing_row=0, oov_row=0, rare_row=0, first_id=1),
        split=Split(fractions=(1, 0, 0)),
    )
    manifest = prepare(data, [raw], tmp_path / "data", 4)
    assert read_packed(tmp_path / "data", manifest, "train")["sparse"][:, 0].tolist() == [1, 0, 2, 1]


SMALL = CRITEO.model_copy(update={"dense": CRITEO.dense[:2], "sparse": CRITEO.sparse[:3]})


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in directory.rglob("*") if p.is_file()}


def test_the_same_is_not_made_twice(tmp_path, criteo):
    raw = [tmp_path / path.name for path in criteo[0]]
    for source, copy in zip(criteo[0], raw, strict=True):
        shutil.copy(source, copy)
    first = prepare(SMALL, raw, tmp_path / "data", 8)
    before = snapshot(tmp_path / "data")
    assert prepare(SMALL, raw, tmp_path / "data", 8) == first
    wider = prepare(SMALL, raw, tmp_path / "data", 32)
    assert wider.spec == first.spec.with_embedding_dim(32) and wider.splits == first.splits
    os.utime(raw[0], (1, 1))  # another time of change, the same content
    elsewhere = tmp_path / "moved"
    shutil.move(raw[1], elsewhere)
    assert prepare(SMALL, [raw[0], elsewhere], tmp_path / "data", 8) == first
    assert prepare(SMALL.model_copy(update={"shuffle_blocks": 3}), [raw[0], elsewhere], tmp_path / "data", 8) == first
    assert snapshot(tmp_path / "data") == before


def refusal(*arguments, **options) -> str:
    with pytest.raises((ConfigError, DataError)) as caught:
        prepare(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_recipe_is_refused_by_name_unless_overwritten(tmp_path, criteo):
    raw, target = criteo[0], tmp_path / "data"
    first = prepare(SMALL, raw, target, 8)
    before = snapshot(target)
    end = "Choose another directory or overwrite."
    folds = SMALL.model_copy(update={"split": Split(by="days", days=5)})
    assert refusal(folds, raw, target, 8) == f"{target}: prepared by another recipe: `data.split.days` 4, now 5. {end}"
    fewer = SMALL.model_copy(update={"dense": SMALL.dense[:1]})
    assert refusal(fewer, raw, target, 8) == (
        f"{target}: prepared by another recipe: `data.dense` of 2 entries, now 1. {end}"
    )
    other = SMALL.model_copy(update={"sparse": (*SMALL.sparse[:2], SparseColumn(name="C3", min_count=9))})
    assert refusal(other, raw, target, 8) == (
        f"{target}: prepared by another recipe: `data.sparse[2].min_count` None, now 9. {end}"
    )
    assert refusal(SMALL, raw[:1], target, 8) == (f"{target}: prepared by another recipe: 2 raw files, now 1. {end}")
    changed = tmp_path / "day_0"
    changed.write_bytes(raw[0].read_bytes().replace(b"\t", b" ", 1))  # of the same size
    assert refusal(SMALL, [changed, raw[1]], target, 8) == (
        f"{target}: prepared by another recipe: raw file {raw[0]}, now {changed} with another content. {end}"
    )
    missing = tmp_path / "gone"
    assert refusal(SMALL, [missing, raw[1]], target, 8) == f"{missing}: cannot be read: No such file or directory."
    assert snapshot(target) == before

    second = prepare(folds, raw, target, 8, overwrite=True)
    assert second.splits != first.splits and Manifest.load(target) == second
    second.verify(target)
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith("data")] == ["data"]


def test_side_tables_are_part_of_the_recipe(tmp_path):
    data, raw, _ = tabular(tmp_path, Split())
    prepare(data, [raw], tmp_path / "data", 4)
    items = tmp_path / "items.txt"
    items.write_bytes(items.read_bytes().replace(b"|2.5", b"|3.5"))
    assert f"side table file {items}, now {items} with another content" in refusal(data, [raw], tmp_path / "data", 4)


def test_data_without_a_recipe_are_refused(tmp_path, criteo):
    prepare(SMALL, criteo[0], tmp_path / "data", 8).model_copy(update={"recipe": {}}).save(tmp_path / "data")
    assert "prepared by another recipe: one that does not say what was read." in refusal(
        SMALL, criteo[0], tmp_path / "data", 8
    )


def test_damaged_data_are_not_reused(tmp_path, criteo):
    prepare(SMALL, criteo[0], tmp_path / "data", 8)
    shard = tmp_path / "data" / "train-00001.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-10])
    assert str(shard) in refusal(SMALL, criteo[0], tmp_path / "data", 8)


def test_a_failure_leaves_nothing_behind(tmp_path, criteo):
    raw, target = criteo[0], tmp_path / "data"
    strict = SMALL.model_copy(update={"max_bad_share": 0.0})
    assert refusal(strict, raw, target, 8) == f"{raw[0]}:21: expected 40 fields, found 41."
    cut = tmp_path / "day_1.gz"
    cut.write_bytes(raw[1].read_bytes()[:-5])
    assert refusal(SMALL, [raw[0], cut], target, 8) == f"{cut}: gzip data is cut short."
    assert sorted(p.name for p in tmp_path.iterdir()) == ["day_1.gz"]
    prepare(SMALL, raw, target, 8)
    before = snapshot(target)
    refusal(strict, raw, target, 8, overwrite=True)
    assert snapshot(target) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "day_1.gz"]


def test_a_file_that_changes_meanwhile_is_refused(tmp_path, criteo):
    raw = tmp_path / "train.txt"
    raw.write_text("\n".join(criteo[1][30:200]) + "\n")

    def progress(phase: str, rows: int):
        if phase == "encode":
            raw.write_text("\n".join(criteo[1][30:180]) + "\n")
        return lambda rows: None

    assert refusal(SMALL, [raw], tmp_path / "data", 8, progress=progress) == f"{raw}: changed while it was read."
    assert not (tmp_path / "data").exists()


def test_a_side_table_that_changes_meanwhile_is_refused(tmp_path):
    data, raw, _ = tabular(tmp_path, Split())
    items = Path(data.format.side_tables[0].file)

    def progress(phase: str, rows: int):
        if phase == "encode":
            items.write_bytes(items.read_bytes() + b"i99|c|1\n")
        return lambda rows: None

    assert refusal(data, [raw], tmp_path / "data", 4, progress=progress) == f"{items}: changed while it was read."
    assert not (tmp_path / "data").exists()


def test_what_is_not_prepared_data_is_never_replaced(tmp_path, criteo):
    target = tmp_path / "data"
    target.mkdir()
    (target / "thesis.txt").write_text("precious")
    for overwrite in (False, True):
        assert refusal(SMALL, criteo[0], target, 8, overwrite=overwrite) == (
            f"{target}: must be empty or hold prepared data. Received: something else."
        )
    (target / "thesis.txt").unlink()
    prepare(SMALL, criteo[0], target, 8)  # an empty directory is taken
    assert Manifest.load(target).splits


def test_settings_that_cannot_be(tmp_path, criteo):
    data, raw, _ = tabular(tmp_path, Split(by="time"))
    untimed = data.model_copy(update={"format": data.format.model_copy(update={"time": None})})
    assert refusal(untimed, [raw], tmp_path / "data", 4) == (
        '`data.format.time` must name a column where split.by = "time".'
    )
    one_user = tmp_path / "one.tsv"
    one_user.write_text("1\tff\n")
    hashed = DataConfig(
        format=RawFormat(columns=("label", "c")),
        dense=(),
        sparse=(SparseColumn(name="c"),),
        split=Split(by="hash", key="c", fractions=(1e-9, 0.5, 0.5 - 1e-9)),
    )
    assert refusal(hashed, [one_user], tmp_path / "data", 4).startswith("no row is left to train on")
    collected = data.format.side_tables[0].model_copy(update={"collect": {"kinds": ("brand",)}})
    hexed = data.model_copy(
        update={
            "format": data.format.model_copy(update={"side_tables": (collected,)}),
            "sparse": (SparseColumn(name="kinds", separator="|", value="hex"),),
            "split": Split(),
        }
    )
    assert refusal(hexed, [raw], tmp_path / "data", 4) == (
        'collected column `kinds` holds names, so its coding must have value = "string".'
    )


def test_progress_tells_phases_and_all_rows(tmp_path, criteo):
    told: dict[str, tuple[int, list[int]]] = {}

    def progress(phase: str, rows: int):
        told[phase] = (rows, [])
        return told[phase][1].append

    prepare(SMALL, criteo[0], tmp_path / "data", 8, progress=progress, chunk_bytes=5000)
    assert list(told) == ["count", "vocabulary", "encode"]
    assert {phase: (rows, sum(done)) for phase, (rows, done) in told.items()} == {
        "count": (0, 400),
        "vocabulary": (400, 400),
        "encode": (397, 397),  # three rows are bad
    }
    assert len(told["encode"][1]) > 3


def test_a_last_chunk_of_bad_rows_alone_has_no_split(tmp_path):
    """Its only row is bad, so that there is no key to hash."""
    raw = tmp_path / "rows.csv"
    good = "".join(f"{n % 2},k{n}\n" for n in range(200))
    raw.write_text(good + f"2,{'x' * 2000}\n")
    data = DataConfig(
        format=RawFormat(delimiter=",", columns=("label", "key")),
        dense=(),
        sparse=(SparseColumn(name="key", value="string"),),
        split=Split(by="hash", key="key", fractions=(0.6, 0.2, 0.2)),
        max_bad_share=0.01,
    )
    manifest = prepare(data, [raw], tmp_path / "data", 4, chunk_bytes=500)
    assert sum(split.rows for split in manifest.splits.values()) == 200
    assert manifest.statistics["bad_rows"] == {"`label` must be 0 or 1": 1}

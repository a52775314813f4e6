"""Figures of a prepared data set against NumPy on the rows it was made of."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import numpy as np
import pytest

from tests.data.packed_samples import make_sample, make_spec
from tests.data.test_blocks import make_examples
from tfdlrm.data.inspection import inspect, values_of
from tfdlrm.data.planted import write_planted
from tfdlrm.data.prepare import prepare
from tfdlrm.data.vocabulary import Vocabulary, vocabulary_pieces
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import Split

ROWS = 4000


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Four days of planted rows, three for training, in two files: the folder, its manifest and the raw fields."""
    folder = tmp_path_factory.mktemp("inspected")
    raw = [folder / "one.tsv", folder / "two.tsv"]
    for number, path in enumerate(raw):
        write_planted(path, ROWS // 2, seed=number)
    data = DataConfig(
        split=Split(by="days", days=4), coding=TableCoding(min_count=3), rows_per_block=128, rows_per_shard=700
    )
    manifest = prepare(data, raw, folder / "data", 8)
    lines = [line.split("\t") for path in raw for line in path.read_text().splitlines()]
    return folder / "data", manifest, lines


@pytest.fixture(scope="module")
def figures(prepared):
    done = []
    found = inspect(prepared[0], progress=done.append)
    assert sum(done) == ROWS
    return json.loads(json.dumps(found))


def test_splits_and_shards(prepared, figures):
    _, manifest, lines = prepared
    clicks = np.array([line[0] == "1" for line in lines])
    expected = {"train": clicks[:3000], "test": clicks[3000:3500], "validation": clicks[3500:]}
    assert figures["rows"] == figures["read_rows"] == ROWS
    assert {s["name"]: s["rows"] for s in figures["splits"]} == {name: len(own) for name, own in expected.items()}
    for split in figures["splits"]:
        assert split["click_rate"] == pytest.approx(expected[split["name"]].mean())
    shards = [shard for shard in figures["shards"] if shard["split"] == "train"]
    assert [shard["rows"] for shard in shards] == [700, 700, 700, 700, 200]
    rates = [clicks[start : min(start + 700, 3000)].mean() for start in range(0, 3000, 700)]
    assert [shard["click_rate"] for shard in shards] == pytest.approx(rates)


def test_days(prepared, figures):
    clicks = np.array([line[0] == "1" for line in prepared[2]])
    assert figures["parts"]["kind"] == "day"
    expected = [("day 1", "train", 0, 1000), ("day 2", "train", 1000, 2000), ("day 3", "train", 2000, 3000)]
    expected += [("day 4", "test", 3000, 3500), ("day 4", "validation", 3500, 4000)]
    found = [(part["name"], part["split"], part["rows"]) for part in figures["parts"]["items"]]
    assert found == [(name, split, stop - start) for name, split, start, stop in expected]
    rates = [clicks[start:stop].mean() for _, _, start, stop in expected]
    assert [part["click_rate"] for part in figures["parts"]["items"]] == pytest.approx(rates)


def test_tables_and_their_most_used_values(prepared, figures):
    _, manifest, lines = prepared
    for table in figures["tables"]:
        values = [line[13 + int(table["name"][1:])] for line in lines]
        training = values[:3000]
        known = {v for v in set(training) - {""} if training.count(v) >= 3}
        assert table["rows"] == 2 + len(known) == manifest.spec.table(table["name"]).vocabulary_size
        reserved = ("" in values) + any(v and v not in known for v in values)
        assert table["used"] == len(known) + reserved
        assert table["values"] == ROWS and table["counted"] == "exactly"
        for entry in table["top"]:
            if entry["value"] == "missing":
                assert entry["count"] == values.count("")
            elif entry["value"] == "rare or unseen":
                assert entry["count"] == sum(v not in known for v in values if v)
            else:
                assert entry["count"] == values.count(entry["value"])
        counts = [entry["count"] for entry in table["top"]]
        assert counts == sorted(counts, reverse=True)
        assert table["coverage"][-1] == [table["used"], 1.0]
        assert table["coverage"][0] == [1, pytest.approx(counts[0] / ROWS)]


def test_missing_rare_and_unseen_equal_what_prepare_counted(prepared, figures):
    shares = prepared[1].statistics["shares"]
    for feature in figures["sparse"]:
        for split, own in feature["splits"].items():
            expected = shares[split][feature["name"]]
            assert own["values_per_row"] == 1
            assert own["missing"] == pytest.approx(expected["missing"])
            assert own["rare or unseen"] == pytest.approx(expected["rare_or_unseen"])


def test_numbers(prepared, figures):
    for column, feature in enumerate(figures["dense"]):
        texts = [line[1 + column] for line in prepared[2]]
        for split, rows in (("train", slice(0, 3000)), ("test", slice(3000, 3500)), ("validation", slice(3500, None))):
            own = np.log1p(np.maximum([float(text or 0) for text in texts[rows]], 0)).astype(np.float32)
            found = feature["splits"][split]
            assert found["missing"] == pytest.approx(np.mean([text == "" for text in texts[rows]]))
            assert found["zero"] == pytest.approx(np.mean(own == 0))
            assert (found["min"], found["max"]) == (own.min(), own.max())
            assert found["mean"] == pytest.approx(own.mean(dtype=np.float64), rel=1e-6)
            assert found["q50"] == pytest.approx(np.quantile(own, 0.5, method="inverted_cdf"), rel=0.005)


def test_planted_rows_do_not_drift_and_a_shift_is_seen(prepared, figures, tmp_path):
    """Rows of one teacher differ by chance alone; the rows of a file that were tampered with stand out."""
    pairs = figures["drift"]["parts"]
    assert [(pair["from"], pair["to"]) for pair in pairs] == [
        ("day 1 (train)", "day 2 (train)"),
        ("day 2 (train)", "day 3 (train)"),
        ("day 3 (train)", "day 4 (test)"),
        ("day 4 (test)", "day 4 (validation)"),
    ]
    assert [(pair["from"], pair["to"]) for pair in figures["drift"]["splits"]] == [
        ("train", "validation"),
        ("train", "test"),
    ]
    small = [
        f for p in pairs for name, f in p["features"].items() if name in ("C6", "C9", "C14", "C20", "C23", "I1", "I5")
    ]
    assert all(f["jensen_shannon"] < 2.5 * f["by_chance"] + 0.02 for f in small)

    raw = [prepared[0].parent / "one.tsv", tmp_path / "moved.tsv"]
    lines = [line.split("\t") for line in (prepared[0].parent / "two.tsv").read_text().splitlines()]
    for number, line in enumerate(lines):
        line[5] = str(3 * int(line[5])) if line[5] else ""  # I5
        line[22] = "deadbeef" if number % 3 else line[22]  # C9
    raw[1].write_text("\n".join("\t".join(line) for line in lines) + "\n")
    data = DataConfig(split=Split(by="order", fractions=(0.5, 0.25, 0.25)), rows_per_block=512)
    prepare(data, raw, tmp_path / "data", 8)
    drift = inspect(tmp_path / "data")["drift"]["splits"]
    assert {pair["to"] for pair in drift} == {"validation", "test"}
    for pair in drift:
        for name in ("I5", "C9"):
            assert pair["features"][name]["jensen_shannon"] > 3 * pair["features"][name]["by_chance"]
        assert pair["features"]["C20"]["jensen_shannon"] < 2.5 * pair["features"]["C20"]["by_chance"]


@pytest.mark.parametrize("form", ["packed", "example"])
def test_bags_weights_and_data_without_an_encoder(tmp_path, form):
    if form == "packed":
        arrays = make_sample(tmp_path, rows=300, block=32, shard=100, spec=make_spec(weighted=True)).arrays
    else:
        arrays = make_examples(tmp_path, weighted=True)
    figures = inspect(tmp_path)
    assert figures["format"] == form and figures["parts"]["kind"] == "shard"
    for feature, columns in zip(figures["sparse"], (slice(0, 1), slice(1, 4)), strict=True):
        bags, weights = arrays["sparse"][:, columns], arrays["weights"][:, columns]
        there = bags >= 0
        own = feature["splits"]["train"]
        assert own["values_per_row"] == pytest.approx(there.sum() / 300)
        assert own["missing"] == pytest.approx((bags == 0).sum() / there.sum())
        assert own["unseen"] == pytest.approx((bags == 1).sum() / there.sum())
        assert feature["weights"]["mean"] == pytest.approx(weights[there].mean(dtype=np.float64))
        table = next(t for t in figures["tables"] if t["name"] == feature["table"])
        ids, counts = np.unique(bags[there], return_counts=True)
        assert (table["used"], table["values"]) == (len(ids), there.sum())
        assert table["top"][0]["count"] == counts.max()
    assert figures["dense"][0]["splits"]["train"]["missing"] is None  # nothing says so


def test_a_sample_reads_less_and_says_so(prepared):
    read = []
    figures = inspect(prepared[0], rows=1000, progress=read.append)
    assert figures["rows"] == ROWS
    assert figures["read_rows"] == sum(read)
    assert 1000 <= figures["read_rows"] < 2000
    assert all(0 < shard["read_rows"] < shard["rows"] for shard in figures["shards"] if shard["rows"] > 256)


def test_one_split(prepared):
    figures = inspect(prepared[0], split="test")
    assert [split["name"] for split in figures["splits"]] == ["test"]
    assert figures["read_rows"] == 500
    assert {part["split"] for part in figures["parts"]["items"]} == {"test"}
    assert figures["drift"] == {"parts": [], "splits": []}
    assert figures["tables"][0]["used_in_training"] is None


def test_large_tables_are_sketched_within_the_limit(prepared, figures):
    sketched = inspect(prepared[0], counted_rows=200)
    kinds = {table["name"]: table["counted"] for table in sketched["tables"]}
    assert set(kinds.values()) == {"exactly", "sketch"}
    for table, exact in zip(sketched["tables"], figures["tables"], strict=True):
        assert table["used"] == exact["used"]
        assert table["top"] == exact["top"]  # all of their rows have room in the sketch


def test_bad_arguments(prepared, tmp_path):
    with pytest.raises(DataError, match=r"`split` must be one of .*Received: `trian`. Did you mean `train`\?"):
        inspect(prepared[0], split="trian")
    for name in ("rows", "top"):
        with pytest.raises(ConfigError, match=f"`{name}` must be at least 1. Received: 0"):
            inspect(prepared[0], **{name: 0})
    with pytest.raises(DataError, match="not a prepared data set"):
        inspect(tmp_path)


def test_values_of_rows():
    entries = [(np.array([-1, 7, 0xABC]), np.array([3, 2, 1], np.int32))]
    rows = [0, 1, 2, 3, 9]
    assert values_of(rows, TableCoding(), entries) == ["missing", "unseen", "00000007", "f" * 16, None]
    assert values_of([2], TableCoding(value="number"), entries) == ["bucket 7"]
    assert values_of([2], TableCoding(value="string"), entries) == ["fingerprint 00000007"]
    assert values_of([0, 1, 2], TableCoding(kind="hash", buckets=2), entries) == ["missing", None, None]
    published = TableCoding(missing_key=0, oov_row=None, rare_row=0, first_id=0)
    assert values_of([2, 5], published, entries) == ["00000007", None]
    assert values_of([2], TableCoding()) == [None]


def test_values_are_read_in_pieces_as_far_as_needed(tmp_path):
    shared = Vocabulary(np.arange(1000), np.where(np.arange(1000) % 10, 2 + np.arange(1000) % 7, 0).astype(np.int32), 9)
    shared.save(tmp_path / "v.npz")
    sizes = []

    def watched():
        for keys, ids in vocabulary_pieces(tmp_path / "v.npz", 64):
            sizes.append(len(keys))
            yield keys, ids

    coding = TableCoding(min_count=2, oov_row=1, rare_row=0, missing_row=0)
    assert values_of([8, 0, 2], coding, watched()) == ["00000006", "missing or rare", "00000007"]
    assert sizes == [64]  # the lowest key of each row is in the first piece
    assert values_of([8, 99], coding, watched()) == ["00000006", None]
    assert sizes[1:] == [64] * 15 + [40]


def test_memory_does_not_grow_with_vocabularies(tmp_path):
    """Most values are rare and share a row; a table of many is looked at in less memory than its keys take."""
    entries = 2_000_000
    ids = np.zeros(entries, np.int32)
    ids[[5, 1_500_000]] = 3, 2
    Vocabulary(np.arange(entries), ids, 4).save(tmp_path / "v.npz")
    tracemalloc.start()
    try:
        pieces = vocabulary_pieces(tmp_path / "v.npz", 1 << 16)
        coding = TableCoding(min_count=2, oov_row=1, rare_row=0, missing_row=0)
        assert values_of([0, 2, 3], coding, pieces) == ["missing or rare", f"{1_500_000:08x}", "00000005"]
        assert tracemalloc.get_traced_memory()[1] < 8 * entries / 4
    finally:
        tracemalloc.stop()


def test_inspecting_loads_no_whole_vocabulary(prepared, monkeypatch, figures):
    def refused(path):
        raise AssertionError(path)

    monkeypatch.setattr(Vocabulary, "load", refused)
    assert json.loads(json.dumps(inspect(prepared[0]))) == figures


def test_a_damaged_vocabulary_is_named(prepared, tmp_path):
    copy = tmp_path / "data"
    shutil.copytree(prepared[0], copy)
    path = copy / "vocabulary" / "00003.npz"
    content = bytearray(path.read_bytes())
    content[300] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match="00003.npz: must be the vocabulary of table"):
        inspect(copy)
    path.write_bytes(content[:100])
    with pytest.raises(DataError, match="00003.npz: not a vocabulary"):
        list(vocabulary_pieces(path))
    with pytest.raises(DataError, match="none.npz: no such file"):
        list(vocabulary_pieces(tmp_path / "none.npz"))

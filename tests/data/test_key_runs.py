"""Counts put aside and merged in small pieces equal those of one dictionary; so do the rows that keys get."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdlrm.data import vocabulary_builder
from tfdlrm.data.big_lookup import BigLookup
from tfdlrm.data.key_counts import Counted, count_keys
from tfdlrm.data.key_runs import Run, SavedRun, SharedKey, merge_runs, merged_pieces
from tfdlrm.data.lookup import BulkLookup
from tfdlrm.data.vocabulary_builder import VocabularyBuilder, map_vocabularies, save_vocabularies
from tfdlrm.data.vocabulary_rows import numbered
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import SparseFeature

near_edges = st.one_of(st.integers(0, 40), st.integers(2**32 - 3, 2**32 + 3), st.integers(2**63 - 3, 2**64 - 1))


def run_of(keys: list[int], first: int = 0) -> Run:
    dtype = np.uint32 if max(keys, default=0) < 2**32 else np.uint64
    return Run(count_keys(np.array(keys, dtype), np.arange(first, first + len(keys))))


@settings(deadline=None, max_examples=200)
@given(st.lists(st.lists(near_edges, max_size=30), min_size=1, max_size=4), st.integers(1, 40))
def test_pieces_are_ascending_and_add_up(parts, at_once):
    firsts = np.cumsum([0, *map(len, parts)]).tolist()
    runs = [run_of(part, first) for part, first in zip(parts, firsts, strict=False)]
    pieces = list(merged_pieces(runs, at_once))
    keys = [key for piece in pieces for key in piece.keys.tolist()]
    assert keys == sorted(set(keys))
    everything = [key for part in parts for key in part]
    counted = dict(zip(keys, (c for p in pieces for c in p.counts.tolist()), strict=True))
    assert counted == Counter(everything)
    places = dict(zip(keys, (f for p in pieces for f in p.firsts.tolist()), strict=True))
    assert places == {key: everything.index(key) for key in keys}


def test_pieces_are_small():
    rng = np.random.default_rng(0)
    runs = [run_of(np.unique(rng.integers(0, 2**40, 20_000)).tolist()) for _ in range(5)]
    sizes = [len(piece.keys) for piece in merged_pieces(runs, 4_000)]
    assert len(sizes) > 20 and max(sizes) <= 2 * 4_000


def rows_by_hand(keys: list[int], coding: TableCoding) -> dict[int, int]:
    """Return the row of each key by sorting a dictionary of counts."""
    counts = Counter(keys)
    signed = {key: key - 2**64 if key >= 2**63 else key for key in counts}
    frequent = sorted((k for k, n in counts.items() if n >= coding.min_count), key=lambda k: (-counts[k], signed[k]))
    kept = frequent[: coding.max_values]
    order = {"count": kept, "key": sorted(kept), "first_seen": sorted(kept, key=keys.index)}[coding.id_order]
    rows = {key: coding.first_id + place for place, key in enumerate(order)}
    if coding.rare_row != coding.oov_row:
        rows |= {key: coding.rare_row for key in counts if key not in rows}
    return {signed[key]: row for key, row in rows.items()}


@settings(deadline=None, max_examples=200)
@given(
    st.lists(near_edges, max_size=80),
    st.sampled_from(["count", "key", "first_seen"]),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(1, 10)),
    st.booleans(),
    st.integers(1, 30),
)
def test_rows_in_blocks_equal_those_by_hand(keys, order, min_count, max_values, apart, at_once):
    coding = TableCoding(id_order=order, min_count=min_count, max_values=max_values, rare_row=0 if apart else 1)
    counted = run_of(keys).counted
    vocabulary = numbered(coding, counted, at_once)
    assert dict(zip(vocabulary.keys.tolist(), vocabulary.ids.tolist(), strict=True)) == rows_by_hand(keys, coding)


@pytest.mark.parametrize("memory_bytes", [1, 1 << 40])
@pytest.mark.parametrize("coding", [
    TableCoding(min_count=2),
    TableCoding(id_order="first_seen", first_id=0, missing_key=0, oov_row=None),
    TableCoding(modulus=1000, id_order="key", missing_key=7),
    TableCoding(value="string", max_values=100),
])  # fmt: skip
def test_saved_counts_give_the_vocabulary_of_those_in_memory(tmp_path, monkeypatch, coding, memory_bytes):
    monkeypatch.setattr(vocabulary_builder, "_MERGE_BYTES", 1)  # pieces of 4096 entries
    rng = np.random.default_rng(1)
    values = (rng.pareto(0.5, 30_000) * 100).astype(np.int64) % 2**36
    frames = [
        pl.DataFrame({"c": ["" if v % 50 == 3 else f"{v:x}" for v in part]}) for part in np.array_split(values, 6)
    ]
    encoding = Encoding(features={"c": FeatureCoding(source="c")}, tables={"t": coding})
    whole, aside = (VocabularyBuilder(encoding, {"c": "t"}) for _ in range(2))
    folders = []
    for number, frame in enumerate(frames):
        whole.add(frame)
        aside.add(frame)
        if number % 2:
            folders.append(tmp_path / str(number))
            folders[-1].mkdir()
            aside.save(folders[-1])
            assert aside.nbytes == 0
    expected = whole.build()[0]["t"]
    built, _ = aside.build(folders, tmp_path, memory_bytes)
    assert len(np.unique(values)) > 4096 and built["t"].rows == expected.rows
    save_vocabularies(built, tmp_path)
    for vocabulary in (built["t"], map_vocabularies(tmp_path)["t"]):
        np.testing.assert_array_equal(vocabulary.keys, expected.keys)
        np.testing.assert_array_equal(vocabulary.ids, expected.ids)


def test_colliding_strings_are_found_across_runs(tmp_path):
    shared = np.array([5], np.uint64)
    runs = [Run(Counted(shared, np.array([1])), pl.Series("text", [text])) for text in ("a", "b")]
    with pytest.raises(SharedKey) as caught:
        list(merged_pieces(runs, 10))
    assert caught.value.texts == ("a", "b")


@settings(deadline=None, max_examples=60)
@given(
    st.lists(near_edges, min_size=1, max_size=60, unique=True),
    st.lists(st.lists(st.one_of(near_edges, st.none()), min_size=1, max_size=30), min_size=1, max_size=5),
    st.integers(1, 4000),
)
def test_the_join_finds_what_the_lookup_in_memory_finds(tmp_path_factory, known, chunks, memory_bytes):
    coding = TableCoding(min_count=1)
    vocabulary = numbered(coding, run_of(known).counted, 100)
    frames = [
        pl.DataFrame({
            "c": pl.Series([key or 0 for key in chunk], dtype=pl.UInt64),
            "missing:c": [key is None for key in chunk],
        })
        for chunk in chunks
    ]  # fmt: skip
    feature = SparseFeature(name="c", table="c")
    encoding = Encoding(features={"c": FeatureCoding(source="c")}, tables={"c": coding})
    join = BigLookup(tmp_path_factory.mktemp("join"), "c", feature, encoding, vocabulary, memory_bytes)
    told: list[int] = []
    join.run(
        [f.height for f in frames], range(len(frames)), lambda chunk, names: frames[chunk].select(names), told.append
    )
    assert sum(told) == sum(f.height for f in frames)
    lookup = BulkLookup(coding, vocabulary)
    for number, frame in enumerate(frames):
        column = (frame["c"].to_numpy(), frame["missing:c"].to_numpy())
        expected = lookup(vocabulary_builder.KeyColumn(*column))
        assert join.rows_of(number, np.arange(frame.height)).tolist() == [expected.tolist()]


def test_a_shared_fingerprint_names_the_table(tmp_path):
    builder = VocabularyBuilder(
        Encoding(features={"c": FeatureCoding(source="c")}, tables={"t": TableCoding(value="string")}), {"c": "t"}
    )
    folders = []
    for number, text in enumerate("ab"):
        folders.append(tmp_path / str(number))
        folders[-1].mkdir()
        Run(Counted(np.array([5], np.uint64), np.array([1])), pl.Series("text", [text])).save(folders[-1], "00000")
    with pytest.raises(DataError, match="table `t` must have distinct 64-bit fingerprints. Received: 'a' and 'b'"):
        builder.build(folders)


def test_texts_that_share_a_key_stay_apart_when_runs_are_merged():
    runs = [
        Run(Counted(np.array([3, 9], np.uint64), np.array([1, 2])), pl.Series(["a", "b"])),
        Run(Counted(np.array([3, 9], np.uint64), np.array([4, 8])), pl.Series(["a", "c"])),
    ]
    merged = merge_runs(runs)
    assert merged.texts is not None and merged.texts.to_list() == ["a", "b", "c"]
    assert merged.counted.keys.tolist() == [3, 9, 9] and merged.counted.counts.tolist() == [5, 2, 8]
    with pytest.raises(SharedKey, match="b"):
        list(merged_pieces([merged], 10))


def test_merged_runs_keep_where_each_key_was_first():
    keys, counts, firsts = merge_runs([run_of([7, 2**40, 7], 10), run_of([5, 7], 0)]).counted
    assert firsts is not None
    assert (keys.tolist(), counts.tolist(), firsts.tolist()) == ([5, 7, 2**40], [1, 3, 1], [0, 1, 11])


# Builds vocabularies of runs that lie in many folders, in a process that may open few files.
MANY_SEGMENTS = """
import os, resource, sys
from pathlib import Path
from tfdlrm.data.vocabulary_builder import VocabularyBuilder, save_vocabularies
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding

folder, memory_bytes = Path(sys.argv[1]), int(sys.argv[2])
codings = {
    "counted": TableCoding(),
    "seen": TableCoding(id_order="first_seen"),
    "text": TableCoding(value="string"),
    "more": TableCoding(),
}
encoding = Encoding(features={name: FeatureCoding(source=name) for name in codings}, tables=codings)
os.sched_getaffinity = lambda process: set(range(64))  # as on a large machine
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
builder = VocabularyBuilder(encoding, {name: name for name in codings})
built, _ = builder.build(sorted((folder / "runs").iterdir()), folder / "scratch", memory_bytes)
save_vocabularies(built, folder / "scratch")
"""


def test_three_hundred_segments_under_a_small_limit_of_open_files(tmp_path, forks):
    rng = np.random.default_rng(0)
    everything = [rng.permutation(5000)[:60].tolist() for _ in range(300)]
    (tmp_path / "scratch").mkdir()
    for number, keys in enumerate(everything):
        folder = tmp_path / "runs" / f"{number:03d}"
        folder.mkdir(parents=True)
        seen = run_of(keys, first=60 * number)
        counted = Run(seen.counted._replace(firsts=None))
        texts = pl.Series("text", [f"text {key}" for key in seen.keys])
        for table, run in enumerate((counted, seen, Run(counted.counted, texts), counted)):
            run.save(folder, f"{table:05d}")
    done = forks.start("-c", MANY_SEGMENTS, tmp_path, 1)
    assert done.wait() == 0, done.output
    found = map_vocabularies(tmp_path / "scratch")
    assert list(found) == ["counted", "seen", "text", "more"]
    for name, vocabulary in found.items():
        coding = TableCoding(id_order="first_seen" if name == "seen" else "count")
        rows = dict(zip(vocabulary.keys.tolist(), vocabulary.ids.tolist(), strict=True))
        assert rows == rows_by_hand([key for keys in everything for key in keys], coding)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 3000), st.data())
def test_saved_runs_are_read_in_slices(tmp_path_factory, entries, data):
    rng = np.random.default_rng(entries)
    keys = np.unique(rng.integers(0, 2**40, entries).astype(np.uint64))
    texts = pl.Series("text", ["ü\n" * int(n) for n in rng.integers(0, 9, len(keys))], pl.String)
    firsts = rng.integers(0, 100, len(keys))
    folder = tmp_path_factory.mktemp("run")
    for name, run in {
        "firsts": Run(Counted(keys, np.arange(len(keys)), firsts)),
        "short": Run(Counted((keys >> np.uint64(8)).astype(np.uint32), np.arange(len(keys)))),
        "texts": Run(Counted(keys, np.arange(len(keys))), texts),
    }.items():
        run.save(folder, name)
        saved = SavedRun(folder, name)
        assert (saved.entries, saved.has_firsts) == (run.entries, run.has_firsts)
        assert saved.keys.tolist() == run.keys.tolist()
        start = data.draw(st.integers(0, len(keys)))
        stop = data.draw(st.integers(start, len(keys)))
        found, expected = saved.slice(start, stop), run.slice(start, stop)
        for ours, theirs in zip(found.counted, expected.counted, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert (ours is None) == (theirs is None) and (ours is None or ours.dtype == theirs.dtype)
        assert (found.texts is None) == (run.texts is None)
        assert found.texts is None or found.texts.to_list() == expected.texts.to_list()
        loaded = Run.load(folder, name)
        assert (loaded is None) == (run.entries == 0)


def saved_segments(folder: Path) -> tuple[VocabularyBuilder, list[Path]]:
    """Put two segments of two tables aside, of which the second table is empty."""
    encoding = Encoding(
        features={name: FeatureCoding(source=name) for name in "cd"},
        tables={"c": TableCoding(value="string"), "d": TableCoding()},
    )
    builder = VocabularyBuilder(encoding, {"c": "c", "d": "d"})
    folders = []
    for number, values in enumerate((["a", "b"], ["b", "c"])):
        builder.add(pl.DataFrame({"c": values, "d": ["", ""]}))
        folders.append(folder / str(number))
        folders[-1].mkdir()
        builder.save(folders[-1])
    return builder, folders


@pytest.mark.parametrize("name", ["00000.run", "00000.json", "00001.run", "00001.json"])
def test_a_run_that_was_lost_is_not_taken_for_an_empty_one(tmp_path, name):
    builder, folders = saved_segments(tmp_path)
    assert len(builder.build(folders)[0]["c"].keys) == 3
    (folders[1] / name).unlink()
    with pytest.raises(DataError, match=f"{folders[1] / name}: m"):
        builder.build(folders)
    if name.endswith("json"):  # where runs are saved one by one, there may be none of a table
        assert len(builder.build(folders, some_tables=True)[0]["c"].keys) == (2 if name == "00000.json" else 3)


def test_a_run_that_was_cut_off_is_named(tmp_path):
    builder, folders = saved_segments(tmp_path)
    path = folders[0] / "00000.run"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{path}: must have the {size} bytes that were written. Received: {size - 1}"):
        builder.build(folders)
    (folders[0] / "00000.json").write_text("{")
    with pytest.raises(DataError, match="00000.json: damaged"):
        builder.build(folders)


def test_with_a_scratch_folder_vocabularies_are_mapped_from_it(tmp_path):
    builder, folders = saved_segments(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    built, _ = builder.build(folders, scratch)
    for array in (built["c"].keys, built["c"].ids):
        assert isinstance(array, np.memmap) and Path(array.filename).parent == scratch
    assert sorted(path.name for path in scratch.iterdir()) == ["00000.ids.npy", "00000.keys.npy"]


@pytest.mark.parametrize("scratch", [True, False])
def test_vocabularies_are_durable_before_they_count_as_saved(tmp_path, monkeypatch, scratch):
    builder, folders = saved_segments(tmp_path)
    target = tmp_path / "scratch"
    target.mkdir()
    synced: list[str] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        if not (target / "vocabularies.json").exists():
            synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))

    monkeypatch.setattr(os, "fsync", noted)
    save_vocabularies(builder.build(folders, target if scratch else None)[0], target)
    assert {"00000.ids.npy", "00000.keys.npy", "scratch"} <= set(synced)
    assert synced.index("scratch") > max(synced.index("00000.ids.npy"), synced.index("00000.keys.npy"))


def test_a_vocabulary_that_was_lost_is_named(tmp_path):
    builder, folders = saved_segments(tmp_path)
    save_vocabularies(builder.build(folders)[0], tmp_path)
    path = tmp_path / "00000.ids.npy"
    np.save(path, np.zeros(2, np.int32))
    with pytest.raises(DataError, match=f"{path}: must have the 3 entries that were written. Received: 2"):
        map_vocabularies(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=f"{path}: damaged"):
        map_vocabularies(tmp_path)
    path.unlink()
    with pytest.raises(DataError, match=f"{path}: missing"):
        map_vocabularies(tmp_path)


def test_long_texts_are_merged_fewer_at_a_time(tmp_path, monkeypatch):
    encoding = Encoding(
        features={"c": FeatureCoding(source="c")}, tables={"c": TableCoding(value="string", id_order="key")}
    )
    most = []
    merge = vocabulary_builder.merged_pieces

    def watched(runs, at_once):
        for piece in merge(runs, at_once):
            most[-1] = max(most[-1], len(piece.keys))
            yield piece

    monkeypatch.setattr(vocabulary_builder, "merged_pieces", watched)
    for length in (1, 1000):
        builder = VocabularyBuilder(encoding, {"c": "c"})
        builder.add(pl.DataFrame({"c": [f"{value:05d}" + "x" * length for value in range(20_000)]}))
        folder = tmp_path / str(length)
        folder.mkdir()
        builder.save(folder)
        most.append(0)
        threads = min(8, vocabulary_builder.usable_cores())
        built, _ = builder.build([folder], folder, threads * 5_000_000)
        assert len(built["c"].keys) == 20_000
    assert most[0] == 20_000
    assert most[1] * 1000 <= 5_000_000

"""Parts of raw files, parsed on their own, are together what a reader makes of whole files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tfdlrm.data.bad_rows import BadRows
from tfdlrm.data.raw_blocks import Span, is_packed, survey, survey_blocks
from tfdlrm.data.raw_parts import FilePart, PartReader, parts_of
from tfdlrm.data.reader import RawReader
from tfdlrm.data.transforms import StatsCounter
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.raw import RawFormat

HEADER = RawFormat(header=True, delimiter=",", label="y")
BARE = RawFormat(columns=("y", "x", "c"), delimiter=",", label="y")


def rows(count: int, first: int) -> list[str]:
    return [f"{n % 2},{n},{'ab' * (n % 5)}" for n in range(first, first + count)]


def write(folder: Path, header: bool, end: str) -> list[Path]:
    """Write a plain file with a byte order mark and no last line end, a packed one, and a short one."""
    top = ["y,x,c"] if header else []
    paths = [folder / "a.csv", folder / "b.csv.gz", folder / "c.csv"]
    paths[0].write_bytes(b"\xef\xbb\xbf" + end.join(top + rows(57, 0)).encode())
    paths[1].write_bytes(gzip.compress((end.join(top + rows(40, 57)) + end).encode()))
    paths[2].write_bytes((end.join(top + rows(1, 97)) + end).encode())
    return paths


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize(("chunk_bytes", "part_bytes"), [(7, 1), (64, 200), (64, 1 << 20), (1 << 20, 1)])
def test_parts_yield_the_chunks_of_the_whole(tmp_path, header, end, chunk_bytes, part_bytes):
    paths = write(tmp_path, header, end)
    reader = RawReader(HEADER if header else BARE, paths, dense=["x"], strings=["c"], chunk_bytes=chunk_bytes)
    surveys = [(survey_blocks(path, header, chunk_bytes), is_packed(path)) for path in paths]
    assert [found.rows for (found, _), _ in surveys] == [57, 40, 1] == reader.count()
    assert [found for (found, _), _ in surveys] == [survey(path, header) for path in paths]
    parts = parts_of([(spans, packed) for (_, spans), packed in surveys], header, part_bytes)
    expected = list(reader)
    found = []
    for part in parts:
        alone = RawReader(HEADER if header else BARE, paths[:1], dense=["x"], strings=["c"], chunk_bytes=chunk_bytes)
        found += PartReader(alone, paths[part.file], part, header, 0).map(lambda chunk: chunk)
    assert [(chunk.index, chunk.read) for chunk in found] == [(chunk.index, chunk.read) for chunk in expected]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.frame.equals(theirs.frame)
        np.testing.assert_array_equal(ours.rows, theirs.rows)
    files = [part.file for part in parts]
    assert files.count(1) == 1  # a packed file is never cut
    assert (files.count(0) > 1) == (part_bytes < 1000)


def test_parts_know_their_place():
    plain = [Span(0, 60, 5), Span(60, 110, 4), Span(110, 190, 8)]
    parts = parts_of([(plain, False), ([Span(0, 90, 9), Span(90, 180, 3)], True)], True, 120)
    assert parts == [
        FilePart(0, 0, 0, 2, plain[:2], False),
        FilePart(0, 2, 9, 11, plain[2:], False),
        FilePart(1, 3, 17, 2, [Span(0, 90, 9), Span(90, 180, 3)], True),
    ]


def test_a_bad_row_is_named_by_its_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["y,x,c", *rows(20, 0), "1,many,ab", *rows(3, 0)]))
    spans = survey_blocks(path, True, 64)[1]
    reader = RawReader(HEADER, [path], dense=["x"], strings=["c"])
    part = parts_of([(spans, False)], True, 64)[-1]
    assert part.line > 10
    with pytest.raises(DataError, match=r"a\.csv:22: `x`"):
        list(PartReader(reader, path, part, True, 0).map(lambda chunk: chunk))


@pytest.mark.parametrize("packed", [False, True])
def test_a_file_that_changed_is_refused(tmp_path, packed):
    path = tmp_path / ("a.csv.gz" if packed else "a.csv")

    def put(lines: list[str]) -> None:
        text = "\n".join(lines).encode()
        path.write_bytes(gzip.compress(text) if packed else text)

    put(rows(30, 0))
    part = parts_of([(survey_blocks(path, False, 64)[1], packed)], False, 1 << 20)[0]
    reader = RawReader(BARE, [path], dense=["x"], strings=["c"], chunk_bytes=64)
    put(rows(9, 0))
    with pytest.raises(DataError, match="changed while it was read"):
        list(PartReader(reader, path, part, False, 0).map(lambda chunk: chunk))


def test_bad_rows_of_parts_add_up_to_the_first_one_too_many():
    bad = BadRows(lambda: 2)
    bad.merge({"counts": {}, "first": ""})
    bad.merge({"counts": {"short": 1}, "first": "a:3: short."})
    bad.merge({"counts": {"short": 1}, "first": "b:9: short."})
    assert (bad.total, dict(bad.counts)) == (2, {"short": 2})
    with pytest.raises(DataError, match=r"^a:3: short\. This is the first of more than 2 bad rows"):
        bad.merge({"counts": {"long": 1}, "first": "c:1: long."})


def test_statistics_of_parts_add_up():
    rng = np.random.default_rng(1)
    parts = [rng.normal(1e4, 3, 500), np.array([np.nan]), np.empty(0), rng.normal(1e4 + 7, 0.1, 20), np.array([2e4])]
    total = StatsCounter()
    for part in parts:
        own = StatsCounter()
        own.add(part.astype(np.float32))
        total.merge(own.state)
    values = np.concatenate(parts).astype(np.float32).astype(np.float64)
    values = values[np.isfinite(values)]
    found = total.build()
    np.testing.assert_allclose([found.mean, found.std], [values.mean(), values.std()], rtol=1e-13)

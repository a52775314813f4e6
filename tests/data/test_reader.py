"""The reader on good input: equals the csv module, whatever the block size, quoting, label rule and joins."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdlrm.data.fields import Layout, Lines
from tfdlrm.data.raw_blocks import expand_path, survey
from tfdlrm.data.reader import RawReader
from tfdlrm.data.row_parser import RowParser, finite, readable
from tfdlrm.spec.criteo import COLUMNS, DENSE_COLUMNS, SPARSE_COLUMNS
from tfdlrm.spec.raw import CRITEO_FORMAT, RawFormat, SideTable

HEX = dict.fromkeys(SPARSE_COLUMNS)


def criteo_text(rows: int, seed: int = 0) -> str:
    rng = random.Random(seed)

    def line() -> str:
        numbers = [rng.choice(["", str(rng.randint(-3, 10**6))]) for _ in DENSE_COLUMNS]
        categories = [rng.choice(["", f"{rng.getrandbits(32):08x}", "FFFFFFFFFFFFFFFF"]) for _ in SPARSE_COLUMNS]
        return "\t".join([str(rng.randint(0, 1)), *numbers, *categories])

    return "".join(line() + "\n" for _ in range(rows))


def read_all(reader: RawReader) -> tuple[pl.DataFrame, list[int]]:
    chunks = list(reader)
    return pl.concat([c.frame for c in chunks]), [row for c in chunks for row in c.rows.tolist()]


def expected_criteo(text: str) -> list[tuple]:
    rows = csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE)
    return [(float(r[0]), *(float(v) if v else None for v in r[1:14]), *r[14:]) for r in rows]


@pytest.mark.parametrize("chunk_bytes", [1, 300, 5000, 16 << 20])
def test_criteo_rows_equal_the_csv_module_at_any_block_size(tmp_path, chunk_bytes):
    texts = [criteo_text(rows, seed) for seed, rows in enumerate([40, 1, 25])]
    paths = [tmp_path / "day_0", tmp_path / "day_1", tmp_path / "day_2.gz"]
    paths[0].write_text(texts[0])
    paths[1].write_text(texts[1].rstrip("\n"))
    paths[2].write_bytes(gzip.compress(texts[2].encode()))
    reader = RawReader(CRITEO_FORMAT, paths, DENSE_COLUMNS, SPARSE_COLUMNS, hex_columns=HEX, chunk_bytes=chunk_bytes)
    for _ in range(2):  # every pass yields the same
        frame, rows = read_all(reader)
        assert frame.columns == list(COLUMNS)
        assert frame.rows() == expected_criteo("".join(texts))
        assert rows == list(range(66))
    assert frame.schema["label"] == pl.Float32 and frame.schema["I1"] == pl.Float64
    assert reader.count() == [40, 1, 25]
    assert reader.bad.total == 0


def test_shared_criteo_rows(shared_data):
    path = shared_data("criteo_kaggle/train.txt")
    reader = RawReader(CRITEO_FORMAT, [path], DENSE_COLUMNS, SPARSE_COLUMNS, hex_columns=HEX, chunk_bytes=100_000)
    frame, rows = read_all(reader)
    assert frame.rows() == expected_criteo(path.read_text())
    assert reader.count() == [7200] and rows == list(range(7200))


def test_survey_tells_size_checksum_and_rows(tmp_path):
    path = tmp_path / "rows.gz"
    path.write_bytes(gzip.compress(b"a\nb\nc"))
    file = survey(path, header=True)
    assert (file.rows, file.size) == (2, path.stat().st_size)
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_expand_path(monkeypatch):
    monkeypatch.setenv("CRITEO", "/data/criteo")
    assert expand_path("$CRITEO/train.txt") == expand_path("${CRITEO}/train.txt") == Path("/data/criteo/train.txt")
    assert expand_path("~/x") == Path(os.path.expanduser("~/x"))
    assert expand_path("cost$/x") == Path("cost$/x")


FIELD = st.text(alphabet='0159.e+- aNnif",\té', max_size=5)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(FIELD, FIELD | st.integers(-99, 99).map(str), FIELD, st.booleans()), min_size=1, max_size=5))
def test_quoted_fields_equal_the_csv_module_and_neighbours_do_not_matter(rows):
    """A block with a fault takes another path than one without; both must read a line alike."""
    lines = []
    for *fields, quoted in rows:
        file = io.StringIO()
        csv.writer(file, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL, lineterminator="").writerow(fields)
        lines.append(file.getvalue())
    parser = RowParser(Layout(("a", "b", "c"), ",", '"'), ["b"], ["a", "c"], [readable("b"), finite("b")])
    parsed = parser.parse(Lines(("\n".join(lines) + "\n").encode()))
    good = parsed.frame.select("text:a", "number:b", "text:c").rows()
    for i, (a, b, c, _) in enumerate(rows):
        alone = parser.parse(Lines((lines[i] + "\n").encode()))
        assert parsed.problems.get(i) == alone.problems.get(0)
        try:
            value = float(b.strip(" \t")) if b.strip(" \t") else None
        except ValueError:
            value = float("nan")
        if value is None or np.isfinite(np.float32(value)):
            assert parsed.good[i] and good.pop(0) == (a, value, c)
        else:
            assert not parsed.good[i]
    assert not good


TABULAR = '''clicked,user,tags,price,w,when
yes,"u,1",a|b, 1.5,1,10
no,u2,,,0.5,30
yes,"say ""hi""",b,-2e3 ,2,20
'''


def test_tabular_header_quotes_rule_weight_and_extra_columns(tmp_path):
    path = tmp_path / "rows.csv"
    for prefix in ("", "\ufeff"):
        path.write_bytes((prefix + TABULAR).replace("\n", "\r\n").encode())
        format = RawFormat(delimiter=",", header=True, quote='"', label="clicked == yes", weight="w", time="when")
        reader = RawReader(format, [path, path], ["price"], ["user", "tags"], extra=["when", "user", "price"])
        frame, rows = read_all(reader)
        assert frame.columns == ["label", "weight", "price", "user", "tags", "extra:when", "extra:user", "extra:price"]
        assert (
            frame.rows()[:3]
            == frame.rows()[3:]
            == [
                (1.0, 1.0, 1.5, "u,1", "a|b", "10", "u,1", " 1.5"),
                (0.0, 0.5, None, "u2", "", "30", "u2", ""),
                (1.0, 2.0, -2000.0, 'say "hi"', "b", "20", 'say "hi"', "-2e3 "),
            ]
        )
        assert reader.count() == [3, 3] and rows == [0, 1, 2, 3, 4, 5]
        assert reader.names == ("clicked", "user", "tags", "price", "w", "when")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("v", [1, 0, 1, 0]),
        ("v >= 1", [1, 0, 1, 0]),
        ("v > 0", [1, 0, 1, 0]),
        ("v<1", [0, 1, 0, 1]),
        ("v <= 1e0", [1, 1, 1, 1]),
        ("v == 1", [1, 0, 1, 0]),
        ("v != 1", [0, 1, 0, 1]),
        ('v == "1"', [1, 0, 0, 0]),  # in quotes it is text, and 1.0 is another text
        ("v != '1'", [0, 1, 1, 1]),
        ("word == good", [1, 1, 0, 0]),
        ("word >= good", [1, 1, 1, 0]),
        ("word < good", [0, 0, 0, 1]),
    ],
)
def test_label_rules(tmp_path, rule, expected):
    path = tmp_path / "rows.tsv"
    path.write_text("1\tgood\n0\tgood\n1.0\tnice\n0.0\tbad\n")
    frame, _ = read_all(RawReader(RawFormat(columns=("v", "word"), label=rule), [path], strings=["word"]))
    assert frame["label"].to_list() == expected


def test_hexadecimal_bags_are_checked_piece_by_piece(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("1\ta.ff\n0\t\n1\t.1\n0\ta|b\n1\t" + "f" * 17 + "\n")
    format = RawFormat(columns=("label", "c"))
    frame, rows = read_all(RawReader(format, [path], strings=["c"], hex_columns={"c": "."}, max_bad_share=0.5))
    assert frame["c"].to_list() == ["a.ff", "", ".1"] and rows == [0, 1, 2]


def test_side_tables_join_in_order_and_missing_keys_get_missing_values(tmp_path):
    rows, users, towns = tmp_path / "rows.tsv", tmp_path / "users.csv", tmp_path / "towns.txt.gz"
    rows.write_text("1\tu2\n0\tu1\n1\tnobody\n0\t\n1\tu1\n")
    users.write_text("user,town,age,red,green\nu1,t1,,1,1\nu2,t9,30,0,0\n")
    towns.write_bytes(gzip.compress("t1|Å|5\r\n".encode("latin-1")))
    user = SideTable(file=str(users), key="user", delimiter=",", header=True, collect={"colors": ("red", "green")})
    town = SideTable(file=str(towns), key="town", delimiter="|", columns=("town", "town_name", "n"), encoding="latin-1")
    format = RawFormat(columns=("label", "user"), side_tables=(user, town))
    reader = RawReader(format, [rows], ["age", "n"], ["user", "town", "town_name", "colors"], chunk_bytes=10)
    frame, _ = read_all(reader)
    assert frame.rows() == [
        (1.0, 30.0, None, "u2", "t9", "", ""),
        (0.0, None, 5.0, "u1", "t1", "Å", "red|green"),
        (1.0, None, None, "nobody", "", "", ""),
        (0.0, None, None, "", "", "", ""),
        (1.0, None, 5.0, "u1", "t1", "Å", "red|green"),
    ]


def test_movielens_100k(shared_data):
    folder = shared_data("movielens_100k")
    genres = [line.split("|")[0] for line in (folder / "u.genre").read_text().splitlines() if line]
    user = SideTable(
        file=f"{folder}/u.user", key="user", delimiter="|", columns=("user", "age", "gender", "occupation", "zip")
    )
    item = SideTable(
        file=f"{folder}/u.item",
        key="item",
        delimiter="|",
        columns=("item", "title", "released", "video", "url", *genres),
        encoding="latin-1",
        collect={"genres": tuple(genres)},
    )
    format = RawFormat(
        columns=("user", "item", "rating", "time"), label="rating >= 4", time="time", side_tables=(user, item)
    )
    frame, _ = read_all(
        RawReader(format, [folder / "u.data"], ["age"], ["user", "item", "gender", "title", "genres"], extra=["time"])
    )

    users = {line.split("|")[0]: line.split("|") for line in (folder / "u.user").read_text().splitlines()}
    items = {
        line.split("|")[0]: line.split("|") for line in (folder / "u.item").read_text(encoding="latin-1").splitlines()
    }
    expected = []
    for line in (folder / "u.data").read_text().splitlines():
        u, i, rating, time = line.split("\t")
        flags = "|".join(genre for genre, flag in zip(genres, items[i][5:], strict=True) if flag == "1")
        expected.append((float(int(rating) >= 4), float(users[u][1]), u, i, users[u][2], items[i][1], flags, time))
    assert frame.rows() == expected and len(expected) == 100_000


def test_keys_are_the_numbers_of_the_texts(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text("1\t0a\tff\n0\t\tFFFFFFFFFFFFFFFF\n1\tFFFFFFFF\t\n0\tx\t1\n0\t00000000000000000\t1\n")
    reader = RawReader(
        RawFormat(columns=("label", "c", "d")), [path], keys=["d", "c"], max_bad_share=0.4, chunk_bytes=1 << 16
    )
    frame, rows = read_all(reader)
    assert rows == [0, 1, 2]
    assert frame.columns == ["label", "d", "missing:d", "c", "missing:c"]
    assert frame["c"].to_list() == [10, 0, 2**32 - 1] and frame["missing:c"].to_list() == [False, True, False]
    assert frame["d"].to_list() == [255, 2**64 - 1, 0] and frame["missing:d"].to_list() == [False, False, True]
    assert (frame.schema["c"], frame.schema["d"]) == (pl.UInt32, pl.UInt64)
    assert dict(reader.bad.counts) == {"`c` must be up to 16 hexadecimal digits": 2}


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_chunks_come_in_order_from_any_number_of_threads(tmp_path, threads):
    path = tmp_path / "day_0"
    lines = criteo_text(300).splitlines()
    lines[7], lines[250] = "bad", lines[250] + "\tff"
    path.write_text("\n".join(lines) + "\n")
    aside = tmp_path / "bad.tsv"
    reader = RawReader(
        CRITEO_FORMAT,
        [path],
        DENSE_COLUMNS,
        keys=SPARSE_COLUMNS,
        max_bad_share=0.1,
        bad_rows_file=aside,
        chunk_bytes=999,
    )
    whole = list(reader.map(lambda chunk: (chunk.index, chunk.rows.tolist(), chunk.frame.rows()), threads))
    assert [index for index, *_ in whole] == list(range(len(whole))) and len(whole) > 20
    assert [row for _, rows, _ in whole for row in rows] == [row for row in range(300) if row not in (7, 250)]
    assert whole == [(chunk.index, chunk.rows.tolist(), chunk.frame.rows()) for chunk in reader]
    assert [line.split("\t")[1] for line in aside.read_text().splitlines()] == ["8", "251"]


def test_chunks_say_which_file_they_are_of(tmp_path):
    paths = []
    for name, rows in (("one", 40), ("two", 1), ("three", 25)):
        paths.append(tmp_path / name)
        paths[-1].write_text("1\t2\n" * rows)
    reader = RawReader(RawFormat(columns=("label", "n")), paths, dense=["n"], chunk_bytes=60)
    rows_of: dict[int, int] = {}
    for chunk in reader:
        rows_of[chunk.file] = rows_of.get(chunk.file, 0) + chunk.read
    assert rows_of == {0: 40, 1: 1, 2: 25}

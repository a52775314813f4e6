"""Every way raw data can be bad: one clear line with file and line number, or counted and set aside."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import polars as pl
import pytest

from tfdlrm.data.reader import RawReader
from tfdlrm.spec.criteo import DENSE_COLUMNS, SPARSE_COLUMNS
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.raw import CRITEO_FORMAT, RawFormat, SideTable

HEX = dict.fromkeys(SPARSE_COLUMNS)


def criteo_line(label: str = "1", number: str = "5", category: str = "0a1b2c3d") -> str:
    return "\t".join([label, number, *["7"] * 12, category, *["ff"] * 25])


def criteo_reader(*paths: Path, **options) -> RawReader:
    return RawReader(CRITEO_FORMAT, paths, DENSE_COLUMNS, SPARSE_COLUMNS, hex_columns=HEX, **options)


def read_all(reader: RawReader) -> pl.DataFrame:
    return pl.concat([chunk.frame for chunk in reader])


def failure(call, *arguments, error=DataError) -> str:
    with pytest.raises(error) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


BAD_LINES = {
    "39 columns": (criteo_line().rsplit("\t", 1)[0], "expected 40 fields, found 39."),
    "41 columns": (criteo_line() + "\tff", "expected 40 fields, found 41."),
    "blank line": ("", "blank line."),
    "label 2": (criteo_line(label="2"), "`label` must be 0 or 1. Received: '2'."),
    "empty label": (criteo_line(label=""), "`label` must be 0 or 1. Received: ''."),
    "label in words": (criteo_line(label="yes"), "`label` must be 0 or 1. Received: 'yes'."),
    "abc as an integer": (criteo_line(number="abc"), "`I1` must be a number. Received: 'abc'."),
    "nan": (criteo_line(number="nan"), "`I1` must be finite. Received: 'nan'."),
    "infinity": (criteo_line(number="-inf"), "`I1` must be finite. Received: '-inf'."),
    "beyond float32": (criteo_line(number="1e39"), "`I1` must be finite. Received: '1e39'."),
    "non-hex category": (
        criteo_line(category="0a1b2c3z"),
        "`C1` must be up to 16 hexadecimal digits. Received: '0a1b2c3z'.",
    ),
    "signed category": (criteo_line(category="+0a"), "`C1` must be up to 16 hexadecimal digits. Received: '+0a'."),
    "minus in a category": (criteo_line(category="-a"), "`C1` must be up to 16 hexadecimal digits. Received: '-a'."),
    "17 digits": (criteo_line(category="0" * 17), f"`C1` must be up to 16 hexadecimal digits. Received: '{'0' * 17}'."),
    "NUL byte": (criteo_line(category="0a\0b"), "NUL byte."),
    "long value": (criteo_line(number="x" * 100), f"`I1` must be a number. Received: '{'x' * 60}...'."),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_first_bad_row_is_refused_with_file_and_line(tmp_path, line, reason):
    path = tmp_path / "train.txt"
    path.write_text("\n".join([criteo_line()] * 16 + [line] + [criteo_line(label="3")]) + "\n", newline="")
    assert failure(read_all, criteo_reader(path)) == f"{path}:17: {reason}"


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES)
def test_bad_row_is_counted_and_set_aside_within_the_share(tmp_path, line, reason):
    path, aside = tmp_path / "train.txt", tmp_path / "bad_rows.tsv"
    path.write_text("\n".join([criteo_line()] * 16 + [line] + [criteo_line(number="-2")] * 3) + "\n", newline="")
    reader = criteo_reader(path, max_bad_share=0.05, bad_rows_file=aside)
    chunks = list(reader)
    frame = pl.concat([chunk.frame for chunk in chunks])
    assert frame["I1"].to_list() == [5.0] * 16 + [-2.0] * 3
    assert [row for chunk in chunks for row in chunk.rows] == [*range(16), 17, 18, 19]  # numbers of bad rows stay free
    assert sum(chunk.read for chunk in chunks) == 20
    assert reader.bad.total == 1 and list(reader.bad.counts.values()) == [1]
    assert aside.read_bytes().decode() == f"{path}\t17\t{reason}\t{line}\n"


@pytest.mark.parametrize("number", ["-3", "-0", "1e-3", "0.5", "+1", " 2", ""])
@pytest.mark.parametrize(
    ("category", "good"), [("-3", False), ("a-", False), ("", True), ("F" * 16, True), ("g", False)]
)
def test_signs_of_numbers_do_not_hide_those_of_categories(tmp_path, number, category, good):
    path = tmp_path / "train.txt"
    path.write_text("\n".join([criteo_line(number=number), criteo_line(category=category), criteo_line()]) + "\n")
    if good:
        assert read_all(criteo_reader(path))["C1"][1] == category
    else:
        assert failure(read_all, criteo_reader(path)).startswith(f"{path}:2: `C1` must be up to 16 hexadecimal digits.")


def test_bad_rows_past_the_share_are_refused_with_the_first_and_the_counts(tmp_path):
    path, aside = tmp_path / "train.txt", tmp_path / "bad_rows.tsv"
    bad = [criteo_line(label="2"), criteo_line(number="abc"), criteo_line(label="7")]
    path.write_text("\n".join([criteo_line()] * 7 + bad) + "\n")
    message = failure(read_all, criteo_reader(path, max_bad_share=0.2, bad_rows_file=aside))
    assert message == (
        f"{path}:8: `label` must be 0 or 1. Received: '2'. This is the first of more than 2 bad rows, the most that "
        "`max_bad_share` allows (`label` must be 0 or 1: 2; `I1` must be a number: 1)."
    )
    assert not list(tmp_path.glob("*bad_rows*"))  # nothing half-written, under a final name or another
    reader = criteo_reader(path, max_bad_share=0.3, bad_rows_file=aside)
    assert read_all(reader).height == 7
    assert dict(reader.bad.counts) == {"`label` must be 0 or 1": 2, "`I1` must be a number": 1}
    assert len(aside.read_text().splitlines()) == 3


def test_bad_rows_file_is_absent_without_bad_rows(tmp_path):
    path, aside = tmp_path / "train.txt", tmp_path / "bad_rows.tsv"
    path.write_text(criteo_line() + "\n")
    aside.write_text("of an earlier pass")
    read_all(criteo_reader(path, max_bad_share=0.5, bad_rows_file=aside))
    assert not aside.exists()


def test_bad_rows_are_found_in_every_block_and_file_at_the_right_line(tmp_path):
    rng = random.Random(3)
    lines, expected, paths = [], [], []
    for name in ("day_0", "day_1"):
        kinds = [rng.choice(list(BAD_LINES.values())) if rng.random() < 0.2 else None for _ in range(300)]
        lines = [criteo_line(number=str(i)) if kind is None else kind[0] for i, kind in enumerate(kinds)]
        paths.append(tmp_path / name)
        paths[-1].write_text("\n".join(lines) + "\n", newline="")
        expected += [(paths[-1], i + 1, kind) for i, kind in enumerate(kinds)]
    aside = tmp_path / "bad.tsv"
    reader = criteo_reader(*paths, max_bad_share=1.0, bad_rows_file=aside, chunk_bytes=1000)
    chunks = list(reader)
    good = [i for i, (_, _, kind) in enumerate(expected) if kind is None]
    assert [row for chunk in chunks for row in chunk.rows.tolist()] == good
    assert pl.concat([c.frame for c in chunks])["I1"].to_list() == [float(expected[i][1] - 1) for i in good]
    bad = [f"{path}\t{line}\t{kind[1]}\t{kind[0]}\n" for path, line, kind in expected if kind is not None]
    assert aside.read_bytes().decode() == "".join(bad)


def test_text_that_is_not_utf8(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes("1,é\n0,".encode() + b"caf\xe9\n1,x\n")
    format = RawFormat(delimiter=",", columns=("label", "name"))
    assert failure(read_all, RawReader(format, [path], strings=["name"])) == f"{path}:2: not UTF-8 text."
    assert read_all(RawReader(format, [path], strings=["name"], max_bad_share=0.5))["name"].to_list() == ["é", "x"]


@pytest.mark.parametrize("line", ['1,"open', '1,a"b', '1,"a"b', '1,"a""'])
def test_misplaced_quote_spoils_its_own_line_only(tmp_path, line):
    path = tmp_path / "rows.csv"
    path.write_text(f'1,"a,b"\n{line}\n0,"c""d"\n')
    format = RawFormat(delimiter=",", quote='"', columns=("label", "name"))
    assert failure(read_all, RawReader(format, [path], strings=["name"])) == f"{path}:2: misplaced quote."
    assert read_all(RawReader(format, [path], strings=["name"], max_bad_share=0.5))["name"].to_list() == ["a,b", 'c"d']


def test_weights_must_be_numbers_of_at_least_0(tmp_path):
    format = RawFormat(delimiter=",", columns=("label", "w", "x"), weight="w")
    path = tmp_path / "rows.csv"
    for value in ("-1", "", "nan", "abc"):
        path.write_text(f"1,0.5,3\n0,{value},3\n")
        message = failure(read_all, RawReader(format, [path], dense=["x"]))
        assert message == f"{path}:2: `w` must be a number of at least 0. Received: {value!r}."


def test_label_rule_needs_a_number_to_compare(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("4,3\nmany,3\n")
    format = RawFormat(delimiter=",", columns=("rating", "x"), label="rating >= 4")
    message = failure(read_all, RawReader(format, [path], dense=["x"]))
    assert message == f"{path}:2: `rating` must be a number. Received: 'many'."
    path.write_text("click,3\n,3\n")
    format = RawFormat(delimiter=",", columns=("event", "x"), label="event == click")
    assert (
        failure(read_all, RawReader(format, [path], dense=["x"]))
        == f"{path}:2: `event` must not be empty. Received: ''."
    )


def test_missing_file_directory_and_unset_variable(tmp_path, monkeypatch):
    missing = tmp_path / "absent.txt"
    assert failure(criteo_reader, missing) == f"{missing}: cannot be read: No such file or directory."
    assert failure(criteo_reader, tmp_path) == f"{tmp_path}: cannot be read: Is a directory."
    monkeypatch.delenv("CRITEO", raising=False)
    message = failure(criteo_reader, Path("$CRITEO/train.txt"), error=ConfigError)
    assert message == "$CRITEO/train.txt: environment variable `CRITEO` is not set."
    monkeypatch.setenv("CRITEO", str(tmp_path))
    (tmp_path / "train.txt").write_text(criteo_line() + "\n")
    assert read_all(criteo_reader(Path("${CRITEO}/train.txt"))).height == 1
    assert failure(criteo_reader, error=ConfigError) == "`raw` must name at least one file. Received: none."


@pytest.mark.parametrize(
    "content", [b"", b"\xef\xbb\xbf", gzip.compress(b"")], ids=["empty", "only a BOM", "empty gzip"]
)
def test_empty_file(tmp_path, content):
    path, full = tmp_path / "empty", tmp_path / "full"
    path.write_bytes(content)
    full.write_text(criteo_line() + "\n")
    assert failure(criteo_reader, full, path) == f"{path}: no rows."


def test_file_with_nothing_but_a_header(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("label,x\n")
    format = RawFormat(delimiter=",", header=True)
    assert failure(read_all, RawReader(format, [path], dense=["x"])) == f"{path}: no rows."
    assert failure(RawReader(format, [path], dense=["x"]).count) == f"{path}: no rows."


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_line_ends_and_missing_last_one(tmp_path, end):
    path = tmp_path / "train.txt"
    for last in ("", end, "\r"):
        path.write_text(criteo_line(category="0a") + end + criteo_line(number="", category="") + last, newline="")
        reader = criteo_reader(path)
        assert reader.count() == [2]
        frame = read_all(reader)
        assert frame["C26"].to_list() == ["ff", "ff"]
        assert frame["I1"].to_list() == [5.0, None] and frame["C1"].to_list() == ["0a", ""]


def rows_of(path: Path) -> int:
    return read_all(criteo_reader(path, chunk_bytes=512)).height


def test_gzip_cut_anywhere_is_refused(tmp_path):
    rng = random.Random(0)
    text = "".join(criteo_line(category=f"{rng.getrandbits(32):x}") + "\n" for _ in range(60)).encode()
    whole = gzip.compress(text)
    path = tmp_path / "train.txt.gz"
    path.write_bytes(whole)
    assert rows_of(path) == 60
    for length in (3, 9, 15, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1):
        path.write_bytes(whole[:length])
        expected = f"{path}: gzip data is cut short."
        assert failure(rows_of, path) == expected
        with pytest.raises(DataError, match="gzip data is cut short"):
            criteo_reader(path).count()


def test_gzip_corrupt_or_not_gzip(tmp_path):
    path = tmp_path / "train.txt.gz"
    whole = bytearray(gzip.compress(b"".join(criteo_line().encode() + b"\n" for _ in range(50))))
    for position in (len(whole) // 2, len(whole) - 6):  # data, and the checksum
        broken = whole.copy()
        broken[position] ^= 0xFF
        path.write_bytes(broken)
        assert failure(rows_of, path) == f"{path}: corrupt gzip data."
    path.write_bytes(bytes(whole) + b"garbage after the end of the member")
    assert failure(rows_of, path) == f"{path}: corrupt gzip data."
    path.write_text(criteo_line() + "\n")
    assert failure(rows_of, path) == f"{path}: not a gzip file."


def test_gzip_of_several_members_and_padding(tmp_path):
    path = tmp_path / "day_0.gz"
    line = criteo_line().encode() + b"\n"
    # The second member starts in the middle of a line.
    path.write_bytes(
        gzip.compress(line * 3 + line[:50]) + b"\0" * 700 + gzip.compress(line[50:] + line * 4) + b"\0" * 3
    )
    assert rows_of(path) == 8
    unnamed = tmp_path / "day_0"  # told by its content
    unnamed.write_bytes(path.read_bytes())
    assert rows_of(unnamed) == 8


def test_line_without_end_is_refused_before_memory_is(tmp_path, monkeypatch):
    monkeypatch.setattr("tfdlrm.data.raw_blocks._LONGEST_LINE", 10_000)
    path = tmp_path / "train.txt"
    path.write_bytes(criteo_line().encode() + b"\n" + b"x" * 20_000)
    assert failure(rows_of, path) == f"{path}: a line is longer than 10000 bytes."


def test_columns_that_are_not_there_or_asked_for_twice(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("label,rating,user\n1,4,7\n")
    format = RawFormat(delimiter=",", header=True)

    def reader(**options) -> RawReader:
        return RawReader(format, [path], **options)

    assert failure(lambda: reader(dense=["raitng"]), error=ConfigError) == (
        f"{path}: no column `raitng`. Did you mean `rating`?"
    )
    assert failure(lambda: reader(dense=["user"], strings=["user"]), error=ConfigError) == (
        "column `user` must not be read both as a number and as text."
    )
    assert failure(lambda: reader(dense=["label"]), error=ConfigError) == (
        "a feature must not read column `label`: the name stands for the label of a row."
    )


def test_header_that_does_not_fit(tmp_path):
    first, second = tmp_path / "a.csv", tmp_path / "b.csv"
    first.write_text("label,x\n1,2\n")
    second.write_text("label,z\n1,2\n")
    format = RawFormat(delimiter=",", header=True)
    assert failure(lambda: RawReader(format, [first, second], dense=["x"])) == (
        f"{second}:1: the header must name the columns of the recipe. Received: missing ['x'], unknown ['z']."
    )
    second.write_text("x,label\n1,2\n")
    named = RawFormat(delimiter=",", header=True, columns=("label", "x"))
    assert failure(lambda: RawReader(named, [second], dense=["x"])) == (
        f"{second}:1: the header must name the columns of the recipe. Received: another order: ['x', 'label']."
    )
    second.write_text("label,x,x\n1,2,3\n")
    assert failure(lambda: RawReader(format, [second], dense=["x"])) == (
        f"{second}:1: column names must be unique. Received twice: x."
    )


@pytest.fixture
def side(tmp_path):
    """Return a function that joins a side table of the given text to two rows and reads a number and a text of it."""
    rows = tmp_path / "rows.tsv"
    rows.write_text("1\tu1\n0\tu2\n")

    def read(text: str | bytes, **options) -> pl.DataFrame:
        file = tmp_path / "user.txt"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        table = {"file": str(file), "key": "user", "delimiter": "|", "columns": ("user", "age", "job"), **options}
        format = RawFormat(columns=("label", "user"), side_tables=(SideTable(**table),))
        return read_all(RawReader(format, [rows], dense=["age"], strings=["job"]))

    read.file = tmp_path / "user.txt"
    return read


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("u1|20|a\nu2|x|b\n", ":2: `age` must be a number. Received: 'x'."),
        ("u1|20|a\nu2|30\n", ":2: expected 3 fields, found 2."),
        ("u1|20|a\nu2|3|b\nu1|9|c\n", ":3: `user` is there twice. Received: 'u1'."),
        ("u1|20|a\n|3|b\n", ":2: `user` must not be empty. Received: ''."),
        (b"u1|20|a\nu2|3|\xe9\n", ":2: not utf-8 text."),
        ("", ": no rows."),
    ],
)
def test_bad_side_tables(side, text, message):
    assert failure(side, text) == f"{side.file}{message}"


def test_bad_side_table_options(side):
    text = "user|age|job\nu1|20|a\n"
    assert failure(lambda: side(text, encoding="klingon"), error=ConfigError) == (
        f"{side.file}: unknown `encoding`. Received: 'klingon'."
    )
    assert failure(lambda: side(text, header=True, columns=("user", "age", "work"))) == (
        f"{side.file}:1: the header must name the columns of the recipe. Received: missing ['work'], unknown ['job']."
    )
    assert failure(lambda: side("user|age|job\nu1|x|a\n", header=True)) == (
        f"{side.file}:2: `age` must be a number. Received: 'x'."
    )
    assert failure(lambda: side(text, collect={"tags": ("ages",)}), error=ConfigError) == (
        f"{side.file}: no column `ages`. Did you mean `age`?"
    )
    assert failure(lambda: side(text, columns=("user", "age", "work")), error=ConfigError).endswith("no column `job`.")
    assert failure(lambda: side("u1|20|a|1\n", columns=("user", "age", "job", "label")), error=ConfigError) == (
        "column `label` must be in one place only, the raw rows or a side table."
    )
    assert failure(lambda: side(text, collect={"job": ("age|x",)}, columns=("user", "age|x")), error=ConfigError) == (
        f"{side.file}: a collected column's name must not hold `|`. Received: `age|x`."
    )

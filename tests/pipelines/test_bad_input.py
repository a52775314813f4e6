"""What a user can get wrong: one line with the place, exit code 2, and nothing half-written."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.data.planted import write_planted
from tfdlrm.pipelines import criteo, tabular


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    path = tmp_path_factory.mktemp("rows") / "rows.tsv"
    write_planted(path, 300)
    return path.read_bytes().splitlines(keepends=True)


def prepared(tmp_path: Path, raw: Path, *argv: str) -> str:
    """Run `prepare` on a raw file that must be refused; check what is left and return the line."""
    recipe = write_recipe(tmp_path)
    line = refusal("--config", recipe, "--raw", raw, "--work-dir", tmp_path / "run", "--stages", "prepare", *argv)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.name for path in left} <= {recipe.name, raw.name, "config.toml", "pipeline.log", ".lock"}
    return line


def replaced(row: bytes, column: int, value: bytes) -> bytes:
    fields = row.rstrip(b"\n").split(b"\t")
    fields[column] = value
    return b"\t".join(fields) + b"\n"


CASES = {
    "39 columns": (lambda row: row[: row.rindex(b"\t")] + b"\n", "39"),
    "41 columns": (lambda row: row.rstrip(b"\n") + b"\tffff\n", "41"),
    "label 2": (lambda row: replaced(row, 0, b"2"), "2"),
    "no label": (lambda row: replaced(row, 0, b""), "label"),
    "abc as an integer": (lambda row: replaced(row, 3, b"abc"), "abc"),
    "category not hexadecimal": (lambda row: replaced(row, 20, b"xyz"), "xyz"),
    "NUL byte": (lambda row: replaced(row, 20, b"a\0b"), ""),
    "not UTF-8": (lambda row: replaced(row, 20, b"\xff\xfe"), ""),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_row_is_named_by_file_and_line(rows: list[bytes], tmp_path: Path, case: str) -> None:
    spoil, word = CASES[case]
    raw = tmp_path / "bad.tsv"
    raw.write_bytes(b"".join([*rows[:120], spoil(rows[120]), *rows[121:]]))
    line = prepared(tmp_path, raw)
    assert line.startswith(f"{raw}:121: ")
    assert word in line


def test_bad_rows_within_the_stated_share_are_set_aside(rows: list[bytes], tmp_path: Path) -> None:
    raw = tmp_path / "bad.tsv"
    raw.write_bytes(b"".join([*rows[:120], b"1\t2\n", *rows[121:]]))
    recipe, work_dir = write_recipe(tmp_path, data={"max_bad_share": 0.01}), tmp_path / "run"
    outcome = call(criteo.main, "--config", recipe, "--raw", raw, "--work-dir", work_dir, "--stages", "prepare")
    assert outcome.code == 0
    assert "bad rows set aside in data/bad_rows.tsv: 1 (" in outcome.out
    (aside,) = (work_dir / "data" / "bad_rows.tsv").read_text().splitlines()
    assert aside.startswith(f"{raw}\t121\t")


def test_missing_empty_and_odd_files(rows: list[bytes], tmp_path: Path) -> None:
    assert prepared(tmp_path, tmp_path / "none.tsv") == f"{tmp_path / 'none.tsv'}: No such file or directory."
    empty = tmp_path / "empty.tsv"
    empty.touch()
    assert prepared(tmp_path, empty).startswith(f"{empty}: no rows")
    empty.unlink()
    folder = tmp_path / "folder.tsv"
    folder.mkdir()
    assert prepared(tmp_path, folder).startswith(f"{folder}: a directory")


def test_gzip_cut_short(rows: list[bytes], tmp_path: Path) -> None:
    raw = tmp_path / "rows.tsv.gz"
    raw.write_bytes(gzip.compress(b"".join(rows))[:-200])
    assert prepared(tmp_path, raw) == f"{raw}: gzip data is cut short."


def test_environment_variable_that_is_not_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    line = refusal(
        "--config", write_recipe(tmp_path), "--raw", "$NO_SUCH_FOLDER/train.txt", "--work-dir", tmp_path / "run"
    )
    assert line == "$NO_SUCH_FOLDER/train.txt: environment variable `NO_SUCH_FOLDER` is not set."
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--set", "train.bach_size=3"], "unknown key `bach_size`. Did you mean `batch_size`?"),
        (["--set", "train.batch_size=many"], "batch_size"),
        (["--set", "batch_size"], "`--set` must be section.key=value. Received: 'batch_size'."),
        (["--set", "model.bottom_units=[8,5]"], "in `model`: `bottom_units[-1]` must equal `embedding_dim`."),
        (["--set", "model.name=dlmr"], "Did you mean `dlrm`?"),
        (["--stages", "trian"], "Received: 'trian'. Did you mean `train`?"),
        (["--stages", ","], "`--stages` must name at least one stage. Received: none."),
        (["--config", "none.toml"], "none.toml: cannot be read: No such file or directory."),
        (["--cross-validate"], "`data.split.by` must be \"fold\" for --cross-validate. Received: 'order'."),
    ],
)
def test_bad_arguments(tmp_path: Path, argv: list[str], line: str) -> None:
    recipe = write_recipe(tmp_path, data={"planted": {"rows": 1000}})
    assert line in refusal("--config", recipe, "--work-dir", tmp_path / "run", *argv)


def test_tabular_needs_a_recipe_and_raw_files(tmp_path: Path) -> None:
    assert refusal(main=tabular.main) == "`--config` must name a recipe. Received: none."
    table = {"columns": ["label", "x", "y"], "delimiter": ","}
    recipe = write_recipe(tmp_path, data={"format": table, "dense": [], "sparse": [{"name": "x"}, {"name": "y"}]})
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run", main=tabular.main)
    assert line == "`data.raw` must name the raw files (or give --raw). Received: none."


def test_recipe_that_names_an_absent_column(tmp_path: Path) -> None:
    raw = tmp_path / "rows.csv"
    raw.write_text("label,age,city\n1,30,x\n0,40,y\n")
    columns = {"format": {"header": True, "delimiter": ","}, "dense": [], "sparse": [{"name": "age"}, {"name": "ciyt"}]}
    recipe = write_recipe(tmp_path, data={**columns, "raw": [str(raw)]})
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run", main=tabular.main)
    assert line == f"{raw}: no column `ciyt`. Did you mean `city`?"


def test_model_that_cannot_be_built_from_the_features(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, data={"planted": {"rows": 1000}, "dense": [], "sparse": [{"name": "C1"}]})
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run")
    assert "must hold at least two vectors a sample" in line
    assert not (tmp_path / "run" / "raw").exists()


def test_work_dir_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    line = refusal("--config", write_recipe(tmp_path), "--work-dir", tmp_path / "run")
    assert line == f"`--work-dir` must be a directory. Received: {tmp_path / 'run'}, a file."

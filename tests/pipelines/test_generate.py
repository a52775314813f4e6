import csv
import json

import matplotlib.image
import numpy as np
import pytest

from tests.data.packed_samples import as_arrays
from tests.pipelines.small_runs import call
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.stack_profile import StackProfiler
from tfdlrm.data.generators.trace_check import TraceResult
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.planted import read_bayes
from tfdlrm.pipelines.cli import CheckFailed
from tfdlrm.pipelines.generate import judge, main

EXAMPLE = "1, 2, 3, 4, 5, 6\n0, 1, 3, 4, 5\n0.55, 0.64, 0.82, 0.91, 1.0\n"


@pytest.fixture
def example(tmp_path):
    for number in range(2):
        (tmp_path / f"dist_emb_{number}.log").write_text(EXAMPLE)
    return tmp_path / "dist_emb_j.log"


def test_random_prepared(tmp_path):
    folder = tmp_path / "data"
    arguments = ["random", "--prepared", folder, "--rows", 300, "--test-rows", 50, "--cardinalities", "9,7"]
    arguments += ["--hotness", "1,4", "--bags", "variable", "--ids", "powerlaw", "--alpha", "1.4", "--click-rate", "0"]
    code, out, err = call(main, *arguments)
    assert (code, err) == (0, "")
    assert f"{folder}: 350 rows of random data; tables 2, table rows 16, ids a row 5, mean label 0.000" in out
    manifest = Manifest.load(folder)
    assert {name: split.rows for name, split in manifest.splits.items()} == {"train": 300, "validation": 0, "test": 50}
    assert manifest.recipe["ids"]["alpha"] == 1.4
    (train,), (test,) = (map(as_arrays, packed_dataset(folder, split, 300)) for split in ("train", "test"))
    assert train["dense"].shape == (300, 13)
    assert train["sparse"].max(axis=0).tolist() == [8, 6, 6, 6, 6]
    assert train["sparse"].min(axis=0).tolist() == [0, 0, -1, -1, -1]
    assert (train["dense"][:50] != test["dense"]).all()

    code, out, err = call(main, *arguments)
    assert (code, out, err) == (2, "", f"tfdlrm: {folder}/manifest.json: is there already; --overwrite replaces it.\n")
    assert call(main, *arguments[:5], "--cardinalities", "9", "--overwrite").code == 0
    manifest = Manifest.load(folder)
    manifest.check(folder)
    assert manifest.splits["test"].rows == 0


def test_random_text_by_published_cardinalities(tmp_path):
    file, figures = tmp_path / "rows.tsv", tmp_path / "figures.json"
    code, out, err = call(main, "random", "--raw", file, "--rows", 200, "--tables", "terabyte_10m", "--json", figures)
    assert (code, err) == (0, "")
    with file.open(newline="") as opened:
        lines = list(csv.reader(opened, delimiter="\t"))
    assert (len(lines), {len(line) for line in lines}) == (200, {40})
    largest = max(int(line[14], 16) for line in lines)
    assert 9_000_000 < largest < 9_980_333
    assert json.loads(figures.read_text())["rows"] == 200


def test_random_by_a_recipe(tmp_path):
    recipe = tmp_path / "hashed.toml"
    recipe.write_text(
        'name = "hashed"\n[data]\nraw = ["x.csv"]\n'
        'dense = [{name = "price"}]\nsparse = [{name = "item", kind = "hash", buckets = 10, hotness = 2}]\n'
        '[data.format]\ncolumns = ["label", "price", "item"]\n[model]\nembedding_dim = 4\nbottom_units = [8, 4]\n'
    )
    assert call(main, "random", "--prepared", tmp_path / "d", "--rows", 20, "--config", recipe)[0] == 0
    spec = Manifest.load(tmp_path / "d").spec
    assert (spec.dense_names, spec.id_columns, spec.table_rows) == (("price",), {"item": (0, 2)}, 12)


def test_trace_prints_its_check(tmp_path, example):
    folder, picture, figures = tmp_path / "data", tmp_path / "out.png", tmp_path / "figures.json"
    code, out, err = call(
        main,
        "trace",
        "--distances",
        example,
        "--prepared",
        folder,
        "--rows",
        70_000,
        "--picture",
        picture,
        "--json",
        figures,
    )
    assert (code, err) == (0, "")
    assert "KS distance" in out
    check = json.loads(figures.read_text())["check"]
    assert list(check) == ["C1", "C2"]
    for name, found in check.items():
        assert f"{name}" in out and f"{found['ks']:.5f}" in out
        assert (found["draws"], found["in_use"], found["limit"]) == (70_000, 6, 0.01)
        assert found["ks"] < 0.01
    assert [table.vocabulary_size for table in Manifest.load(folder).spec.tables] == [7, 7]
    assert matplotlib.image.imread(picture).shape[0] > 100
    # The check again, from what lies on disk: all six ids are in use after a few draws.
    (batch,) = packed_dataset(folder, "train", 70_000)
    ids = as_arrays(batch)["sparse"][:, 0]
    profiler = StackProfiler()
    distances = profiler.add(ids)[100:]
    shares = [np.mean((distances <= value) | (distances == 6)) for value in (1, 3, 4, 5)]
    np.testing.assert_allclose(shares, [0.64, 0.82, 0.91, 1.0], atol=0.01)


def test_trace_of_the_paper_is_measured_but_not_judged(tmp_path, example):
    figures = tmp_path / "figures.json"
    code, out, _ = call(
        main,
        "trace",
        "--distances",
        example,
        "--prepared",
        tmp_path / "d",
        "--rows",
        5000,
        "--mode",
        "paper",
        "--json",
        figures,
    )
    assert code == 0
    assert json.loads(figures.read_text())["check"]["C1"]["ks"] == pytest.approx(0.55, abs=0.01)


def test_a_warm_up_too_long_for_the_rows_is_said(tmp_path, example):
    code, out, _ = call(main, "trace", "--distances", example, "--prepared", tmp_path / "d", "--rows", 3)
    assert code == 0
    assert "not checked, since the warm-up takes more rows (--warm-start skips it): C1, C2" in out


def test_trace_text_from_one_file(tmp_path, example):
    one = example.with_name("dist_emb_0.log")
    code, out, err = call(main, "trace", "--distances", one, "--raw", tmp_path / "rows.tsv.gz", "--rows", 2000)
    assert (code, err) == (0, "")
    assert out.count("2,000") == 27


def test_profile_and_trace_again(tmp_path):
    folder = tmp_path / "data"
    call(main, "random", "--prepared", folder, "--rows", 3000, "--cardinalities", "40,60,5", "--ids", "powerlaw")
    code, out, err = call(main, "profile", folder, "--columns", "C2", "C3", "--out", tmp_path / "p_j.log", "--keep-ids")
    assert (code, err) == (0, "")
    assert [file.name for file in sorted(tmp_path.glob("p_*"))] == ["p_1.log", "p_2.log"]
    (batch,) = packed_dataset(folder, "train", 3000)
    profiler = StackProfiler()
    profiler.add(as_arrays(batch)["sparse"][:, 1])
    expected, written = profiler.distribution(), StackDistances.read(tmp_path / "p_1.log")
    for name in ("ids", "values", "cumulative"):
        np.testing.assert_array_equal(getattr(written, name), getattr(expected, name))
    code, out, _ = call(
        main,
        "trace",
        "--distances",
        tmp_path / "p_1.log",
        "--cardinalities",
        "60",
        "--prepared",
        tmp_path / "t",
        "--rows",
        20_000,
    )
    assert code == 0
    assert call(main, "profile", folder, "--columns", "C2", "--out", tmp_path / "hidden.log", "--rows", 10).code == 0
    hidden = StackDistances.read(tmp_path / "hidden.log")
    assert hidden.ids.tolist() == list(range(len(hidden.ids)))


def test_planted(tmp_path):
    file = tmp_path / "rows.tsv"
    code, out, err = call(main, "planted", "--raw", file, "--rows", 500, "--seed", 3)
    assert (code, err) == (0, "")
    assert f"{file}: 500 planted rows" in out and "best possible AUC" in out
    assert len(read_bayes(file)) == 500
    assert call(main, "planted", "--raw", file).err == f"tfdlrm: {file}: is there already; --overwrite replaces it.\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["random", "--prepared", "d", "--alpha", "2"],
            "`--alpha` must come with --ids powerlaw. Received: --ids unif",
        ),
        (["random", "--prepared", "d", "--ids", "powerlaw", "--alpha", "0"], "`alpha`: input should be greater than 0"),
        (["random", "--prepared", "d", "--ids", "gaussian", "--mu", "nan"], "`mu`: input should be"),
        (["random", "--prepared", "d", "--click-rate", "1.5"], "`click_rate`: input should be less than or equal to 1"),
        (["random", "--prepared", "d", "--hotness", "1,2"], "`--hotness` must have 1 or 26 numbers. Received: 2"),
        (["random", "--raw", "r", "--hotness", "2"], "raw text must have one id a column"),
        (["random", "--raw", "r", "--cardinalities", "5,5"], "raw text must have Criteo's columns"),
        (["random", "--raw", "r", "--test-rows", "5"], "must come with `--prepared`. Received: `--raw`"),
        (["random", "--raw", "."], "a directory, where a file must be"),
        (["random", "--prepared", "d", "--json", "tests"], "tests: a directory, where a file must be"),
        (
            ["trace", "--prepared", "d", "--distances", "x", "--picture", "tests"],
            "tests: a directory, where a file must",
        ),
        (["random", "--prepared", "setup.py"], "a file, where a directory must be"),
        (["random", "--prepared", "d", "--config", "pipelines/demo.toml"], "`--tables` or `--cardinalities`"),
        (["random", "--prepared", "d", "--config", "none.toml"], "none.toml: cannot be read"),
        (["trace", "--prepared", "d", "--distances", "none_j.log"], "none_0.log: cannot be read: No such file"),
        (["trace", "--prepared", "d", "--distances", "setup.py"], "setup.py: must have three lines"),
        (["profile", "nowhere", "--out", "x"], "not a prepared data set"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(arguments, message):
    code, out, err = call(main, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("tfdlrm: ") and err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("more", [(), ("--overwrite",)])
def test_a_folder_of_something_else_is_left_alone(tmp_path, more):
    (tmp_path / "train-notes.tfrecord").write_text("precious")
    code, out, err = call(main, "random", "--prepared", tmp_path, "--rows", 10, "--cardinalities", "9", *more)
    assert (code, out) == (2, "")
    assert err == f"tfdlrm: {tmp_path}: must be empty or hold prepared data. Received: something else.\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]
    assert not tmp_path.with_name(tmp_path.name + ".partial").exists()


def test_the_largest_table(tmp_path):
    for law in ("uniform", "gaussian", "powerlaw"):
        arguments = ("random", "--prepared", tmp_path / law, "--rows", 10, "--cardinalities", 2**63 - 1, "--ids", law)
        assert call(main, *arguments)[::2] == (0, "")


def test_ids_beyond_the_table(tmp_path, example):
    code, _, err = call(main, "trace", "--distances", example, "--cardinalities", "9,4", "--prepared", tmp_path / "d")
    assert code == 2
    assert err == "tfdlrm: ids of feature `C2` must be below the 4 rows of its table. Received: 6.\n"
    assert not (tmp_path / "d").exists()


def test_one_file_for_many_columns(tmp_path):
    call(main, "random", "--prepared", tmp_path, "--rows", 10, "--cardinalities", "4,4")
    err = call(main, "profile", tmp_path, "--out", tmp_path / "x.log").err
    assert err == f'tfdlrm: `--out` must have a "j" in its name for 2 features. Received: {tmp_path / "x.log"}.\n'


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["random", "--rows", "5"], "one of the arguments --raw --prepared is required"),
        (["random", "--prepared", "d", "--rows", "0"], "must be at least 1. Received: 0"),
        (["random", "--prepared", "d", "--cardinalities", "5,x"], "must be a whole number. Received: 'x'"),
        (["random", "--prepared", "d", "--cardinalities", "9,99999999999999999999"], "must be below 2^63. Received"),
        (["random", "--prepared", "d", "--rows", "9223372036854775808"], "must be below 2^63. Received: 92"),
        (["random", "--prepared", "d", "--tables", "kagle"], "invalid choice: 'kagle'"),
        (["trace", "--prepared", "d"], "--distances"),
    ],
)
def test_unusable_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_trace_that_is_not_what_it_should_be_fails():
    share = np.array([0.5, 1.0])
    good = TraceResult(10**6, 9, 0, np.array([0, 1]), share, share - [0.009, 0])
    bad = TraceResult(10**6, 9, 0, np.array([0, 1]), share, share - [0.011, 0])
    assert judge("lru", {"C1": good}) == 0
    with pytest.raises(CheckFailed, match="feature C2: .* KS distance 0.01100, must be under 0.01000"):
        judge("lru", {"C1": good, "C2": bad})
    assert judge("rand", {"C2": bad}) == 0

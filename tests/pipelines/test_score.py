"""An exported model's rows scored: those of files, here, by a server and after a kill, and those that clients ask."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.data.planted import write_planted
from tfdlrm.pipelines import criteo
from tfdlrm.pipelines.local_server import LocalServer
from tfdlrm.pipelines.score import main
from tfdlrm.pipelines.scoring.models import Scorer
from tfdlrm.pipelines.scoring.rows import RowSource
from tfdlrm.serving import GrpcPredictClient, PredictClient
from tfdlrm.spec.criteo import COLUMNS
from tfdlrm.spec.raw import RawFormat, SideTable

ROOT = Path(__file__).parents[2]
ROWS = 1500
CANDIDATES = ["C1", "C2", "I3"]


class Model(NamedTuple):
    base: Path
    raw: Path
    expected: np.ndarray


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A small trained model, raw rows, and what plain TensorFlow answers to them."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("scored")
    export = {"verify_rows": 100, "rank_candidates": CANDIDATES}
    recipe = write_recipe(folder, train={"epochs": 1}, export=export)
    done = call(criteo.main, "--config", recipe, "--work-dir", folder / "run", "--stages", "prepare,train,export")
    assert done.code == 0, done
    raw = folder / "rows.tsv"
    write_planted(raw, ROWS, seed=9)
    base = folder / "models" / "small"
    signature = tf.saved_model.load(str(base / "1")).signatures["serving_default"]
    fields = [line.split("\t") for line in raw.read_text().splitlines()]
    inputs = {}
    for index, name in enumerate(COLUMNS[1:], 1):
        values = [row[index] for row in fields]
        if name.startswith("I"):
            inputs[name] = tf.constant([float(value or "nan") for value in values])
        else:
            inputs[name] = tf.constant(values)
    return Model(base, raw, signature(**inputs)["probability"].numpy()[:, 0])


def score(*argv: object) -> str:
    outcome = call(main, *argv)
    assert outcome.code == 0, outcome
    return outcome.out


def scores(path: Path) -> np.ndarray:
    found = pl.read_parquet(path)
    assert found["row"].to_list() == list(range(found.height))
    return found["probability"].to_numpy()


def test_every_row_gets_the_models_answer(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    said = score("--in", model.raw, "--out", out, "--model", model.base, "--batch-size", 400, "--json", tmp_path / "j")
    np.testing.assert_allclose(scores(out), model.expected, rtol=0, atol=2e-7)
    assert pl.read_parquet(out).schema == {"row": pl.UInt64, "probability": pl.Float32}
    assert f"1,500 rows in {out}" in said
    figures = json.loads((tmp_path / "j").read_text())
    assert (figures["rows"], figures["resumed_rows"]) == (ROWS, 0)
    assert figures["means"]["probability"] == pytest.approx(model.expected.mean(), abs=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["j", "scores.parquet"]


def test_rows_without_a_label_packed_with_a_header_or_as_parquet(model: Model, tmp_path: Path) -> None:
    lines = model.raw.read_text().splitlines()
    bare = tmp_path / "bare.tsv"
    bare.write_text("".join(line.partition("\t")[2] + "\n" for line in lines))
    packed = tmp_path / "packed.tsv.gz"
    packed.write_bytes(gzip.compress(model.raw.read_bytes()))
    frame = pl.read_csv(bare, separator="\t", has_header=False, new_columns=list(COLUMNS[1:]), infer_schema=False)
    headed = tmp_path / "headed.csv"
    frame.select(*reversed(frame.columns), pl.lit("x").alias("more")).write_csv(headed)
    table = tmp_path / "rows.parquet"
    frame.with_columns(pl.col(f"I{i}").cast(pl.Int64) for i in range(1, 14)).write_parquet(table)
    for name, more in {bare: [], packed: [], headed: ["--header", "--delimiter", ","], table: []}.items():
        out = tmp_path / f"{name.name}.parquet"
        score("--in", name, "--out", out, "--model", model.base / "1", *more)
        np.testing.assert_allclose(scores(out), model.expected, rtol=0, atol=2e-7, err_msg=str(name))


def test_columns_carried_along_and_text_out(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "scores.csv"
    score("--in", model.raw, model.raw, "--out", out, "--model", model.base, "--keep", "label, C3")
    found = pl.read_csv(out, infer_schema=False)
    assert found.columns == ["row", "label", "C3", "probability"]
    fields = [line.split("\t") for line in model.raw.read_text().splitlines()]
    assert found["C3"].fill_null("").to_list() == [row[COLUMNS.index("C3")] for row in fields] * 2
    assert found["label"].to_list() == [row[0] for row in fields] * 2
    np.testing.assert_allclose(
        found["probability"].cast(pl.Float64).to_numpy(), np.tile(model.expected, 2), rtol=0, atol=1e-6
    )


def test_a_server_is_asked(model: Model, tmp_path: Path) -> None:
    out = tmp_path / "scores.parquet"
    with LocalServer("ctr", model.base, tmp_path / "log.txt") as server:
        with PredictClient(server.url, "ctr") as client:
            server.wait_until_ready(client)
        where = ["--url", server.url, "--in", model.raw]
        stated = ["--config", ROOT / "pipelines" / "demo.toml"]
        said = score(*where, *stated, "--model", "ctr", "--out", out, "--batch-size", 300)
        assert f"{server.url}, model ctr, version 1" in said
        np.testing.assert_allclose(scores(out), model.expected, rtol=0, atol=2e-7)
        refused = refusal(*where, "--model", "nobody", "--out", tmp_path / "o.csv", main=main)
        assert "404" in refused and "nobody" in refused
        refused = refusal(*where, "--model", "ctr", "--signature", "serve_ids", "--out", tmp_path / "o.csv", main=main)
        assert "must take raw columns" in refused
    refused = refusal(*where, "--model", "ctr", "--out", tmp_path / "o.csv", main=main)
    assert "cannot be reached" in refused
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.txt", "scores.parquet"]


def test_clients_of_both_transports_get_the_same_of_every_signature(model: Model, tmp_path: Path) -> None:
    lines = model.raw.read_text().splitlines()[:6]
    fields = dict(zip(COLUMNS, zip(*(line.split("\t") for line in lines), strict=True), strict=True))
    columns = {
        name: np.float32([value or "nan" for value in values]) if name.startswith("I") else list(values)
        for name, values in fields.items()
        if name != "label"
    }
    present = [{name: values[row] for name, values in columns.items() if values[row] not in ("",)} for row in range(6)]
    examples = [{name: value for name, value in example.items() if value == value} for example in present]
    as_json = [{n: float(v) if isinstance(v, np.floating) else v for n, v in example.items()} for example in examples]
    shared = {name: values[0] for name, values in columns.items() if name not in CANDIDATES}
    candidates = {name: columns[name] for name in CANDIDATES}
    mask = [True, True, False, True, True, True]
    with (
        LocalServer("ctr", model.base, tmp_path / "log.txt", grpc=True) as server,
        PredictClient(server.url, "ctr") as rest,
        GrpcPredictClient(server.grpc_target, "ctr") as grpc,
    ):
        server.wait_until_ready(rest)
        found = grpc.predict(columns)
        assert isinstance(found, np.ndarray) and found.shape == (6, 1) and found.dtype == np.float32
        repeated = {name: np.repeat(np.asarray(values)[:1], 6) for name, values in columns.items() if name in shared}
        alone = np.ravel(grpc.predict({**repeated, **candidates}))
        expected = model.expected[:6]
        for answer in (
            np.ravel(found),
            np.ravel(rest.predict(columns=columns)),
            grpc.regress(examples),
            rest.regress(as_json),
            [classes[1][1] for classes in grpc.classify(examples)],
            [classes[1][1] for classes in rest.classify(as_json)],
        ):
            np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6)
        assert [[name for name, _ in classes] for classes in rest.classify(as_json)] == [["0", "1"]] * 6
        for client in (grpc, rest):
            scores, order = client.rank(shared, candidates, mask)
            np.testing.assert_allclose(scores, np.where(mask, alone, 0), rtol=0, atol=1e-6)
            assert order[-1] == 2 and (np.diff(scores[order[:-1]]) <= 0).all()


def test_a_killed_run_goes_on_where_it_was(model: Model, tmp_path: Path) -> None:
    files = []
    for number in range(40):
        files.append(tmp_path / f"rows{number}.tsv")
        files[-1].write_bytes(model.raw.read_bytes())
    out = tmp_path / "scores.parquet"
    argv = ["--in", *files, "--out", out, "--model", model.base, "--batch-size", "64", "--threads", "1"]
    parts = tmp_path / "scores.parquet.partial" / "parts"
    process = subprocess.Popen(
        [sys.executable, "-m", "tfdlrm.pipelines.score", *map(str, argv)],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    try:
        deadline = time.monotonic() + 120
        while len(list(parts.glob("[0-9]*.parquet"))) < 3:
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not out.exists()
    said = score(*argv, "--json", tmp_path / "json")
    resumed = json.loads((tmp_path / "json").read_text())["resumed_rows"]
    assert 3 * ROWS <= resumed < 40 * ROWS and resumed % ROWS == 0
    assert f"{resumed:,} of them by an earlier run" in said
    np.testing.assert_allclose(scores(out), np.tile(model.expected, 40), rtol=0, atol=2e-7)
    assert not parts.parent.exists()


def test_a_run_of_other_settings_starts_anew(tmp_path: Path) -> None:
    """What a delimiter makes of the same bytes is another question, and no answer to it may be taken over."""
    file = tmp_path / "rows.csv"
    file.write_text("x,y;x\n1,2;3\n")
    layouts = []
    for delimiter in ",;":
        format = RawFormat(header=True, delimiter=delimiter)
        layouts.append(RowSource([file], format, Columns(["x"]), (), 4, 1).layout())
    assert layouts[0] != layouts[1]
    side = tmp_path / "users.csv"
    table = SideTable(file=str(side), key="x", delimiter=",", header=True)
    for age in (1, 2):
        side.write_text(f"x,age\n1,{age}\n")
        format = RawFormat(header=True, delimiter=",", side_tables=(table,))
        layouts.append(RowSource([file], format, Columns(["age"]), (), 4, 1).layout())
    assert layouts[2] != layouts[3]


class Columns(Scorer):
    """Reads numbers, and is never asked."""

    def __init__(self, numbers: list[str]) -> None:
        self.numbers, self.strings = tuple(numbers), ()

    def score(self, columns):
        raise AssertionError

    def close(self) -> None:
        pass


def test_what_cannot_be_scored_is_one_line(model: Model, tmp_path: Path) -> None:
    out, given = tmp_path / "scores.parquet", ["--model", model.base]
    assert "no such file" in refusal("--in", tmp_path / "none.tsv", "--out", out, *given, main=main)
    assert "must end in one of" in refusal("--in", model.raw, "--out", tmp_path / "scores.txt", *given, main=main)
    refused = refusal("--in", model.raw, "--out", out, "--model", tmp_path, main=main)
    assert "no exported model, nor a folder of versions" in refused
    refused = refusal("--in", model.raw, "--out", out, *given, "--signature", "nothing", main=main)
    assert '"nothing" not found' in refused
    bad = tmp_path / "bad.tsv"
    lines = model.raw.read_text().splitlines()
    lines[6] = lines[6].replace("\t", "\tmany", 1)
    bad.write_text("\n".join(lines) + "\n")
    assert f"{bad}:7" in refusal("--in", bad, "--out", out, *given, main=main)
    table = tmp_path / "rows.parquet"
    table.write_bytes(b"PAR1 and no more")
    assert "cannot be read as Parquet" in refusal("--in", table, "--out", out, *given, main=main)
    columns = {name: [1.0] if name.startswith("I") else ["05db9164"] for name in COLUMNS[1:]}
    pl.DataFrame(columns).clear().write_parquet(table)
    assert "no rows" in refusal("--in", table, "--out", out, *given, main=main)
    pl.DataFrame({**columns, "I4": ["many"]}).write_parquet(table)
    assert "a column is not what the model reads" in refusal("--in", table, "--out", out, *given, main=main)
    pl.DataFrame({"I1": [1.0]}).write_parquet(table)
    assert "no column `I10`" in refusal("--in", table, "--out", out, *given, main=main)
    assert "of one kind" in refusal("--in", table, model.raw, "--out", out, *given, main=main)
    out.write_text("mine")
    assert "--overwrite replaces it" in refusal("--in", model.raw, "--out", out, *given, main=main)
    assert out.read_text() == "mine"
    score("--in", model.raw, "--out", out, *given, "--overwrite")
    assert scores(out).size == ROWS
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []

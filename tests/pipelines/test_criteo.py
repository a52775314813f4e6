"""The whole way on planted rows: files, numbers against independent ones, and what a second call does."""

from __future__ import annotations

import csv
import hashlib
import json
import math
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests.pipelines.small_runs import Outcome, call, refusal, write_recipe
from tfdlrm.pipelines import criteo
from tfdlrm.spec.config import load_config
from tfdlrm.spec.criteo import COLUMNS

ROWS, TEST_ROWS = 6000, 600


class Finished:
    """A run that went through every stage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = write_recipe(folder)
        self.work_dir = folder / "run"
        self.outcome: Outcome = self.run()

    def run(self, *argv: Any) -> Outcome:
        return call(criteo.main, "--config", self.recipe, "--work-dir", self.work_dir, *argv)

    def metrics(self) -> dict[str, Any]:
        return json.loads((self.work_dir / "metrics.json").read_text())["stages"]

    def predictions(self) -> dict[str, np.ndarray]:
        with np.load(self.work_dir / "report" / "predictions.npz") as file:
            return dict(file)

    def raw_rows(self) -> list[list[str]]:
        with (self.work_dir / "raw" / "planted.tsv").open(newline="") as file:
            return list(csv.reader(file, delimiter="\t"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("criteo"))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Finished:
    """Return a copy of the run that a test may damage."""
    copy = object.__new__(Finished)
    copy.folder, copy.recipe, copy.work_dir = tmp_path, finished.recipe, tmp_path / "run"
    shutil.copytree(finished.work_dir, copy.work_dir)
    return copy


def shards(work_dir: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (work_dir / "data").glob("*.tfrecord")}


def test_all_stages_end_well(finished: Finished) -> None:
    assert finished.outcome.code == 0
    assert finished.outcome.err == ""  # no bar where no one watches, no note of TensorFlow's
    made = {path.name for path in finished.work_dir.iterdir()} - {".lock"}
    assert made == {"data", "checkpoints", "logs", "report", "raw", "metrics.json", "config.toml"}
    assert not [path for path in finished.folder.rglob("*") if "tmp" in path.name]
    assert load_config(finished.work_dir / "config.toml") == load_config(finished.recipe)


def test_metrics_say_rows_and_rates(finished: Finished) -> None:
    metrics = finished.metrics()
    assert list(metrics) == ["generate", "prepare", "train", "evaluate", "export", "verify", "report"]
    assert {name: stage.get("rows") for name, stage in metrics.items()} == {
        **{"generate": ROWS, "prepare": ROWS, "train": 2 * 4800, "evaluate": TEST_ROWS},
        **{"export": None, "verify": 300, "report": None},
    }
    assert all(stage["seconds"] > 0 for stage in metrics.values())
    assert all(stage["rows_per_second"] > 0 for stage in metrics.values() if stage.get("rows"))
    assert metrics["train"]["steps"] == 2 * math.ceil(4800 / 128)
    assert metrics["prepare"]["splits"]["test"]["rows"] == TEST_ROWS


def test_metrics_are_those_of_scikit_learn(finished: Finished) -> None:
    evaluated, scores = finished.metrics()["evaluate"], finished.predictions()
    labels = np.array([float(row[0]) for row in finished.raw_rows()[-TEST_ROWS:]])
    np.testing.assert_array_equal(scores.pop("label"), labels)
    truth = np.load(finished.work_dir / "raw" / "planted.tsv.bayes.npy")[-TEST_ROWS:]
    np.testing.assert_array_equal(scores["bayes"], truth)
    assert set(scores) == {"best", "last", "baseline", "bayes"} == set(evaluated["metrics"])
    for name, values in scores.items():
        assert evaluated["metrics"][name]["auc"] == pytest.approx(roc_auc_score(labels, values), abs=1e-12)
        assert evaluated["metrics"][name]["log_loss"] == pytest.approx(log_loss(labels, values), rel=1e-6)
    assert evaluated["metrics"]["bayes"]["auc"] > evaluated["metrics"]["best"]["auc"] > 0.6


def test_best_weights_are_those_of_the_best_validation(finished: Finished) -> None:
    trained, evaluated = finished.metrics()["train"], finished.metrics()["evaluate"]
    best = min(trained["history"], key=lambda entry: entry["log_loss"])["step"]
    assert (trained["best_step"], evaluated["steps"]["best"]) == (best, best)
    assert evaluated["steps"]["last"] == trained["steps"]
    assert evaluated["exported"] == "best"


def test_output_ends_with_the_table_and_what_to_type(finished: Finished) -> None:
    out = finished.outcome.out
    metrics = finished.metrics()
    for word in ("rows/s", "AUC", "to best AUC", "log loss", "NE", "calibration", "hashed logistic regression"):
        assert word in out
    for name in ("best", "bayes"):
        assert f"{metrics['evaluate']['metrics'][name]['auc']:.4f}" in out
    serve = next(line for line in out.splitlines() if "-m tfdlrm.serving" in line)
    assert str(finished.folder / "models" / "small") in shlex.split(serve)
    curl = shlex.split(out.splitlines()[-1])
    assert curl[:2] == ["curl", "-d"] and curl[3] == "http://localhost:8501/v1/models/small:predict"
    (instance,) = json.loads(curl[2])["instances"]
    first_test_row = dict(zip(COLUMNS, finished.raw_rows()[ROWS - TEST_ROWS], strict=True))
    del first_test_row["label"]
    for name, value in instance.items():
        text = first_test_row.pop(name)
        if name.startswith("C"):
            assert value == text
        else:
            assert math.isnan(value) if text == "" else value == float(text)
    assert first_test_row == {}


def test_verified_answers_are_close(finished: Finished) -> None:
    verified = finished.metrics()["verify"]
    assert set(verified["differences"]) == {"HTTP by columns", "HTTP by rows"}
    assert set(verified["differences_of_export"]) == {
        *("serving_default", "tf_examples", "serve_ids", "classify", "regress")
    }
    assert max(verified["differences"].values()) <= 1e-5 == verified["tolerance"]
    assert Path(finished.metrics()["export"]["path"]).parts[-2:] == ("small", "1")


def test_report_shows_the_numbers_and_needs_no_other_file(finished: Finished) -> None:
    page = (finished.work_dir / "report" / "index.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 6  # without importance and slices, which small runs leave out
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert f"{finished.metrics()['evaluate']['metrics']['best']['auc']:.4f}" in page
    assert "bottom_units" in page


def test_second_call_does_no_stage_again_that_is_done(copied: Finished) -> None:
    before = copied.metrics(), shards(copied.work_dir)
    outcome = copied.run("--stages", "prepare,train")
    assert outcome.code == 0
    assert [line.split() for line in outcome.out.splitlines()[1:4]] == [
        [f"{name}:", "done", "before"] for name in ("generate", "prepare", "train")
    ]
    assert (copied.metrics(), shards(copied.work_dir)) == before


def test_work_dir_alone_goes_on_with_its_own_recipe(copied: Finished) -> None:
    outcome = call(criteo.main, "--work-dir", copied.work_dir, "--stages", "report")
    assert outcome.code == 0 and outcome.out.startswith(f"recipe: {copied.work_dir / 'config.toml'}\nsmall: report")


def test_deleted_results_are_made_again(copied: Finished) -> None:
    before, scores = shards(copied.work_dir), copied.predictions()
    for name in ("data", "checkpoints", "report"):
        shutil.rmtree(copied.work_dir / name)
    without_baseline = ("--set", "evaluate.baseline=false")
    assert copied.run("--stages", "prepare,train,evaluate,report", *without_baseline).code == 0
    assert shards(copied.work_dir) == before
    for name, values in copied.predictions().items():
        np.testing.assert_allclose(values, scores[name], atol=1e-4, err_msg=name)
    assert (copied.work_dir / "report" / "index.html").is_file()


def test_evaluation_may_change_without_training_again(copied: Finished) -> None:
    outcome = copied.run(
        "--stages", "train,evaluate", "--set", "evaluate.weights=last", "--set", "evaluate.baseline=false"
    )
    assert outcome.code == 0 and "done before" in outcome.out
    evaluated = copied.metrics()["evaluate"]
    assert evaluated["exported"] == "last" and "baseline" not in evaluated["metrics"]


def test_stages_say_what_they_lack(copied: Finished) -> None:
    def stages(names: str) -> str:
        return refusal("--config", copied.recipe, "--work-dir", copied.work_dir, "--stages", names)

    shutil.rmtree(copied.work_dir / "checkpoints" / sorted((copied.work_dir / "checkpoints").glob("step-*"))[-1].name)
    assert stages("evaluate") == (
        f"{copied.work_dir}/checkpoints: training has not finished. Run the stage `train` first."
    )
    shutil.rmtree(copied.work_dir / "data")
    assert stages("train") == f"{copied.work_dir}/data: no prepared data. Run the stage `prepare` first."
    (copied.work_dir / "metrics.json").unlink()
    assert stages("verify") == f"{copied.work_dir}: nothing to verify. Run the stage `export` first."
    assert stages("report") == f"{copied.work_dir}: nothing to report on. Run the stage `evaluate` first."


def test_another_configuration_is_refused_until_overwrite(copied: Finished) -> None:
    before = shards(copied.work_dir)
    argv = [
        "--config",
        copied.recipe,
        "--work-dir",
        copied.work_dir,
        "--set",
        "train.epochs=1",
        "--stages",
        "prepare,train",
    ]
    assert refusal(*argv) == (
        f"{copied.work_dir}: holds a run of another configuration: `train.epochs` is 2 there and 1 now. "
        "Give another --work-dir, or --overwrite to start afresh."
    )
    outcome = call(criteo.main, *argv, "--overwrite")
    assert outcome.code == 0
    assert "prepare:   " in outcome.out and shards(copied.work_dir) == before
    assert copied.metrics()["train"]["epochs"] == 1 and "evaluate" not in copied.metrics()


def test_checkpoints_of_other_rows_are_refused(copied: Finished) -> None:
    shutil.rmtree(copied.work_dir / "data")
    shutil.rmtree(copied.work_dir / "raw")
    (copied.work_dir / "metrics.json").unlink()
    config = copied.work_dir / "config.toml"
    config.write_text(config.read_text().replace("seed = 0", "seed = 1"), encoding="utf-8")
    line = refusal("--work-dir", copied.work_dir, "--stages", "prepare,train")
    assert "trained on other rows" in line and "--overwrite" in line


def test_damaged_shard_is_named(copied: Finished) -> None:
    shard = copied.work_dir / "data" / "test-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = refusal("--work-dir", copied.work_dir, "--stages", "evaluate")
    assert line.startswith(f"{shard}: block ") and "manifest.json" in line


def test_skew_between_raw_and_prepared_rows_is_found(copied: Finished) -> None:
    raw = copied.work_dir / "raw" / "planted.tsv"
    lines = raw.read_text().splitlines(keepends=True)
    lines[-TEST_ROWS] = lines[-TEST_ROWS - 1]
    raw.write_text("".join(lines))
    assert "must be what the raw rows encode to" in refusal("--work-dir", copied.work_dir, "--stages", "verify")

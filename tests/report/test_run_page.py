"""What the stage `report` writes about a run, against numbers found another way; and the logs beside it."""

from __future__ import annotations

import csv
import importlib.util
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.pipelines import criteo
from tfdlrm.spec.criteo import COLUMNS

TEST_ROWS = 1800
WHOLE = {"importance_rows": 2000, "slice_rows": 500_000, "tensorboard": True}
COLUMN = "C9"  # three frequent values


class Page(HTMLParser):
    """Tables by their captions, headings, and captions of figures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.headings: list[str] = []
        self.captions: list[str] = []
        self._text = ""
        self._table: list[list[str]] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._text = ""
        if tag == "tr":
            self._table.append([])

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self._table = self.tables[self._text] = []
        elif tag in ("td", "th"):
            self._table[-1].append(self._text)
        elif tag == "h2":
            self.headings.append(self._text)
        elif tag == "figcaption":
            self.captions.append(self._text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with `run`, compared with `other`, which trained for longer."""
    folder = tmp_path_factory.mktemp("page")
    columns = {
        "dense": [{"name": "I1"}, {"name": "I7"}],
        "sparse": [{"name": COLUMN}, {"name": "C14"}, {"name": "C20"}],
    }
    split = {"split": {"by": "order", "fractions": [0.6, 0.1, 0.3]}}
    train = {"epochs": 1, "eval_every_steps": 10}
    recipe = write_recipe(folder, data={**columns, **split}, evaluate={"baseline": False}, train=train, report=WHOLE)
    stages = ("--stages", "prepare,train,evaluate,report")
    longer = ("--set", "train.epochs=2", "--set", "name=longer")
    assert call(criteo.main, "--config", recipe, "--work-dir", folder / "other", *stages, *longer).code == 0
    compared = ("--set", f"report.compare={folder / 'other'}")
    outcome = call(criteo.main, "--config", recipe, "--work-dir", folder / "run", *stages, *compared)
    assert (outcome.code, outcome.err) == (0, "")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page(folder / "run" / "report" / "index.html")


def predictions(work_dir: Path) -> dict[str, np.ndarray]:
    with np.load(work_dir / "report" / "predictions.npz") as file:
        return dict(file)


def stages_of(work_dir: Path) -> dict[str, Any]:
    return json.loads((work_dir / "metrics.json").read_text())["stages"]


def test_everything_has_its_section(page: Page) -> None:
    assert page.headings == [
        *("Results", "Comparison with another run", "Training", "Slices", "Importance of features"),
        *("Embedding tables", "Data", "Time", "Environment", "Configuration"),
    ]
    assert all(caption.endswith((".", "%")) for caption in page.captions)


def test_slices_are_those_of_the_raw_rows(folder: Path, page: Page) -> None:
    with (folder / "run" / "raw" / "planted.tsv").open(newline="") as file:
        raw = [dict(zip(COLUMNS, row, strict=True)) for row in csv.reader(file, delimiter="\t")][-TEST_ROWS:]
    found = predictions(folder / "run")
    values = np.array([row[COLUMN] for row in raw])
    frequent, counts = np.unique(values[values != ""], return_counts=True)
    value = frequent[np.argmax(counts)]
    chosen = values == value
    labels, scores = found["label"][chosen], found["best"][chosen]
    (line,) = [row for row in page.tables["Metrics of slices"] if row[0] == COLUMN and row[1] == value]
    assert line[2:5] == [f"{chosen.sum():,}", f"{labels.mean():.4f}", f"{roc_auc_score(labels, scores):.4f}"]
    assert line[7] == f"{scores.mean() / labels.mean():.3f}"
    of_column = [row for row in page.tables["Metrics of slices"] if row[0] == COLUMN]
    assert sum(int(row[2].replace(",", "")) for row in of_column) == TEST_ROWS


def test_comparison_is_that_of_both_predictions(folder: Path, page: Page) -> None:
    here, there = (predictions(folder / name) for name in ("run", "other"))
    np.testing.assert_array_equal(here["label"], there["label"])
    table = page.tables["Metrics of the exported weights on held-out rows"]
    assert table[0] == ["", "small", "longer", "difference", "95% interval of it"]
    areas = [roc_auc_score(columns["label"], columns["best"]) for columns in (here, there)]
    assert table[1][:4] == ["AUC", *(f"{area:.4f}" for area in areas), f"{areas[0] - areas[1]:+.4f}"]
    low, high = map(float, table[1][4].split(" to "))
    # Rows drawn again and again differ as the interval says.
    rng, drawn = np.random.default_rng(0), []
    for _ in range(200):
        rows = rng.integers(0, TEST_ROWS, TEST_ROWS)
        drawn.append(np.subtract(*(roc_auc_score(c["label"][rows], c["best"][rows]) for c in (here, there))))
    assert high - low == pytest.approx(2 * 1.96 * np.std(drawn), rel=0.2)
    settings = {row[0]: row[1:] for row in page.tables["Settings that differ"][1:]}
    assert settings == {"name": ["small", "longer"], "train.epochs": ["1", "2"]}


def test_learning_curves_count_rows(folder: Path, page: Page) -> None:
    trained = stages_of(folder / "run")["train"]
    best = next(entry for entry in trained["history"] if entry["step"] == trained["best_step"])
    (caption,) = [caption for caption in page.captions if caption.startswith("Training loss")]
    rows = min(best["step"] * 128, 3600)
    assert f"Best after {rows:,} rows, step {best['step']:,}: validation log loss {best['log_loss']:.5f}" in caption


def test_environment_is_that_of_training(folder: Path, page: Page) -> None:
    noted = stages_of(folder / "run")["train"]["environment"]
    assert dict(page.tables["Versions and machine"][1:]) == noted
    assert re.fullmatch(r"2\.\d+\.\d+", noted["tensorflow"]) and int(noted["cores"]) >= 1


def test_tensorboard_reads_the_numbers_of_training(folder: Path) -> None:
    trained = stages_of(folder / "run")["train"]
    found = {}
    for name in ("train", "validation"):
        found[name] = EventAccumulator(str(folder / "run" / "logs" / "tensorboard" / name)).Reload()

    def scalar(part: str, name: str) -> list[tuple[int, float]]:
        return [(event.step, float(make_ndarray(event.tensor_proto))) for event in found[part].Tensors(name)]

    for part, name, key in (("train", "log_loss", "training_loss"), ("validation", "auc", "auc")):
        expected = [(entry["step"], entry[key]) for entry in trained["history"]]
        assert [step for step, _ in scalar(part, name)] == [step for step, _ in expected]
        np.testing.assert_allclose([v for _, v in scalar(part, name)], [v for _, v in expected], rtol=1e-6)
    (text,) = found["train"].Tensors("config.toml")
    assert b"eval_every_steps = 10" in text.tensor_proto.string_val[0]


def test_the_look_at_features_is_kept_until_another_is_asked_for(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(folder / "run", run)
    kept = run / "report" / "importance.json"
    again = ("--work-dir", run, "--stages", "report")
    fewer = ("--set", "report.importance_rows=300", "--set", "report.usage_rows=1000")
    assert call(criteo.main, *again, *fewer).code == 0
    figures = json.loads(kept.read_text())
    assert figures["rows"] == 300 and 1000 <= figures["training_rows"] < 3600
    before = kept.stat().st_mtime_ns
    without = ("--set", "report.slice_rows=0", "--set", "report.compare=")
    (run / "report" / "profile.json").write_text(
        json.dumps({"profile": {"milliseconds": {"input": {"forward": 1.0, "backward": 0.0}}}})
    )
    assert call(criteo.main, *again, *fewer, *without).code == 0
    assert kept.stat().st_mtime_ns == before
    page = Page(run / "report" / "index.html")
    assert "Importance of features" in page.headings
    assert not {"Slices", "Comparison with another run"} & set(page.headings)
    assert any(caption.startswith("Busy thread time") and "input has the" in caption for caption in page.captions)


def test_runs_that_cannot_be_compared_are_refused_before_the_work(folder: Path, tmp_path: Path) -> None:
    run = folder / "run"

    def line(other: Path) -> str:
        return refusal("--work-dir", run, "--stages", "report", "--set", f"report.compare={other}")

    assert (
        line(tmp_path)
        == f"`report.compare` must be the work dir of a run. Received: {tmp_path}, without a config.toml."
    )
    assert line(run) == f"`report.compare` must be the work dir of another run. Received: {run}, this one's own."
    shutil.copy(run / "config.toml", tmp_path)
    assert line(tmp_path) == (
        f"`report.compare` must be a run that was evaluated on held-out rows. Received: {tmp_path}. Run its stage "
        "`evaluate` first."
    )


@pytest.mark.skipif(importlib.util.find_spec("mlperf_logging") is not None, reason="mlperf-logging is installed")
def test_mlperfs_log_needs_its_package(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, report={"mlperf": True})
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run")
    assert line.startswith("`report.mlperf` must be false where the package mlperf-logging is not installed.")

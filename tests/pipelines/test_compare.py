"""A comparison from end to end: killed, interrupted, gone on with; its figures computed anew from its cells."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import numpy as np
import pytest
import tomli_w
from scipy import stats

from tests.forks import Forks
from tests.pipelines.small_runs import TINY, call, refusal
from tfdlrm.pipelines import compare

ROOT = Path(__file__).resolve().parents[2]
COMPARISON = {
    "name": "tiny",
    "seeds": [5, 6],
    "evaluate_points": 2,
    "equal_parameters": "dlrm",
    "datasets": [{"name": "planted", "config": "rows.toml"}],
    "models": [{"name": "dlrm"}, {"name": "dcn"}, {"name": "matrix_factorization"}],
    "optimizers": [
        {
            "label": "sgd",
            "embedding": {"name": "sgd", "learning_rate": 0.05},
            "dense": {"name": "sgd", "learning_rate": 0.05},
        },
        {
            "label": "adagrad",
            "embedding": {"name": "adagrad", "learning_rate": 0.02},
            "dense": {"name": "adagrad", "learning_rate": 0.02},
        },
    ],
}


class Done(NamedTuple):
    config: Path
    work_dir: Path
    killed: dict[str, tuple[int, bytes]]
    last: str


def write(folder: Path, **changes: object) -> Path:
    (folder / "rows.toml").write_text(tomli_w.dumps(TINY), encoding="utf-8")
    path = folder / "tiny.toml"
    path.write_text(tomli_w.dumps({**COMPARISON, **changes}), encoding="utf-8")
    return path


def cells(work_dir: Path) -> dict[str, tuple[int, bytes]]:
    """Return time and bytes of the files of all finished cells."""
    return {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in (work_dir / "planted" / "cells").glob("*.json")}


def start(config: Path, work_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tfdlrm.pipelines.compare", "--config", config, "--work-dir", work_dir, *more]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, forks: Forks) -> Done:
    """Run a comparison: killed once a cell is done, then gone on with to its end."""
    folder = tmp_path_factory.mktemp("compare")
    config, work_dir = write(folder), folder / "run"
    process = forks.start("-m", "tfdlrm.pipelines.compare", "--config", config, "--work-dir", work_dir)
    deadline = time.monotonic() + 240
    while not cells(work_dir):
        assert process.poll() is None and time.monotonic() < deadline, process.output
        time.sleep(0.01)
    process.kill()
    process.wait()
    killed = cells(work_dir)
    outcome = call(compare.main, "--config", config, "--work-dir", work_dir)
    assert outcome.code == 0, outcome
    return Done(config, work_dir, killed, outcome.out)


def results(work_dir: Path) -> dict[tuple[str, str, int], dict]:
    found = [json.loads(content) for _, content in cells(work_dir).values()]
    return {(cell["optimizer"], cell["model"], cell["seed"]): cell for cell in found}


def lines(work_dir: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (work_dir / "report" / "results.csv").open(encoding="utf-8") as file:
        return {(line["optimizer"], line["model"]): line for line in csv.DictReader(file)}


def test_finished_cells_survive_a_kill(done):
    final = cells(done.work_dir)
    assert 1 <= len(done.killed) < len(final) == 8
    assert done.killed.items() <= final.items()  # not even written again
    assert f"8 cells, {len(done.killed)} done before" in done.last
    assert not any((done.work_dir / "planted" / "unfinished").iterdir())


def test_an_interruption_says_how_to_go_on(tmp_path):
    config, work_dir = write(tmp_path), tmp_path / "run"
    process = start(config, work_dir, "--jobs", "2")
    assert process.stdout is not None
    assert any("tiny: 8 cells" in line for line in process.stdout)  # the next thing is to start two processes
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    said = err.splitlines()[-1]
    assert said.startswith("tfdlrm: interrupted. What is done is kept; to go on: ")
    assert said.endswith(f"python -m tfdlrm.pipelines.compare --config {config} --work-dir {work_dir} --jobs 2")
    assert "Traceback" not in err


def test_a_cell_holds_its_metrics_and_its_curve(done):
    for cell in results(done.work_dir).values():
        steps = [point["step"] for point in cell["curve"]]
        assert steps == [19, 38]  # 2,400 training rows in batches of 64
        assert cell["split"] == "test" and cell["rows"] == 300
        for point in cell["curve"]:
            assert set(point["training"]) == set(point["validation"]) == {"accuracy", "log_loss", "auc"}
        assert cell["best_possible"]["log_loss"] < cell["metrics"]["log_loss"]


def test_the_same_seed_is_the_same_order_and_another_is_another(done):
    found = results(done.work_dir)
    assert found["sgd", "dlrm", 5]["metrics"] != found["sgd", "dlrm", 6]["metrics"]
    settings = [found["sgd", model, 5]["settings"] for model in ("dlrm", "dcn")]
    for section in ("seed", "data", "train", "evaluate"):
        assert settings[0][section] == settings[1][section]


def test_sizes_are_equal_and_stated(done):
    found = lines(done.work_dir)
    # Bottom 2-8-4: 24 + 36; the triangle of 3 vectors beside x: 7 inputs; top 7-16-1: 128 + 17.
    assert int(found["sgd", "dlrm"]["dense_parameters"]) == 24 + 36 + 128 + 17
    assert int(found["sgd", "dcn"]["dense_parameters"]) == pytest.approx(205, abs=11)  # one unit more is 12 weights
    for key, line in found.items():
        rows = json.loads((done.work_dir / "planted" / "metrics.json").read_text())["stages"]["prepare"]["table_rows"]
        assert int(line["table_parameters"]) == 4 * rows, key


def test_means_and_spreads_are_those_of_the_cells(done):
    found = results(done.work_dir)
    for (optimizer, model), line in lines(done.work_dir).items():
        assert line["n"] == "2"
        for metric in ("auc", "log_loss", "normalized_entropy", "accuracy"):
            a, b = (found[optimizer, model, seed]["metrics"][metric] for seed in (5, 6))
            assert float(line[metric]) == pytest.approx((a + b) / 2)
            assert float(line[f"{metric}_spread"]) == pytest.approx(abs(a - b) / np.sqrt(2))


def test_significance_is_that_of_scipy(done):
    found = results(done.work_dir)
    for optimizer in ("sgd", "adagrad"):
        line = lines(done.work_dir)[optimizer, "dcn"]
        for metric in ("auc", "log_loss"):
            dcn, dlrm = ([found[optimizer, m, s]["metrics"][metric] for s in (5, 6)] for m in ("dcn", "dlrm"))
            assert float(line[f"{metric}_p"]) == pytest.approx(stats.ttest_rel(dcn, dlrm).pvalue)
            assert line[f"{metric}_p_holm"] == line[f"{metric}_p"]  # one test only
            assert line[f"{metric}_pairs"] == "2"
        assert lines(done.work_dir)[optimizer, "dlrm"]["auc_p"] == ""


def test_the_table_says_what_the_lines_say(done):
    text = (done.work_dir / "report" / "table.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"## planted, (\w+).*?\n\n(.*?)\n\n", text, re.DOTALL))
    for (optimizer, model), line in lines(done.work_dir).items():
        (row,) = [r for r in blocks[optimizer].splitlines() if r.startswith((f"| {model} |", f"| {model} (ref"))]
        assert f"| {float(line['auc']):.4f} ± {float(line['auc_spread']):.4f} |" in row
        assert f"| {int(line['table_parameters']):,} |" in row
    assert "Left out: matrix_factorization on planted: in `model`: `pair` must" in text
    assert "Left out: matrix_factorization" in done.last


def test_figures_are_whole_and_need_nothing_else(done):
    report = done.work_dir / "report"
    assert (report / "figure.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    drawn = ElementTree.parse(report / "figure.svg").getroot()
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    ids = {element.get("id") for element in drawn.iter()}
    assert {f"line-accuracy-{panel}-{curve}" for panel in (0, 1) for curve in range(4)} <= ids
    texts = " ".join(element.text or "" for element in drawn.iter())
    assert all(word in texts for word in ("planted, sgd", "planted, adagrad", "dlrm", "dcn", "iteration", "validation"))

    page = (report / "figure.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|url\(|import)\s*[=(]?\s*["']?(?:https?:)?//""", page)
    assert set(re.findall(r"https?://[^\"'\s<>]+", page)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    assert page.count('data-part="training"') > 2 * 3 * 2
    assert all(f'id="{metric}"' in page for metric in ("accuracy", "log_loss", "auc"))


def test_other_settings_are_refused_by_name(done, tmp_path):
    other = json.loads(json.dumps(COMPARISON["optimizers"]))
    other[0]["dense"]["learning_rate"] = 0.3
    line = refusal("--config", write(tmp_path, optimizers=other), "--work-dir", done.work_dir, main=compare.main)
    assert "`train.dense.learning_rate` is 0.05 there and 0.3 now" in line
    assert len(cells(done.work_dir)) == 8


def test_dry_run_prints_cells_and_sizes_and_writes_nothing(done, tmp_path):
    outcome = call(
        compare.main,
        "--config",
        done.config,
        "--work-dir",
        tmp_path / "none",
        "--dry-run",
        "--only",
        "model=dcn,seed=5",
    )
    assert outcome.code == 0
    assert "tiny: 2 cells" in outcome.out
    assert re.search(r"planted +dcn +adagrad +1 +0 +2\d\d ", outcome.out)
    assert "Left out: matrix_factorization on planted" in outcome.out
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, ["--only", "modle=dcn"], "Received: 'modle=dcn'. Did you mean `model`?"),
        (
            {},
            ["--only", "model=dcm"],
            "`--only model=` must be one of dlrm, dcn, matrix_factorization. Received: 'dcm'.",
        ),
        ({"models": [{"name": "dlmr"}], "equal_parameters": "dlmr"}, [], "Did you mean `dlrm`?"),
        ({"datasets": [{"name": "a", "config": "rovs.toml"}]}, [], "no recipe `rovs`"),
        ({"datasets": [{"name": "a", "config": "rows.toml", "set": ["train.bach_size=1"]}]}, [], "`batch_size`?"),
        ({"datasets": [{"name": "a", "config": "rows.toml", "raw": ["none.tsv"]}]}, [], "none.tsv: No such file"),
        (
            {
                "models": [{"name": "dlrm", "mixed_dimensions": {}}],
                "datasets": [{"name": "a", "config": "rows.toml", "set": ["model.embedding_budget=1MB"]}],
            },
            [],
            "model `dlrm` on `a`: `embedding_budget` must not come with `mixed_dimensions`",
        ),
        (
            {"models": [{"name": "dlrm", "tables": {"C1": {"dtype": "float16"}}}]},
            [],
            "model `dlrm` with optimizer `adagrad` on `planted`: `model.tables.C1.dtype` must be",
        ),
        (
            {"models": [{"name": "matrix_factorization"}], "equal_parameters": "matrix_factorization"},
            [],
            "`equal_parameters` must be a model that fits every data set",
        ),
    ],
)
def test_slips_are_told_in_one_line(changes, arguments, message, tmp_path):
    config = write(tmp_path, **changes)
    assert message in refusal("--config", config, "--work-dir", tmp_path / "run", *arguments, main=compare.main)
    assert not (tmp_path / "run" / "planted").exists()


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    line = refusal("--config", write(tmp_path), "--work-dir", tmp_path, main=compare.main)
    assert "`--work-dir` must be new, empty or a comparison's own" in line

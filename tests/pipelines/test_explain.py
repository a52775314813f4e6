"""`explain` on a run: what it writes, that a seed says everything, and what it says to those who come too early."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.pipelines import criteo, explain

DENSE, SPARSE = ("I1", "I7"), ("C9", "C14", "C17", "C20")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("explain")
    columns = {"dense": [{"name": name} for name in DENSE], "sparse": [{"name": name} for name in SPARSE]}
    recipe = write_recipe(folder, data=columns, evaluate={"baseline": False})
    work_dir = folder / "run"
    stages = ("--stages", "prepare,train,evaluate,report")
    assert call(criteo.main, "--config", recipe, "--work-dir", work_dir, *stages).code == 0
    return work_dir


def figures_of(work_dir: Path) -> dict[str, Any]:
    return json.loads((work_dir / "report" / "explain.json").read_text())


def test_everything_is_written_and_said(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "out.json"
    outcome = call(explain.main, "--work-dir", run, "--repeats", 2, "--json", copy)
    assert (outcome.code, outcome.err) == (0, "")
    figures = figures_of(run)
    assert json.loads(copy.read_text()) == figures
    judged = json.loads((run / "metrics.json").read_text())["stages"]["evaluate"]["metrics"]["best"]
    assert figures["rows"] == judged["rows"] == 600
    assert figures["auc"] == pytest.approx(judged["auc"], abs=1e-6)
    assert figures["log_loss"] == pytest.approx(judged["log_loss"], rel=1e-5)
    assert {f["name"] for f in figures["features"]} == {*DENSE, *SPARSE}
    assert all(len(f["log_loss"]["values"]) == 2 for f in figures["features"])
    assert [table["table"] for table in figures["tables"]] == list(SPARSE)
    assert {table["reads"] for table in figures["tables"]} == {4800} and figures["training_rows"] == 4800
    best = max(figures["features"], key=lambda f: f["log_loss"]["mean"])
    lines = outcome.out.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:1] == ["feature"])
    assert best["log_loss"]["mean"] > 0.001
    assert lines[first + 2].split()[:3] == [best["name"], best["kind"], f"{best['log_loss']['mean']:.5f}"]
    assert lines[-1] == f"Page: {run / 'report' / 'index.html'}"
    for name in ("importance.png", "norms.png"):
        assert (run / "report" / name).read_bytes().startswith(b"\x89PNG")
    page = (run / "report" / "index.html").read_text()
    assert "<h2>Importance of features</h2>" in page and f"{best['log_loss']['mean']:.5f}" in page


def test_fewer_rows_are_a_sample_that_the_seed_decides(run: Path, tmp_path: Path) -> None:
    found = []
    for seed in (3, 3, 4):
        argv = ("--work-dir", run, "--rows", 200, "--repeats", 1, "--seed", seed)
        assert call(explain.main, *argv).code == 0
        found.append(figures_of(run))
    assert found[0] == found[1] and found[0]["rows"] == 200
    assert found[0]["log_loss"] != found[2]["log_loss"]
    spread = [feature["log_loss"]["spread"] for feature in found[0]["features"]]
    assert set(spread) == {None}


def test_explanations_of_other_weights_are_not_on_the_page(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    figures = {**figures_of(copy), "step": 1}
    (copy / "report" / "explain.json").write_text(json.dumps(figures))
    without = ("--set", "report.importance_rows=0")
    assert call(criteo.main, "--work-dir", copy, "--stages", "report", *without).code == 0
    assert "Importance of features" not in (copy / "report" / "index.html").read_text()


def test_damaged_rows_are_named(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shard = copy / "data" / "train-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = refusal("--work-dir", copy, "--repeats", 1, "--rows", 50, main=explain.main)
    assert line.startswith(f"{shard}: block ") and "manifest.json" in line


def test_what_is_no_trained_run_is_refused(run: Path, tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        line = refusal("--work-dir", path, main=explain.main)
        assert line == f"`--work-dir` must be that of a run. Received: {path}, without a config.toml."
    assert list(tmp_path.iterdir()) == []
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints")
    expected = f"{copy}/checkpoints: training has not finished. Run the stage `train` first."
    assert refusal("--work-dir", copy, main=explain.main) == expected
    assert refusal("--work-dir", copy, "--seed", 2**32, main=explain.main).startswith("`--seed` must be below 2^32.")
    assert refusal("--work-dir", copy, "--json", tmp_path, main=explain.main).endswith("where a file must be.")


@pytest.mark.parametrize(("flag", "value"), [("--rows", "0"), ("--repeats", "0"), ("--rows", "many"), ("--seed", "-1")])
def test_numbers_out_of_range_are_refused(flag: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        explain.main(["--work-dir", "run", flag, value])
    assert stop.value.code == 2
    assert f"argument {flag}: must be" in capsys.readouterr().err


def test_norms_are_those_of_the_checkpoint(run: Path) -> None:
    weights = sorted((run / "checkpoints").glob("step-*"))
    step = figures_of(run)["step"]
    folder = next(path for path in weights if int(path.name[5:]) == step)
    rows = np.load(folder / "000.rows.npy")
    assert figures_of(run)["tables"][0]["norm_mean"] == pytest.approx(np.linalg.norm(rows, axis=1).mean(), rel=1e-5)

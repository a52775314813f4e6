"""Cross-validation: each row tests once, and the summary is that of the folds."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.small_runs import call, write_recipe
from tfdlrm.data.planted import write_planted
from tfdlrm.pipelines import criteo


def test_folds_and_their_summary(tmp_path: Path) -> None:
    raw, work_dir = tmp_path / "rows.tsv", tmp_path / "run"
    write_planted(raw, 1501)
    columns = {"dense": [{"name": "I1"}], "sparse": [{"name": name} for name in ("C9", "C14", "C17", "C20")]}
    recipe = write_recipe(tmp_path, data={"split": {"by": "fold", "folds": 2}, **columns}, train={"epochs": 1})
    argv = ["--config", recipe, "--raw", raw, "--work-dir", work_dir, "--cross-validate"]
    outcome = call(criteo.main, *argv)
    assert outcome.code == 0, outcome.err
    results = json.loads((work_dir / "metrics.json").read_text())
    assert [fold["rows"] for fold in results["folds"]] == [751, 750]
    labels = [float(line.split("\t")[0]) for line in raw.read_text().splitlines()]
    tested = []
    for number, fold in enumerate(results["folds"]):
        folder = work_dir / f"fold-{number}"
        with np.load(folder / "report" / "predictions.npz") as file:
            tested += file["label"].tolist()
        own = json.loads((folder / "metrics.json").read_text())["stages"]
        assert own["evaluate"]["metrics"] == fold["metrics"]
        assert own["evaluate"]["exported"] == "last"  # nothing validates
        assert set(fold["metrics"]) == {"last", "baseline", "bayes"}
    assert tested == labels
    for name in ("last", "baseline", "bayes"):
        values = [fold["metrics"][name]["auc"] for fold in results["folds"]]
        assert results["mean"][name]["auc"] == pytest.approx(statistics.fmean(values))
        assert results["spread"][name]["auc"] == pytest.approx(np.std(values, ddof=1))
        assert f"{results['mean'][name]['auc']:.4f}" in outcome.out

    again = call(criteo.main, *argv)
    assert again.code == 0 and again.out.count("train:     done before") == 2

"""A run that left out four of five rows without a click: what it says, serves and judges is of all rows.

It has no numbers, so that what is served and verified has none either.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit, logit

from tests.pipelines.small_runs import Outcome, call, refusal, write_recipe
from tfdlrm.pipelines import criteo

SHARE = 0.8
ROWS = 16_000
SPARSE = ("C9", "C14", "C17", "C20")
Run = tuple[Path, Outcome]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("dropped")
    recipe = write_recipe(
        folder,
        data={
            "planted": {"rows": ROWS},
            "drop_negatives": SHARE,
            "dense": [],
            "sparse": [{"name": name} for name in SPARSE],
            "split": {"by": "order", "fractions": [0.6, 0.1, 0.3]},
        },
        model={"interaction": "cat"},
        train={"epochs": 4},
    )
    work_dir = folder / "run"
    return work_dir, call(criteo.main, "--config", recipe, "--work-dir", work_dir)


def stages(work_dir: Path) -> dict[str, Any]:
    return json.loads((work_dir / "metrics.json").read_text())["stages"]


def columns(work_dir: Path) -> dict[str, np.ndarray]:
    with np.load(work_dir / "report" / "predictions.npz") as file:
        return dict(file)


def sampling_error(values: np.ndarray, labels: np.ndarray, weight: np.ndarray) -> float:
    return float(np.sqrt(np.sum((weight * (values - labels)) ** 2)) / np.sum(weight * labels))


def test_truth_is_that_of_all_rows_and_the_known_factor_is_seen(run: Run) -> None:
    work_dir, outcome = run
    assert outcome.code == 0, outcome.err
    found, evaluated = columns(work_dir), stages(work_dir)["evaluate"]
    labels, weight = found["label"], found["sample_weight"]
    np.testing.assert_allclose(weight, np.where(labels == 1, 1, 5), rtol=1e-6)
    raw = np.load(work_dir / "raw" / "planted.tsv.bayes.npy")[-int(0.3 * ROWS) :]
    raw_labels = np.array([line[:1] == "1" for line in (work_dir / "raw" / "planted.tsv").open()])[-raw.size :]
    # The rows that are left are, in their order, all with a click and some of the others.
    assert np.array_equal(found["bayes"][labels == 1], raw[raw_labels])
    assert set(found["bayes"][labels == 0]) <= set(raw[~raw_labels])
    truth = found["bayes"].astype(np.float64)
    metrics = evaluated["metrics"]["bayes"]
    assert abs(metrics["calibration"] - 1) < 4 * sampling_error(truth, labels, weight)
    spread = np.sqrt(SHARE / (1 - SHARE) / np.sum(~raw_labels))  # of how many without a click are left
    assert metrics["base_rate"] == pytest.approx(raw_labels.mean(), rel=4 * spread)
    factor = expit(logit(raw.astype(np.float64)) - np.log(1 - SHARE)).mean() / raw.mean()
    without = evaluated["correction"]["calibration_without"]
    assert without["bayes"] == pytest.approx(factor, rel=0.1) and factor > 1.8


def test_the_model_is_calibrated_only_with_the_correction(run: Run) -> None:
    evaluated, found = stages(run[0])["evaluate"], columns(run[0])
    for name in ("best", "baseline"):
        error = sampling_error(found[name], found["label"], found["sample_weight"])
        # Beside the rows' own sampling error the model has that of the few thousand rows it learnt from.
        assert abs(evaluated["metrics"][name]["calibration"] - 1) < 4 * error + 0.1
        assert evaluated["correction"]["calibration_without"][name] > 1.7
    assert evaluated["correction"]["logit_shift"] == pytest.approx(np.log(0.2))


def test_it_is_said_and_recorded(run: Run) -> None:
    work_dir, outcome = run
    assert "corrected for 80.0% of the rows without a click left out: calibration " in outcome.out
    assert "log-odds corrected by -1.6094 for the rows left out" in outcome.out
    evaluated = stages(work_dir)["evaluate"]
    page = (work_dir / "report" / "index.html").read_text(encoding="utf-8")
    for name in ("best", "bayes"):
        with_it = evaluated["metrics"][name]["calibration"]
        without = evaluated["correction"]["calibration_without"][name]
        assert f"{with_it:.4f} {without:.4f}" in " ".join(outcome.out.split())
        assert f"<td>{with_it:.4f}</td><td>{without:.4f}</td>" in page
    exported = stages(work_dir)["export"]
    record = json.loads((Path(exported["path"]) / "assets.extra" / "tfdlrm.json").read_text())
    assert record["logit_shift"] == exported["logit_shift"] == pytest.approx(np.log(0.2))
    assert max(stages(work_dir)["verify"]["differences"].values()) <= 1e-5


def test_without_correction_the_rows_that_are_left_are_judged_and_served(run: Run) -> None:
    """Last: it changes the run."""
    work_dir, _ = run
    before, exported = columns(work_dir), stages(work_dir)["export"]
    off = ("--work-dir", work_dir, "--set", "export.correct_sampling=false")
    line = refusal(*off, "--stages", "verify")
    assert line == f"{work_dir}: exported with another `export.correct_sampling`. Run the stage `export` again."
    assert call(criteo.main, *off, "--stages", "evaluate,export").code == 0
    after, evaluated = columns(work_dir), stages(work_dir)["evaluate"]
    assert "sample_weight" not in after and "correction" not in evaluated
    for name in ("best", "baseline", "bayes"):
        inverse = expit(logit(before[name].astype(np.float64)) - np.log(0.2))
        np.testing.assert_allclose(after[name], inverse, rtol=1e-4)
    assert evaluated["metrics"]["bayes"]["calibration"] == pytest.approx(1, abs=0.06)
    now = stages(work_dir)["export"]
    assert (now["version"], now["logit_shift"]) == (exported["version"] + 1, 0)
    record = json.loads((Path(now["path"]) / "assets.extra" / "tfdlrm.json").read_text())
    assert record["logit_shift"] == 0
    assert call(criteo.main, *off, "--stages", "export").out.splitlines()[2].split() == ["export:", "done", "before"]

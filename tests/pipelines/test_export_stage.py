"""The stage `export`: what lies beside a version, and what gets no number."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.files import sha256_of
from tfdlrm.export.model_card import ModelCard
from tfdlrm.pipelines import criteo
from tfdlrm.pipelines.model_card import log_loss_interval
from tfdlrm.pipelines.stages import export as stage

CANDIDATES = ["C3", "C7", "I2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished run and its first version."""
    folder = tmp_path_factory.mktemp("export")
    export = {"rank_candidates": CANDIDATES, "warmup_batch_sizes": [1, 5], "min_auc": 0.5, "verify_rows": 100}
    recipe = write_recipe(
        folder, data={"planted": {"rows": 2000}}, train={"epochs": 1}, evaluate={"baseline": False}, export=export
    )
    outcome = call(
        criteo.main, "--config", recipe, "--work-dir", folder / "run", "--stages", "prepare,train,evaluate,export"
    )
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def stages(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "metrics.json").read_text())["stages"]
    return found


def export(folder: Path, *settings: str) -> Any:
    sets = [word for setting in settings for word in ("--set", setting)]
    return call(criteo.main, "--work-dir", folder / "run", "--stages", "export", *sets)


def test_results_say_what_was_shown(folder: Path, stages: dict[str, Any]) -> None:
    exported = stages["export"]
    version = folder / "models" / "small" / "1"
    assert Path(exported["path"]) == version
    assert exported["bytes"] == sum(
        os.path.getsize(os.path.join(where, file)) for where, _, files in os.walk(version) for file in files
    )
    assert len(exported["fingerprint"].split("/")) == 4
    assert set(exported["differences"]) == {
        *("serving_default", "tf_examples", "serve_ids", "classify", "regress", "rank")
    }
    assert max(exported["differences"].values()) <= 1e-5
    assert exported["warmup_requests"] == 12 and exported["verified_rows"] == 100
    assert "ParseExampleV2" in exported["ops"]


def test_the_encoder_lies_beside_the_version(folder: Path, stages: dict[str, Any]) -> None:
    beside, data = folder / "models" / "small" / "1" / "assets.extra" / "encoder", folder / "run" / "data"
    names = [str(file.relative_to(beside.parent)) for file in sorted(beside.rglob("*")) if file.is_file()]
    assert names == stages["export"]["encoder_files"] and len(names) == 27
    encoder = FeatureEncoder.load(beside, unseen="missing")
    assert encoder.spec == FeatureEncoder.load(data, unseen="missing").spec


def test_large_vocabularies_stay_where_they_are(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "_ENCODER_BYTES", 1000)
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    sets = ["--set", f"export.directory={tmp_path / 'models'}"]
    outcome = call(criteo.main, "--work-dir", run, "--stages", "export", *sets)
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "metrics.json").read_text())["stages"]["export"]["encoder_files"] == [
        "encoder/encoder.json"
    ]


def test_the_card_says_what_is_true(folder: Path, stages: dict[str, Any]) -> None:
    version, report = folder / "models" / "small" / "1" / "assets.extra", folder / "run" / "report"
    for name in ("MODEL_CARD.md", "model_card.json", "calibration.png"):
        assert (version / name).read_bytes() == (report / name).read_bytes()
    assert (report / "calibration.png").read_bytes().startswith(b"\x89PNG")
    card = ModelCard.from_json((report / "model_card.json").read_text())
    judged = stages["evaluate"]["metrics"][card.weights]
    with np.load(report / "predictions.npz") as file:
        labels, scores = file["label"], file[card.weights]
    assert card.evaluation is not None
    assert card.evaluation.metrics["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert card.evaluation.intervals["auc"] == (judged["auc_low"], judged["auc_high"])
    low, high = card.evaluation.intervals["log_loss"]
    assert low < judged["log_loss"] < high and low + high == pytest.approx(2 * judged["log_loss"], rel=1e-5)
    assert card.manifest_sha256 == sha256_of(folder / "run" / "data" / "manifest.json")
    assert {name: of["rows"] for name, of in card.rows.items()} == {
        name: of["rows"] for name, of in stages["prepare"]["splits"].items()
    }
    assert card.table_bytes["C3"] == card.spec.table("C3").vocabulary_size * 4 * 4
    (instance,) = json.loads(card.request)["instances"]
    assert set(instance) == {*(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))}
    text = (report / "MODEL_CARD.md").read_text()
    for piece in (card.manifest_sha256, f"| AUC | {judged['auc']:.6f} |", "`C3`, `C7`, `I2`", card.request):
        assert piece in text


def test_a_log_loss_interval_covers_the_mean_it_is_of() -> None:
    """In 400 samples of rows whose expected loss is known, about 95% of the intervals hold it."""
    rng = np.random.default_rng(0)
    chances = rng.uniform(0.05, 0.6, (400, 500))
    labels = (rng.random(chances.shape) < chances).astype(np.float32)
    truth = -(chances * np.log(chances) + (1 - chances) * np.log1p(-chances)).mean()
    intervals = [log_loss_interval(y, p.astype(np.float32)) for y, p in zip(labels, chances, strict=True)]
    assert 0.92 < np.mean([low <= truth <= high for low, high in intervals]) < 0.98


def test_a_second_call_exports_nothing(folder: Path) -> None:
    assert "done before" in export(folder).out


def test_verify_withdraws_what_answers_wrongly_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    run, models = tmp_path / "run", tmp_path / "models"
    shutil.copytree(folder / "run", run)
    shutil.copytree(folder / "models", models)
    metrics = json.loads((run / "metrics.json").read_text())
    version = models / "small" / "1"
    metrics["stages"]["export"]["path"] = str(version)
    (run / "metrics.json").write_text(json.dumps(metrics))

    def verify() -> Any:
        return call(criteo.main, "--work-dir", run, "--stages", "verify")

    outcome = verify()
    assert outcome.code == 0, outcome
    found = json.loads((run / "metrics.json").read_text())["stages"]["verify"]
    assert set(found["differences"]) == {"HTTP by columns", "HTTP by rows"}
    assert found["differences_of_export"] == metrics["stages"]["export"]["differences"]
    assert "test rows, over HTTP, at most" in outcome.out
    # Settings that make another version; a run keeps what it was told last.
    config = (run / "config.toml").read_bytes()
    for setting, key in (("unseen=rare", "unseen"), ("rank_candidates=[]", "rank_candidates")):
        line = refusal("--work-dir", run, "--stages", "verify", "--set", f"export.{setting}")
        assert line == f"{run}: exported with other `export.{key}`. Run the stage `export` again."
        (run / "config.toml").write_bytes(config)
    # A server that does not start says nothing of the version.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", shutil.which("false"))
        line = refusal("--work-dir", run, "--stages", "verify")
    assert "the server has ended; its output is in" in line
    assert version.is_dir()
    # The number has been rejected before, and now again, for what the export itself noted.
    (models / "small" / "rejected-1").mkdir()
    metrics["stages"]["export"]["differences"]["serve_ids"] = 0.5
    (run / "metrics.json").write_text(json.dumps(metrics))
    outcome = verify()
    assert outcome.code == 1 and f"{version}: serve_ids differs from the model by 0.5, above 1e-05." in outcome.err
    assert sorted(path.name for path in (models / "small").iterdir()) == ["rejected-1", "rejected-1-2"]
    assert (models / "small" / "rejected-1-2" / "saved_model.pb").is_file()


def test_another_way_of_taking_unseen_values_is_another_version(folder: Path, tmp_path: Path) -> None:
    run, models = tmp_path / "run", tmp_path / "models"
    shutil.copytree(folder / "run", run)
    sets = ["--set", f"export.directory={models}", "--set", "export.verify_rows=50"]
    for unseen, version in (("missing", 1), ("missing", 1), ("rare", 2)):
        outcome = call(criteo.main, "--work-dir", run, "--stages", "export", *sets, "--set", f"export.unseen={unseen}")
        assert outcome.code == 0, outcome
        assert json.loads((run / "metrics.json").read_text())["stages"]["export"]["version"] == version


def test_rules_are_asked_of_what_is_done_before(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    outcome = call(criteo.main, "--work-dir", run, "--stages", "export", "--set", "export.min_auc=0.99")
    assert outcome.code == 1 and "AUC must be at least `export.min_auc`, 0.99." in outcome.err


def test_no_floor_where_every_row_trains(tmp_path: Path) -> None:
    data = {"planted": {"rows": 1000}, "split": {"by": "order", "fractions": [1.0, 0.0, 0.0]}}
    recipe = write_recipe(tmp_path, data=data, train={"epochs": 1}, export={"min_auc": 0.6})
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run", "--stages", "prepare,train,export")
    assert line == (
        "`export.min_auc` must be absent where every row trains: there are no rows to judge the model on. "
        "Received: 0.6."
    )


def test_the_version_in_place_is_compared_on_the_same_rows(folder: Path, tmp_path: Path) -> None:
    models = Path(shutil.copytree(folder / "models", tmp_path / "models"))
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    sets = ["--set", "export.no_regression=true", "--set", f"export.directory={models}"]
    outcome = call(criteo.main, "--work-dir", run, "--stages", "export", *sets)
    assert outcome.code == 0, outcome.err
    exported = json.loads((run / "metrics.json").read_text())["stages"]["export"]
    assert exported["version"] == 2
    # The same weights: no better and no worse, and so not refused.
    assert exported["in_place"]["version"] == 1
    assert exported["in_place"]["log_loss"] == exported["in_place"]["log_loss_of_this"]
    assert 0.1 < exported["in_place"]["log_loss"] < 1


def test_too_low_an_auc_gets_no_number(folder: Path, stages: dict[str, Any]) -> None:
    outcome = export(folder, "export.min_auc=0.99", "export.warmup_batch_sizes=[2]")
    judged = stages["evaluate"]["metrics"][stages["evaluate"]["exported"]]["auc"]
    assert outcome.code == 1
    base = folder / "models" / "small"
    assert outcome.err.strip() == (
        f"tfdlrm: {base}: not published: AUC must be at least `export.min_auc`, 0.99. Received: {judged:.6f} on "
        "200 test rows. Version 1 stays in place. Train a better model, or lower `export.min_auc`."
    )
    assert [path.name for path in base.iterdir()] == ["1"]


def test_no_auc_without_evaluation(folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(folder / "run", tmp_path / "run"))
    metrics = json.loads((run / "metrics.json").read_text())
    del metrics["stages"]["evaluate"], metrics["stages"]["export"]
    (run / "metrics.json").write_text(json.dumps(metrics))
    line = refusal("--work-dir", run, "--stages", "export", "--set", "export.min_auc=0.5")
    assert line.endswith("asks for the AUC of the best weights. Run the stage `evaluate` first.")


def test_unknown_candidates_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, export={"rank_candidates": ["C3", "C77"]})
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run")
    assert line.startswith("`rank_candidates` must name raw columns of the model. Received: `C77`. Did you mean `C7")
    assert not (tmp_path / "run" / "data").exists()

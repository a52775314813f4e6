"""Tables in fewer bytes, on runs: exported, judged, verified, refused; and all forms compared by one command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.export.model_card import ModelCard
from tfdlrm.pipelines import criteo, onnx, quantize

COLUMNS = {"dense": [{"name": "I1"}], "sparse": [{"name": name} for name in ("C9", "C14", "C17", "C20")]}
TRAINED = ("--stages", "prepare,train,evaluate")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the work dir of a run that has been trained and judged."""
    folder = tmp_path_factory.mktemp("quantize")
    model = {"embedding_dim": 16, "bottom_units": [16], "top_units": [8, 1]}
    recipe = write_recipe(folder, data=COLUMNS, model=model, evaluate={"baseline": False})
    assert call(criteo.main, "--config", recipe, "--work-dir", folder / "run", *TRAINED).code == 0
    return recipe, folder / "run"


@pytest.fixture
def run(trained: tuple[Path, Path], tmp_path: Path) -> tuple[list[Any], Path]:
    """Arguments of a call on a copy of that run, with a folder of versions of its own."""
    recipe, work_dir = trained
    shutil.copytree(work_dir, tmp_path / "run")
    versions = f"export.directory={tmp_path / 'models'}"
    return ["--config", recipe, "--work-dir", tmp_path / "run", "--set", versions], tmp_path


def export_of(work_dir: Path) -> dict[str, Any]:
    return json.loads((work_dir / "metrics.json").read_text())["stages"]["export"]


def test_a_run_exports_int8_verifies_it_and_reports_what_it_costs(run: tuple[list[Any], Path]) -> None:
    arguments, folder = run
    outcome = call(
        criteo.main, *arguments, "--set", "export.tables=int8", "--set", "export.max_auc_loss=0.0005",
        "--stages", "export,verify,report",
    )  # fmt: skip
    assert outcome.code == 0, outcome
    found = export_of(folder / "run")
    judged = found["quantized"]
    assert (judged["split"], judged["rows"], list(judged["forms"])) == ("test", 600, ["float32", "int8"])
    own, stored = judged["forms"]["float32"], judged["forms"]["int8"]
    assert stored["ratio"] == 0.3125 and stored["bytes"] * 64 == own["bytes"] * 20
    with np.load(folder / "run" / "report" / "predictions.npz") as file:
        labels, scores = file["label"], file["best"]
    assert own["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert own["log_loss"] == pytest.approx(log_loss(labels, scores), rel=1e-5)
    assert stored["auc_loss"] == pytest.approx(own["auc"] - stored["auc"], abs=1e-12)
    assert 0 < stored["difference_mean"] < stored["difference_max"] < 0.02
    assert own["difference_max"] == 0 == own["auc_loss"]
    assert "tables in int8: 0.3125 of the bytes of float32, AUC loss" in outcome.out
    record = json.loads((folder / "models" / "small" / "1" / "assets.extra" / "tfdlrm.json").read_text())
    assert record["tables"] == record["config"]["export"]["tables"] == "int8"
    # The card speaks of what is served first, and calls the rest what it is.
    card = ModelCard.from_json((folder / "run" / "report" / "model_card.json").read_text())
    assert (card.tables, card.as_served.bytes, card.as_served.rows) == ("int8", stored["bytes"], 600)
    assert card.as_served.metrics["auc"] == pytest.approx(stored["auc"], abs=1e-12)
    assert card.evaluation.metrics["auc"] == pytest.approx(own["auc"], abs=1e-6)
    text = (folder / "run" / "report" / "MODEL_CARD.md").read_text()
    assert f"As served, with tables in int8: {stored['bytes']:,} bytes, 0.3125 of those of float32." in text
    assert text.index(f"| AUC | {stored['auc']:.6f} |") < text.index("What follows is of tables in float32")
    page = (folder / "run" / "report" / "index.html").read_text()
    assert "Embedding tables as stored when served, judged on 600 test rows" in page
    # The same again is the same version; another form is another, and verify wants it exported first.
    again = [*arguments, "--set", "export.max_auc_loss=0.0005"]
    int8 = ["--set", "export.tables=int8"]
    assert call(criteo.main, *again, *int8, "--stages", "export").code == 0
    assert export_of(folder / "run")["version"] == 1
    # A floor between nothing and this form's AUC is asked of this form, though nothing is to be written.
    assert call(criteo.main, *again, *int8, "--stages", "export", "--set", f"export.min_auc={stored['auc']}").code == 0
    above = ["--set", f"export.min_auc={stored['auc'] + 1e-6}"]
    outcome = call(criteo.main, *again, *int8, "--stages", "export", *above)
    assert outcome.code == 1
    assert f"Received: {stored['auc']:.6f} on 600 test rows, tables in int8." in outcome.err
    line = refusal(*again, "--stages", "verify")
    assert line.endswith("exported with other `export.tables`. Run the stage `export` again.")
    assert call(criteo.main, *again, "--stages", "export").code == 0
    assert export_of(folder / "run")["version"] == 2 and "quantized" not in export_of(folder / "run")
    outcome = call(onnx.main, "--work-dir", folder / "run", "--out", folder / "model.onnx")
    assert outcome.code == 0, outcome
    assert outcome.out.startswith(f"{folder / 'model.onnx'}: ") and outcome.out.endswith("/models/small/2\n")
    assert (folder / "model.onnx").stat().st_size > own["bytes"]


def test_a_loss_above_the_limit_gets_no_version(tmp_path: Path) -> None:
    """Judged on the rows that it learnt by heart, for want of others, a model must lose by coarser tables."""
    model = {"embedding_dim": 16, "bottom_units": [16], "top_units": [8, 1]}
    data = {**COLUMNS, "split": {"by": "order", "fractions": [1.0, 0.0, 0.0]}}
    recipe = write_recipe(tmp_path, data=data, model=model)
    start = ["--config", recipe, "--work-dir", tmp_path / "run", "--set", "export.tables=int4"]
    outcome = call(criteo.main, *start, "--set", "export.max_auc_loss=1", "--stages", "prepare,train,export")
    assert outcome.code == 0, outcome
    judged = export_of(tmp_path / "run")["quantized"]
    assert (judged["split"], judged["rows"]) == ("train", 6000)
    loss = judged["forms"]["int4"]["auc_loss"]
    assert loss > 0
    limit = [*start, "--set", f"export.max_auc_loss={loss / 2}", "--stages", "export"]
    line = refusal(*limit)  # what would be exported is there already
    assert line.startswith(f'`export.tables` "int4" must cost at most {loss / 2:g} of the AUC, `export.max_auc_loss`.')
    shutil.rmtree(tmp_path / "models")
    assert f"Received: {loss:.5f} on 6,000 train rows; nothing was exported." in refusal(*limit)
    assert not list((tmp_path / "models").glob("*/*"))


def test_all_forms_are_compared(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, work_dir = trained
    outcome = call(quantize.main, "--work-dir", work_dir, "--json", tmp_path / "out.json")
    assert (outcome.code, outcome.err) == (0, "")
    figures = json.loads((work_dir / "report" / "quantized.json").read_text())
    assert json.loads((tmp_path / "out.json").read_text()) == figures
    forms = figures["forms"]
    assert {form: found["ratio"] for form, found in forms.items()} == {
        "float32": 1.0, "float16": 0.5, "int8": 0.3125, "int4": 0.1875,
    }  # fmt: skip
    assert forms["int8"]["auc_loss"] < 0.0005 and forms["int4"]["auc_loss"] < 0.002
    worst = [forms[form]["difference_max"] for form in ("float32", "float16", "int8", "int4")]
    assert worst == sorted(worst) and len(set(worst)) == 4
    lines = [line.split() for line in outcome.out.splitlines()]
    shown = {line[0]: line for line in lines if line and line[0] in forms}
    assert shown["int8"][1:3] == [f"{forms['int8']['bytes']:,}", "0.3125"]
    assert shown["int4"][4] == f"{forms['int4']['auc_loss']:.6f}"
    assert (work_dir / "report" / "quantized.png").read_bytes().startswith(b"\x89PNG")


def test_who_comes_too_early_is_told(tmp_path: Path) -> None:
    line = refusal("--work-dir", tmp_path / "nowhere", main=quantize.main)
    assert line == f"`--work-dir` must be that of a run. Received: {tmp_path / 'nowhere'}, without a config.toml."
    line = refusal("--work-dir", tmp_path / "nowhere", "--out", tmp_path / "model.onnx", main=onnx.main)
    assert line == f"`--work-dir` must be that of a run. Received: {tmp_path / 'nowhere'}, without a config.toml."


def test_onnx_wants_a_version(trained: tuple[Path, Path], tmp_path: Path) -> None:
    _, work_dir = trained
    line = refusal("--work-dir", work_dir, "--out", tmp_path / "model.onnx", main=onnx.main)
    assert line == f"{work_dir}: nothing exported. Run the stage `export` first."


def test_unknown_forms_are_refused(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, export={"tables": "int2"})
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run")
    assert "in `export`: `tables`: input should be 'float32', 'float16', 'int8' or 'int4'. Received: 'int2'." in line

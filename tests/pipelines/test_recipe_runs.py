"""A whole run on a published recipe: serving is told what unseen values are, and answers as the model does."""

from __future__ import annotations

import json

import tensorflow as tf

from tests.pipelines.small_runs import call, refusal, write_recipe
from tfdlrm.pipelines import criteo

DATA = {
    "recipe": "fb",
    "coding": {"modulus": 500},
    "dense": [{"name": "I1", "transform": "log_file_minimum"}, {"name": "I2", "transform": "log3_half"}],
    "sparse": [{"name": "C1"}, {"name": "C2"}],
    "drop_negatives": 0.3,
}


def test_a_run_without_a_row_for_unseen_values_is_refused_before_anything_is_prepared(tmp_path):
    recipe = write_recipe(tmp_path, data=DATA)
    line = refusal("--config", recipe, "--work-dir", tmp_path / "run")
    assert "`unseen` must say what a value without a row counts as" in line
    assert "`export.unseen`, for table `C1`" in line
    assert not (tmp_path / "run" / "data").exists()
    assert call(criteo.main, "--config", recipe, "--work-dir", tmp_path / "run", "--stages", "prepare").code == 0


def test_a_run_serves_values_it_never_saw(tmp_path):
    recipe = write_recipe(tmp_path, data=DATA, export={"unseen": "missing"}, train={"epochs": 1})
    outcome = call(criteo.main, "--config", recipe, "--work-dir", tmp_path / "run")
    assert outcome.code == 0, outcome
    results = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]
    rows = results["prepare"]["statistics"]["rows"]
    assert 3000 < sum(rows.values()) < 6000  # of 6,000, some without a click left out
    assert results["verify"]["rows"] == 300

    served = tf.saved_model.load(results["export"]["path"]).signatures["serving_default"]
    ask = {"I1": tf.constant([3.0] * 3), "I2": tf.constant([1.0] * 3), "C2": tf.constant([""] * 3)}
    answers = served(C1=tf.constant(["not hexadecimal", "", "0"]), **ask)["probability"][:, 0].numpy()
    # Nothing was missing in C1, so that no row stands for it: an unseen value, and a missing one, add nothing.
    assert answers[0] == answers[1] == answers[2]

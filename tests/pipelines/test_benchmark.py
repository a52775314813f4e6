import json

import numpy as np
import pytest

from tfdlrm.pipelines.benchmark import main, measure_training, random_batches
from tfdlrm.spec.config import ModelConfig
from tfdlrm.spec.criteo import CARDINALITIES, criteo_spec

SPEC = criteo_spec([50] * 25 + [100_000], 4)
MODEL = ModelConfig(embedding_dim=4, bottom_units=(8, 4), top_units=(8, 1))


@pytest.mark.parametrize("ids", ["uniform", "powerlaw"])
def test_random_batches_stay_inside_their_tables(ids):
    batch = random_batches(SPEC, 3, 4000, ids, seed=1)
    assert batch["sparse"].shape == (3, 4000, 26)
    assert batch["dense"].shape == (3, 4000, 13)
    assert batch["sparse"].min() == 0
    assert batch["sparse"][..., :25].max() == 49
    large = batch["sparse"][..., 25]
    share_of_small_ids = np.mean(large < 1000)
    # Uniform: 1%. Density falling as (id + 1)^-1.2: (1 - 1001^-0.2) / (1 - 100001^-0.2).
    expected = 0.01 if ids == "uniform" else (1 - 1001**-0.2) / (1 - 100_001**-0.2)
    assert share_of_small_ids == pytest.approx(expected, abs=0.01)


def test_figures_of_a_small_model():
    figures = measure_training(SPEC, MODEL, batch_size=32, steps=3, repeats=2)
    assert figures["slowest"] <= figures["rows_per_second"] <= figures["fastest"]
    assert figures["table_bytes"] == (25 * 50 + 100_000) * 4 * 4


def test_command_writes_json(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(CARDINALITIES, "kaggle", (20,) * 26)
    file = tmp_path / "figures.json"
    assert main(["train", "--batch-size", "64", "--steps", "2", "--repeats", "1", "--json", str(file)]) == 0
    assert "rows/s" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert figures["rows_per_second"] > 0
    assert figures["batch_size"] == 64


def test_bad_arguments_are_one_line(capsys):
    assert main(["train", "--set", "model.top_unit=[1]"]) == 2
    error = capsys.readouterr().err
    assert "unknown key `top_unit`. Did you mean `top_units`" in error
    assert error.count("\n") == 1

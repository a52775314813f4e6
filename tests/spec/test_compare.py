"""Configuration of a comparison: what it takes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tfdlrm.pipelines.cli import recipe
from tfdlrm.spec.compare import load_compare
from tfdlrm.spec.errors import ConfigError

START = 'seeds = [1, 2]\nequal_parameters = "dlrm"\n'
DATASET = '[[datasets]]\nname = "planted"\nconfig = "demo.toml"\n'
MODELS = '[[models]]\nname = "dlrm"\n[[models]]\nlabel = "cat"\nname = "dlrm"\ninteraction = "cat"\n'
OPTIMIZER = '[[optimizers]]\nlabel = "sgd"\ndense = { name = "sgd", learning_rate = 0.2 }\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "compare.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_is_given_is_told_from_defaults(tmp_path):
    config = load_compare(written(tmp_path, START + DATASET + MODELS + OPTIMIZER))
    assert [model.label for model in config.models] == ["dlrm", "cat"]
    assert config.models[1].changes == {"name": "dlrm", "interaction": "cat"}
    assert config.optimizers[0].embedding is None and config.optimizers[0].dense.learning_rate == 0.2
    assert config.reference_label == "dlrm"


def test_optimizers_default_to_the_recipes(tmp_path):
    config = load_compare(written(tmp_path, "seeds = [0]\n" + DATASET + MODELS))
    assert [(o.label, o.embedding, o.dense) for o in config.optimizers] == [("recipe", None, None)]
    assert config.reference_label == "dlrm"


@pytest.mark.parametrize("name", ["compare", "compare_models", "compare_kaggle"])
def test_comparisons_that_come_with_the_project(name):
    config = load_compare(recipe(name))
    assert config.name == name
    assert all((recipe(name).parent / dataset.config).is_file() for dataset in config.datasets)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sed = [1]\n" + START + DATASET + MODELS, "unknown key `sed`. Did you mean `seeds`?"),
        (
            START + DATASET + MODELS + "top_unit = [1]\n",
            "`models.1`: unknown key `top_unit`. Did you mean `top_units`?",
        ),
        (START + DATASET + "cofig = 1\n" + MODELS, "unknown key `cofig`. Did you mean `config`?"),
        (START + DATASET + MODELS + OPTIMIZER.replace("_rate", "_rat"), "Did you mean `learning_rate`?"),
        (START + MODELS, "`datasets` must be given."),
        (START + DATASET + '[[models]]\nlabel = "x"\n', "`name` must be given."),
        (START + DATASET + MODELS + MODELS, "`models.label` must differ. Received: 'dlrm', 2 times."),
        (START + DATASET + DATASET + MODELS, "`datasets.name` must differ."),
        (START.replace("2", "1") + DATASET + MODELS, "`seeds` must differ. Received: 1, 2 times."),
        (START.replace("2", "-2") + DATASET + MODELS, "`seeds` must be from 0 to 2^31 - 1. Received: -2."),
        (START.replace("1, 2", "") + DATASET + MODELS, "`seeds`:"),
        (START.replace('"dlrm"', '"dlmr"') + DATASET + MODELS, "Received: 'dlmr'. Did you mean `dlrm`?"),
        (START + DATASET.replace('"planted"', '"../x"') + MODELS, "`name`: string should match pattern"),
        (START + DATASET.replace('"planted"', '"report"') + MODELS, "`datasets.name` must not be one of"),
        (START + "evaluate_points = 0\n" + DATASET + MODELS, "`evaluate_points`:"),
        (START + "= 1", "not TOML"),
    ],
)
def test_bad_files_are_told_in_one_line(text, message, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_compare(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_compare(tmp_path / "none.toml")

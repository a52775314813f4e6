"""Models of other packages: by registration, entry point, or module and class."""

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
import pytest

from tfdlrm.models.build import MODELS, build, register
from tfdlrm.models.logistic_regression import LogisticRegression
from tfdlrm.spec.config import load_config
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "models.md"
SPEC = FeatureSpec(
    dense=[{"name": "x"}],
    sparse=[{"name": "user", "table": "user"}, {"name": "item", "table": "item"}],
    tables=[{"name": name, "vocabulary_size": 9, "embedding_dim": 2} for name in ("user", "item")],
)
SOURCE = '''
"""A model of one's own: the mean of two logits."""
import tf_keras as keras
from tfdlrm import LogisticRegression

@keras.saving.register_keras_serializable(package="house")
class Halved(LogisticRegression):
    def __init__(self, spec, share=0.5, dropout=0.0, **kwargs):
        super().__init__(spec, **kwargs)
        self.share = share
        self.dropout = dropout

    def logits(self, inputs, training=None):
        return self.share * super().logits(inputs, training)

    def get_config(self):
        return {**super().get_config(), "share": self.share, "dropout": self.dropout}

no_model = 3
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Return a folder on the path with a module of models in it, which is forgotten afterwards."""
    (tmp_path / "house_models.py").write_text(SOURCE)
    (tmp_path / "broken_models.py").write_text("import house_models\n1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("house_models", None)


def install(folder, **models):
    """Write what pip would have of a package that offers models."""
    info = folder / "house-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: house\nVersion: 1.0\n")
    lines = [f"{name} = {value}" for name, value in models.items()]
    (info / "entry_points.txt").write_text("\n".join(["[tfdlrm.models]", *lines, ""]))
    importlib.invalidate_caches()


@pytest.mark.parametrize("name", ["house_models:Halved", "halved"])
def test_a_model_of_another_package_is_built_from_a_recipe(folder, name):
    install(folder, halved="house_models:Halved")
    recipe = folder / "recipe.toml"
    recipe.write_text(f'[model]\nname = "{name}"\nembedding_dim = 2\ndropout = 0.25\n[model.options]\nshare = 0.1\n')
    config = load_config(recipe)
    model = build(config.model.name, SPEC, config.model, seed=1)
    assert type(model).__name__ == "Halved"
    assert (model.share, model.dropout) == (0.1, 0.25)
    model.linear_terms.bias.assign([20.0])
    batch = {"dense": np.zeros([1, 1], np.float32), "sparse": np.zeros([1, 2], np.int32)}
    assert float(model(batch)[0, 0]) == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Model", r"must name a module that can be imported. Received: no_such_module: ModuleNotFound"),
        ("broken_models:Model", r"must name a module .* Received: broken_models: ZeroDivisionError: division by zero"),
        (
            "house_models:Nothing",
            "must name a ClickModel. Received: house_models:Nothing, which is nothing of this name",
        ),
        ("house_models:no_model", "must name a ClickModel. Received: house_models:no_model, which is 3"),
        ("house_models:", "must name a ClickModel"),
        (":Model", "must name a module that can be imported"),
        ("faulty", "must name a module that can be imported. Received: gone"),
        ("halvedd", "must be one of .*'halved'.* or module:Class. Received: `halvedd`. Did you mean `halved`"),
    ],
)
def test_names_that_lead_nowhere(folder, name, message):
    install(folder, halved="house_models:Halved", faulty="gone.models:Model")
    with pytest.raises(ConfigError, match=message):
        build(name, SPEC, {"embedding_dim": 2})


def test_options_must_be_arguments_of_the_model(folder):
    with pytest.raises(
        ConfigError, match=r"`model.options` must hold arguments .*Received: `shre`. Did you mean `share`"
    ):
        build("house_models:Halved", SPEC, {"embedding_dim": 2, "options": {"shre": 1}})


def test_register_refuses_a_name_that_is_taken(monkeypatch):
    monkeypatch.setattr("tfdlrm.models.lookup.MODELS", MODELS.copy())
    with pytest.raises(ValueError, match=r"`name` must not be taken by another model. Received: 'dlrm'"):
        register("dlrm")(LogisticRegression)
    assert register("mine")(LogisticRegression) is LogisticRegression
    assert register("mine")(LogisticRegression) is LogisticRegression


def test_the_model_in_the_documentation_works(tmp_path, monkeypatch):
    text = DOCUMENT.read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    recipe = text.split("```toml\n")[1].split("```")[0]
    (tmp_path / "my_models.py").write_text(code)
    (tmp_path / "recipe.toml").write_text(recipe)
    monkeypatch.syspath_prepend(str(tmp_path))
    config = load_config(tmp_path / "recipe.toml").model
    model, same = (build(config.name, SPEC, config, seed=1) for _ in range(2))
    batch = {"dense": np.zeros([3, 1], np.float32), "sparse": np.array([[1, 2], [3, 4], [-1, 0]], np.int32)}
    assert model(batch).shape == (3, 1)
    assert model.share == 0.5
    np.testing.assert_array_equal(model(batch), same(batch))


def test_the_documentation_names_every_model():
    text = DOCUMENT.read_text(encoding="utf-8")
    own = [name for name, model in MODELS.items() if model.__module__.startswith("tfdlrm.models.")]
    assert [name for name in own if text.count(f"\n| `{name}` |") != 2] == []

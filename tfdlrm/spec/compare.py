"""Configuration of a comparison: which models, on which data sets, with which optimizers and seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from tfdlrm.spec.errors import ConfigError, SpecError, did_you_mean
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.toml_file import read_toml
from tfdlrm.spec.train_config import DenseOptimizerConfig, EmbeddingOptimizerConfig

_LABEL = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
_OWN_FOLDERS = ("report", "logs")


class ComparedDataset(Frozen):
    """One of `[[datasets]]`.

    Attributes:
        name: What tables and figures call it; the folder it is prepared in.
        config: Its recipe: a path, relative to the comparison's file, or the name of one that comes with the project.
        set: `section.key=value` texts that change the recipe, such as `'model.pair=["user", "item"]'`.
        raw: Raw files in place of the recipe's.
    """

    name: str = Field(pattern=_LABEL)
    config: str
    set: tuple[str, ...] = ()
    raw: tuple[str, ...] = ()


class ComparedModel(ModelConfig):
    """One of `[[models]]`: `name`, and whichever keys of `[model]` are to differ from the recipe's.

    Attributes:
        label: What tables and figures call it. Defaults to `name`.
    """

    name: str
    label: str = Field(default="", pattern=_LABEL)

    @model_validator(mode="before")
    @classmethod
    def _labelled(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {"label": values["name"], **values} if "name" in values else values

    @property
    def changes(self) -> dict[str, Any]:
        """The keys of `[model]` that were given."""
        return {key: getattr(self, key) for key in sorted(self.model_fields_set) if key != "label"}


class ComparedOptimizer(Frozen):
    """One of `[[optimizers]]`.

    Attributes:
        label: What tables and figures call it.
        embedding, dense: What stands in for the recipe's `[train.embedding]` and `[train.dense]`, as a whole. Defaults
            to `None`: as in the recipe.
    """

    label: str = Field(pattern=_LABEL)
    embedding: EmbeddingOptimizerConfig | None = None
    dense: DenseOptimizerConfig | None = None


class CompareConfig(Frozen):
    """A comparison: every model on every data set with every optimizer and every seed.

    Attributes:
        name: Names the comparison.
        seeds: Seeds of weights and order of samples. Within a seed all models see the samples in the same order.
        datasets, models, optimizers: What is compared. Optimizers default to the recipe's own, labelled `recipe`.
        evaluate_points: Points of a learning curve. Where a recipe stops early its own validations are the points.
        equal_parameters: Label of the model whose number of dense weights the others are brought to, by scaling the
            hidden widths of `top_units`, and `cin_units` and `cross_rank` with them. Defaults to `None`: widths stay.
        reference: Label of the model that significance is tested against. Defaults to `equal_parameters`, else to the
            first model.
        figure_models: Labels of the models in the figure. Defaults to all.
    """

    name: str = Field(default="compare", pattern=_LABEL)
    seeds: tuple[int, ...] = Field(min_length=1)
    datasets: tuple[ComparedDataset, ...] = Field(min_length=1)
    models: tuple[ComparedModel, ...] = Field(min_length=1)
    optimizers: tuple[ComparedOptimizer, ...] = Field(default=(ComparedOptimizer(label="recipe"),), min_length=1)
    evaluate_points: int = Field(default=10, ge=1)
    equal_parameters: str | None = None
    reference: str | None = None
    figure_models: tuple[str, ...] = ()

    @property
    def reference_label(self) -> str:
        """Label of the model that the others are tested against."""
        return self.reference or self.equal_parameters or self.models[0].label

    @model_validator(mode="after")
    def _consistent(self) -> CompareConfig:
        labels = [model.label for model in self.models]
        _refuse_twice("datasets.name", [dataset.name for dataset in self.datasets])
        _refuse_twice("models.label", labels)
        _refuse_twice("optimizers.label", [optimizer.label for optimizer in self.optimizers])
        _refuse_twice("seeds", list(self.seeds))
        for seed in self.seeds:
            if not 0 <= seed < 2**31:
                raise SpecError(f"`seeds` must be from 0 to 2^31 - 1. Received: {seed}.")
        for dataset in self.datasets:
            if dataset.name in _OWN_FOLDERS:
                raise SpecError(f"`datasets.name` must not be one of {_OWN_FOLDERS}. Received: {dataset.name!r}.")
        named: dict[str, tuple[str | None, ...]] = {
            "equal_parameters": (self.equal_parameters,),
            "reference": (self.reference,),
            "figure_models": self.figure_models,
        }
        for key, names in named.items():
            for name in names:
                if name is not None and name not in labels:
                    raise SpecError(
                        f"`{key}` must be a label of `models`, {labels}. "
                        f"Received: {name!r}.{did_you_mean(name, labels)}"
                    )
        return self


def load_compare(path: str | Path) -> CompareConfig:
    """Read the configuration of a comparison.

    Args:
        path: TOML file.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown (with the nearest valid one), or a value has the
            wrong type or range.
    """
    values = read_toml(path)
    try:
        return CompareConfig(**values)
    except SpecError as error:
        raise ConfigError(f"{path}: {error}") from None


def _refuse_twice(key: str, values: Sequence[Any]) -> None:
    value, count = Counter(values).most_common(1)[0]
    if count > 1:
        raise SpecError(f"`{key}` must differ. Received: {value!r}, {count} times.")

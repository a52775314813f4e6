"""What a comparison consists of: cells, each one training of one model, and the settings of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tfdlrm.pipelines.cli import recipe
from tfdlrm.pipelines.comparison.widths import Fitted
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.compare import CompareConfig, ComparedDataset, ComparedModel, ComparedOptimizer
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.model_config import ModelConfig
from tfdlrm.spec.train_config import TrainConfig


@dataclass(frozen=True, eq=False)
class Block:
    """Rows that models are trained and judged on: a data set, or one fold of one.

    Attributes:
        dataset: Name of the data set.
        fold: Number of the fold that tests, `None` where the recipe does not split by fold.
        config: The recipe, with `data.split.fold` set.
    """

    dataset: str
    fold: int | None
    config: RunConfig

    def work_dir(self, root: Path) -> WorkDir:
        """Return the folder in which the rows are prepared, once for all models."""
        return WorkDir(root / self.dataset if self.fold is None else root / self.dataset / f"fold-{self.fold}")

    @property
    def data_config(self) -> RunConfig:
        """A configuration that says nothing but where rows come from and how they are coded."""
        return RunConfig(name=self.dataset, data=self.config.data)


@dataclass(frozen=True, eq=False)
class Cell:
    """One training of one model.

    Attributes:
        block: Its rows.
        model: Label of the model.
        optimizer: Label of the optimizer.
        config: All settings.
        fitted: How the widths of its MLP came about.
        points: Points of its learning curve.
    """

    block: Block
    model: str
    optimizer: str
    config: RunConfig
    fitted: Fitted
    points: int

    @property
    def seed(self) -> int:
        """Seed of weights and order."""
        return self.config.seed

    @property
    def key(self) -> str:
        """A name that no other cell of the data set has; the name of its file."""
        fold = "" if self.block.fold is None else f".fold-{self.block.fold}"
        return f"{self.model}.{self.optimizer}.seed-{self.seed}{fold}"

    def file(self, root: Path) -> Path:
        """Return where its results are written once it is done."""
        return root / self.block.dataset / "cells" / f"{self.key}.json"

    def work_dir(self, root: Path) -> WorkDir:
        """Return where it trains; gone once it is done."""
        return WorkDir(root / self.block.dataset / "unfinished" / self.key, rows_of=self.block.work_dir(root))

    def __str__(self) -> str:
        fold = "" if self.block.fold is None else f", fold {self.block.fold}"
        return f"{self.block.dataset}, {self.model}, {self.optimizer}, seed {self.seed}{fold}"


def blocks_of(dataset: ComparedDataset, folder: Path) -> list[Block]:
    """Return the rows of a data set: one block, or one for each fold.

    Args:
        dataset: One of `[[datasets]]`.
        folder: Where relative paths of recipes start.

    Raises:
        ConfigError: the recipe cannot be read or used.
    """
    path = folder / dataset.config
    if not path.is_file() and "/" not in dataset.config:
        path = recipe(dataset.config.removesuffix(".toml"))
    config = load_config(path, dataset.set)
    if dataset.raw:
        config = config.model_copy(update={"data": config.data.model_copy(update={"raw": dataset.raw})})
    split = config.data.split
    if split.by != "fold":
        return [Block(dataset.name, None, config)]
    blocks = []
    for fold in range(split.folds):
        data = config.data.model_copy(update={"split": split.model_copy(update={"fold": fold})})
        blocks.append(Block(dataset.name, fold, config.model_copy(update={"data": data})))
    return blocks


def model_config(block: Block, model: ComparedModel) -> ModelConfig:
    """Return the `[model]` section of a recipe with what `[[models]]` says otherwise.

    Raises:
        ConfigError: the two contradict one another.
    """
    try:
        return ModelConfig(**{**dict(block.config.model), **model.changes})
    except SpecError as error:
        raise ConfigError(f"model `{model.label}` on `{block.dataset}`: {error}") from None


def cells_of(
    config: CompareConfig, blocks: Mapping[str, list[Block]], fitted: Mapping[tuple[str, str], Fitted | str]
) -> list[Cell]:
    """Return the cells, one seed after the other, so that what is done at any time is balanced.

    Args:
        config: The comparison.
        blocks: The rows of each data set.
        fitted: The model's settings for every data set and label; a text says why there are none.

    Raises:
        ConfigError: what an optimizer or a model says otherwise contradicts the recipe.
    """
    cells = []
    for seed in config.seeds:
        for dataset, own in blocks.items():
            for block in own:
                for optimizer in config.optimizers:
                    for model in config.models:
                        settings = fitted[dataset, model.label]
                        if isinstance(settings, Fitted):
                            try:
                                run = _run_config(config, block, optimizer, settings, seed)
                            except SpecError as error:
                                where = f"model `{model.label}` with optimizer `{optimizer.label}` on `{dataset}`"
                                raise ConfigError(f"{where}: {error}") from None
                            cells.append(
                                Cell(block, model.label, optimizer.label, run, settings, config.evaluate_points)
                            )
    return cells


def _run_config(
    config: CompareConfig, block: Block, optimizer: ComparedOptimizer, settings: Fitted, seed: int
) -> RunConfig:
    base = block.config
    own = {"embedding": optimizer.embedding, "dense": optimizer.dense}
    # One checkpoint is enough to go on from, beside the best.
    train = TrainConfig(
        **{**dict(base.train), "keep_checkpoints": 1, **{half: each for half, each in own.items() if each is not None}}
    )
    return RunConfig(
        **{
            **dict(base),
            "name": f"{config.name}.{block.dataset}",
            "seed": seed,
            "model": settings.config,
            "train": train,
            # A logistic regression is one of the models, if it is wanted.
            "evaluate": base.evaluate.model_copy(update={"baseline": False}),
        }
    )

"""What the stages share: the run they belong to, and what earlier stages left on disk."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import tensorflow as tf
import tf_keras as keras

from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.files import write_atomic
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.data.read_counts import read_counts
from tfdlrm.data.recipe import settings_difference
from tfdlrm.data.untouched_rows import untouched_rows
from tfdlrm.distribute.strategies import ONE_DEVICE, Distribution
from tfdlrm.models.build import build, storage_of
from tfdlrm.pipelines.console import Console
from tfdlrm.pipelines.kept_plan import kept_plan
from tfdlrm.pipelines.work_dir import WorkDir
from tfdlrm.spec.budget import BudgetPlan
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.model_spec import budget_plan, methods_of, model_spec, without_compression
from tfdlrm.spec.raw import CRITEO_FORMAT
from tfdlrm.training.checkpoint import checkpoint_path, checkpoints, load_checkpoint, read_train_state
from tfdlrm.training.checkpoint_files import DamagedCheckpointError, read_state
from tfdlrm.training.stop_signal import StopRequest
from tfdlrm.training.trainer import compile_model

_DAMAGE = re.compile(r"assertion failed: \[([^\]]*manifest\.json names[^\]]*)\]")


@contextmanager
def damage_told() -> Iterator[None]:
    """Raise `DataError` where the input graph finds a block that is not what the manifest says."""
    try:
        yield
    except tf.errors.OpError as error:
        damage = _DAMAGE.search(str(error))
        if damage is None:
            raise
        raise DataError(damage[1].replace('"', "").strip() + ".") from None


@dataclass(frozen=True)
class Run:
    """One run of the pipeline.

    Attributes:
        config: Its configuration.
        work_dir: Its files.
        console: What it says.
        overwrite: Whether rows that another recipe prepared may be replaced.
        distribution: What it trains on.
        stop: Whether training has been asked to stop.
    """

    config: RunConfig
    work_dir: WorkDir
    console: Console
    overwrite: bool = False
    distribution: Distribution = ONE_DEVICE
    stop: StopRequest = field(default_factory=StopRequest)

    def told(self, stage: str) -> Callable[[str], None]:
        """Return a function that says a line of a stage."""
        return lambda line: self.console.say(f"{stage + ':':<10} {line}")

    @property
    def planted(self) -> bool:
        """Whether rows are generated, since no raw file is named."""
        return not self.config.data.raw

    @property
    def raw(self) -> list[Path | str]:
        """Raw files in order.

        Raises:
            ConfigError: none is named, and the format is not the one that rows can be generated in.
        """
        if not self.planted:
            return list(self.config.data.raw)
        if self.config.data.format != CRITEO_FORMAT:
            raise ConfigError("`data.raw` must name the raw files (or give --raw). Received: none.")
        return [self.work_dir.raw / "planted.tsv"]

    @cached_property
    def manifest(self) -> Manifest:
        """The prepared data.

        Raises:
            DataError: they are not there, or files do not agree with the manifest.
            ConfigError: another recipe prepared them.
        """
        if not (self.work_dir.data / MANIFEST).is_file():
            raise DataError(f"{self.work_dir.data}: no prepared data. Run the stage `prepare` first.")
        manifest = Manifest.load(self.work_dir.data)
        changed = settings_difference(manifest.recipe, self.config.data)
        if changed:
            raise ConfigError(f"{self.work_dir.data}: prepared by another recipe: {changed}. Run the stage `prepare`.")
        manifest.check(self.work_dir.data)
        return manifest

    @cached_property
    def encoder(self) -> FeatureEncoder:
        """The encoder that prepared the data, with rows for unseen values as `export.unseen` says."""
        return FeatureEncoder.load(self.work_dir.data, self.config.export.unseen)

    @cached_property
    def plan(self) -> BudgetPlan | None:
        """How the tables fit into `model.embedding_budget`; `None` without one.

        It is the one that was kept when training began, as long as settings and rows are the same: another version of
        this package, or another machine, might choose otherwise.
        """
        if self.config.model.embedding_budget is None:
            return None
        kept = kept_plan(self.work_dir.checkpoints, self.planned_for)
        if kept is not None:
            return kept
        return budget_plan(
            self.manifest.spec,
            self.config.model,
            read_counts(self.work_dir.data, self.manifest),
            self.manifest.split("train").rows or None,
            storage_of(self.config.model.name, self.config.model),
            methods_of(self.config.train.embedding),
        )

    @property
    def spec(self) -> FeatureSpec:
        """Features and tables of the model; where tables have a budget and were trained, as they were trained.

        Raises:
            DataError: a checkpoint is damaged or belongs to other rows.
        """
        trained = checkpoints(self.work_dir.checkpoints)
        if self.config.model.embedding_budget is not None and trained:
            self.refuse_other_data()
            return FeatureSpec(**read_state(trained[-1])["spec"])
        return self.plan.spec if self.plan else model_spec(self.manifest.spec, self.config.model)

    @property
    def planned_for(self) -> dict[str, Any]:
        """What a plan depends on, as JSON values."""
        return {"model": self.config.model.model_dump(mode="json"), "data": self._fingerprint}

    @property
    def model_name(self) -> str:
        """Name under which the model is exported and served."""
        return self.config.export.model_name or self.config.name

    @property
    def untouched_rows(self) -> dict[str, list[int]]:
        """Rows of rare, unseen and missing values that no training sample read, by table."""
        return untouched_rows(self.manifest)

    def held_out(self) -> str | None:
        """Return the split that judges: test, or validation where no row tests; `None` where every row trains."""
        splits = self.manifest.splits
        return next((name for name in ("test", "validation") if name in splits and splits[name].rows), None)

    def batches(self, split: str) -> tf.data.Dataset:
        """Return the batches of a split in file order."""
        return packed_dataset(self.work_dir.data, split, self.config.evaluate.batch_size, manifest=self.manifest)

    def new_model(self, first_step: int = 0, prepare: Callable[[keras.Model], None] | None = None) -> keras.Model:
        """Return a compiled model with its initial weights.

        Args:
            first_step: Step of its optimizer at which its schedule begins. Defaults to 0.
            prepare: Called with the model before it has weights. Defaults to nothing.
        """
        # The spec says already how tables are stored, and no budget is to be planned or counted again.
        settings = without_compression(self.config.model)
        model = build(settings.name, self.spec, settings, self.config.train.precision, self.config.seed, prepare)
        compile_model(model, self.config.train, first_step)
        return model

    def trained_model(self) -> keras.Model:
        """Return the model with the weights that `evaluate.weights` names.

        Raises:
            DataError: training has not finished.
        """
        name = self.chosen_weights()
        model = self.new_model()
        self.load_weights(model, name)
        return model

    def load_weights(self, model: keras.Model, name: str) -> None:
        """Read the weights `"best"` or `"last"` into a model.

        Raises:
            DataError: training has not finished, or the checkpoint is damaged; the message says what to do.
        """
        path = self.weights()[name]
        try:
            load_checkpoint(model, path)
        except DamagedCheckpointError as error:
            raise DataError(f"{error} {self._way_out(path)}") from None

    def _way_out(self, damaged: Path) -> str:
        """Say what to do about a checkpoint that is needed and damaged."""
        if damaged == checkpoints(self.work_dir.checkpoints)[-1]:
            return "Run the stage `train`: it goes on from the one before."
        return "The best weights are lost; to train anew, give --overwrite."

    def chosen_weights(self) -> str:
        """Return `"best"` or `"last"`: what `evaluate.weights` names, the last where validation had no say."""
        return self.config.evaluate.weights if "best" in self.weights() else "last"

    def chosen_step(self) -> int:
        """Return the step of those weights."""
        return int(self.weights()[self.chosen_weights()].name.removeprefix("step-"))

    def weights(self) -> dict[str, Path]:
        """Return the checkpoints of the last step and, if there was a validation, of the best.

        Raises:
            DataError: training has not finished, or its checkpoints are gone.
        """
        found = checkpoints(self.work_dir.checkpoints)
        done = self.work_dir.stage("train")
        try:
            finished = done is not None and found and read_train_state(found[-1]).step == done["steps"]
        except DamagedCheckpointError as error:
            raise DataError(f"{error} {self._way_out(found[-1])}") from None
        if done is None or not finished:
            raise DataError(f"{self.work_dir.checkpoints}: training has not finished. Run the stage `train` first.")
        self.refuse_other_data()
        paths = {"last": found[-1]}
        if done["best_step"] is not None:
            paths = {"best": checkpoint_path(self.work_dir.checkpoints, done["best_step"]), **paths}
        return paths

    def refuse_other_data(self) -> None:
        """Note, as the chief, which prepared data the checkpoints belong to; raise if it is not the one that is here.

        Raises:
            DataError: `prepare` has made other rows or ids since training began.
        """
        note = self.work_dir.checkpoints / "data.sha256"
        if not checkpoints(self.work_dir.checkpoints):
            if self.distribution.is_chief:
                write_atomic(note, self._fingerprint)
        elif not note.is_file() or note.read_text(encoding="utf-8") != self._fingerprint:
            raise DataError(
                f"{self.work_dir.checkpoints}: trained on other rows than those in {self.work_dir.data}. "
                "Give another --work-dir, or --overwrite to start afresh."
            )

    @cached_property
    def _fingerprint(self) -> str:
        """SHA-256 that tells the prepared data from others."""
        shards = {name: [shard.sha256 for shard in split.shards] for name, split in self.manifest.splits.items()}
        content = json.dumps([self.manifest.spec.plain().model_dump(mode="json"), shards])
        return hashlib.sha256(content.encode()).hexdigest()


@contextmanager
def opened(work_dir: WorkDir, config: RunConfig) -> Iterator[Run]:
    """Take a run's work dir, alone, for a command that reads what the run has made.

    Raises:
        ConfigError: another run is using it.
        DataError: prepared rows are not what the manifest says.
    """
    with work_dir.open(config), damage_told():
        yield Run(config, work_dir, Console(work_dir.logs / "pipeline.log"))

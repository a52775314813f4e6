"""The tables of a spec in TensorFlow Recommenders' `TPUEmbedding`: in a TPU's engine, or as plain variables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras as keras

from tfdlrm.distribute.tpu_optimizer import refuse_unknown_to_tpu, tpu_optimizer
from tfdlrm.layers.bags import Ids
from tfdlrm.layers.embedding import EmbeddingCollection, StoredTable
from tfdlrm.layers.initial_rows import drawn_rows
from tfdlrm.layers.registry import serializable
from tfdlrm.layers.stacking import plan_stacks
from tfdlrm.layers.stored_rows import hashed_rows
from tfdlrm.spec.errors import ConfigError, SpecError
from tfdlrm.spec.features import FeatureSpec, SparseFeature, TableConfig
from tfdlrm.spec.train_config import EmbeddingOptimizerConfig

Bags = dict[str, tf.RaggedTensor]


@serializable
class TPUEmbeddingCollection(EmbeddingCollection):
    """The embedding tables of a spec, held and looked up by `tfrs.layers.embedding.TPUEmbedding`.

    It is called as `EmbeddingCollection` is, gives the same values from the same tables, starts from the same rows for
    the same seed, and its tables are read, written and checkpointed in the same way; each is a variable of its own.

    Under a `TPUStrategy`, `TPUEmbedding` keeps the tables in the memory of the chips and updates them by its own
    optimizer. Their variables are then only a place to restore from, so that tables cannot be read or written one by
    one, and the ids must come as `bags` gives them, made by the input pipeline. Elsewhere the tables are ordinary
    trainable variables, which the optimizer given to `compile` moves.

    Args:
        spec: Features and tables, or the mapping that `FeatureSpec.model_dump` gives.
        optimizer: The recipe's `[train.embedding]`, or its mapping.
        seed: Seed of the initial rows; `None` draws one from NumPy's global generator. Defaults to `None`.
        batch_size: Samples of a batch on one TPU core; of no use elsewhere. Defaults to `None`.
        rates: The model's optimizer, whose counter and schedule the rate on a TPU follows; see `tpu_optimizer`. Not
            part of the config. Defaults to `None`.

    Inputs: as `EmbeddingCollection`; under a `TPUStrategy` what `bags` returns.
    Output shape: `[B, n_features, d]` float32 where every table has width d, else a list of `[B, d_f]`.

    Raises:
        ConfigError: `TPUEmbedding` does not know the optimizer, or a TPU lacks `batch_size`.
        SpecError: it cannot hold a table, or pool a feature.
        tf.errors.InvalidArgumentError: an id is outside its table.

    Example:
        >>> spec = FeatureSpec(
        ...     sparse=[{"name": "user", "table": "user"}],
        ...     tables=[{"name": "user", "vocabulary_size": 10, "embedding_dim": 4}],
        ... )
        >>> TPUEmbeddingCollection(spec, {"name": "sgd"})(tf.constant([[3], [-1]])).shape
        TensorShape([2, 1, 4])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        optimizer: EmbeddingOptimizerConfig | Mapping[str, Any],
        seed: int | None = None,
        batch_size: int | None = None,
        rates: keras.optimizers.legacy.Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(spec, seed=seed, **kwargs)
        settings = (
            optimizer if isinstance(optimizer, EmbeddingOptimizerConfig) else EmbeddingOptimizerConfig(**optimizer)
        )
        refuse_unknown_to_tpu(settings)
        _refuse_unfit(self.spec)
        self.optimizer_settings = settings
        self.batch_size = batch_size
        self._rates = rates
        self._on_tpu = _on_tpu()
        if self._on_tpu and batch_size is None:
            raise ConfigError("`batch_size` must be the samples of a batch on one core, on a TPU. Received: None.")
        # Each table is a stack of its own, without the row for padding: bags are ragged.
        self.plan = plan_stacks(self.spec, max_elements=0)

    @property
    def reads_stand_in(self) -> bool:
        """Never: `TPUEmbedding` looks up its own tables."""
        return False

    def build(self, input_shape: Any) -> None:
        """Create the tables and draw their initial rows."""
        if self.built:
            return
        seed = int(np.random.randint(2**31)) if self.seed is None else self.seed
        engine = tf.tpu.experimental.embedding
        tables = {
            table.name: engine.TableConfig(
                vocabulary_size=table.stored[0].rows,
                dim=table.embedding_dim,
                initializer=_InitialRows(table, (seed, number)),
                combiner=self._combiner(table.name),
                name=f"{self.name}_{number:03d}",
            )
            for number, table in enumerate(self.spec.tables)
        }
        # Off TPU the slots are those of the optimizer given to `compile`: without one, `TPUEmbedding` makes none.
        self.lookup = tfrs.layers.embedding.TPUEmbedding(
            {f.name: engine.FeatureConfig(tables[f.table], name=f.name) for f in self.spec.sparse},
            optimizer=tpu_optimizer(self.optimizer_settings, self._rates) if self._on_tpu else None,
            batch_size=self.batch_size,
        )
        self.lookup.build(None)
        if not self._on_tpu:
            self.stacks = [self.lookup.embedding_tables[tables[stack.tables[0].name]] for stack in self.plan]
            self._stripes = [1] * len(self.stacks)
        keras.layers.Layer.build(self, input_shape)

    def call(self, inputs: Ids, weights: Any = None) -> tf.Tensor | list[tf.Tensor]:
        """Look up and pool the bags; see the class for shapes."""
        # What a TPU enqueues must be an input of the step, and so has been made into bags before.
        bags, shares = (inputs, weights) if self._on_tpu else self.bags(inputs, weights)
        vectors = self.lookup(bags, shares)
        in_order = [vectors[name] for name in self.spec.sparse_names]
        same_width = len({table.embedding_dim for table in self.spec.tables}) == 1
        return tf.stack(in_order, axis=1) if same_width else in_order

    def bags(self, ids: Ids, weights: tf.Tensor | None = None) -> tuple[Bags, dict[str, tf.RaggedTensor | None] | None]:
        """Check ids and make them ragged, as `TPUEmbedding` takes them: rows of the stored tables, without padding.

        Args:
            ids: As the inputs of the layer.
            weights: The weights of the ids, float32 `[B, n_ids]`, exactly where the spec has weighted features.

        Returns:
            A bag of rows for each feature, and their weights: `None` where no feature needs any. A feature that takes
            the mean from a table that sums, because another feature does, has 1 over the length of the bag.

        Raises:
            tf.errors.InvalidArgumentError: an id is outside its table.
        """
        ids = self._id_matrix(ids, weights)
        ids, _ = self._checked(ids)
        bags: Bags = {}
        shares: dict[str, tf.RaggedTensor | None] = {}
        for feature in self.spec.sparse:
            start, stop = self.spec.id_columns[feature.name]
            bag = ids[:, start:stop]
            settings = self.spec.table_of(feature).compression
            if settings is not None and settings.hash_rows is not None:
                bag = hashed_rows(bag, settings.exact_rows, settings.hash_rows)
            present = bag >= 0
            lengths = tf.reduce_sum(tf.cast(present, tf.int64), axis=1)
            rows = tf.RaggedTensor.from_row_lengths(tf.boolean_mask(bag, present), lengths, validate=False)
            bags[feature.name] = rows
            share = self._shares(feature, present, None if weights is None else weights[:, start:stop])
            shares[feature.name] = None if share is None else rows.with_values(tf.boolean_mask(share, present))
        return bags, shares if any(share is not None for share in shares.values()) else None

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments but `rates`; the spec as JSON values."""
        config = super().get_config()
        config.pop("l2")
        return {**config, "optimizer": self.optimizer_settings.model_dump(mode="json"), "batch_size": self.batch_size}

    def save_own_variables(self, store: Any) -> None:
        """Refuse: what Keras saves it builds anew with an `EmbeddingCollection`, whose weights are others."""
        raise ConfigError(
            "`model` must have no tables in TPUEmbedding for Keras to save it: write a checkpoint, which a model with "
            f"plain tables reads, or export it. Received: layer `{self.name}`."
        )

    def _part(self, name: str, part: str) -> StoredTable:
        if self._on_tpu:
            raise ConfigError(
                "tables must not be read or written one by one on a TPU: write a `tf.train.Checkpoint` of the model "
                f"and read it on another machine. Received: table `{name}`."
            )
        return super()._part(name, part)

    def _combiner(self, table: str) -> str:
        """Return how `TPUEmbedding` pools all bags of a table: it knows one way a table."""
        return "mean" if all(f.combiner == "mean" for f in self.spec.sparse if f.table == table) else "sum"

    def _shares(self, feature: SparseFeature, present: tf.Tensor, weights: tf.Tensor | None) -> tf.Tensor | None:
        """Return the weights of a feature's ids `[B, hotness]`; `None` where all are 1."""
        divided = feature.combiner == "mean" and self._combiner(feature.table) == "sum"
        if not (feature.weighted or divided):
            return None
        share = tf.cast(present, tf.float32)
        if feature.weighted and weights is not None:
            share *= weights
        return tf.math.divide_no_nan(share, tf.reduce_sum(share, axis=1, keepdims=True)) if divided else share


class _InitialRows:
    """Initializer of a table: the rows that `EmbeddingCollection` draws, whole or part by part, one after the other.

    `TPUEmbedding` on several hosts asks each for its part without saying which it is.
    """

    def __init__(self, table: TableConfig, seed: tuple[int, int]) -> None:
        self.table = table
        self.seed = seed
        self._first = 0

    def __call__(self, shape: Any, dtype: tf.DType = tf.float32) -> tf.Tensor:
        count, total = int(shape[0]), self.table.stored[0].rows
        rows = np.zeros([total, self.table.embedding_dim], np.float32)
        for first, piece in drawn_rows(self.table, "rows", self.seed):
            rows[first : first + len(piece)] = piece
        part = rows[self._first : self._first + count]
        self._first = (self._first + count) % total
        return tf.constant(part, dtype)


def use_tpu_embedding(
    model: keras.Model,
    optimizer: EmbeddingOptimizerConfig,
    batch_size: int | None = None,
    rates: keras.optimizers.legacy.Optimizer | None = None,
) -> None:
    """Put a `TPUEmbeddingCollection` in the place of every `EmbeddingCollection` of a model that has no weights yet.

    Args:
        model: A `ClickModel`; on a TPU, made under its strategy and with one collection only.
        optimizer: The recipe's `[train.embedding]`.
        batch_size: Samples of a batch on one TPU core. Defaults to `None`, for other machines.
        rates: The optimizer that the model will be compiled with. Defaults to `None`, for other machines.

    Raises:
        ConfigError: the model regularizes its tables, has several collections on a TPU, or the optimizer is unknown
            there.
        SpecError: `TPUEmbedding` cannot hold a table, or pool a feature.
        ValueError: the model has its weights already.

    Example:
        >>> from tfdlrm.models.build import build
        >>> settings = EmbeddingOptimizerConfig(name="sgd")
        >>> model = build("dlrm", spec, prepare=lambda model: use_tpu_embedding(model, settings))  # doctest: +SKIP
    """
    collections = {name: layer for name, layer in vars(model).items() if isinstance(layer, EmbeddingCollection)}
    if model.built or any(collection.built for collection in collections.values()):
        raise ValueError("`model` must have no weights yet: give this function to `build` as `prepare`.")
    if _on_tpu() and len(collections) > 1:
        raise ConfigError(
            f"`model.name` must be a model with one collection of tables, on a TPU, whose engine starts once. "
            f"Received: {type(model).__name__} with {sorted(collections)}."
        )
    for attribute, collection in collections.items():
        if collection.l2:
            raise ConfigError(
                f"`embedding_l2` must be 0 where tables are TPUEmbedding's, which gives pooled vectors only. "
                f"Received: {collection.l2}."
            )
        tables = TPUEmbeddingCollection(
            collection.spec, optimizer, seed=collection.seed, batch_size=batch_size, rates=rates, name=collection.name
        )
        setattr(model, attribute, tables)


def _on_tpu() -> bool:
    kinds = (tf.distribute.TPUStrategy, tf.distribute.experimental.TPUStrategy)
    return isinstance(tf.distribute.get_strategy(), kinds)


def _refuse_unfit(spec: FeatureSpec) -> None:
    """Raise `SpecError` where `TPUEmbedding` cannot hold a table or pool a feature."""
    for table in spec.tables:
        if table.vocabulary_size >= 2**31:
            raise SpecError(
                f"`vocabulary_size` of table `{table.name}` must be below 2^31: TPUEmbedding takes int32 ids. "
                f"Received: {table.vocabulary_size}."
            )
        settings = table.compression
        if settings is None:
            continue
        for key, idle in (("quotient_remainder", None), ("dim", None), ("dtype", "float32")):
            if getattr(settings, key) != idle:
                raise SpecError(
                    f"`{key}` of table `{table.name}` must not be given where tables are TPUEmbedding's, which holds "
                    f"whole float32 rows; `hash_rows` may be. Received: {getattr(settings, key)!r}."
                )
    for feature in spec.sparse:
        if feature.learned_weights:
            raise SpecError(
                f"`learned_weights` of feature `{feature.name}` must be false where tables are TPUEmbedding's, whose "
                "weights come with the batch. Received: true."
            )

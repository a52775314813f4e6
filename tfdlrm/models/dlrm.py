"""The DLRM model (arXiv 1906.00091)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.layers.interaction import CatInteraction, DotInteraction
from tfdlrm.layers.mlp import MLP
from tfdlrm.layers.registry import serializable
from tfdlrm.models.accumulation import accumulated_gradients
from tfdlrm.spec.features import FeatureSpec

Batch = Mapping[str, tf.Tensor]


@serializable
class DLRM(keras.Model):
    """Deep learning recommendation model: click probability of a batch of samples.

    ::

        dense [B, n_dense] -> bottom MLP -> x [B, d] ---+---------------------------+
                                                        |                           |
        sparse [B, n_ids] -> embeddings [B, F, d] -> interaction [B, pairs] -> concat -> top MLP -> sigmoid

    Weights, interaction order (strict lower triangle, row-major, the dense vector first) and concatenation order
    (dense vector, then products) are those of the paper's code. Without dense features the bottom MLP falls away.

    Args:
        spec: Features and tables, or the mapping that `FeatureSpec.model_dump` gives. All tables have one width d.
        bottom_units: Widths of the bottom MLP; the last must be d. Defaults to (512, 256, 64, 16).
        top_units: Widths of the top MLP; the last must be 1. Defaults to (512, 256, 1).
        interaction: `"dot"` or `"cat"`. Defaults to `"dot"`.
        interaction_itself: Whether a vector's product with itself is kept. For `"dot"`. Defaults to `False`.
        dropout: Share of hidden top-MLP units dropped in training. Defaults to 0.
        embedding_l2: See `EmbeddingCollection`. Defaults to 0.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name`, and `dtype`: the policy of MLPs and interaction; tables and output are float32 in any case.

    Call arguments:
        inputs: `{"dense": float32 [B, n_dense], "sparse": int32|int64 [B, n_ids], "weights": float32 [B, n_ids]}`;
            `weights` only where the spec has weighted features, `dense` only where it has dense ones.

    Returns:
        Click probability, float32 `[B, 1]`. Losses named `"binary_crossentropy"` are computed from the logits.

    Raises:
        ValueError: widths do not fit the spec, or `interaction` is unknown.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> model = DLRM(criteo_spec([10] * 26, 4), bottom_units=(8, 4), top_units=(8, 1))
        >>> model({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    def __init__(
        self,
        spec: FeatureSpec | Mapping[str, Any],
        bottom_units: Sequence[int] = (512, 256, 64, 16),
        top_units: Sequence[int] = (512, 256, 1),
        interaction: str = "dot",
        interaction_itself: bool = False,
        dropout: float = 0.0,
        embedding_l2: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        # Inputs are cast where they are used: an autocast here would round ids' weights and dense values too early.
        super().__init__(autocast=False, **kwargs)
        self.spec = spec if isinstance(spec, FeatureSpec) else FeatureSpec(**spec)
        self.bottom_units = tuple(bottom_units)
        self.top_units = tuple(top_units)
        _check_widths(self.spec, self.bottom_units, self.top_units)
        if interaction not in ("dot", "cat"):
            raise ValueError(f'`interaction` must be "dot" or "cat". Received: {interaction!r}.')
        if interaction_itself and interaction != "dot":
            raise ValueError('`interaction_itself` must be false unless `interaction` is "dot". Received: true.')
        self.interaction_name = interaction
        self.interaction_itself = bool(interaction_itself)
        self.dropout = float(dropout)
        self.embedding_l2 = float(embedding_l2)
        self.seed = seed
        seeds = [None] * 3 if seed is None else [int(s) for s in np.random.default_rng(seed).integers(2**31, size=3)]
        policy = self.dtype_policy
        self.embedding = EmbeddingCollection(self.spec, l2=self.embedding_l2, seed=seeds[0], name="embedding")
        self.bottom = MLP(self.bottom_units, seed=seeds[1], dtype=policy, name="bottom") if self.spec.n_dense else None
        self.interaction: keras.layers.Layer = (
            DotInteraction(self_interaction=self.interaction_itself, dtype=policy, name="interaction")
            if interaction == "dot"
            else CatInteraction(dtype=policy, name="interaction")
        )
        self.top = MLP(self.top_units, final_activation=None, dropout=dropout, seed=seeds[2], dtype=policy, name="top")

    def build(self, input_shape: Any = None) -> None:
        """Create all weights; the spec says every shape, so that no batch is needed."""
        if getattr(self, "built", False):
            return
        dim = self.spec.tables[0].embedding_dim
        vectors = len(self.spec.sparse) + (self.bottom is not None)
        _build(self.embedding, tf.TensorShape([None, self.spec.n_ids]))
        if self.bottom is not None:
            _build(self.bottom, tf.TensorShape([None, self.spec.n_dense]))
        _build(self.interaction, tf.TensorShape([None, vectors, dim]))
        pairs = self.interaction.compute_output_shape(tf.TensorShape([None, vectors, dim]))[1]
        with_dense = self.bottom is not None and self.interaction_name == "dot"
        _build(self.top, tf.TensorShape([None, pairs + (dim if with_dense else 0)]))
        self.built = True

    def call(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return click probabilities `[B, 1]`, float32."""
        # Keras computes the loss from the logits that its own sigmoid notes on its output: exact at any size.
        return keras.activations.sigmoid(self.logits(inputs, training=training))

    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32.

        Raises:
            ValueError: `inputs` lacks one of the batch's parts.
        """
        self._refuse_unless_batch(inputs)
        vectors = tf.cast(self.embedding(inputs["sparse"], weights=inputs.get("weights")), self.compute_dtype)
        if self.bottom is None:
            features = self.interaction(vectors)
        else:
            x = self.bottom(inputs["dense"], training=training)
            features = self.interaction(tf.concat([x[:, tf.newaxis, :], vectors], axis=1))
            if self.interaction_name == "dot":
                features = tf.concat([x, features], axis=1)
        return tf.cast(self.top(features, training=training), tf.float32)

    def _refuse_unless_batch(self, inputs: Any) -> None:
        parts = {"dense": bool(self.spec.n_dense), "sparse": True, "weights": self.spec.has_weights}
        wanted = [name for name, needed in parts.items() if needed]
        if not isinstance(inputs, Mapping) or not set(wanted) <= set(inputs):
            given = sorted(map(str, inputs)) if isinstance(inputs, Mapping) else type(inputs).__name__
            raise ValueError(
                f"`inputs` must be a mapping with {wanted}: numbers [B, {self.spec.n_dense}] and ids "
                f"[B, {self.spec.n_ids}], columns in the order of the spec. Received: {given}."
            )

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = "binary_crossentropy",
        accumulation_steps: int = 1,
        **kwargs: Any,
    ) -> None:
        """Configure training as `keras.Model.compile` does, and tell a two-part optimizer which variables are tables.

        Args:
            optimizer: A `tf_keras` legacy optimizer, such as `tfdlrm.DLRMOptimizer`.
            loss: Defaults to `"binary_crossentropy"`.
            accumulation_steps: Passes a batch is cut into before the one update; the result is that of one pass.
                Defaults to 1.
            **kwargs: Passed on.

        Raises:
            ValueError: `accumulation_steps` is below 1.
        """
        if accumulation_steps < 1:
            raise ValueError(f"`accumulation_steps` must be at least 1. Received: {accumulation_steps}.")
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self.accumulation_steps = int(accumulation_steps)
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        bind = getattr(inner, "bind", None)
        if bind is not None:
            bind(self.embedding)

    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Take one step on one batch, in `accumulation_steps` passes."""
        if self.accumulation_steps == 1:
            logs: dict[str, tf.Tensor] = super().train_step(data)
            return logs
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        gradients, predicted = accumulated_gradients(self, x, y, sample_weight, self.accumulation_steps)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        logs = self.compute_metrics(x, y, predicted, sample_weight)
        return logs

    def get_compile_config(self) -> dict[str, Any]:
        """Return what `compile` was given."""
        return {**super().get_compile_config(), "accumulation_steps": self.accumulation_steps}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {
            "name": self.name,
            "dtype": self.dtype_policy.name,
            "spec": self.spec.model_dump(mode="json"),
            "bottom_units": list(self.bottom_units),
            "top_units": list(self.top_units),
            "interaction": self.interaction_name,
            "interaction_itself": self.interaction_itself,
            "dropout": self.dropout,
            "embedding_l2": self.embedding_l2,
            "seed": self.seed,
        }

    def get_build_config(self) -> dict[str, Any]:
        """Return what `build_from_config` needs: nothing, the spec says every shape."""
        return {"input_shape": None}

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Create all weights, so that saved ones can be loaded."""
        self.build()

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile as the saved model was compiled."""
        self.compile(**keras.saving.deserialize_keras_object(config))

    def save_own_variables(self, store: Any) -> None:
        """Write the optimizer's slots beside the weights: the `.keras` format leaves legacy optimizers out."""
        super().save_own_variables(store)
        for index, variable in enumerate(getattr(self.optimizer, "weights", ()) if self.optimizer else ()):
            store[f"optimizer_{index}"] = variable.numpy()

    def load_own_variables(self, store: Any) -> None:
        """Read back what `save_own_variables` wrote."""
        keys = [str(key) for key in store]
        slots = [store[f"optimizer_{i}"][()] for i in range(sum(key.startswith("optimizer_") for key in keys))]
        super().load_own_variables({key: store[key] for key in keys if not key.startswith("optimizer_")})
        if slots and self.optimizer is not None:
            self.optimizer._create_all_weights(self.trainable_variables)
            self.optimizer.set_weights(slots)


def _build(layer: keras.layers.Layer, shape: tf.TensorShape) -> None:
    # The name scope is the one a call would open, so that variables are named alike however they came to be.
    if not layer.built:
        with tf.name_scope(layer.name):
            layer.build(shape)


def _check_widths(spec: FeatureSpec, bottom: tuple[int, ...], top: tuple[int, ...]) -> None:
    if not spec.sparse:
        raise ValueError("`spec` must have at least one sparse feature. Received: none.")
    dims = sorted({t.embedding_dim for t in spec.tables})
    if len(dims) > 1:
        raise ValueError(f"`embedding_dim` must be the same for every table of a DLRM. Received: {dims}.")
    if spec.n_dense and (not bottom or bottom[-1] != dims[0]):
        raise ValueError(f"`bottom_units[-1]` must equal `embedding_dim`. Received: {list(bottom)} and {dims[0]}.")
    if not top or top[-1] != 1:
        raise ValueError(f"`top_units[-1]` must be 1. Received: {list(top)}.")

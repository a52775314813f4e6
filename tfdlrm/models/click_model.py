"""What every model shares: the batch contract, a probability with logits behind it, training, saving."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import tensorflow as tf
import tf_keras as keras

from tfdlrm.layers.embedding import EmbeddingCollection
from tfdlrm.models.accumulation import accumulated_gradients
from tfdlrm.models.finite_steps import FiniteSteps
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.storage import Storage

Batch = Mapping[str, tf.Tensor]


class ClickModel(keras.Model):
    """Base of all models: click probability of a batch of samples.

    A model sets its layers in `__init__` (its tables as `EmbeddingCollection`s: `embedding` for vectors of width d,
    `linear` for one weight an id), creates their weights in `build_layers` and composes them in `logits`, which may use
    `tf.cond` but no Python `if` on tensors: AutoGraph is off, as it takes longer than all else before the first step.

    Args:
        spec: Features and tables, or the mapping that `FeatureSpec.model_dump` gives.
        seed: Seed of all initial weights. Defaults to `None`.
        **kwargs: `name`, and `dtype`: the policy of the dense part; tables and output are float32 in any case.

    Call arguments:
        inputs: `{"dense": float32 [B, n_dense], "sparse": int32|int64 [B, n_ids], "weights": float32 [B, n_ids]}`;
            `weights` only where the spec has weighted features, `dense` only where it has dense ones.

    Returns:
        Click probability, float32 `[B, 1]`. Losses named `"binary_crossentropy"` are computed from the logits.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> class Mean(ClickModel):  # the mean of the rows' vectors decides
        ...     def __init__(self, spec, **kwargs):
        ...         super().__init__(spec, **kwargs)
        ...         self.embedding = EmbeddingCollection(self.spec, name="embedding")
        ...     def build_layers(self):
        ...         build_layer(self.embedding, [None, self.spec.n_ids])
        ...     def logits(self, inputs, training=None):
        ...         return tf.reduce_mean(self.embedding(inputs["sparse"]), axis=[1, 2])[:, tf.newaxis]
        >>> Mean(criteo_spec([10] * 26, 4))({"dense": tf.zeros([2, 13]), "sparse": tf.zeros([2, 26], tf.int32)}).shape
        TensorShape([2, 1])
    """

    has_linear_terms: ClassVar[bool] = False
    """Whether the model has one weight an id; a memory budget counts them."""

    def __init__(self, spec: FeatureSpec | Mapping[str, Any], seed: int | None = None, **kwargs: Any) -> None:
        # Inputs are cast where they are used: an autocast here would round ids' weights and dense values too early.
        super().__init__(autocast=False, **kwargs)
        self.spec = spec if isinstance(spec, FeatureSpec) else FeatureSpec(**spec)
        if not self.spec.sparse:
            raise ValueError("`spec` must have at least one sparse feature. Received: none.")
        self.seed = seed
        self.finite_steps: FiniteSteps | None = None

    @classmethod
    def storage(cls, settings: Mapping[str, Any]) -> Storage:
        """Return what a model of these settings keeps of the tables of a spec, for a memory budget.

        Args:
            settings: The constructor's arguments as `[model]` has them.
        """
        return Storage(linear=cls.has_linear_terms)

    @abstractmethod
    def build_layers(self) -> None:
        """Create the weights of all layers; the spec says every shape."""

    @abstractmethod
    def logits(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return log-odds `[B, 1]`, float32."""

    def layer_seeds(self, count: int) -> list[int | None]:
        """Return a seed for each of the model's layers, all different and drawn from the model's own."""
        if self.seed is None:
            return [None] * count
        return [int(seed) for seed in np.random.default_rng(self.seed).integers(2**31, size=count)]

    @property
    def collections(self) -> dict[str, EmbeddingCollection]:
        """The model's embedding collections by the name of the layer."""
        return {layer.name: layer for layer in self.layers if isinstance(layer, EmbeddingCollection)}

    @property
    def table_parameters(self) -> int:
        """Number of weights in tables as they are stored."""
        stored = [part for collection in self.collections.values() for part in collection.stored_tables()]
        return sum(part.rows * int(np.prod(part.stack.shape[1:])) for part in stored)

    @property
    def dense_parameters(self) -> int:
        """Number of weights outside of tables."""
        tables = {stack.ref() for collection in self.collections.values() for stack in collection.stacks}
        return sum(int(np.prod(weight.shape)) for weight in self.weights if weight.ref() not in tables)

    @property
    def table_bytes(self) -> int:
        """Memory of the weights in tables as they are stored, without rows of padding and optimizer slots."""
        stored = [part for collection in self.collections.values() for part in collection.stored_tables()]
        return sum(part.rows * int(np.prod(part.stack.shape[1:])) * part.stack.dtype.size for part in stored)

    def build(self, input_shape: Any = None) -> None:
        """Create all weights; the spec says every shape, so that no batch is needed."""
        if getattr(self, "built", False):
            return
        # From the root: a first batch builds inside the model's scope, and names must not depend on the way.
        with tf.name_scope(""):
            self.build_layers()
        self.built = True

    @tf.autograph.experimental.do_not_convert
    def call(self, inputs: Batch, training: bool | None = None) -> tf.Tensor:
        """Return click probabilities `[B, 1]`, float32."""
        self._refuse_unless_batch(inputs)
        # Keras computes the loss from the logits that its own sigmoid notes on its output: exact at any size.
        return keras.activations.sigmoid(self.logits(inputs, training=training))

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
            ValueError: `accumulation_steps` is below 1, or a table is stored in half precision and the optimizer is not
                one that can tell tables from other weights.
        """
        if accumulation_steps < 1:
            raise ValueError(f"`accumulation_steps` must be at least 1. Received: {accumulation_steps}.")
        super().compile(optimizer=optimizer, loss=loss, **kwargs)
        self.accumulation_steps = int(accumulation_steps)
        inner = getattr(self.optimizer, "inner_optimizer", self.optimizer)
        bind = getattr(inner, "bind", None)
        if bind is not None:
            bind(tuple(self.collections.values()))
        elif half := [t.name for t in self.spec.tables if t.stored[0].dtype != "float32"]:
            raise ValueError(
                f"`optimizer` must be a `DLRMOptimizer` where tables are stored in half precision ({', '.join(half)}). "
                f"Received: {type(inner).__name__}."
            )
        self._create_training_variables()

    def _create_training_variables(self) -> None:
        """Create slots and the sums of loss and metrics: a step that created them would have to be traced twice."""
        self.build()
        create_slots = getattr(self.optimizer, "_create_all_weights", None)
        if create_slots is not None:
            create_slots(self.trainable_variables)
        some = tf.zeros([1, 1])
        self.compiled_loss.build(some)
        self.compiled_metrics.build(some, some)
        # Where several devices train, each has a loss of its own.
        self.finite_steps = None if tf.distribute.has_strategy() else FiniteSteps()

    @tf.autograph.experimental.do_not_convert
    def train_step(self, data: Any) -> dict[str, tf.Tensor]:
        """Take one step on one batch, in `accumulation_steps` passes."""
        if self.accumulation_steps == 1:
            logs: dict[str, tf.Tensor] = super().train_step(data)
        else:
            logs = self._accumulating_step(data)
        if self.finite_steps is not None:
            self.finite_steps.note(logs["loss"])
        return logs

    def _accumulating_step(self, data: Any) -> dict[str, tf.Tensor]:
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        gradients, predicted = accumulated_gradients(self, x, y, sample_weight, self.accumulation_steps)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        logs: dict[str, tf.Tensor] = self.compute_metrics(x, y, predicted, sample_weight)
        return logs

    def get_compile_config(self) -> dict[str, Any] | None:
        """Return what `compile` was given; `None` before."""
        config = super().get_compile_config()
        return None if config is None else {**config, "accumulation_steps": self.accumulation_steps}

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments; the spec as JSON values."""
        return {
            "name": self.name,
            "dtype": self.dtype_policy.name,
            "spec": self.spec.model_dump(mode="json"),
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


def build_layer(layer: keras.layers.Layer, shape: Any) -> None:
    """Create a layer's weights in the name scope that a call would open, so that names do not depend on the way.

    Args:
        layer: The layer.
        shape: Shape of its input, or a list of shapes where it takes several.
    """
    if not layer.built:
        several = bool(shape) and isinstance(shape[0], (list, tuple))
        with tf.name_scope(layer.name):
            layer.build([tf.TensorShape(each) for each in shape] if several else tf.TensorShape(shape))

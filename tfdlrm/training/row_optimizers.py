"""Optimizers of embedding tables that touch only the rows a batch used. `DLRMOptimizer` pairs one with the MLPs' own.

All belong to the `tf_keras.optimizers.legacy` family: the newer one walks whole tables on each sparse step. `SGD` and
`RowWiseAdagrad` also move tables in half precision, by `tfdlrm.training.half_rows`; their own state is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras
from tf_keras.optimizers import legacy

from tfdlrm.training.half_rows import is_half, move_half_rows, summed_by_row


@keras.saving.register_keras_serializable(package="tfdlrm")
class SGD(legacy.SGD):
    """Stochastic gradient descent whose sparse step neither sorts nor merges repeated ids: the update is linear.

    A table in half precision is the exception: each of its rows is rounded once a step.

    Args:
        learning_rate: Rate or schedule. Defaults to 0.1, the paper's.
        weight_decay: Decoupled decay: each touched row is first multiplied by 1 - learning_rate * weight_decay,
            once a step however often it was read; untouched rows stay. Defaults to 0.
        **kwargs: As in `tf_keras.optimizers.legacy.SGD`.

    Raises:
        ValueError: `weight_decay` is negative.

    Example:
        >>> table = tf.Variable([[1.0], [1.0]])
        >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([0, 0]))  # row 0, twice
        >>> _ = SGD(0.5).apply_gradients([(gradient, table)])
        >>> table.numpy().round(3).tolist()
        [[-0.5], [1.0]]
    """

    def __init__(self, learning_rate: Any = 0.1, weight_decay: float = 0.0, name: str = "SGD", **kwargs: Any) -> None:
        super().__init__(learning_rate, name=name, **kwargs)
        self.weight_decay = checked_decay(weight_decay)

    def _resource_apply_sparse_duplicate_indices(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, **kwargs: Any
    ) -> tf.Operation:
        rate = coefficients(self, var, kwargs.get("apply_state"))["lr_t"]
        if is_half(var):
            grad, indices = summed_by_row(grad, indices)
            return move_half_rows(self, var, indices, rate * grad, rate * self.weight_decay)
        if self.weight_decay:
            _decay_rows(var, tf.unique(indices)[0], rate * self.weight_decay)
        return super()._resource_apply_sparse_duplicate_indices(grad, var, indices, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "weight_decay": self.weight_decay}


@keras.saving.register_keras_serializable(package="tfdlrm")
class RowWiseAdagrad(legacy.Optimizer):
    """Adagrad with one accumulator per embedding row (facebookresearch/dlrm `rwsadagrad`; FBGEMM exact row-wise).

    Gradients of repeated ids are summed first; then, for each touched row r with gradient g_r,
    acc[r] += mean(g_r^2) and row[r] -= learning_rate g_r / (sqrt(acc[r]) + epsilon). On a dense variable the same holds
    for each slice along the first axis.

    Args:
        learning_rate: Rate or schedule. Defaults to 0.01.
        initial_accumulator_value: Start of every accumulator. Defaults to 0.
        epsilon: Added to the root. Defaults to 1e-10.
        weight_decay: Decoupled decay of touched rows, as in `SGD`. Defaults to 0.
        **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`.

    Raises:
        ValueError: an argument is negative.

    Example:
        >>> table = tf.Variable([[1.0], [1.0]])
        >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([0, 0]))  # row 0, twice
        >>> _ = RowWiseAdagrad(0.5).apply_gradients([(gradient, table)])
        >>> table.numpy().round(3).tolist()
        [[0.5], [1.0]]
    """

    _HAS_AGGREGATE_GRAD = True

    def __init__(
        self,
        learning_rate: Any = 0.01,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-10,
        weight_decay: float = 0.0,
        name: str = "RowWiseAdagrad",
        **kwargs: Any,
    ) -> None:
        super().__init__(name, **kwargs)
        if initial_accumulator_value < 0 or epsilon < 0:
            raise ValueError(
                "`initial_accumulator_value` and `epsilon` must be at least 0. "
                f"Received: {initial_accumulator_value} and {epsilon}."
            )
        self._set_hyper("learning_rate", learning_rate)
        self.initial_accumulator_value = initial_accumulator_value
        self.epsilon = epsilon
        self.weight_decay = checked_decay(weight_decay)
        self._accumulators: dict[str, tf.Variable] = {}

    def accumulator(self, var: tf.Variable) -> tf.Variable:
        """Return the accumulator of a variable, float32 `[rows]`."""
        return self._accumulators[plain_name(var)]

    def _create_slots(self, var_list: Sequence[tf.Variable]) -> None:
        # Not Keras slots: a SavedModel is read back as if every slot had the shape of its variable.
        for var in var_list:
            name = plain_name(var)
            if name in self._accumulators:
                continue
            with tf.distribute.get_strategy().extended.colocate_vars_with(var):
                accumulator = self.add_weight(
                    f"{name}/accumulator",
                    shape=var.shape[:1],
                    trainable=False,
                    initializer=keras.initializers.Constant(self.initial_accumulator_value),
                )
            self._accumulators[name] = accumulator
            self._weights.append(accumulator)

    def _resource_apply_sparse(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, apply_state: Any = None
    ) -> tf.Operation:
        rate = coefficients(self, var, apply_state)["lr_t"]
        accumulator = self.accumulator(var)
        squares = tf.reduce_mean(tf.reshape(tf.square(grad), [tf.shape(grad)[0], -1]), axis=1)
        accumulator.scatter_add(tf.IndexedSlices(squares, indices))
        scale = rate / (tf.sqrt(tf.gather(accumulator, indices)) + self.epsilon)
        scale = tf.reshape(scale, [-1] + [1] * (len(var.shape) - 1))
        if is_half(var):
            return move_half_rows(self, var, indices, grad * scale, rate * self.weight_decay)
        if self.weight_decay:
            _decay_rows(var, indices, rate * self.weight_decay)
        return var.scatter_sub(tf.IndexedSlices(grad * scale, indices))

    def _resource_apply_dense(self, grad: tf.Tensor, var: tf.Variable, apply_state: Any = None) -> tf.Operation:
        rate = coefficients(self, var, apply_state)["lr_t"]
        accumulator = self.accumulator(var)
        total = accumulator.assign_add(tf.reduce_mean(tf.square(grad), axis=list(range(1, len(var.shape)))))
        scale = tf.reshape(rate / (tf.sqrt(total) + self.epsilon), [-1] + [1] * (len(var.shape) - 1))
        return var.assign_sub(grad * scale + rate * self.weight_decay * var)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "learning_rate": self._serialize_hyperparameter("learning_rate"),
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
            "weight_decay": self.weight_decay,
        }


@keras.saving.register_keras_serializable(package="tfdlrm")
class LazyAdam(legacy.Adam):
    """Adam that moves and ages only touched rows: what Adam on an embedding table means.

    Gradients of repeated ids are summed first; then, for each touched row with gradient g at step t,
    m = beta_1 m + (1 - beta_1) g, v = beta_2 v + (1 - beta_2) g^2 and
    row -= learning_rate sqrt(1 - beta_2^t) / (1 - beta_1^t) m / (sqrt(v) + epsilon). Moments of untouched rows
    stay as they are; t counts all steps. (Kingma and Ba 2015, end of section 2, per row.)

    Args:
        learning_rate: Rate or schedule. Defaults to 0.001.
        weight_decay: Decoupled decay of touched rows, as in `SGD`. Defaults to 0.
        **kwargs: As in `tf_keras.optimizers.legacy.Adam`, without `amsgrad`.

    Raises:
        ValueError: `weight_decay` is negative, or `amsgrad` is asked for.

    Example:
        >>> table = tf.Variable([[1.0], [1.0]])
        >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([0, 0]))  # row 0, twice
        >>> _ = LazyAdam(0.5).apply_gradients([(gradient, table)])
        >>> table.numpy().round(3).tolist()
        [[0.5], [1.0]]
    """

    def __init__(
        self, learning_rate: Any = 0.001, weight_decay: float = 0.0, name: str = "LazyAdam", **kwargs: Any
    ) -> None:
        if kwargs.get("amsgrad"):
            raise ValueError("`amsgrad` must be false for LazyAdam. Received: True.")
        super().__init__(learning_rate, name=name, **kwargs)
        self.weight_decay = checked_decay(weight_decay)

    def _resource_apply_sparse(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, apply_state: Any = None
    ) -> tf.Operation:
        terms = coefficients(self, var, apply_state)
        m, v = self.get_slot(var, "m"), self.get_slot(var, "v")
        first = terms["beta_1_t"] * tf.gather(m, indices) + terms["one_minus_beta_1_t"] * grad
        second = terms["beta_2_t"] * tf.gather(v, indices) + terms["one_minus_beta_2_t"] * tf.square(grad)
        m.scatter_update(tf.IndexedSlices(first, indices))
        v.scatter_update(tf.IndexedSlices(second, indices))
        if self.weight_decay:
            _decay_rows(var, indices, terms["lr_t"] * self.weight_decay)
        # `lr` is the rate with both bias corrections in it.
        return var.scatter_sub(tf.IndexedSlices(terms["lr"] * first / (tf.sqrt(second) + terms["epsilon"]), indices))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "weight_decay": self.weight_decay}


@keras.saving.register_keras_serializable(package="tfdlrm")
class Adagrad(legacy.Adagrad):
    """Adagrad with one accumulator per element, on touched rows only.

    Gradients of repeated ids are summed first; then acc += g^2 and row -= learning_rate g / (sqrt(acc) + epsilon)
    (Duchi et al. 2011, diagonal form).

    Args:
        learning_rate: Rate or schedule. Defaults to 0.01.
        initial_accumulator_value: Start of every accumulator. Defaults to 0.
        epsilon: Added to the root. Defaults to 1e-10.
        weight_decay: Decoupled decay of touched rows, as in `SGD`. Defaults to 0.
        **kwargs: `clipnorm`, `clipvalue`, `global_clipnorm`.

    Raises:
        ValueError: an argument is negative.

    Example:
        >>> table = tf.Variable([[1.0], [1.0]])
        >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([0, 0]))  # row 0, twice
        >>> _ = Adagrad(0.5).apply_gradients([(gradient, table)])
        >>> table.numpy().round(3).tolist()
        [[0.5], [1.0]]
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        initial_accumulator_value: float = 0.0,
        epsilon: float = 1e-10,
        weight_decay: float = 0.0,
        name: str = "Adagrad",
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, initial_accumulator_value, epsilon, name=name, **kwargs)
        self.weight_decay = checked_decay(weight_decay)

    def _resource_apply_sparse(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, apply_state: Any = None
    ) -> tf.Operation:
        if self.weight_decay:
            _decay_rows(var, indices, coefficients(self, var, apply_state)["lr_t"] * self.weight_decay)
        return super()._resource_apply_sparse(grad, var, indices, apply_state=apply_state)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "weight_decay": self.weight_decay}


@keras.saving.register_keras_serializable(package="tfdlrm")
class Ftrl(legacy.Ftrl):
    """FTRL-Proximal on touched rows that starts from a row's initial vector (McMahan et al. 2013, algorithm 1).

    The algorithm rebuilds weights from the sum z of past gradients, and z = 0 means weights of zero: it would forget
    the random vectors that embeddings start from, and rows all alike learn nothing from dot products. So z of a
    row that was never touched is first set to the value that stands for its present vector.

    Args:
        learning_rate: Rate or schedule. Defaults to 0.01.
        initial_accumulator_value: Start of every accumulator, above 0. Defaults to 0.1.
        **kwargs: As in `tf_keras.optimizers.legacy.Ftrl`, without `l1_regularization_strength`.

    Raises:
        ValueError: an argument is out of its range.

    Example:
        >>> table = tf.Variable([[1.0], [1.0]])
        >>> gradient = tf.IndexedSlices(tf.constant([[1.0], [2.0]]), tf.constant([0, 0]))  # row 0, twice
        >>> _ = Ftrl(0.5).apply_gradients([(gradient, table)])
        >>> [[round(value, 3) for value in row] for row in table.numpy().tolist()]
        [[0.503], [1.0]]
    """

    def __init__(
        self, learning_rate: Any = 0.01, initial_accumulator_value: float = 0.1, name: str = "Ftrl", **kwargs: Any
    ) -> None:
        if kwargs.get("l1_regularization_strength"):
            raise ValueError(
                "`l1_regularization_strength` must be 0: it would zero rows. "
                f"Received: {kwargs['l1_regularization_strength']}."
            )
        if initial_accumulator_value <= 0:
            raise ValueError(f"`initial_accumulator_value` must be above 0. Received: {initial_accumulator_value}.")
        super().__init__(learning_rate, initial_accumulator_value=initial_accumulator_value, name=name, **kwargs)

    def _resource_apply_sparse(
        self, grad: tf.Tensor, var: tf.Variable, indices: tf.Tensor, apply_state: Any = None
    ) -> tf.Operation:
        terms = coefficients(self, var, apply_state)
        accumulator = tf.gather(self.get_slot(var, "accumulator"), indices)
        linear = self.get_slot(var, "linear")
        past = tf.gather(linear, indices)
        start = tf.cast(self._initial_accumulator_value, accumulator.dtype)
        fresh = tf.reduce_all(tf.logical_and(tf.equal(past, 0), tf.equal(accumulator, start)), axis=1)
        power = -terms["learning_rate_power"]
        curvature = (tf.pow(start, power) + terms["beta"]) / terms["lr_t"] + 2 * terms["l2_regularization_strength"]
        # The fresh rows alone: other workers may have moved the others since they were read.
        rows = tf.boolean_mask(indices, fresh)
        linear.scatter_update(tf.IndexedSlices(-curvature * tf.gather(var, rows), rows))
        return super()._resource_apply_sparse(grad, var, indices, apply_state=apply_state)


def plain_name(var: tf.Variable) -> str:
    """Return the name that a variable and its per-replica components under tf.distribute share."""
    return str(var.name).split(":")[0].split("/replica_")[0]


def checked_decay(weight_decay: float) -> float:
    """Return a weight decay that is not negative."""
    if weight_decay < 0:
        raise ValueError(f"`weight_decay` must be at least 0. Received: {weight_decay}.")
    return float(weight_decay)


def coefficients(optimizer: legacy.Optimizer, var: tf.Variable, apply_state: Any) -> dict[str, tf.Tensor]:
    """Return what `_prepare_local` lays out for the variable's device, in float32 for one in half precision."""
    key = (var.device, tf.float32 if is_half(var) else var.dtype.base_dtype)
    found: dict[str, tf.Tensor] = (apply_state or {}).get(key) or optimizer._fallback_apply_state(*key)
    return found


def _decay_rows(var: tf.Variable, unique_rows: tf.Tensor, share: tf.Tensor) -> None:
    """Shrink rows by `share` of themselves; in a graph, variable updates run in program order."""
    var.scatter_sub(tf.IndexedSlices(share * tf.gather(var, unique_rows), unique_rows))

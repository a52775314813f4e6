import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from tf_keras.optimizers import legacy

from tfdlrm.spec.train_config import EmbeddingOptimizerConfig, TrainConfig
from tfdlrm.training.optimizers import DLRMOptimizer
from tfdlrm.training.row_optimizers import SGD, Adagrad, Ftrl, LazyAdam, RowWiseAdagrad
from tfdlrm.training.trainer import build_optimizer

RNG = np.random.default_rng(0)
ROWS, DIM = 12, 3


class Tables:
    """Stands where a model's embedding collection does: something with trainable variables."""

    def __init__(self, *variables):
        self.stacks = list(variables)


def sparse_gradient(ids, seed):
    values = np.random.default_rng(seed).normal(size=(len(ids), DIM)).astype(np.float32)
    dense = np.zeros([ROWS, DIM])
    np.add.at(dense, ids, values)
    return tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([ROWS, DIM])), dense


BATCHES = [[1, 5, 1, 1, 7], [0, 11, 5], [1, 1, 1, 1]]  # repeated ids on purpose


def applier(optimizer, var, graph):
    optimizer._create_all_weights([var])

    def apply(gradient):
        optimizer.apply_gradients([(gradient, var)])

    return tf.function(apply) if graph else apply


def start():
    return RNG.normal(size=(ROWS, DIM)).astype(np.float32)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("graph", [False, True])
def test_sgd_matches_numpy(decay, graph):
    initial = start()
    var, expected = tf.Variable(initial), initial.astype(np.float64)
    optimizer = SGD(0.1, weight_decay=decay)
    apply = applier(optimizer, var, graph)
    for step, ids in enumerate(BATCHES):
        gradient, dense = sparse_gradient(ids, step)
        apply(gradient)
        expected[np.unique(ids)] *= 1 - 0.1 * decay
        expected -= 0.1 * dense
    np.testing.assert_allclose(var, expected, rtol=1e-5, atol=1e-6)
    untouched = sorted(set(range(ROWS)) - {i for ids in BATCHES for i in ids})
    np.testing.assert_array_equal(var.numpy()[untouched], initial[untouched])


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("graph", [False, True])
def test_rowwise_adagrad_matches_numpy(decay, graph):
    initial = start()
    var, expected = tf.Variable(initial), initial.astype(np.float64)
    accumulator = np.full(ROWS, 0.25)
    optimizer = RowWiseAdagrad(0.1, initial_accumulator_value=0.25, epsilon=1e-3, weight_decay=decay)
    apply = applier(optimizer, var, graph)
    for step, ids in enumerate(BATCHES):
        gradient, dense = sparse_gradient(ids, step)
        apply(gradient)
        touched = np.unique(ids)
        accumulator[touched] += (dense[touched] ** 2).mean(axis=1)
        expected[touched] *= 1 - 0.1 * decay
        expected[touched] -= 0.1 * dense[touched] / (np.sqrt(accumulator[touched]) + 1e-3)[:, None]
    np.testing.assert_allclose(var, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer.accumulator(var), accumulator, rtol=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("graph", [False, True])
def test_lazy_adam_matches_numpy(decay, graph):
    initial = start()
    var, expected = tf.Variable(initial), initial.astype(np.float64)
    m, v = np.zeros([ROWS, DIM]), np.zeros([ROWS, DIM])
    optimizer = LazyAdam(0.1, weight_decay=decay, beta_1=0.8, beta_2=0.9, epsilon=1e-3)
    apply = applier(optimizer, var, graph)
    for step, ids in enumerate(BATCHES, start=1):
        gradient, dense = sparse_gradient(ids, step)
        apply(gradient)
        touched = np.unique(ids)
        m[touched] = 0.8 * m[touched] + 0.2 * dense[touched]
        v[touched] = 0.9 * v[touched] + 0.1 * dense[touched] ** 2
        rate = 0.1 * np.sqrt(1 - 0.9**step) / (1 - 0.8**step)
        expected[touched] *= 1 - 0.1 * decay
        expected[touched] -= rate * m[touched] / (np.sqrt(v[touched]) + 1e-3)
    np.testing.assert_allclose(var, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(optimizer.get_slot(var, "m"), m, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("graph", [False, True])
def test_adagrad_matches_numpy(decay, graph):
    initial = start()
    var, expected = tf.Variable(initial), initial.astype(np.float64)
    accumulator = np.full([ROWS, DIM], 0.25)
    optimizer = Adagrad(0.1, initial_accumulator_value=0.25, epsilon=1e-3, weight_decay=decay)
    apply = applier(optimizer, var, graph)
    for step, ids in enumerate(BATCHES):
        gradient, dense = sparse_gradient(ids, step)
        apply(gradient)
        touched = np.unique(ids)
        accumulator[touched] += dense[touched] ** 2
        expected[touched] *= 1 - 0.1 * decay
        expected[touched] -= 0.1 * dense[touched] / (np.sqrt(accumulator[touched]) + 1e-3)
    np.testing.assert_allclose(var, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_ftrl_matches_numpy_and_starts_from_the_initial_rows(graph):
    initial = start()
    var, expected = tf.Variable(initial), initial.astype(np.float64)
    n, z = np.full([ROWS, DIM], 0.25), -initial.astype(np.float64) * np.sqrt(0.25) / 0.1
    optimizer = Ftrl(0.1, initial_accumulator_value=0.25)
    apply = applier(optimizer, var, graph)
    for step, ids in enumerate(BATCHES):
        gradient, dense = sparse_gradient(ids, step)
        apply(gradient)
        for row in np.unique(ids):
            g = dense[row]
            z[row] += g - (np.sqrt(n[row] + g**2) - np.sqrt(n[row])) / 0.1 * expected[row]
            n[row] += g**2
            expected[row] = -z[row] * 0.1 / np.sqrt(n[row])
    np.testing.assert_allclose(var, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad", "adagrad", "adam", "ftrl"])
def test_only_used_rows_move_and_no_op_has_the_shape_of_the_table(name):
    rows = 40_009  # a number no other shape has
    section = EmbeddingOptimizerConfig(name=name, learning_rate=0.1)
    table = tf.Variable(np.full([rows, DIM], 0.5, np.float32), name="table")
    optimizer = build_optimizer(TrainConfig(embedding=section))
    optimizer.bind([Tables(table)])
    optimizer._create_all_weights([table])

    @tf.function
    def apply(values, ids):
        gradient = tf.IndexedSlices(values, ids, tf.constant([rows, DIM]))
        optimizer.apply_gradients([(gradient, table)])

    ids = tf.constant([7, 40_008, 7])
    values = tf.ones([3, DIM])
    graph = apply.get_concrete_function(values, ids).graph
    shapes = [out.shape for op in graph.get_operations() for out in op.outputs]
    assert not [shape for shape in shapes if shape.rank and shape[0] == rows]
    apply(values, ids)
    moved = np.unique(np.nonzero(table.numpy() != 0.5)[0])
    np.testing.assert_array_equal(moved, [7, 40_008])


def test_rowwise_adagrad_on_a_dense_variable():
    initial = start()
    var = tf.Variable(initial)
    gradient = RNG.normal(size=(ROWS, DIM)).astype(np.float32)
    RowWiseAdagrad(0.1).apply_gradients([(tf.constant(gradient), var)])
    root = np.sqrt((gradient**2).mean(axis=1, keepdims=True))
    np.testing.assert_allclose(var, initial - 0.1 * gradient / root, rtol=1e-5)


def pair(**config):
    return DLRMOptimizer(RowWiseAdagrad(0.05), legacy.Adam(0.01), **config)


def test_each_part_updates_its_own_variables():
    table, kernel = tf.Variable(start(), name="table"), tf.Variable(start(), name="kernel")
    alone_table, alone_kernel = tf.Variable(table), tf.Variable(kernel)
    optimizer = pair()
    optimizer.bind([Tables(table)])
    adagrad, adam = RowWiseAdagrad(0.05), legacy.Adam(0.01)
    for step, ids in enumerate(BATCHES):
        sparse, dense = sparse_gradient(ids, step)
        dense = tf.constant(dense, tf.float32)
        optimizer.apply_gradients([(sparse, table), (dense, kernel)])
        adagrad.apply_gradients([(sparse, alone_table)])
        adam.apply_gradients([(dense, alone_kernel)])
    np.testing.assert_allclose(table, alone_table, rtol=1e-6)
    np.testing.assert_allclose(kernel, alone_kernel, rtol=1e-6)
    assert int(optimizer.iterations) == len(BATCHES)
    assert len(optimizer.weights) == 1 + 1 + 2


def test_learning_rate_is_a_factor_on_both_parts():
    table, kernel = tf.Variable(start(), name="table"), tf.Variable(start(), name="kernel")
    before = table.numpy(), kernel.numpy()
    sparse, dense = sparse_gradient([1, 2], 0)
    dense = tf.constant(dense, tf.float32)
    optimizer = DLRMOptimizer(SGD(0.1), legacy.SGD(0.2), learning_rate=0.5)
    optimizer.bind([Tables(table)])
    optimizer.apply_gradients([(sparse, table), (dense, kernel)])
    np.testing.assert_allclose(table, before[0] - 0.05 * dense, rtol=1e-5)
    np.testing.assert_allclose(kernel, before[1] - 0.1 * dense, rtol=1e-5)


def test_dense_weight_decay_spares_biases_and_tables():
    table, kernel, bias = (
        tf.Variable(start(), name="table"),
        tf.Variable(start(), name="kernel"),
        tf.Variable(start()[0], name="bias"),
    )
    before = [v.numpy() for v in (table, kernel, bias)]
    optimizer = DLRMOptimizer(SGD(0.1), legacy.SGD(0.2), dense_weight_decay=0.5)
    optimizer.bind([Tables(table)])
    zero = [tf.zeros_like(v) for v in (table, kernel, bias)]
    optimizer.apply_gradients(zip(zero, (table, kernel, bias), strict=True))
    np.testing.assert_allclose(table, before[0])
    np.testing.assert_allclose(kernel, before[1] * (1 - 0.2 * 0.5), rtol=1e-6)
    np.testing.assert_allclose(bias, before[2])


def test_global_clipnorm_covers_both_parts():
    table, kernel = tf.Variable(start(), name="table"), tf.Variable(start(), name="kernel")
    before = table.numpy(), kernel.numpy()
    ids = [1, 2, 3]
    sparse, scattered = sparse_gradient(ids, 0)
    dense = RNG.normal(size=(ROWS, DIM)).astype(np.float32)
    norm = np.sqrt((scattered**2).sum() + (dense**2).sum())
    optimizer = DLRMOptimizer(SGD(1.0), legacy.SGD(1.0), global_clipnorm=0.5)
    optimizer.bind([Tables(table)])
    optimizer.apply_gradients([(sparse, table), (tf.constant(dense), kernel)])
    np.testing.assert_allclose(before[0] - table, scattered * 0.5 / norm, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(before[1] - kernel, dense * 0.5 / norm, rtol=1e-3, atol=1e-6)


def test_config_round_trips():
    optimizer = pair(learning_rate=0.7, dense_weight_decay=0.1, global_clipnorm=2.0)
    clone = DLRMOptimizer.from_config(optimizer.get_config())
    assert clone.get_config() == optimizer.get_config()
    serialized = keras.optimizers.serialize(optimizer, use_legacy_format=True)
    restored = keras.optimizers.deserialize(serialized, use_legacy_optimizer=True, use_legacy_format=True)
    assert restored.get_config() == optimizer.get_config()


def test_tf_checkpoint_restores_slots_whether_made_before_or_after(tmp_path):
    def trained(steps):
        table, kernel = tf.Variable(tf.ones([ROWS, DIM]), name="table"), tf.Variable(tf.ones([DIM]), name="kernel")
        optimizer = pair()
        optimizer.bind([Tables(table)])
        for step in range(steps):
            optimizer.apply_gradients([(sparse_gradient([1, 2, 2], step)[0], table), (tf.ones([DIM]), kernel)])
        return optimizer, table, kernel

    optimizer, table, kernel = trained(2)
    path = tf.train.Checkpoint(optimizer=optimizer, table=table, kernel=kernel).write(str(tmp_path / "c"))
    for steps in (0, 1):
        other, other_table, other_kernel = trained(steps)
        status = tf.train.Checkpoint(optimizer=other, table=other_table, kernel=other_kernel).read(path)
        other._create_all_weights([other_table, other_kernel])
        status.assert_existing_objects_matched()
        # A restored slot may be created first, so that order and name scope differ; the last part of the name does not.
        by_name = {v.name.split("/")[-1]: v for v in other.weights}
        assert len(by_name) == len(optimizer.weights)
        for old in optimizer.weights:
            np.testing.assert_array_equal(old, by_name[old.name.split("/")[-1]])


def test_bad_arguments():
    with pytest.raises(ValueError, match="`weight_decay` must be at least 0. Received: -1"):
        SGD(0.1, weight_decay=-1)
    with pytest.raises(ValueError, match="`initial_accumulator_value` and `epsilon` must be at least 0"):
        RowWiseAdagrad(0.1, epsilon=-1)
    with pytest.raises(ValueError, match="`dense` must be an optimizer of tf_keras.optimizers.legacy. Received: Adam"):
        DLRMOptimizer(SGD(0.1), keras.optimizers.Adam())
    with pytest.raises(RuntimeError, match="must be given to `DLRM.compile`"):
        pair().apply_gradients([(tf.ones([2]), tf.Variable([1.0, 2.0]))])


@pytest.mark.parametrize(("batch_size", "warmup", "factors"), [(32, 0, [0.5, 0.5, 0.5]), (256, 2, [2.0, 4.0, 4.0])])
def test_rates_follow_the_batch_size(batch_size, warmup, factors):
    schedule = {"reference_batch_size": 64, "warmup_steps": warmup}
    config = TrainConfig.model_validate({"batch_size": batch_size, "schedule": schedule})
    table = tf.Variable(start(), name="table")
    optimizer = build_optimizer(config)
    optimizer.bind([Tables(table)])
    for step, factor in enumerate(factors):
        before = table.numpy()
        gradient, dense = sparse_gradient([3], step)
        optimizer.apply_gradients([(gradient, table)])
        np.testing.assert_allclose(table, before - factor * 0.1 * dense, rtol=1e-5, atol=1e-6)

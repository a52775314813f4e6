import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import tfdlrm
from tests.data.packed_samples import as_arrays, make_spec
from tfdlrm.data.generators.datasets import random_dataset, trace_dataset
from tfdlrm.data.generators.laws import IdLaw, RowLaw
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.trace_rows import TraceRows
from tfdlrm.spec.errors import ConfigError, DataError

SPEC = make_spec(dense=2, hotness=(1, 3), table_rows=10)
TRACE = StackDistances(np.arange(8), np.array([0, 1, 5]), np.array([0.4, 0.8, 1.0]))
TRACES = {"c0": TRACE, "c1": TRACE}
MAKERS = {
    "random": lambda spec=SPEC, size=16, **more: random_dataset(spec, size, ids=IdLaw(kind="powerlaw"), **more),
    "trace": lambda spec=SPEC, size=16, **more: trace_dataset(spec, size, TRACES, **more),
}
both = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def batches_of(dataset):
    return [as_arrays(batch) for batch in dataset]


def assert_same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@both
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("table_rows", "dtype"), [(10, tf.int32), (2**31, tf.int64)])
def test_batch_contract(make, weighted, table_rows, dtype):
    dataset = make(make_spec(dense=2, hotness=(1, 3), table_rows=table_rows, weighted=weighted), steps=3)
    features = {"dense": tf.TensorSpec([16, 2]), "sparse": tf.TensorSpec([16, 4], dtype)}
    if weighted:
        features["weights"] = tf.TensorSpec([16, 4])
    assert dataset.element_spec == (features, tf.TensorSpec([16, 1]))
    assert dataset.cardinality() == 3
    assert len(batches_of(dataset)) == 3


@both
def test_endless(make):
    assert make().cardinality() == tf.data.INFINITE_CARDINALITY
    assert len(batches_of(make().take(5))) == 5
    assert batches_of(make(steps=0)) == []


@both
def test_same_seed_same_batches(make):
    first = batches_of(make(steps=4, seed=1))
    assert_same(first, batches_of(make(steps=4, seed=1)))
    for other in (make(steps=4, seed=2), make(steps=4, seed=1, split="test")):
        for one, own in zip(first, batches_of(other), strict=True):
            assert (one["dense"] != own["dense"]).any()
    assert (first[0]["dense"] != first[1]["dense"]).any()


def test_random_epochs_repeat_and_those_of_a_trace_go_on():
    random = MAKERS["random"](steps=3)
    assert_same(batches_of(random), batches_of(random))
    trace = MAKERS["trace"](steps=3)
    epochs = batches_of(trace) + batches_of(trace)
    rows = TraceRows(SPEC, TRACES)
    assert_same(epochs, [rows.batch(16) for _ in range(6)])


@both
def test_trains(make):
    model = tfdlrm.DLRM(SPEC, bottom_units=[8, 4], top_units=[8, 1])
    model.compile(keras.optimizers.legacy.SGD(0.1), loss="binary_crossentropy")
    dataset = make(steps=3, law=RowLaw(bags="variable", click_rate=0.2))
    model.evaluate(dataset, verbose=0)
    before = model.embedding.get_table("t1")
    history = model.fit(dataset, epochs=2, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    changed = (model.embedding.get_table("t1") != before).any(axis=1)
    assert changed.any()


def test_bad_arguments():
    for make in MAKERS.values():
        with pytest.raises(ConfigError, match="`batch_size` must be at least 1. Received: 0"):
            make(size=0)
        with pytest.raises(ConfigError, match="`steps` must be at least 0. Received: -1"):
            make(steps=-1)
        with pytest.raises(ConfigError, match="`seed` must be at least 0"):
            make(seed=-1)
    with pytest.raises(DataError, match="must be below the 5 rows of its table"):
        trace_dataset(make_spec(hotness=(1, 3), table_rows=5), 16, TRACES)

"""The input graph: every row once, in an order that (seed, epoch) alone decides, from any step on."""

from __future__ import annotations

import shutil
from itertools import islice

import numpy as np
import pytest
import tensorflow as tf

from tests.data.packed_samples import Sample, as_arrays, make_sample, make_spec
from tfdlrm.data.dataset import packed_dataset, steps_per_epoch
from tfdlrm.data.manifest import Manifest
from tfdlrm.spec.errors import ConfigError, DataError

ROWS = 1000


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """1000 rows in 20 blocks of at most 64 rows, 4 shards; nothing divides anything."""
    return make_sample(tmp_path_factory.mktemp("data"), rows=ROWS, block=64, shard=300, validation=10, test=0)


@pytest.fixture
def copy(sample, tmp_path):
    shutil.copytree(sample.directory, tmp_path / "copy")
    return tmp_path / "copy"


def batches(dataset) -> list[dict[str, np.ndarray]]:
    return [as_arrays(batch) for batch in dataset]


def row_numbers(found) -> np.ndarray:
    return np.concatenate([batch["dense"][:, 0] for batch in found]).astype(int)


def assert_same(found, expected):
    assert len(found) == len(expected)
    for x, y in zip(found, expected, strict=True):
        assert list(x) == list(y)
        for name in x:
            assert x[name].dtype == y[name].dtype
            np.testing.assert_array_equal(x[name], y[name])


def assert_rows_of(sample: Sample, found):
    """Every column of every row belongs to the row its number names."""
    for batch in found:
        expected = sample.expected(batch["dense"][:, 0].astype(int))
        assert set(batch) == set(expected)
        for name, array in expected.items():
            assert batch[name].dtype == array.dtype
            np.testing.assert_array_equal(batch[name], array)


@pytest.mark.parametrize("batch_size", [1, 96, 1000, 3000])
def test_file_order(sample, batch_size):
    found = batches(packed_dataset(sample.directory, "train", batch_size))
    assert [len(batch["label"]) for batch in found[:-1]] == [batch_size] * (len(found) - 1)
    np.testing.assert_array_equal(row_numbers(found), np.arange(ROWS))
    assert_rows_of(sample, found)


@pytest.mark.parametrize(
    ("rows", "block", "shard", "batch_size", "window"),
    [
        (1000, 64, 300, 96, 3),
        (1000, 64, 300, 500, 2),  # a batch larger than a window
        (1000, 4096, 1 << 20, 96, 64),  # one block
        (50, 8, 3, 7, 4),  # shards smaller than a block
        (40, 1, 7, 16, 5),
        (1, 64, 64, 8, 64),
        (9000, 700, 4000, 128, 4),  # several batches a piece, several pieces a window
    ],
)
def test_shuffled_epochs_hold_every_row_once(tmp_path, rows, block, shard, batch_size, window):
    sample = make_sample(tmp_path, rows, block, shard)
    arguments = {"shuffle": True, "seed": 1, "epochs": 2, "shuffle_blocks": window}
    dataset = packed_dataset(tmp_path, "train", batch_size, **arguments)
    found = batches(dataset)
    steps = steps_per_epoch(sample.manifest, "train", batch_size)
    assert len(found) == 2 * steps == dataset.cardinality()
    sizes = [len(batch["label"]) for batch in found]
    assert sizes == 2 * ([batch_size] * (steps - 1) + [rows - batch_size * (steps - 1)])
    for epoch in (found[:steps], found[steps:]):
        np.testing.assert_array_equal(np.sort(row_numbers(epoch)), np.arange(rows))
    assert_rows_of(sample, found)


def test_the_last_short_batch_can_be_dropped(sample):
    dataset = packed_dataset(sample.directory, "train", 96, shuffle=True, epochs=2, drop_remainder=True)
    whole = packed_dataset(sample.directory, "train", 96, shuffle=True, epochs=2)
    found, whole = batches(dataset), batches(whole)
    assert len(found) == 20 == dataset.cardinality()
    assert_same(found, whole[:10] + whole[11:21])


def test_static_shapes_and_dtypes(sample):
    spec = packed_dataset(sample.directory, "train", 96).element_spec
    assert spec == (
        {"dense": tf.TensorSpec([None, 2]), "sparse": tf.TensorSpec([None, 4], tf.int32)},
        tf.TensorSpec([None, 1]),
    )
    features, label = packed_dataset(sample.directory, "train", 96, drop_remainder=True).element_spec
    assert features["dense"].shape == [96, 2] and features["sparse"].shape == [96, 4] and label.shape == [96, 1]


def test_weights_wide_ids_and_sample_weights(tmp_path):
    spec = make_spec(table_rows=2**31 + 5, weighted=True)
    sample = make_sample(tmp_path, 200, 32, 150, spec, sample_weight=True)
    dataset = packed_dataset(tmp_path, "train", 64, shuffle=True, shuffle_blocks=2)
    features, label, sample_weight = dataset.element_spec
    assert list(features) == ["dense", "sparse", "weights"]
    assert features["sparse"].dtype == tf.int64
    assert features["weights"].shape.as_list() == [None, 4]
    assert label.shape.as_list() == sample_weight.shape.as_list() == [None, 1]
    found = batches(dataset)
    np.testing.assert_array_equal(np.sort(row_numbers(found)), np.arange(200))
    assert_rows_of(sample, found)


@pytest.mark.parametrize("spec", [make_spec(dense=0), make_spec(hotness=())], ids=["no dense", "no sparse"])
def test_one_kind_of_feature_may_be_missing(tmp_path, spec):
    sample = make_sample(tmp_path, 100, 16, 50, spec)
    expected = [sample.expected(slice(0, 60)), sample.expected(slice(60, 100))]
    assert_same(batches(packed_dataset(tmp_path, "train", 60)), expected)
    found = batches(packed_dataset(tmp_path, "train", 60, shuffle=True))
    key = "sparse" if spec.n_ids else "dense"
    both = np.concatenate([batch[key] for batch in found])
    np.testing.assert_array_equal(np.sort(both[:, 0]), np.sort(sample.arrays[key][:, 0]))


def test_the_order_depends_on_seed_and_epoch_alone(sample):
    def order(**arguments):
        dataset = packed_dataset(sample.directory, "train", 96, shuffle=True, shuffle_blocks=5, **arguments)
        return row_numbers(batches(dataset))

    first = order(seed=7, epochs=3)
    np.testing.assert_array_equal(first, order(seed=7, epochs=3))
    epochs = [tuple(first[i * ROWS : (i + 1) * ROWS]) for i in range(3)]
    assert len({*epochs, tuple(order(seed=8)), tuple(order(seed=2**62))}) == 5
    # However the batches are cut.
    small = packed_dataset(sample.directory, "train", 5, shuffle=True, shuffle_blocks=5, seed=7)
    np.testing.assert_array_equal(row_numbers(batches(small)), epochs[0])


def test_the_order_is_this_one(tmp_path):
    """Written down, because a checkpoint of an older version goes on in the order its run began with."""
    make_sample(tmp_path, rows=12, block=4, shard=8)
    found = batches(packed_dataset(tmp_path, "train", 5, shuffle=True, seed=1, epochs=2, shuffle_blocks=2))
    expected = [0, 2, 7, 6, 5, 3, 4, 1, 8, 11, 10, 9] + [10, 6, 8, 5, 7, 9, 4, 11, 2, 1, 0, 3]
    assert list(row_numbers(found)) == expected


def test_reading_again_gives_the_same(sample):
    dataset = packed_dataset(sample.directory, "train", 96, shuffle=True, seed=3)
    assert_same(batches(dataset), batches(dataset))


@pytest.mark.parametrize(("shuffle", "batch_size"), [(True, 96), (True, 300), (False, 96)])
def test_any_start_yields_the_tail(sample, shuffle, batch_size):
    arguments = {"shuffle": shuffle, "seed": 5, "epochs": 3, "shuffle_blocks": 3}
    whole = batches(packed_dataset(sample.directory, "train", batch_size, **arguments))
    steps = steps_per_epoch(sample.manifest, "train", batch_size)
    for epoch, step in [(0, 1), (1, 0), (1, 3), (2, steps - 1), (1, steps), (3, 0)]:
        tail = packed_dataset(sample.directory, "train", batch_size, start_epoch=epoch, start_step=step, **arguments)
        expected = whole[epoch * steps + step :]
        assert tail.cardinality() == len(expected)
        assert_same(batches(tail), expected)


def test_endless_epochs_start_anywhere(sample):
    arguments = {"shuffle": True, "seed": 5, "shuffle_blocks": 3}
    whole = batches(packed_dataset(sample.directory, "train", 300, epochs=40, **arguments))
    endless = packed_dataset(sample.directory, "train", 300, epochs=None, start_epoch=30, start_step=2, **arguments)
    assert endless.cardinality() == tf.data.INFINITE_CARDINALITY
    assert_same([as_arrays(batch) for batch in islice(endless, 20)], whole[30 * 4 + 2 :][:20])


def test_what_comes_before_the_start_is_not_read(copy):
    """Blocks of the first window are damaged: beginning behind them must not notice."""
    shard = copy / "train-00000.tfrecord"
    content = bytearray(shard.read_bytes())
    content[100] ^= 1
    shard.write_bytes(content)
    np.testing.assert_array_equal(
        row_numbers(batches(packed_dataset(copy, "train", 100, start_step=5))), np.arange(500, ROWS)
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="train-00000.tfrecord"):
        batches(packed_dataset(copy, "train", 100))


def test_rows_are_well_mixed(tmp_path):
    rows = 20_000
    make_sample(tmp_path, rows, block=100, shard=5000)
    dataset = packed_dataset(tmp_path, "train", 1000, shuffle=True, seed=1, epochs=2, shuffle_blocks=20)
    order = row_numbers(batches(dataset))
    first, second = order[:rows], order[rows:]
    for a, b in ((first, np.arange(rows)), (second, np.arange(rows)), (first, second)):
        # Windows move together, so a correlation is as uncertain as one of 200 independent blocks: 4 sigma.
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(200)
    # Neighbours come from one block about once in 20 blocks, not always; a random order of rows within the window
    # goes up as often as down.
    window = first[:2000]
    assert np.mean(window[1:] // 100 == window[:-1] // 100) < 0.1
    assert abs(np.mean(window[1:] > window[:-1]) - 0.5) < 0.05
    # The rows of every window and of every epoch lie differently within their blocks.
    places = [tuple(np.argsort(order[i : i + 2000] % 100, kind="stable")) for i in range(0, 2 * rows, 2000)]
    assert len(set(places)) == 20


def test_each_permutation_is_equally_likely(tmp_path):
    """Three rows, one block: 600 epochs deal out the 6 orders evenly (chi-square, 5 degrees of freedom)."""
    make_sample(tmp_path, rows=3)
    dataset = packed_dataset(tmp_path, "train", 3, shuffle=True, seed=0, epochs=600)
    orders = [tuple(batch["dense"][:, 0]) for batch in batches(dataset)]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6
    assert np.sum((counts - 100) ** 2 / 100) < 20.5  # p = 0.001


@pytest.mark.parametrize("arguments", [{}, {"shuffle": True, "epochs": None}, {"epochs": None, "drop_remainder": True}])
def test_a_split_without_a_batch_is_an_empty_dataset(sample, arguments):
    dataset = packed_dataset(sample.directory, "test", 96, **arguments)
    assert dataset.cardinality() == 0
    assert dataset.element_spec[0]["dense"].shape.as_list()[1] == 2
    assert batches(dataset) == []
    if "drop_remainder" in arguments:
        assert batches(packed_dataset(sample.directory, "validation", 96, **arguments)) == []


def test_steps_per_epoch(sample):
    steps = [steps_per_epoch(sample.manifest, "train", size) for size in (1, 333, 334, 1000, 1001)]
    assert steps == [1000, 4, 3, 1, 1]
    steps = [steps_per_epoch(sample.manifest, "train", size, drop_remainder=True) for size in (1, 333, 334, 1001)]
    assert steps == [1000, 3, 2, 0]
    assert steps_per_epoch(sample.manifest, "test", 10) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1. Received: 0"),
        ({"seed": -1}, "`seed` must be from 0"),
        ({"shuffle_blocks": 0}, "`shuffle_blocks` must be at least 1. Received: 0"),
        ({"epochs": -1}, "`epochs` must be at least 0. Received: -1"),
        ({"epochs": 2, "start_epoch": 3}, "`start_epoch` must be from 0 to 2. Received: 3"),
        ({"start_epoch": -1}, "`start_epoch` must be"),
        ({"start_step": 12}, "`start_step` must be from 0 to 11. Received: 12"),
        ({"start_step": 11, "drop_remainder": True}, "`start_step` must be from 0 to 10. Received: 11"),
    ],
)
def test_numbers_out_of_range_are_refused(sample, arguments, message):
    with pytest.raises(ConfigError, match=message):
        packed_dataset(sample.directory, "train", **{"batch_size": 96, **arguments})


def test_bad_data_sets_are_refused(sample, copy, tmp_path):
    with pytest.raises(DataError, match="not a prepared data set"):
        packed_dataset(tmp_path, "train", 96)
    with pytest.raises(DataError, match="Did you mean `train`"):
        packed_dataset(copy, "trainn", 96)
    shard = copy / "train-00003.tfrecord"
    content = shard.read_bytes()
    for kept in (0, 1, 12, 100, len(content) - 1):
        shard.write_bytes(content[:kept])
        with pytest.raises(DataError, match=r"train-00003.tfrecord: must hold \d+ bytes"):
            packed_dataset(copy, "train", 96)
    shard.unlink()
    with pytest.raises(DataError, match="train-00003.tfrecord: manifest.json names this shard"):
        packed_dataset(copy, "train", 96, manifest=sample.manifest)
    shard.write_bytes(content)
    (copy / "train-00004.tfrecord").write_bytes(content)
    with pytest.raises(DataError, match="train-00004.tfrecord: a shard that manifest.json does not name"):
        packed_dataset(copy, "train", 96)


def flip(content: bytes, position: int) -> bytes:
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content, offset: flip(content, offset + 3),  # length
        lambda content, offset: flip(content, offset + 9),  # checksum of the length
        lambda content, offset: flip(content, offset + 200),  # payload
        lambda content, offset: content[: offset + 5],
        lambda content, offset: content[: offset + 200],
        lambda content, offset: None,
    ],
    ids=["length", "length crc", "payload", "cut in header", "cut in payload", "removed"],
)
def test_damage_found_while_reading_names_the_file(copy, damage):
    """After the data set was opened, so that no check of sizes helps."""
    dataset = packed_dataset(copy, "train", 96, shuffle=True)
    shard = copy / "train-00001.tfrecord"
    offset = Manifest.load(copy).splits["train"].shards[1].blocks[0].length
    content = damage(shard.read_bytes(), offset)
    if content is None:
        shard.unlink()
    else:
        shard.write_bytes(content)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"train-00001.tfrecord: block \d+ at byte \d+ cannot be read"
    ):
        batches(dataset)


def test_a_whole_shard_of_another_data_set_is_refused(copy, tmp_path):
    """Its size and checksums are right; its rows are not those of the manifest."""
    spec = make_spec()
    other = make_sample(tmp_path / "other", rows=1001, block=64, shard=300, spec=spec)
    shutil.copy(other.directory / "train-00002.tfrecord", copy / "train-00002.tfrecord")
    dataset = packed_dataset(copy, "train", 96)
    with pytest.raises(tf.errors.InvalidArgumentError, match="train-00002.tfrecord: block 0 at byte 0"):
        batches(dataset)


def graph_of(dataset) -> tf.compat.v1.GraphDef:
    graph = tf.raw_ops.DatasetToGraphV2(input_dataset=tf.data.experimental.to_variant(dataset))
    return tf.compat.v1.GraphDef.FromString(graph.numpy())


def test_the_graph_holds_no_python(sample):
    graph = graph_of(packed_dataset(sample.directory, "train", 96, shuffle=True, epochs=None))
    ops = {node.op for node in graph.node} | {node.op for f in graph.library.function for node in f.node_def}
    assert {"TFRecordDatasetV2", "ParseExampleV2", "GatherV2", "Fingerprint", "Assert"} <= ops
    assert not {op for op in ops if "Py" in op or "Generator" in op}


def test_it_runs_on_a_tf_data_worker(sample):
    """The serialised graph, in the process's own tf.data service."""
    dispatcher = tf.data.experimental.service.DispatchServer()
    worker = tf.data.experimental.service.WorkerServer(
        tf.data.experimental.service.WorkerConfig(dispatcher_address=dispatcher.target.split("://")[1])
    )
    dataset = packed_dataset(sample.directory, "train", 96, shuffle=True, seed=2, start_step=4)
    remote = dataset.apply(
        tf.data.experimental.service.distribute(processing_mode="parallel_epochs", service=dispatcher.target)
    )
    assert_same(batches(remote), batches(dataset))
    del worker


def test_inside_a_tf_function(sample):
    dataset = packed_dataset(sample.directory, "train", 96, shuffle=True)

    @tf.function
    def total():
        return dataset.reduce(0.0, lambda state, batch: state + tf.reduce_sum(batch[1]))

    assert total().numpy() == sample.arrays["label"].sum()

"""Packed shards are ordinary TFRecord files, the same bits for the same rows, and never half there."""

from __future__ import annotations

import resource
import signal
import struct
import textwrap

import numpy as np
import pytest
import tensorflow as tf

from tests.data.packed_samples import make_arrays, make_sample, make_spec
from tfdlrm.data.packed import PackedWriter
from tfdlrm.spec.errors import ConfigError, DataError


def read_records(sample, split="train"):
    """Decode shards with the plain TFRecord reader and the protocol buffer, sharing no code with the package."""
    files = sorted(str(path) for path in sample.directory.glob(f"{split}-*.tfrecord"))
    rows = {name: [] for name in sample.arrays}
    for record in tf.data.TFRecordDataset(files).as_numpy_iterator():
        feature = tf.train.Example.FromString(record).features.feature
        assert set(feature) == set(sample.arrays)
        for name, array in sample.arrays.items():
            (content,) = feature[name].bytes_list.value
            rows[name].append(np.frombuffer(content, array.dtype.newbyteorder("<")).reshape(-1, array.shape[1]))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


@pytest.mark.parametrize(("block", "shard"), [(64, 300), (7, 3), (1, 1000), (4096, 1 << 20), (250, 250)])
def test_any_tfrecord_reader_gives_the_rows_back(tmp_path, block, shard):
    sample = make_sample(tmp_path, rows=500, block=block, shard=shard)
    rows = read_records(sample)
    for name, array in sample.arrays.items():
        np.testing.assert_array_equal(rows[name], array)
    assert {s.rows for s in sample.manifest.splits["train"].shards[:-1]} <= {shard}


def test_all_columns(tmp_path):
    spec = make_spec(table_rows=2**31 + 5, weighted=True)
    sample = make_sample(tmp_path, rows=100, block=30, spec=spec, sample_weight=True)
    assert sample.arrays["sparse"].dtype == np.int64 == np.dtype(spec.id_dtype)
    assert set(sample.arrays) == {"dense", "sparse", "label", "weights", "sample_weight"}
    rows = read_records(sample)
    for name, array in sample.arrays.items():
        np.testing.assert_array_equal(rows[name], array)


def test_the_index_agrees_with_the_framing(tmp_path):
    sample = make_sample(tmp_path, rows=500, block=64, shard=300)
    for shard in sample.manifest.splits["train"].shards:
        content, offset = (tmp_path / shard.file).read_bytes(), 0
        for block in shard.blocks:
            (payload_length,) = struct.unpack_from("<Q", content, offset)
            assert block.length == 8 + 4 + payload_length + 4
            payload = content[offset + 12 : offset + 12 + payload_length]
            assert block.fingerprint == tf.fingerprint([payload]).numpy().tobytes().hex()
            offset += block.length
        assert offset == len(content) == shard.bytes


def test_equal_rows_make_equal_files(tmp_path):
    """However the rows are handed over."""
    spec = make_spec()
    arrays = make_arrays(spec, 500, sample_weight=False)
    infos = []
    for name, step in (("a", 500), ("b", 1), ("c", 64)):
        with PackedWriter(tmp_path / name, "train", spec, 64, 300) as writer:
            for start in range(0, 500, step):
                writer.add(**{key: array[start : start + step] for key, array in arrays.items()})
        infos.append(writer.close())
    assert infos[0] == infos[1] == infos[2]


def test_lists_and_other_dtypes_are_taken(tmp_path):
    spec = make_spec(dense=1, hotness=(1,))
    with PackedWriter(tmp_path, "train", spec) as writer:
        writer.add([[1.5]], [[3]], [1])
        writer.add(np.array([[2.5]]), np.array([[4]], np.uint8), np.array([False]))
        writer.add(np.zeros([0, 1]), np.zeros([0, 1], int), np.zeros([0]))
    assert (writer.close().rows, writer.close().positives) == (2, 1)


def test_an_empty_split_has_no_shard(tmp_path):
    with PackedWriter(tmp_path, "test", make_spec()) as writer:
        pass
    assert writer.close().rows == 0 and writer.close().shards == ()
    assert list(tmp_path.iterdir()) == []


GOOD = {"dense": np.zeros([4, 2]), "sparse": np.zeros([4, 4], int), "label": np.zeros(4)}


def changed(name, row, column, value):
    array = np.array(GOOD[name]).reshape(4, -1)
    array[row, column] = value
    return GOOD | {name: array}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (changed("sparse", 2, 0, 1000), r"`sparse` of feature `c0` must hold -1 or ids below .*1000 in row 6 of train"),
        (changed("sparse", 1, 3, -2), r"`sparse` of feature `c1` must .*Received: -2 in row 5 of train"),
        (changed("dense", 3, 1, np.nan), r"`dense` of feature `n1` must be finite. Received: nan in row 7 of train"),
        (changed("dense", 0, 0, np.inf), r"`dense` of feature `n0` must be finite. Received: inf in row 4 of train"),
        (changed("label", 1, 0, np.nan), r"`label` must be finite"),
        (changed("label", 1, 0, 2), r"`label` must lie between 0 and 1. Received: 2.0 in row 5 of train"),
        (GOOD | {"sparse": np.zeros([4, 4])}, r"`sparse` must hold integers. Received: float64"),
        (GOOD | {"sparse": np.zeros([4, 3], int)}, r"`sparse` must have shape \[rows, 4\]. Received: \[4, 3\]"),
        (GOOD | {"dense": np.zeros(4)}, r"`dense` must have shape \[rows, 2\]. Received: \[4\]"),
        (GOOD | {"label": np.zeros(3)}, r"same number of rows. Received: .*'label': 3"),
        (GOOD | {"weights": np.zeros([4, 4])}, r"`weights` must not be given"),
        (GOOD | {"sample_weight": np.zeros(4)}, r"`sample_weight` must not be given"),
    ],
)
def test_bad_rows_are_refused_by_name(tmp_path, rows, message):
    with PackedWriter(tmp_path, "train", make_spec()) as writer:
        writer.add(**GOOD)
        with pytest.raises(DataError, match=message):
            writer.add(**rows)
    assert writer.close().rows == 4


def test_missing_and_negative_weights_are_refused(tmp_path):
    writer = PackedWriter(tmp_path, "train", make_spec(weighted=True), sample_weight=True)
    weights = np.zeros([4, 4])
    with pytest.raises(DataError, match="`weights` must be given"):
        writer.add(**GOOD, sample_weight=np.ones(4))
    with pytest.raises(DataError, match="`sample_weight` must be given"):
        writer.add(**GOOD, weights=weights)
    with pytest.raises(DataError, match="`sample_weight` must not be negative"):
        writer.add(**GOOD, weights=weights, sample_weight=-np.ones(4))
    with pytest.raises(DataError, match="`weights` of feature `c1` must be finite"):
        writer.add(**GOOD, weights=weights + [0, 0, np.nan, 0], sample_weight=np.ones(4))
    writer.abort()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rows_per_block": 0}, "`rows_per_block` must be at least 1. Received: 0"),
        ({"rows_per_shard": -1}, "`rows_per_shard` must be at least 1. Received: -1"),
        ({"rows_per_block": 10**9, "rows_per_shard": 10**9}, r"`rows_per_block` must be at most \d+ for rows of 28"),
    ],
)
def test_sizes_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        PackedWriter(tmp_path, "train", make_spec(), **arguments)


@pytest.mark.parametrize("split", ["", "Train", "a-b", "../x"])
def test_a_split_name_is_a_word(tmp_path, split):
    with pytest.raises(DataError, match="`split` must be a lower-case word"):
        PackedWriter(tmp_path, split, make_spec())


def test_nothing_has_a_final_name_before_close(tmp_path):
    writer = PackedWriter(tmp_path, "train", make_spec(), rows_per_block=2, rows_per_shard=4)
    for _ in range(5):
        writer.add(**GOOD)
        assert list(tmp_path.glob("*.tfrecord")) == []
    assert len(writer.close().shards) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"train-0000{i}.tfrecord" for i in range(5)]


def test_an_error_or_abort_leaves_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError),
        PackedWriter(tmp_path, "train", make_spec(), rows_per_block=2, rows_per_shard=4) as writer,
    ):
        writer.add(**GOOD)
        writer.add(**GOOD)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="`close` must not follow `abort`"):
        writer.close()
    with pytest.raises(ValueError, match="`add` must come before"):
        writer.add(**GOOD)


def test_abort_after_close_keeps_the_shards(tmp_path):
    sample = make_sample(tmp_path)
    writer = PackedWriter(tmp_path / "other", "train", make_spec())
    writer.add(**GOOD)
    writer.close()
    writer.abort()
    assert (tmp_path / "other" / "train-00000.tfrecord").exists()
    sample.manifest.check(tmp_path)


def test_a_new_writer_voids_the_old_data_set(tmp_path):
    sample = make_sample(tmp_path, validation=100)
    PackedWriter(tmp_path, "train", make_spec()).abort()
    assert not (tmp_path / "manifest.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["validation-00000.tfrecord"]
    with pytest.raises(DataError, match="train-00000.tfrecord"):
        sample.manifest.check(tmp_path)


def test_a_full_disk_leaves_nothing(tmp_path):
    """A limit on the size of files fails a write as a full disk does."""
    arrays = make_arrays(make_spec(), 5000, sample_weight=False)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = PackedWriter(tmp_path, "train", make_spec(), rows_per_block=512)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises((tf.errors.OpError, OSError)), writer:
            writer.add(**arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_writer_leaves_no_final_name(forks, tmp_path):
    script = textwrap.dedent(
        """
        import sys
        from tests.data.packed_samples import make_arrays, make_spec
        from tfdlrm.data.packed import PackedWriter
        arrays = make_arrays(make_spec(), 100, False)
        writer = PackedWriter(sys.argv[1], "train", make_spec(), rows_per_block=32, rows_per_shard=500)
        while True:
            writer.add(**arrays)
            print("added", flush=True)
        """
    )
    process = forks.start("-c", script, tmp_path)
    while process.output.count("added") < 60:
        assert process.poll() is None, process.output
    process.kill()
    assert process.wait() == -signal.SIGKILL
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) > 5 and all(name.endswith(".tmp") for name in left)

    sample = make_sample(tmp_path, rows=200)
    sample.manifest.verify(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "train-00000.tfrecord"]

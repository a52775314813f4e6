import numpy as np
import pytest
import tensorflow as tf

from tests.data.packed_samples import as_arrays, make_arrays, make_encoding, make_spec
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.examples import ExampleWriter, example_dataset
from tfdlrm.data.manifest import Manifest
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import DenseFeature, FeatureSpec


def write(directory, rows=100, spec=None, sample_weight=False):
    spec = make_spec() if spec is None else spec
    arrays = make_arrays(spec, rows, sample_weight)
    with ExampleWriter(directory, "train", spec, 16, 40, sample_weight) as writer:
        writer.add(**arrays)
    manifest = Manifest(
        format="example",
        spec=spec,
        encoding=make_encoding(spec),
        splits={"train": writer.close()},
        has_sample_weight=sample_weight,
    )
    manifest.save(directory)
    return arrays, manifest


def read(dataset):
    batches = [as_arrays(batch) for batch in dataset]
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_come_back_as_they_were_written(tmp_path, weighted):
    arrays, manifest = write(tmp_path, spec=make_spec(weighted=weighted), sample_weight=weighted)
    manifest.verify(tmp_path)
    rows = read(example_dataset(tmp_path, "train", 32))
    assert set(rows) == set(arrays)
    for name, expected in arrays.items():
        assert rows[name].dtype == expected.dtype
        np.testing.assert_array_equal(rows[name], expected)


def test_an_example_names_its_features(tmp_path):
    arrays, _ = write(tmp_path)
    record = next(iter(tf.data.TFRecordDataset(str(tmp_path / "train-00001.tfrecord")))).numpy()
    feature = tf.train.Example.FromString(record).features.feature
    assert set(feature) == {"label", "n0", "n1", "c0", "c1"}
    assert list(feature["c1"].int64_list.value) == arrays["sparse"][40, 1:4].tolist()
    assert feature["n0"].float_list.value[0] == 40.0
    assert feature["label"].float_list.value[0] == arrays["label"][40, 0]


def test_shuffled_epochs_are_permutations_that_depend_on_seed_and_epoch(tmp_path):
    write(tmp_path)

    def order(**options):
        return read(example_dataset(tmp_path, "train", 30, shuffle=True, window_rows=64, **options))["dense"][:, 0]

    first = order(seed=1)
    assert sorted(first) == list(range(100))
    assert list(first) != sorted(first)
    np.testing.assert_array_equal(order(seed=1), first)
    assert list(order(seed=2)) != list(first)
    both = order(seed=1, epochs=2)
    np.testing.assert_array_equal(both[:100], first)
    np.testing.assert_array_equal(order(seed=1, start_epoch=1, epochs=2), both[100:])
    assert sorted(both[100:]) == list(range(100))
    assert list(both[100:]) != list(first)


def test_batches_and_cardinality(tmp_path):
    write(tmp_path)
    sizes = [len(batch[1]) for batch in example_dataset(tmp_path, "train", 32)]
    assert sizes == [32, 32, 32, 4]
    dropping = example_dataset(tmp_path, "train", 32, epochs=2, drop_remainder=True)
    assert dropping.cardinality() == 6
    assert [len(batch[1]) for batch in dropping] == [32] * 6


def test_spec_without_numbers(tmp_path):
    arrays, _ = write(tmp_path, spec=make_spec(dense=0))
    rows = read(example_dataset(tmp_path, "train", 64))
    assert rows["dense"].shape == (100, 0)
    np.testing.assert_array_equal(rows["sparse"], arrays["sparse"])


def test_readers_refuse_the_other_format(tmp_path):
    write(tmp_path)
    with pytest.raises(DataError, match='must be "packed" for this reader. Received: "example"'):
        packed_dataset(tmp_path, "train", 8)


def test_a_cut_shard_is_refused(tmp_path):
    write(tmp_path)
    shard = tmp_path / "train-00000.tfrecord"
    shard.write_bytes(shard.read_bytes()[:-200])
    with pytest.raises(DataError, match="cut short or replaced"):
        example_dataset(tmp_path, "train", 8)


def test_bad_arguments(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match="`window_rows` must be at least 1. Received: 0"):
        example_dataset(tmp_path, "train", 8, window_rows=0)
    with pytest.raises(ConfigError, match="`batch_size` must be at least 1"):
        example_dataset(tmp_path, "train", 0)
    spec = FeatureSpec(dense=[DenseFeature(name="label")])
    with pytest.raises(DataError, match="keys of an example must be unique. Received twice: label"):
        ExampleWriter(tmp_path / "other", "train", spec)

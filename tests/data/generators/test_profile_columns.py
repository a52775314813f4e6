import numpy as np
import pytest

from tests.data.generators.test_stack_profile import searched
from tests.data.packed_samples import make_sample, make_spec
from tfdlrm.data.generators.profile_columns import profile_columns
from tfdlrm.data.generators.random_rows import RandomRows
from tfdlrm.data.generators.write import write_prepared
from tfdlrm.spec.errors import ConfigError, DataError


def expected_of(bags):
    ids = [value for bag in bags.tolist() for value in bag if value >= 0]
    distances = searched(ids)
    values, counts = np.unique(distances, return_counts=True)
    return list(dict.fromkeys(ids)), values.tolist(), (np.cumsum(counts) / len(ids)).tolist()


def parts_of(distances):
    return distances.ids.tolist(), distances.values.tolist(), distances.cumulative.tolist()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("data"), rows=700, spec=make_spec(table_rows=60), test=100)


def test_every_column_of_a_packed_data_set(sample):
    done = []
    profiles = profile_columns(sample.directory, keep_ids=True, progress=done.append)
    assert list(profiles) == ["c0", "c1"]
    assert parts_of(profiles["c0"]) == expected_of(sample.arrays["sparse"][:, :1])
    assert parts_of(profiles["c1"]) == expected_of(sample.arrays["sparse"][:, 1:])
    assert sum(done) == 700


def test_ids_are_hidden_unless_asked_for(sample):
    (hidden,) = profile_columns(sample.directory, ["c1"]).values()
    ids, values, shares = expected_of(sample.arrays["sparse"][:, 1:])
    assert parts_of(hidden) == (list(range(len(ids))), values, shares)


def test_split_and_rows(sample):
    (distances,) = profile_columns(sample.directory, ["c0"], split="test", rows=41, keep_ids=True).values()
    assert parts_of(distances) == expected_of(sample.arrays["sparse"][:41, :1])


def test_examples_and_more_rows_than_are_read_at_a_time(tmp_path):
    spec = make_spec(dense=0, hotness=(1,), table_rows=5)
    rows = RandomRows(spec)
    write_prepared(tmp_path / "packed", spec, {"train": rows.batches(140_000)}, {})
    (distances,) = profile_columns(tmp_path / "packed", keep_ids=True).values()
    sparse = np.concatenate([batch["sparse"] for batch in rows.batches(140_000)])
    assert parts_of(distances) == expected_of(sparse)
    write_prepared(tmp_path / "example", spec, {"train": rows.batches(500)}, {}, "example")
    (distances,) = profile_columns(tmp_path / "example", keep_ids=True).values()
    assert parts_of(distances) == expected_of(sparse[:500])


def test_bad_arguments(sample, tmp_path):
    with pytest.raises(DataError, match="must be sparse features of .*Received: `c11`. Did you mean `c1`?"):
        profile_columns(sample.directory, ["c11"])
    with pytest.raises(DataError, match="`split` must be one of train, test. Received: `tset`. Did you mean `test`?"):
        profile_columns(sample.directory, split="tset")
    with pytest.raises(ConfigError, match="`rows` must be at least 1"):
        profile_columns(sample.directory, rows=0)
    with pytest.raises(DataError, match="not a prepared data set"):
        profile_columns(tmp_path)


def test_a_column_without_ids(tmp_path):
    spec = make_spec(dense=0, hotness=(1,))
    empty = {"dense": np.zeros((3, 0)), "sparse": np.full((3, 1), -1), "label": np.zeros(3)}
    write_prepared(tmp_path, spec, {"train": [empty]}, {})
    with pytest.raises(DataError, match="feature `c0` of split `train` has no id to profile"):
        profile_columns(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
    spec = make_spec(dense=0, hotness=(1,))
    manifest = write_prepared(tmp_path, spec, {"train": RandomRows(spec).batches(500)}, {})
    shard = tmp_path / manifest.splits["train"].shards[0].file
    shard.write_bytes(shard.read_bytes()[:-5])
    with pytest.raises(DataError, match=shard.name):
        profile_columns(tmp_path)

"""The manifest says what a data set holds, and refuses files that disagree."""

from __future__ import annotations

import json
import shutil

import pytest

from tests.data.packed_samples import make_encoding, make_sample, make_spec
from tfdlrm.data.manifest import BlockInfo, Manifest, ShardInfo, SplitInfo
from tfdlrm.spec.errors import DataError, SpecError


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("whole"), rows=1000, block=64, shard=300, validation=100, test=0)


@pytest.fixture
def sample(whole, tmp_path):
    directory = tmp_path / "copy"
    shutil.copytree(whole.directory, directory)
    return directory


def test_it_comes_back_as_it_was_saved(whole):
    loaded = Manifest.load(whole.directory)
    assert loaded == whole.manifest
    assert loaded.recipe == {"rows": 1000}
    assert isinstance(loaded.splits["train"].shards[0].blocks[0], BlockInfo)


def test_it_names_rows_bytes_and_checksums(whole):
    train = whole.manifest.splits["train"]
    assert train.rows == 1000
    assert train.positives == int(whole.arrays["label"].sum())
    assert [shard.file for shard in train.shards] == [f"train-0000{i}.tfrecord" for i in range(4)]
    assert [shard.rows for shard in train.shards] == [300, 300, 300, 100]
    assert [block.rows for block in train.shards[0].blocks] == [64, 64, 64, 64, 44]
    assert [shard.bytes for shard in train.shards] == [
        (whole.directory / shard.file).stat().st_size for shard in train.shards
    ]
    assert whole.manifest.splits["test"] == SplitInfo(rows=0, positives=0)


def test_check_and_verify_accept_whole_files(whole):
    done = []
    whole.manifest.check(whole.directory)
    whole.manifest.verify(whole.directory, done.append)
    assert sum(done) == 1100


@pytest.mark.parametrize("kept", [0, 1, 11, 12, 13, 1000, -1])
def test_a_cut_shard_is_refused(sample, kept):
    shard = sample / "train-00001.tfrecord"
    content = shard.read_bytes()
    shard.write_bytes(content[:kept])
    with pytest.raises(DataError, match=r"train-00001.tfrecord: must hold \d+ bytes.*Received: \d+ \(cut short"):
        Manifest.load(sample).check(sample)


def test_a_shard_cut_between_records_is_refused(sample):
    manifest = Manifest.load(sample)
    shard = sample / "train-00001.tfrecord"
    boundary = manifest.splits["train"].shards[1].blocks[0].length
    shard.write_bytes(shard.read_bytes()[:boundary])
    with pytest.raises(DataError, match="train-00001.tfrecord: must hold"):
        manifest.check(sample)


def test_a_missing_shard_is_refused(sample):
    (sample / "validation-00000.tfrecord").unlink()
    with pytest.raises(DataError, match="validation-00000.tfrecord: manifest.json names this shard, but: No such file"):
        Manifest.load(sample).check(sample)


def test_a_shard_that_is_not_named_is_refused(sample):
    shutil.copy(sample / "train-00000.tfrecord", sample / "train-00004.tfrecord")
    with pytest.raises(DataError, match=r"train-00004.tfrecord: a shard that manifest.json does not name \(1 such\)"):
        Manifest.load(sample).check(sample)


def test_verify_finds_one_flipped_bit(sample):
    shard = sample / "train-00002.tfrecord"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    manifest = Manifest.load(sample)
    manifest.check(sample)
    with pytest.raises(DataError, match="train-00002.tfrecord: damaged"):
        manifest.verify(sample)


def test_an_unknown_split_suggests_the_nearest(whole):
    with pytest.raises(DataError, match=r"`split` must be one of .*Received: `trian`. Did you mean `train`\?"):
        whole.manifest.split("trian")


@pytest.mark.parametrize("make", [lambda path: None, lambda path: path.mkdir(), lambda path: path.write_text("x")])
def test_a_folder_without_manifest_is_no_data_set(tmp_path, make):
    make(tmp_path / "data")
    with pytest.raises(DataError, match=r"data: not a prepared data set \(no manifest.json\)"):
        Manifest.load(tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"version": 2}, "`version` must be 1; prepare the data again. Received: 2"),
        (lambda m: m | {"formt": "packed"}, "unknown key `formt`. Did you mean `format`?"),
        (lambda m: m | {"format": "csv"}, "`format`"),
        (lambda m: {k: v for k, v in m.items() if k != "spec"}, "`spec` must be given"),
        (lambda m: m["splits"]["train"].update(rows=999) or m, "`rows` must be the sum over the shards"),
        (lambda m: m["splits"]["train"]["shards"][0].update(bytes=5) or m, "`bytes` of shard"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="../x.tfrecord") or m, "file"),
        (lambda m: m["splits"]["train"]["shards"][0].update(file="train-00001.tfrecord") or m, "a name twice"),
        (lambda m: m["splits"]["train"]["shards"][0]["blocks"][0].__setitem__(2, "xyz") or m, "`fingerprint` in shard"),
    ],
)
def test_a_damaged_manifest_is_one_clear_line(sample, change, message):
    path = sample / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError) as caught:
        Manifest.load(sample)
    assert str(path) in str(caught.value)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b'{"version": 1', b"\xff\xfe"])
def test_half_a_manifest_is_refused(sample, content):
    (sample / "manifest.json").write_bytes(content)
    with pytest.raises(DataError, match="manifest.json"):
        Manifest.load(sample)


def test_an_index_must_add_up():
    block = BlockInfo(100, 5, "0" * 16)
    with pytest.raises(SpecError, match="`rows` of shard `a.tfrecord` must be the sum over its blocks"):
        ShardInfo(file="a.tfrecord", rows=4, bytes=100, sha256="0" * 64, blocks=(block,))
    shard = ShardInfo(file="a.tfrecord", rows=5, bytes=100, sha256="0" * 64, blocks=(block,))
    with pytest.raises(SpecError, match="Received: 5, 5 and 6"):
        SplitInfo(rows=5, positives=6, shards=(shard,))
    with pytest.raises(SpecError, match="each shard once"):
        split = SplitInfo(rows=5, positives=1, shards=(shard,))
        spec = make_spec()
        Manifest(spec=spec, encoding=make_encoding(spec), splits={"train": split, "test": split})

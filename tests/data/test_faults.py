"""Prepared data damaged in every way a disk or a copy can: every reader says which file, none reads less in silence."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from tests.data.packed_samples import make_sample, make_spec
from tests.data.test_blocks import make_examples
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.examples import example_dataset
from tfdlrm.data.inspection import inspect
from tfdlrm.data.manifest import Manifest
from tfdlrm.spec.errors import DataError, SpecError

ROWS, BLOCK, SHARD_ROWS = 300, 32, 100
SHARD = "train-00001.tfrecord"
OPEN = {"packed": packed_dataset, "example": example_dataset}


@pytest.fixture(scope="module")
def wholes(tmp_path_factory):
    """Return an undamaged data set of each format, three shards of 100 rows."""
    folders = {form: tmp_path_factory.mktemp(form) for form in OPEN}
    make_sample(folders["packed"], ROWS, BLOCK, SHARD_ROWS)
    make_examples(folders["example"], ROWS)
    return folders


@pytest.fixture(params=list(OPEN))
def form(request) -> str:
    return request.param


@pytest.fixture
def copy(wholes, form, tmp_path) -> Path:
    return Path(shutil.copytree(wholes[form], tmp_path / "copy"))


class Record(NamedTuple):
    """A record in the middle of a shard: where it begins, and the length of its payload."""

    start: int
    size: int

    @classmethod
    def of(cls, directory: Path) -> Record:
        """Return the first record of the second block of the second shard."""
        start = Manifest.load(directory).splits["train"].shards[1].blocks[0].length
        return cls(start, struct.unpack_from("<Q", (directory / SHARD).read_bytes(), start)[0])


CUTS: dict[str, Callable[[Record], int]] = {
    "to nothing": lambda record: 0,
    "in the first header": lambda record: 5,
    "between records": lambda record: record.start,
    "in the length": lambda record: record.start + 3,
    "in the checksum of the length": lambda record: record.start + 10,
    "after the header": lambda record: record.start + 12,
    "in the payload": lambda record: record.start + 12 + record.size // 2,
    "after the payload": lambda record: record.start + 12 + record.size,
    "in the footer": lambda record: record.start + 12 + record.size + 2,
}
FLIPS: dict[str, Callable[[Record], int]] = {
    "low byte of the length": lambda record: record.start,
    "high byte of the length": lambda record: record.start + 7,
    "checksum of the length": lambda record: record.start + 9,
    "first byte of the payload": lambda record: record.start + 12,
    "middle of the payload": lambda record: record.start + 12 + record.size // 2,
    "last byte of the payload": lambda record: record.start + 11 + record.size,
    "checksum of the payload": lambda record: record.start + 12 + record.size + 1,
}


def cut(directory: Path, place: Callable[[Record], int]) -> None:
    length = place(Record.of(directory))
    (directory / SHARD).write_bytes((directory / SHARD).read_bytes()[:length])


def flip(directory: Path, place: Callable[[Record], int]) -> None:
    position = place(Record.of(directory))
    content = bytearray((directory / SHARD).read_bytes())
    content[position] ^= 0x10
    (directory / SHARD).write_bytes(content)


def rows_of(dataset: tf.data.Dataset) -> int:
    return sum(len(label) for _, label in dataset)


@pytest.mark.parametrize("place", CUTS.values(), ids=CUTS)
def test_a_cut_shard_is_refused_before_any_row_is_read(copy, form, place):
    cut(copy, place)
    manifest = Manifest.load(copy)
    for read in (
        lambda: manifest.check(copy),
        lambda: manifest.verify(copy),
        lambda: OPEN[form](copy, "train", 64),
        lambda: inspect(copy),
    ):
        with pytest.raises(
            DataError, match=rf"/{SHARD}: must hold \d+ bytes, as manifest.json says. Received: \d+ \(cut"
        ):
            read()


@pytest.mark.parametrize("name", CUTS)
def test_a_shard_cut_while_it_is_in_use_is_found(copy, form, name):
    """The sizes were right when the data set was opened. Endless epochs have no end at which rows could be missed."""
    dataset = OPEN[form](copy, "train", 64, shuffle=name in ("between records", "in the payload"), epochs=None)
    cut(copy, CUTS[name])
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"/{SHARD}: .*manifest.json names"):
        rows_of(dataset.take(50))


@pytest.mark.parametrize("place", FLIPS.values(), ids=FLIPS)
def test_a_flipped_bit_is_found_by_whoever_reads(copy, form, place):
    flip(copy, place)
    Manifest.load(copy).check(copy)  # names and sizes are right
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"/{SHARD}: .*manifest.json names"):
        rows_of(OPEN[form](copy, "train", 64))
    with pytest.raises(DataError, match=rf"/{SHARD}: damaged: its SHA-256 is not the one in manifest.json"):
        Manifest.load(copy).verify(copy)


def test_a_shard_that_vanishes_is_named(copy, form):
    dataset = OPEN[form](copy, "train", 64)
    (copy / SHARD).unlink()
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"/{SHARD}: .*manifest.json names"):
        rows_of(dataset)
    for read in (lambda: OPEN[form](copy, "train", 64), lambda: inspect(copy)):
        with pytest.raises(DataError, match=rf"/{SHARD}: manifest.json names this shard, but: No such file"):
            read()


def test_an_extra_shard_is_named(copy, form):
    shutil.copy(copy / SHARD, copy / "train-00003.tfrecord")
    for read in (lambda: OPEN[form](copy, "train", 64), lambda: inspect(copy)):
        with pytest.raises(DataError, match=r"/train-00003.tfrecord: a shard that manifest.json does not name"):
            read()


def test_shards_that_changed_places_are_found(wholes, tmp_path):
    """Of equal size, each whole by its own checksums: only the manifest knows which is which."""
    copy = Path(shutil.copytree(wholes["packed"], tmp_path / "copy"))
    files = [copy / f"train-0000{i}.tfrecord" for i in (0, 1)]
    contents = [file.read_bytes() for file in files]
    assert len(contents[0]) == len(contents[1])
    for file, content in zip(files, reversed(contents), strict=True):
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"/train-00000.tfrecord: damaged"):
        Manifest.load(copy).verify(copy)
    with pytest.raises(DataError, match=r"/train-00000.tfrecord: block 0 at byte 0 is not the one"):
        inspect(copy)


def test_a_manifest_of_other_rows_is_refused(wholes, copy, form, tmp_path):
    """Of the same features and as many rows, so that names agree; sizes of examples, or checksums, do not."""
    other = tmp_path / "other"
    if form == "packed":
        make_sample(other, ROWS + 1, BLOCK, SHARD_ROWS)
    else:
        make_examples(other, ROWS + 1)
    for shard in copy.glob("*.tfrecord"):
        shutil.copy(shard, other / shard.name)
    with pytest.raises(DataError, match=r"/train-0000\d.tfrecord: "):
        inspect(other)
    with pytest.raises(DataError, match=r"/train-0000\d.tfrecord: "):
        Manifest.load(other).verify(other)


def test_a_manifest_of_other_features_is_refused(wholes, copy, form, tmp_path):
    """A reader would cut rows at the wrong places; a model is told which feature differs."""
    manifest = Manifest.load(copy)
    spec = make_spec(hotness=(1, 4))
    with pytest.raises(SpecError, match="`hotness` of sparse `c1` must be the same in the data set and the model"):
        manifest.spec.refuse_unless_equal(spec, "the data set", "the model")
    other = tmp_path / "other"
    if form == "packed":
        make_sample(other, ROWS, BLOCK, SHARD_ROWS, spec=spec)
    else:
        make_examples(other, ROWS, hotness=(1, 4))
    shutil.copy(other / "manifest.json", copy / "manifest.json")
    for read in (lambda: OPEN[form](copy, "train", 64), lambda: inspect(copy)):
        with pytest.raises(DataError, match=r"/train-00000.tfrecord: must hold \d+ bytes"):
            read()


def test_undamaged_rows_are_all_there(wholes, form):
    """So that none of the above passes for the wrong reason."""
    found = [f["dense"].numpy()[:, 0] for f, _ in OPEN[form](wholes[form], "train", 64)]
    np.testing.assert_array_equal(np.concatenate(found), np.arange(ROWS))

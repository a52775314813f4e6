"""Blocks read one at a time are the rows that were written, and damage to any byte that counts is found."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from tests.data.packed_samples import make_arrays, make_encoding, make_sample, make_spec
from tfdlrm.data.blocks import BlockReader, block_places
from tfdlrm.data.examples import ExampleWriter
from tfdlrm.data.manifest import Manifest
from tfdlrm.spec.errors import DataError

ROWS, BLOCK, SHARD = 300, 32, 100


def make_examples(directory: Path, rows: int = ROWS, **spec_arguments) -> dict[str, np.ndarray]:
    """Write a data set of one example per row; return its rows."""
    spec = make_spec(**spec_arguments)
    arrays = make_arrays(spec, rows, sample_weight=False)
    with ExampleWriter(directory, "train", spec, BLOCK, SHARD) as writer:
        writer.add(**arrays)
    splits = {"train": writer.close()}
    Manifest(format="example", spec=spec, encoding=make_encoding(spec), splits=splits).save(directory)
    return arrays


def write(form: str, directory: Path, **spec_arguments) -> dict[str, np.ndarray]:
    if form == "example":
        return make_examples(directory, **spec_arguments)
    return make_sample(directory, ROWS, BLOCK, SHARD, spec=make_spec(**spec_arguments)).arrays


@pytest.mark.parametrize("form", ["packed", "example"])
@pytest.mark.parametrize("arguments", [{"weighted": True}, {"dense": 0}, {"dense": 3, "hotness": ()}])
def test_blocks_in_any_order_are_the_rows_written(tmp_path, form, arguments):
    arrays = write(form, tmp_path, **arguments)
    manifest = Manifest.load(tmp_path)
    places = list(block_places(manifest, "train"))
    assert sum(place.info.rows for place in places) == ROWS and len(places) == 12
    reader = BlockReader(tmp_path, manifest)
    for place in reversed(places):
        rows = reader.read(place)
        assert rows.keys() == arrays.keys()
        for name, matrix in rows.items():
            expected = arrays[name][place.first_row : place.first_row + place.info.rows]
            np.testing.assert_array_equal(matrix, expected)
            assert matrix.dtype == expected.dtype


@pytest.mark.parametrize("form", ["packed", "example"])
def test_damage_names_file_and_block(tmp_path, form):
    """After the reader was made, so that no check of sizes helps."""
    write(form, tmp_path)
    manifest = Manifest.load(tmp_path)
    place = list(block_places(manifest, "train"))[5]
    shard = tmp_path / place.file
    whole = shard.read_bytes()
    (size,) = struct.unpack_from("<Q", whole, place.offset)
    reader = BlockReader(tmp_path, manifest)
    message = rf"{place.file}: block {place.number} at byte {place.offset} is not the one that manifest.json names"
    for position in (0, 7, 12, 12 + size // 2, 12 + size - 1):
        broken = bytearray(whole)
        broken[place.offset + position] ^= 1
        shard.write_bytes(broken)
        with pytest.raises(DataError, match=message):
            reader.read(place)
    for length in (0, place.offset, place.offset + 5, place.offset + 12, place.offset + 200):
        shard.write_bytes(whole[:length])
        with pytest.raises(DataError, match=message):
            reader.read(place)
    shard.unlink()
    with pytest.raises(DataError, match=rf"{place.file}: cannot be read: No such file"):
        reader.read(place)


def test_files_that_disagree_with_the_manifest_are_refused_at_once(tmp_path):
    sample = make_sample(tmp_path)
    (tmp_path / "train-00001.tfrecord").unlink()
    with pytest.raises(DataError, match="train-00001.tfrecord: manifest.json names this shard"):
        BlockReader(tmp_path, sample.manifest)

"""Blocks of a prepared data set as arrays, one at a time, in any order: to look at rows without training on them."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from tfdlrm.data.examples import example_parser
from tfdlrm.data.manifest import MANIFEST, BlockInfo, Manifest
from tfdlrm.data.packed import FOOTER_BYTES, HEADER_BYTES, packed_columns
from tfdlrm.spec.errors import DataError, why_unreadable

Arrays = dict[str, npt.NDArray[Any]]
"""`dense`, `sparse`, `label` and, where there are any, `weights` and `sample_weight`: matrices `[rows, width]`."""


class BlockPlace(NamedTuple):
    """Where a block lies.

    Attributes:
        file: Name of its shard.
        number: Its number within the shard.
        offset: Byte of the shard at which it begins.
        first_row: Row of the split that is its first.
        info: What the manifest says about it.
    """

    file: str
    number: int
    offset: int
    first_row: int
    info: BlockInfo


def block_places(manifest: Manifest, split: str) -> Iterator[BlockPlace]:
    """Yield where the blocks of a split lie, in file order.

    Raises:
        DataError: there is no such split.
    """
    row = 0
    for shard in manifest.split(split).shards:
        offset = 0
        for number, block in enumerate(shard.blocks):
            yield BlockPlace(shard.file, number, offset, row, block)
            offset += block.length
            row += block.rows


class BlockReader:
    """Reads blocks, of packed records or of examples.

    Args:
        directory: Folder of a prepared data set.
        manifest: Its manifest.

    Raises:
        DataError: a shard is missing, has another size, or is not named by the manifest.
    """

    def __init__(self, directory: Path | str, manifest: Manifest) -> None:
        manifest.check(directory)
        self._directory = Path(directory)
        self._columns = packed_columns(manifest.spec, manifest.has_sample_weight)
        # Names that would collide as keys of an example are no matter where rows are packed.
        is_packed = manifest.format == "packed"
        self._parse = None if is_packed else example_parser(manifest.spec, manifest.has_sample_weight)

    def read(self, place: BlockPlace) -> Arrays:
        """Return the rows of a block.

        Raises:
            DataError: the file cannot be read there, or holds something else than the manifest says.
        """
        path = self._directory / place.file
        try:
            with open(path, "rb") as file:
                file.seek(place.offset)
                content = file.read(place.info.length)
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {why_unreadable(error)}.") from None
        payloads = _payloads(content, place.info.length)
        if payloads is None or _fingerprint(b"".join(payloads)) != place.info.fingerprint:
            where = f"{path}: block {place.number} at byte {place.offset}"
            raise DataError(f"{where} is not the one that {MANIFEST} names.")
        if self._parse is None:
            return self._packed(payloads[0], place.info.rows)
        features, label, *weight = self._parse(tf.constant(payloads, tf.string))
        tensors = {**features, "label": label, **({"sample_weight": weight[0]} if weight else {})}
        return {name: tensor.numpy() for name, tensor in tensors.items()}

    def _packed(self, payload: bytes, rows: int) -> Arrays:
        features = tf.train.Example.FromString(payload).features.feature
        arrays = {}
        for column in self._columns:
            content = features[column.name].bytes_list.value[0] if column.width else b""
            matrix = np.frombuffer(content, np.dtype(column.dtype).newbyteorder("<"))
            arrays[column.name] = matrix.reshape(rows, column.width)
        return arrays


def _payloads(content: bytes, length: int) -> list[bytes] | None:
    """Return the payloads of the records in `length` bytes; `None` if those are not whole records.

    Checksums are left alone: the fingerprint of the payloads, which follows, says more.
    """
    payloads = []
    start = 0
    while start < len(content) == length:
        if length - start < HEADER_BYTES + FOOTER_BYTES:
            return None
        (size,) = struct.unpack_from("<Q", content, start)
        end = start + HEADER_BYTES + size
        if end + FOOTER_BYTES > length:
            return None
        payloads.append(content[start + HEADER_BYTES : end])
        start = end + FOOTER_BYTES
    return payloads or None


def _fingerprint(payload: bytes) -> str:
    digest: bytes = tf.fingerprint(tf.constant([payload])).numpy().tobytes()
    return digest.hex()


def spread_blocks(places: Iterable[BlockPlace], share: float) -> list[BlockPlace]:
    """Return an even share of the blocks of each shard, at least one."""
    shards: dict[str, list[BlockPlace]] = {}
    for place in places:
        shards.setdefault(place.file, []).append(place)
    chosen = []
    for own in shards.values():
        count = max(1, math.ceil(len(own) * share))
        chosen += [own[i * len(own) // count] for i in range(count)]
    return chosen

"""What a prepared data set holds: every shard and block with rows, bytes and checksum, the spec, the recipe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, ValidationError, model_validator

from tfdlrm.data.files import sha256_of, write_atomic
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.errors import DataError, SpecError, did_you_mean, explain, why_unreadable
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.frozen import Frozen

MANIFEST = "manifest.json"
VERSION = 1
SHARD_PATTERN = "*.tfrecord"
_SPLIT_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def check_split_name(split: str) -> None:
    """Raise `DataError` unless `split` can begin the name of a shard: a lower-case word."""
    if not _SPLIT_NAME.fullmatch(split):
        raise DataError(f"`split` must be a lower-case word (letters, digits, `_`). Received: {split!r}.")


def shard_name(split: str, number: int) -> str:
    """Return the file name of a shard: `shard_name("train", 3)` is `"train-00003.tfrecord"`."""
    return f"{split}-{number:05d}.tfrecord"


class BlockInfo(NamedTuple):
    """One record of a shard; where a record is one row, a run of them.

    Attributes:
        length: Bytes with the framing; a block's offset is the sum of the lengths before it.
        rows: Rows in it.
        fingerprint: FarmHash64 of the payload (of all of them in order) as `tf.fingerprint` gives it, 16 hexadecimal
            digits.
    """

    length: int
    rows: int
    fingerprint: str


class ShardInfo(Frozen):
    """One file of a split.

    Attributes:
        file: File name inside the data set's folder.
        rows: Rows in it.
        bytes: Its size.
        sha256: Its checksum, 64 hexadecimal digits.
        blocks: Its blocks in file order.
    """

    file: str = Field(pattern=r"^[A-Za-z0-9_-]+\.tfrecord$")
    rows: int = Field(ge=1)
    bytes: int = Field(ge=1)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    blocks: tuple[BlockInfo, ...]

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        for label, total, parts in (
            ("rows", self.rows, [block.rows for block in self.blocks]),
            ("bytes", self.bytes, [block.length for block in self.blocks]),
        ):
            if sum(parts) != total or min(parts, default=1) < 1:
                raise SpecError(
                    f"`{label}` of shard `{self.file}` must be the sum over its blocks, each at least 1. "
                    f"Received: {total} and {sum(parts)}."
                )
        for block in self.blocks:
            if not _FINGERPRINT.fullmatch(block.fingerprint):
                raise SpecError(
                    f"`fingerprint` in shard `{self.file}` must be 16 hexadecimal digits. "
                    f"Received: {block.fingerprint!r}."
                )
        return self


class SplitInfo(Frozen):
    """One split.

    Attributes:
        rows: Rows over all shards; may be 0.
        positives: Rows with a label above 0.5.
        shards: Its files in order.
    """

    rows: int = Field(ge=0)
    positives: int = Field(ge=0)
    shards: tuple[ShardInfo, ...] = ()

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        total = sum(shard.rows for shard in self.shards)
        if total != self.rows or self.positives > self.rows:
            raise SpecError(
                "`rows` must be the sum over the shards and at least `positives`. "
                f"Received: {self.rows}, {total} and {self.positives}."
            )
        return self


class GrowthState(Frozen):
    """What a vocabulary that grew must know to grow again.

    Attributes:
        sha256: Checksum, by table, of the file that says when each value was last seen and which rows are new.
        read_before: Rows below `first_id`, by table, that training rows of earlier versions read.
    """

    sha256: dict[str, str] = {}
    read_before: dict[str, tuple[int, ...]] = {}


class Manifest(Frozen):
    """The contents of `manifest.json`.

    Attributes:
        version: Version of this layout.
        format: How rows lie in records; `"packed"` is a block of rows per record, `"example"` a record per row.
        spec: Features and tables; gives the columns of every record.
        encoding: How raw values became ids.
        recipe: The settings the data set was prepared with.
        splits: Splits by name.
        has_sample_weight: Whether records carry a weight per row.
        statistics: Facts about the rows worth keeping (missing shares, vocabulary sizes).
        vocabulary_version: 1 for vocabularies that were counted afresh; where they grew, that of the parent and 1.
        vocabulary_parent: SHA-256 of the parent's `encoder.json`, which holds those of its vocabularies.
        growth: State of vocabularies that grew.
    """

    version: int = VERSION
    format: Literal["packed", "example"] = "packed"
    spec: FeatureSpec
    encoding: Encoding
    recipe: dict[str, Any] = {}
    splits: dict[str, SplitInfo]
    has_sample_weight: bool = False
    statistics: dict[str, Any] = {}
    vocabulary_version: int = Field(default=1, ge=1)
    vocabulary_parent: str | None = None
    growth: GrowthState = GrowthState()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.version != VERSION:
            raise SpecError(f"`version` must be {VERSION}; prepare the data again. Received: {self.version}.")
        names = [shard.file for split in self.splits.values() for shard in split.shards]
        if len(names) != len(set(names)):
            raise SpecError("`file` must name each shard once. Received: a name twice.")
        return self

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read the manifest of a prepared data set.

        Args:
            directory: Folder of the data set.

        Raises:
            DataError: there is no manifest, so nothing was prepared here or preparing never ended; or it is damaged
                or of another version.
        """
        path = Path(directory) / MANIFEST
        try:
            text = path.read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{directory}: not a prepared data set (no {MANIFEST}).") from None
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read: {why_unreadable(error)}.") from None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(f"{path}: {explain(error, cls.model_fields)}") from None
        except SpecError as error:
            raise DataError(f"{path}: {error}") from None

    def save(self, directory: Path | str) -> None:
        """Write `manifest.json`, whole or not at all. Write it last: its presence says the data set is complete."""
        # One line per key keeps the file readable by people without a line for each of a million blocks.
        lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in self.model_dump(mode="json").items()]
        write_atomic(Path(directory) / MANIFEST, "{\n" + ",\n".join(lines) + "\n}\n")

    def refuse_unless_format(self, wanted: str) -> None:
        """Raise `DataError` unless rows lie in records as a reader wants them."""
        if self.format != wanted:
            raise DataError(f'`format` of the data set must be "{wanted}" for this reader. Received: "{self.format}".')

    def split(self, name: str) -> SplitInfo:
        """Return the split called `name`.

        Raises:
            DataError: there is none.
        """
        if name not in self.splits:
            raise DataError(
                f"`split` must be one of {', '.join(self.splits)}. Received: `{name}`.{did_you_mean(name, self.splits)}"
            )
        return self.splits[name]

    def check(self, directory: Path | str) -> None:
        """Compare file names and sizes with the manifest; reads no row.

        A TFRecord file cut at a record boundary reads as a shorter file without any error, and a file that
        was never listed would be missed or read twice: both are refused here.

        Raises:
            DataError: a shard is missing, has another size, or is not named by the manifest.
        """
        folder = Path(directory)
        shards = [shard for split in self.splits.values() for shard in split.shards]
        for shard in shards:
            path = folder / shard.file
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"{path}: {MANIFEST} names this shard, but: {error.strerror}.") from None
            if size != shard.bytes:
                raise DataError(
                    f"{path}: must hold {shard.bytes} bytes, as {MANIFEST} says. "
                    f"Received: {size} (cut short or replaced)."
                )
        extra = sorted({path.name for path in folder.glob(SHARD_PATTERN)} - {shard.file for shard in shards})
        if extra:
            raise DataError(f"{folder / extra[0]}: a shard that {MANIFEST} does not name ({len(extra)} such).")

    def verify(self, directory: Path | str, progress: Callable[[int], None] = lambda rows: None) -> None:
        """Read every shard and compare its checksum with the manifest.

        Args:
            directory: Folder of the data set.
            progress: Called with the number of rows just verified.

        Raises:
            DataError: as `check`, or the bytes of a shard changed.
        """
        self.check(directory)
        for split in self.splits.values():
            for shard in split.shards:
                path = Path(directory) / shard.file
                if sha256_of(path) != shard.sha256:
                    raise DataError(f"{path}: damaged: its SHA-256 is not the one in {MANIFEST}.")
                progress(shard.rows)

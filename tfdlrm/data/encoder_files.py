"""The files of an encoder: `encoder.json` with the rules and checksums, one vocabulary file per table."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import ValidationError

from tfdlrm.data.files import sha256_of, write_atomic
from tfdlrm.data.transforms import DenseStats
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.spec.coding import Encoding, TableCoding, Unseen
from tfdlrm.spec.errors import DataError, SpecError, explain
from tfdlrm.spec.features import FeatureSpec
from tfdlrm.spec.frozen import Frozen

ENCODER_FILE = "encoder.json"


class EncoderParts(NamedTuple):
    """What an encoder is made of; see `FeatureEncoder`."""

    spec: FeatureSpec
    encoding: Encoding
    vocabularies: dict[str, Vocabulary]
    dense_stats: dict[str, DenseStats]

    def serving(self, unseen: Unseen) -> EncoderParts:
        """Return the same where values without a row count as `unseen` says, in tables that have no `oov_row`.

        Raises:
            SpecError: `unseen` names no row of such a table.
        """
        tables = {}
        for table in self.spec.tables:
            coding = self.encoding.tables[table.name]
            try:
                coding = coding.serving(unseen, _row_of_missing(coding, self.vocabularies[table.name]))
            except SpecError as error:
                raise SpecError(f"table `{table.name}`: {error}") from None
            if coding.oov_row is not None and coding.oov_row >= table.vocabulary_size:
                raise SpecError(
                    f"table `{table.name}`: `unseen` must be below its rows, {table.vocabulary_size}. "
                    f"Received: {unseen}."
                )
            tables[table.name] = coding
        return self._replace(encoding=self.encoding.model_copy(update={"tables": tables}))


class _VocabularyFile(Frozen):
    table: str
    file: str
    entries: int
    rows: int
    sha256: str


class _EncoderFile(Frozen):
    version: Literal[1] = 1
    spec: FeatureSpec
    encoding: Encoding
    dense_stats: dict[str, DenseStats]
    vocabularies: tuple[_VocabularyFile, ...]


def part_names(tables: int) -> tuple[str, ...]:
    """Return the files of an encoder of that many tables, relative to its directory."""
    return (ENCODER_FILE, *(_vocabulary_name(index) for index in range(tables)))


def save_parts(parts: EncoderParts, directory: Path) -> None:
    """Write an encoder's files; `encoder.json`, which has the checksums of the others, last.

    Args:
        parts: What to write.
        directory: Made if it is missing.
    """
    written = []
    for index, (table, vocabulary) in enumerate(parts.vocabularies.items()):
        # Table names may hold what file names may not, so files are numbered.
        path = directory / _vocabulary_name(index)
        vocabulary.save(path)
        written.append(
            _VocabularyFile(
                table=table,
                file=_vocabulary_name(index),
                entries=len(vocabulary.keys),
                rows=vocabulary.rows,
                sha256=sha256_of(path),
            )
        )
    content = _EncoderFile(
        spec=parts.spec, encoding=parts.encoding, dense_stats=parts.dense_stats, vocabularies=tuple(written)
    )
    write_atomic(directory / ENCODER_FILE, content.model_dump_json(indent=1) + "\n")


def load_parts(directory: Path) -> EncoderParts:
    """Read what `save_parts` wrote.

    Raises:
        DataError: a file is missing, damaged, or not the one that was saved with the others.
    """
    content = _read(directory)
    vocabularies = {entry.table: Vocabulary.load(_checked_path(directory, entry)) for entry in content.vocabularies}
    return EncoderParts(content.spec, content.encoding, vocabularies, content.dense_stats)


def load_rules(directory: Path) -> EncoderParts:
    """Read what `save_parts` wrote, but for the vocabularies.

    Raises:
        DataError: as `load_parts` does.
    """
    content = _read(directory)
    return EncoderParts(content.spec, content.encoding, {}, content.dense_stats)


def vocabulary_paths(directory: Path) -> dict[str, Path]:
    """Return the vocabulary file of each table, for `vocabulary_pieces`, without loading any.

    Raises:
        DataError: as `load_parts` does.
    """
    return {entry.table: _checked_path(directory, entry) for entry in _read(directory).vocabularies}


def _read(directory: Path) -> _EncoderFile:
    path = directory / ENCODER_FILE
    try:
        return _EncoderFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except ValidationError as error:
        raise DataError(f"{path}: {explain(error)}") from None
    except SpecError as error:
        raise DataError(f"{path}: {error}") from None


def _row_of_missing(coding: TableCoding, vocabulary: Vocabulary) -> int | None:
    """Return the row of the key that stands for missing values, `None` where there is none."""
    if coding.missing_key is None:
        return None
    key = coding.missing_key % (coding.modulus or 2**63)
    if coding.kind == "modulo":
        return coding.first_id + key % (coding.buckets or 1)
    place = int(np.searchsorted(vocabulary.keys, key))
    found = place < len(vocabulary.keys) and int(vocabulary.keys[place]) == key
    return int(vocabulary.ids[place]) if found else None


def _checked_path(directory: Path, entry: _VocabularyFile) -> Path:
    path = directory / entry.file
    try:
        checksum = sha256_of(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    if checksum != entry.sha256:
        raise DataError(
            f"{path}: must be the vocabulary of table `{entry.table}` that {ENCODER_FILE} was saved with. "
            f"Received: sha256 {checksum}, expected {entry.sha256}."
        )
    return path


def _vocabulary_name(index: int) -> str:
    return f"vocabulary/{index:05d}.npz"

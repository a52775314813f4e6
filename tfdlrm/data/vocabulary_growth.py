"""Vocabularies that grow from those of another run: what is read there, and what is kept for the next."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.encoder_files import ENCODER_FILE, load_rules, vocabulary_paths
from tfdlrm.data.files import atomic_path, sha256_of
from tfdlrm.data.grown_rows import grown
from tfdlrm.data.key_counts import Counted
from tfdlrm.data.manifest import MANIFEST, GrowthState, Manifest
from tfdlrm.data.raw_blocks import expand_path
from tfdlrm.data.settings_diff import differences
from tfdlrm.data.transforms import DenseStats
from tfdlrm.data.untouched_rows import untouched_rows
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.data.vocabulary_rows import NewArray
from tfdlrm.spec.coding import Encoding, TableCoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError, DataError, SpecError
from tfdlrm.spec.growth import refuse_ungrowable

_FOLDER = "vocabulary"
Grow = Callable[[str, TableCoding, Counted, int, NewArray], Vocabulary]


def parent_identity(data: DataConfig) -> dict[str, str]:
    """Return the checksums that tell the prepared data of the parent run from others; none without a parent.

    Raises:
        DataError: there are no prepared data.
    """
    if data.growth.from_run is None:
        return {}
    directory = _parent_directory(data)
    try:
        return {name: sha256_of(directory / name) for name in (MANIFEST, ENCODER_FILE)}
    except OSError as error:
        raise DataError(
            f"`data.growth.from_run` must be a run with prepared data. Received: {data.growth.from_run}; "
            f"{error.filename}: {error.strerror}."
        ) from None


def new_rows(directory: Path, manifest: Manifest) -> dict[str, npt.NDArray[Any]]:
    """Return the rows of each table that values got when its vocabulary grew, ascending.

    Args:
        directory: Prepared data.
        manifest: Their manifest.

    Raises:
        DataError: a file is missing or damaged.
    """
    return {table: _state(directory, manifest, table)["new_rows"] for table in manifest.growth.sha256}


class VocabularyGrowth:
    """Grows the vocabularies of a parent's prepared data.

    Args:
        data: The configuration; its `growth` names the parent.

    Attributes:
        identity: Checksums of what is read of the parent.
        told: How many values of each table stayed, came and went.

    Raises:
        DataError: the parent has no prepared data, or they are damaged.
        ConfigError: its features or coding are others.
        SpecError: a vocabulary cannot grow.
    """

    def __init__(self, data: DataConfig) -> None:
        self.identity = parent_identity(data)
        self._rules = data.growth
        self._run = data.growth.from_run
        self._directory = _parent_directory(data)
        self._parent = Manifest.load(self._directory)
        self._parent_stats = load_rules(self._directory).dense_stats
        encoding = encoding_of(data)
        refuse_ungrowable(encoding, {c.name: c.table or c.name for c in data.sparse})
        self._refuse_other(data, encoding)
        self._tables = [name for name, coding in encoding.tables.items() if coding.kind == "vocabulary"]
        self._paths = vocabulary_paths(self._directory)
        self.told: dict[str, dict[str, int]] = {}
        self._alone = Lock()  # a vocabulary and its parent are held in memory: one at a time

    def into(self, out: Path) -> Grow:
        """Return what gives the values of new training rows their rows, as `VocabularyBuilder.build` takes it.

        Args:
            out: Folder of the prepared data, which gets the state of each vocabulary.
        """

        def grow(table: str, coding: TableCoding, counted: Counted, at_once: int, new: NewArray) -> Vocabulary:
            with self._alone:
                parent = Vocabulary.load(self._paths[table])
                last_seen = np.ones(len(parent.keys), np.int32)
                if self._parent.vocabulary_version > 1:
                    last_seen = _state(self._directory, self._parent, table)["last_seen"]
                version = self._parent.vocabulary_version + 1
                made = grown(coding, parent, last_seen, counted, self._rules, version, new)
                path = _state_path(out, self._paths[table].name)
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    np.savez(file, last_seen=made.last_seen, new_rows=made.new_rows)
            self.told[table] = {
                "kept": len(parent.keys) - made.evicted,
                "admitted": len(made.new_rows),
                "evicted": made.evicted,
                "reused_rows": made.reused,
                "rows_before": parent.rows,
            }
            return made.vocabulary

        return grow

    def stats(self, learnt: Mapping[str, DenseStats]) -> dict[str, DenseStats]:
        """Return the statistics of dense features: the parent's, which its weights were trained on.

        Of `log_file_minimum` features those of the new files, and the lower of both minimums for serving.
        """
        kept = {}
        for name, stats in learnt.items():
            parent = self._parent_stats[name]
            lower = min(parent.minimum, stats.minimum)
            kept[name] = parent.model_copy(update={"file_minimums": stats.file_minimums, "minimum": lower})
        return kept

    def noted(self, manifest: Manifest, out: Path, told: Mapping[str, Mapping[str, int]]) -> Manifest:
        """Return the manifest with what the next run must know of the vocabularies.

        Args:
            manifest: That of the new data.
            out: Their folder.
            told: What `self.told` was when its vocabularies were made.
        """
        parent = self._parent
        untouched = untouched_rows(parent)
        read = {
            name: tuple(sorted(coding.reserved_rows - set(untouched.get(name, ()))))
            for name, coding in parent.encoding.tables.items()
        }
        state = {name: sha256_of(_state_path(out, self._paths[name].name)) for name in self._tables}
        return manifest.model_copy(
            update={
                "vocabulary_version": parent.vocabulary_version + 1,
                "vocabulary_parent": self.identity[ENCODER_FILE],
                "growth": GrowthState(sha256=state, read_before=read),
                "statistics": {**manifest.statistics, "growth": {name: told[name] for name in self._tables}},
            }
        )

    def refuse_changed(self, data: DataConfig) -> None:
        """Raise `DataError` if the parent's data are not those that were read."""
        if parent_identity(data) != self.identity:
            raise DataError(f"{self._directory}: changed while it was read.")

    def _refuse_other(self, data: DataConfig, encoding: Encoding) -> None:
        parent = self._parent
        sizes = {table.name: table.vocabulary_size for table in parent.spec.tables}
        spec = spec_of(data, {name: sizes.get(name, 1) for name in encoding.tables}, 1)
        try:
            parent.spec.with_embedding_dim(1).refuse_unless_equal(spec, f"the run {self._run}", "this one")
        except SpecError as error:
            raise ConfigError(str(error)) from None
        there, here = parent.encoding.model_dump(mode="json"), encoding.model_dump(mode="json")
        change = next(differences(there, here), None)
        if change is not None:
            raise ConfigError(
                f"coding must be that of {self._run}, the run that is gone on from: `{change.key}` is {change.a!r} "
                f"there. Received: {change.b!r}."
            )


def _parent_directory(data: DataConfig) -> Path:
    return expand_path(data.growth.from_run or "") / "data"


def _state_path(directory: Path, vocabulary: str) -> Path:
    return directory / _FOLDER / f"{Path(vocabulary).stem}.growth.npz"


def _state(directory: Path, manifest: Manifest, table: str) -> dict[str, npt.NDArray[Any]]:
    number = list(manifest.encoding.tables).index(table)
    path = _state_path(directory, f"{number:05d}.npz")
    try:
        if sha256_of(path) != manifest.growth.sha256[table]:
            raise DataError(f"{path}: damaged: its SHA-256 is not the one in {MANIFEST}.")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read: {error}.") from None

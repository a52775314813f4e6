"""Encoded rows into shards, several at a time; a finished shard is noted and never written again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfdlrm.data.big_lookup import BigLookup
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.files import sha256_of
from tfdlrm.data.manifest import ShardInfo, SplitInfo
from tfdlrm.data.packed import PackedWriter
from tfdlrm.data.parallel import ordered_map
from tfdlrm.data.parsing_pass import SPLIT
from tfdlrm.data.partial import PartialData
from tfdlrm.data.row_statistics import RowStatistics
from tfdlrm.data.shard_plan import Shard, ShardPlan, Slice
from tfdlrm.data.splits import SPLIT_NAMES, in_split
from tfdlrm.data.staged_rows import StagedRows
from tfdlrm.spec.coding import Encoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import FeatureSpec

_NOTES = "shards"


class _Encoded(NamedTuple):
    columns: dict[str, npt.NDArray[Any]]
    statistics: RowStatistics
    dropped: Counter[str]


class Written(NamedTuple):
    """All shards.

    Attributes:
        splits: What the manifest says of each split.
        statistics: Of each split.
        dropped: Values dropped from bags, by feature.
    """

    splits: dict[str, SplitInfo]
    statistics: dict[str, RowStatistics]
    dropped: Counter[str]


class ShardWriting:
    """Writes shards out of rows that were put aside, which are removed once no shard is left that needs them.

    Args:
        data: The recipe.
        spec: All features.
        encoding: Their coding.
        encoder: Encodes those that `lookups` does not.
        lookups: What looks up features whose vocabulary is too large for memory, by feature.
        partial: Where shards go, and notes of those that are finished.
        staged: The rows.
        plan: Which rows make which shard.
        threads: How many chunks are encoded at a time.

    Attributes:
        spec: All features.
    """

    def __init__(
        self,
        data: DataConfig,
        spec: FeatureSpec,
        encoding: Encoding,
        encoder: FeatureEncoder,
        lookups: Mapping[str, BigLookup],
        partial: PartialData,
        staged: StagedRows,
        plan: ShardPlan,
        threads: int,
    ) -> None:
        self._data = data
        self.spec = spec
        self._encoding = encoding
        self._encoder = encoder
        self._lookups = lookups
        self._out = partial.out
        self._partial = partial
        self._staged = staged
        self._plan = plan
        self._threads = threads
        partial.subfolder(_NOTES)
        self._checked: set[Shard] = set()
        self._forgotten: set[int] = set()

    def write(self, done: Callable[[int], None], final: bool = True) -> None:
        """Write the shards whose rows are all known; several at a time where there are many.

        Args:
            done: Called with the number of rows just written, or found to be written before.
            final: Whether no more rows will come.

        Raises:
            DataError: a shard of an earlier try was damaged since.
        """
        shards = [shard for shard in self._plan.shards(final) if shard not in self._checked]
        missing = []
        for shard in shards:
            if self._is_finished(shard):
                done(sum(part.stop - part.start for part in self._plan.slices(shard)))
            else:
                missing.append(shard)
        across = self._threads if len(missing) >= 2 * self._threads else 1
        inside = self._threads if across == 1 else 1
        users = self._plan.users(missing)
        used_up = self._used_up(shards)
        self._forget([chunk for chunk in used_up if not users.get(chunk)])
        for shard in ordered_map(lambda shard: self.write_shard(shard, inside, done), missing, across):
            for part in self._plan.slices(shard):
                users[part.chunk].discard(shard)
                if not users[part.chunk] and part.chunk in used_up:
                    self._forget([part.chunk])
        self._checked.update(shards)

    def result(self) -> Written:
        """Return what was written."""
        return written(self._plan, self.spec, self._encoding, self._note)

    def write_shard(self, shard: Shard, threads: int = 1, done: Callable[[int], None] = lambda rows: None) -> Shard:
        """Write one shard and note that it is finished; returns it. See `write`."""
        weighted = self._data.format.weight is not None
        statistics, dropped = self._statistics(), Counter[str]()
        blocks, rows = self._data.rows_per_block, self._data.rows_per_shard
        with PackedWriter(self._out, shard.split, self.spec, blocks, rows, weighted, shard.number) as writer:
            slices = self._plan.slices(shard)
            for encoded in ordered_map(lambda part: self._encode(shard.split, part), slices, threads):
                writer.add(**encoded.columns)
                statistics.merge(encoded.statistics)
                dropped.update(encoded.dropped)
                done(len(encoded.columns["label"]))
            info = writer.close()
        self._partial.write(
            f"{_NOTES}/{shard.note}",
            {
                "shard": info.shards[0].model_dump(mode="json"),
                "positives": info.positives,
                "statistics": statistics.state,
                "dropped": dropped,
            },
        )
        return shard

    def _encode(self, split: str, part: Slice) -> _Encoded:
        frame = self._staged.read(part.chunk)
        here = np.flatnonzero(in_split(frame[SPLIT].to_numpy(), split))[part.start : part.stop]
        if len(here) < frame.height:
            frame = frame[here]
        dropped: Counter[str] = Counter()
        columns = self._encoder.encode_frame(frame, dropped, self._plan.chunks[part.chunk].file)
        columns["sparse"] = self._whole_sparse(columns["sparse"], part.chunk, here)
        columns["label"] = frame["label"].to_numpy()
        if self._data.format.weight is not None:
            columns["sample_weight"] = frame["weight"].to_numpy()
        statistics = self._statistics()
        statistics.add(frame, columns["sparse"])
        return _Encoded(columns, statistics, dropped)

    def _whole_sparse(self, sparse: npt.NDArray[Any], chunk: int, here: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Put the columns that the encoder made and those that were looked up beforehand in the order of the spec."""
        if not self._lookups:
            return sparse
        whole = np.empty((len(here), self.spec.n_ids), np.dtype(self.spec.id_dtype))
        ranges = self._encoder.spec.id_columns
        for feature, (start, stop) in self.spec.id_columns.items():
            if feature in self._lookups:
                whole[:, start:stop] = self._lookups[feature].rows_of(chunk, here).T
            else:
                whole[:, start:stop] = sparse[:, slice(*ranges[feature])]
        return whole

    def _statistics(self) -> RowStatistics:
        return RowStatistics(self.spec, self._encoding)

    def _note(self, shard: Shard) -> Any:
        return self._partial.read(f"{_NOTES}/{shard.note}")

    def _is_finished(self, shard: Shard) -> bool:
        note = self._note(shard)
        if note is None:
            return False
        info = ShardInfo.model_validate(note["shard"])
        path = self._out / info.file
        if not path.exists() or sha256_of(path) != info.sha256:
            raise DataError(f"{path}: damaged since it was written. What was done is removed: start again.")
        return True

    def _used_up(self, shards: Sequence[Shard]) -> set[int]:
        """Return the chunks that nothing but these shards, and those checked before, needs."""
        rows_per_shard, known = self._plan.rows_per_shard, [*self._checked, *shards]
        free = np.ones(len(self._plan.chunks), bool)
        for split in SPLIT_NAMES:
            ready = sum(shard.split == split for shard in known) * rows_per_shard
            ends = self._plan.ends(split)
            free &= (ends <= ready) | (np.diff(ends, prepend=0) == 0)
        return set(np.flatnonzero(free).tolist())

    def _forget(self, chunks: Sequence[int]) -> None:
        for chunk in chunks:
            if chunk in self._forgotten:
                continue
            self._forgotten.add(chunk)
            self._staged.forget(chunk)
            for lookup in self._lookups.values():
                lookup.forget(chunk)


def written(
    plan: ShardPlan, spec: FeatureSpec, encoding: Encoding, note_of: Callable[[Shard], Mapping[str, Any]]
) -> Written:
    """Add up the notes on all shards.

    Args:
        plan: The shards.
        spec: All features.
        encoding: Their coding.
        note_of: Returns what `ShardWriting.write_shard` noted of a shard.
    """
    shards: dict[str, list[ShardInfo]] = {name: [] for name in SPLIT_NAMES}
    positives = dict.fromkeys(SPLIT_NAMES, 0)
    statistics = {name: RowStatistics(spec, encoding) for name in SPLIT_NAMES}
    dropped: Counter[str] = Counter()
    for shard in plan.shards():
        note = note_of(shard)
        shards[shard.split].append(ShardInfo.model_validate(note["shard"]))
        positives[shard.split] += note["positives"]
        dropped.update(note["dropped"])
        own = RowStatistics(spec, encoding)
        own.state = note["statistics"]
        statistics[shard.split].merge(own)
    splits = {
        name: SplitInfo(rows=sum(s.rows for s in found), positives=positives[name], shards=tuple(found))
        for name, found in shards.items()
    }
    return Written(splits, statistics, dropped)


def without_features(spec: FeatureSpec, names: Collection[str]) -> FeatureSpec:
    """Return a spec without some of its sparse features, and without the tables that only they read."""
    sparse = tuple(feature for feature in spec.sparse if feature.name not in names)
    read = {feature.table for feature in sparse}
    return FeatureSpec(dense=spec.dense, sparse=sparse, tables=tuple(t for t in spec.tables if t.name in read))

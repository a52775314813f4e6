"""What a prepared data set holds, found in one pass over its rows and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.blocks import Arrays, BlockPlace, BlockReader, block_places, spread_blocks
from tfdlrm.data.distances import Distance, distance, number_distance
from tfdlrm.data.encoder_files import ENCODER_FILE, vocabulary_paths
from tfdlrm.data.id_counts import COUNTED_ROWS, count_tables
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.number_counts import COARSE_BINS, NumberCounts
from tfdlrm.data.parts import Part, parts_of
from tfdlrm.data.raw_bags import PADDING
from tfdlrm.data.splits import SPLIT_NAMES, TRAIN
from tfdlrm.data.vocabulary import Entries, vocabulary_pieces
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec

ID_BINS = 256
"""Bins of a feature's ids in each part. Tables of more rows have one for each of the first 128 and share the others."""
_OWN_BINS = ID_BINS // 2
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_CURVE_POINTS = tuple(digit * 10**power for power in range(9) for digit in (1, 2, 5))
Figures = dict[str, Any]


def inspect(
    directory: Path | str,
    *,
    split: str | None = None,
    rows: int | None = None,
    top: int = 10,
    counted_rows: int = COUNTED_ROWS,
    progress: Callable[[int], None] = lambda rows: None,
) -> Figures:
    """Read a prepared data set and say what is in it.

    Memory does not depend on the number of rows: 4 bytes for each table row up to `counted_rows` of them and 1 byte for
    each beyond, twice that in the end for the table at hand, 0.5 MB for each numeric column and split, and some 20 KB
    for each column and part, of which there are 200 at most. Of the encoder's vocabularies a piece is read at a time.

    Args:
        directory: Folder of a prepared data set, packed or of examples.
        split: The only split to look at. Defaults to all.
        rows: About how many rows to read, in blocks spread evenly over all shards. Defaults to all.
        top: Most frequent rows to name for each table.
        counted_rows: Table rows to count one by one; see `tfdlrm.data.id_counts`.
        progress: Called with the number of rows just read.

    Returns:
        Figures, ready for JSON: `splits`, `shards`, `parts` (days, files, slices of the raw rows, or shards; see
        `tfdlrm.data.parts`), `tables`, `sparse` and `dense` features, and `drift` between parts and between splits.

    Raises:
        DataError: there is no such data set or split, or a file is not what the manifest says.
        ConfigError: `rows` or `top` is below 1.
    """
    for name, number in (("rows", rows), ("top", top)):
        if number is not None and number < 1:
            raise ConfigError(f"`{name}` must be at least 1. Received: {number}.")
    manifest = Manifest.load(directory)
    names = list(manifest.splits) if split is None else [split]
    # Training rows first: which table rows they use is noted before the others are counted.
    names.sort(key=lambda name: name != SPLIT_NAMES[TRAIN])
    places = {name: list(block_places(manifest, name)) for name in names}
    total = sum(manifest.split(name).rows for name in names)
    share = 1.0 if rows is None else min(1.0, rows / max(total, 1))
    reader = BlockReader(directory, manifest)
    survey = _Survey(manifest, names, counted_rows)
    for name in names:
        for place in spread_blocks(places[name], share):
            survey.add(name, place, reader.read(place))
            progress(place.info.rows)
        survey.end_split(name)
    vocabularies = vocabulary_paths(Path(directory)) if (Path(directory) / ENCODER_FILE).exists() else {}
    return {
        "directory": str(directory),
        "format": manifest.format,
        "rows": total,
        "read_rows": survey.rows,
        **survey.figures(vocabularies, top),
    }


class _PartCounts:
    """Histograms of one part."""

    def __init__(self, spec: FeatureSpec) -> None:
        self.rows = 0
        self.clicks = 0.0
        self.ids = np.zeros([len(spec.sparse), ID_BINS], np.int64)
        self.numbers = np.zeros([spec.n_dense, COARSE_BINS], np.int64)

    def merge(self, other: _PartCounts) -> None:
        self.rows += other.rows
        self.clicks += other.clicks
        self.ids += other.ids
        self.numbers += other.numbers


class _Survey:
    """Counts over the blocks that were read."""

    def __init__(self, manifest: Manifest, splits: Sequence[str], counted_rows: int) -> None:
        self.rows = 0
        self._manifest = manifest
        self._spec = spec = manifest.spec
        self._splits = splits
        self._parts = parts_of(manifest, splits)
        self._counts = {part: _PartCounts(spec) for part in self._parts.items}
        self._shards: dict[str, list[float]] = {}
        self._numbers = {name: NumberCounts(spec.n_dense) for name in splits}
        self._tables = count_tables({t.name: t.vocabulary_size for t in spec.tables}, counted_rows)
        self._codings = manifest.encoding.tables
        self._ids = {name: {f.name: _IdKinds(self._codings[f.table]) for f in spec.sparse} for name in splits}
        self._weights = {f.name: NumberCounts(1) for f in spec.sparse if f.weighted}
        self._used_in_training: dict[str, int] = {}

    def add(self, split: str, place: BlockPlace, arrays: Arrays) -> None:
        """Count the rows of a block."""
        self.rows += place.info.rows
        clicks = float(arrays["label"].sum(dtype=np.float64))
        shard = self._shards.setdefault(place.file, [0, 0.0])
        shard[0] += place.info.rows
        shard[1] += clicks
        self._add_ids(split, arrays)
        stop = place.first_row + place.info.rows
        for part, counts in self._counts.items():
            begin, end = max(part.start, place.first_row), min(part.stop, stop)
            if part.split == split and begin < end:
                here = slice(begin - place.first_row, end - place.first_row)
                self._add_part(counts, split, {name: array[here] for name, array in arrays.items()})

    def end_split(self, split: str) -> None:
        """Note what a split that is read to its end used."""
        if split == SPLIT_NAMES[TRAIN]:
            self._used_in_training = {name: counts.used() for name, counts in self._tables.items()}

    def _add_ids(self, split: str, arrays: Arrays) -> None:
        for feature in self._spec.sparse:
            start, stop = self._spec.id_columns[feature.name]
            bags = np.ascontiguousarray(arrays["sparse"][:, start:stop])
            there = bags != PADDING
            ids = bags[there]
            self._tables[feature.table].add(ids)
            # Of a bag made by `expand` only the first id is the row's own.
            is_expanded = self._manifest.encoding.features[feature.name].expand is not None
            self._ids[split][feature.name].add(len(bags), bags[:, 0] if is_expanded else ids)
            if feature.weighted:
                self._weights[feature.name].add(arrays["weights"][:, start:stop][there][:, np.newaxis])

    def _add_part(self, counts: _PartCounts, split: str, arrays: Arrays) -> None:
        counts.rows += len(arrays["label"])
        counts.clicks += float(arrays["label"].sum(dtype=np.float64))
        # Every row lies in one part, so the columns of a split are complete when its parts are.
        counts.numbers += self._numbers[split].add(arrays["dense"]).astype(np.uint32)
        for row, feature in enumerate(self._spec.sparse):
            start, stop = self._spec.id_columns[feature.name]
            bags = np.ascontiguousarray(arrays["sparse"][:, start:stop])
            bins = _id_bins(bags[bags != PADDING], self._spec.table_of(feature).vocabulary_size)
            counts.ids[row] += np.bincount(bins, minlength=ID_BINS)

    def figures(self, vocabularies: Mapping[str, Path], top: int) -> Figures:
        """Return what was found, ready for JSON."""
        shares = self._manifest.statistics.get("shares", {})
        return {
            "splits": [self._split(name) for name in self._splits],
            "shards": [self._shard(name, file) for name in self._splits for file in self._manifest.splits[name].shards],
            "parts": {"kind": self._parts.kind, "items": [self._part(part) for part in self._parts.items]},
            "tables": [self._table(table.name, vocabularies.get(table.name), top) for table in self._spec.tables],
            "sparse": [self._sparse(feature.name) for feature in self._spec.sparse],
            "dense": [self._dense(column, shares) for column in range(self._spec.n_dense)],
            "drift": self._drift(),
        }

    def _split(self, name: str) -> Figures:
        info = self._manifest.splits[name]
        return {
            "name": name,
            "rows": info.rows,
            "click_rate": info.positives / info.rows if info.rows else None,
            "shards": len(info.shards),
            "bytes": sum(shard.bytes for shard in info.shards),
        }

    def _shard(self, split: str, shard: Any) -> Figures:
        read, clicks = self._shards[shard.file]
        figures = {"file": shard.file, "split": split, "rows": shard.rows, "bytes": shard.bytes}
        return {**figures, "read_rows": int(read), "click_rate": clicks / read}

    def _part(self, part: Part) -> Figures:
        counts = self._counts[part]
        rate = counts.clicks / counts.rows if counts.rows else None
        figures = {"name": part.name, "split": part.split, "rows": part.stop - part.start}
        return {**figures, "read_rows": counts.rows, "click_rate": rate}

    def _table(self, name: str, vocabulary: Path | None, top: int) -> Figures:
        counts, coding = self._tables[name], self._codings[name]
        best = counts.top(top)
        entries = () if vocabulary is None else vocabulary_pieces(vocabulary)
        texts = values_of([row.row for row in best], coding, entries)
        used = counts.used()
        points = [n for n in _CURVE_POINTS if n < used] + [used] * (used > 0)
        return {
            "name": name,
            "rows": self._spec.table(name).vocabulary_size,
            "used": used,
            "used_in_training": self._used_in_training.get(name),
            "values": counts.total,
            "counted": "exactly" if counts.is_exact else "sketch",
            "error": counts.error,
            "top": [
                {"row": row.row, "count": row.uses, "share": row.uses / counts.total, "value": text}
                for row, text in zip(best, texts, strict=True)
            ],
            "coverage": [list(pair) for pair in zip(points, counts.coverage(points), strict=True)],
        }

    def _sparse(self, name: str) -> Figures:
        feature = next(f for f in self._spec.sparse if f.name == name)
        figures: Figures = {"name": name, "table": feature.table, "hotness": feature.hotness}
        figures["splits"] = {split: self._ids[split][name].shares() for split in self._splits}
        if feature.weighted:
            figures["weights"] = self._weights[name].summary(0, QUANTILES)
        return figures

    def _dense(self, column: int, shares: Mapping[str, Any]) -> Figures:
        feature = self._spec.dense[column]
        splits = {}
        for split in self._splits:
            # In packed rows a missing number is a 0 like any other: only `prepare`, which saw the raw rows, can tell.
            missing = shares.get(split, {}).get(feature.name, {}).get("missing")
            splits[split] = {"missing": missing, **self._numbers[split].summary(column, QUANTILES)}
        return {"name": feature.name, "transform": feature.transform, "splits": splits}

    def _drift(self) -> Figures:
        parts = [part for part in self._parts.items if self._counts[part].rows]
        pairs = [(a, b) for a, b in pairwise(parts) if self._parts.kind != "shard" or a.split == b.split]
        whole = {name: _PartCounts(self._spec) for name in self._splits}
        for part in parts:
            whole[part.split].merge(self._counts[part])
        train = whole.get(SPLIT_NAMES[TRAIN])
        others = [name for name, counts in whole.items() if counts is not train and counts.rows]
        return {
            "parts": [
                {"from": _label(a), "to": _label(b), "features": self._distances(self._counts[a], self._counts[b])}
                for a, b in pairs
            ],
            "splits": [
                {"from": SPLIT_NAMES[TRAIN], "to": name, "features": self._distances(train, whole[name])}
                for name in others
                if train is not None and train.rows
            ],
        }

    def _distances(self, a: _PartCounts, b: _PartCounts) -> Figures:
        found: dict[str, Distance | None] = {}
        for row, name in enumerate(self._spec.dense_names):
            found[name] = number_distance(a.numbers[row], b.numbers[row])
        for row, name in enumerate(self._spec.sparse_names):
            found[name] = distance(a.ids[row], b.ids[row])
        return {
            name: {**value._asdict(), "beyond_chance": value.beyond_chance}
            for name, value in found.items()
            if value is not None
        }


class _IdKinds:
    """How many values of a feature are missing, rare or unseen in one split."""

    def __init__(self, coding: TableCoding) -> None:
        self._rows = 0
        self._values = 0
        self._counts = dict.fromkeys(_kinds(coding).values(), 0)
        self._kinds = _kinds(coding)

    def add(self, rows: int, ids: npt.NDArray[Any]) -> None:
        self._rows += rows
        self._values += ids.size
        for row, kind in self._kinds.items():
            self._counts[kind] += int(np.count_nonzero(ids == row))

    def shares(self) -> Figures:
        values = max(self._values, 1)
        shares: Figures = {kind: count / values for kind, count in self._counts.items()}
        return {"values_per_row": self._values / max(self._rows, 1), **shares}


def _kinds(coding: TableCoding) -> dict[int, str]:
    """Return what the reserved rows of a table stand for; rows that belong to a value as well stand for that."""
    kinds: dict[int, list[str]] = {}
    if coding.missing_key is None:
        kinds.setdefault(coding.missing_row, []).append("missing")
    if coding.kind == "vocabulary":
        if coding.min_count > 1 or coding.max_values:
            kinds.setdefault(coding.rare_row, []).append("rare")
        if coding.oov_row is not None:
            kinds.setdefault(coding.oov_row, []).append("unseen")
    return {row: " or ".join(names) for row, names in kinds.items() if row < coding.first_id}


def values_of(rows: Sequence[int], coding: TableCoding, entries: Iterable[Entries] = ()) -> list[str | None]:
    """Return the raw values of table rows, as far as an encoder's vocabulary can tell.

    Hexadecimal values come back as written, but for their case and leading zeros. Of a string only its fingerprint is
    known, and of a hashed value nothing. Where several values share a row, that of the lowest key is told.

    Args:
        rows: The rows.
        coding: Coding of the table.
        entries: Its vocabulary in pieces, ascending by key, if there is one. They are read as far as is needed.
    """
    known: dict[int, str | None] = dict(_kinds(coding))
    wanted = np.setdiff1d(np.array(rows, np.int64), list(known))
    for keys, ids in entries if coding.kind == "vocabulary" and wanted.size else ():
        places = np.flatnonzero(np.isin(ids, wanted))
        found, first = np.unique(ids[places], return_index=True)
        for row, key in zip(found.tolist(), keys[places[first]].tolist(), strict=True):
            text = str(key) if coding.value == "number" else f"{key & (2**64 - 1):08x}"
            known[row] = {"hex": text, "number": f"bucket {text}"}.get(coding.value, f"fingerprint {text}")
        wanted = np.setdiff1d(wanted, found)
        if not wanted.size:
            break
    return [known.get(row) for row in rows]


def _id_bins(ids: npt.NDArray[Any], table_rows: int) -> npt.NDArray[np.int64]:
    """Return the bin of each id; merging ids into bins can hide drift, never make it."""
    if table_rows <= ID_BINS:
        return ids.astype(np.int64)
    shared = (ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(57)
    return np.where(ids < _OWN_BINS, ids, _OWN_BINS + shared.astype(np.int64)).astype(np.int64)


def _label(part: Part) -> str:
    return part.name if part.name.startswith(part.split) else f"{part.name} ({part.split})"

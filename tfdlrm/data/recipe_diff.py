"""Two recipes on the same raw files: which settings differ, and what that does to splits, numbers and ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.dropped_rows import kept_rows
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.prepare import Progress, prepare, silent
from tfdlrm.data.reader import RawChunk, RawReader
from tfdlrm.data.settings_diff import SettingChange, changed_settings
from tfdlrm.data.side_tables import SideFile
from tfdlrm.data.splits import EVERYWHERE, SPLIT_NAMES, TRAIN, SplitPlan, read_times
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import SparseFeature

PLACES = (*SPLIT_NAMES, "all three", "left out")
"""Where a row may be: in one split, in all of them, or in none."""
_LEFT_OUT = PLACES.index("left out")
_MERGE_ABOVE = 1 << 20
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class DenseDiff:
    """How the numbers of one feature differ, over rows that neither recipe leaves out.

    Attributes:
        name: The feature.
        differ: Rows whose numbers differ.
        largest, mean: Absolute difference, the mean over all rows.
    """

    name: str
    differ: int
    largest: float
    mean: float


@dataclass(frozen=True)
class SparseDiff:
    """How the ids of one feature differ, over rows that neither recipe leaves out.

    Attributes:
        name: The feature.
        rows_a, rows_b: Rows of its table.
        ids: Ids compared.
        differ: Those that are not the same number.
        split: Ids of the first recipe that the second tells apart.
        merged: Ids of the second recipe that several of the first fall into.
    """

    name: str
    rows_a: int
    rows_b: int
    ids: int
    differ: int
    split: int
    merged: int

    @property
    def verdict(self) -> str:
        """`"equal"`, `"renumbered"` (one id for one id), or `"regrouped"`."""
        if not self.differ:
            return "equal"
        return "regrouped" if self.split or self.merged else "renumbered"


@dataclass(frozen=True)
class RecipeDiff:
    """What tells two recipes apart.

    Attributes:
        names: Of the recipes.
        settings: Settings that differ.
        rows: Good raw rows.
        places: How many rows the first recipe has in one place of `PLACES` and the second in another.
        only: Features that only one of them has, by recipe.
        dense, sparse: Features that both have.
        bags: Features that both have in bags of different lengths, and these lengths: their ids are not compared.
        leaks: What each recipe learns from rows it is judged on, in words, by recipe.
    """

    names: tuple[str, str]
    settings: tuple[SettingChange, ...]
    rows: int
    places: dict[str, dict[str, int]]
    only: dict[str, tuple[str, ...]]
    dense: tuple[DenseDiff, ...]
    sparse: tuple[SparseDiff, ...]
    bags: dict[str, tuple[int, int]]
    leaks: dict[str, tuple[str, ...]]

    @property
    def moved(self) -> int:
        """Rows that are not in the same place under both."""
        return sum(n for a, row in self.places.items() for b, n in row.items() if a != b)

    def as_dict(self) -> dict[str, Any]:
        """Return all of it as JSON values."""
        sparse = [{**asdict(feature), "verdict": feature.verdict} for feature in self.sparse]
        return {**asdict(self), "sparse": sparse, "moved": self.moved}


def diff_recipes(
    a: tuple[str, DataConfig],
    b: tuple[str, DataConfig],
    raw: Sequence[str | Path],
    directory: Path,
    progress: Progress = silent,
) -> RecipeDiff:
    """Prepare raw files by two recipes and compare what comes out, row by row.

    Memory is bounded by the vocabularies and by the pairs of ids that occur together, not by the number of rows.

    Args:
        a: Name and recipe. What it says about blocks and shards does not matter.
        b: The other one.
        raw: Raw files in order.
        directory: An empty folder for what is prepared in between: two prepared data sets.
        progress: As for `prepare`; the last phase is `"compare"`.

    Raises:
        ConfigError: the recipes read files of different formats, or one of them does not fit the files.
        DataError: raw data are missing or malformed.
    """
    if a[1].format != b[1].format:
        raise ConfigError(f"`format` must be the same in both recipes. Received: another in {b[0]} than in {a[0]}.")
    sides = []
    for place, (name, data) in zip("ab", (a, b), strict=True):
        manifest = prepare(data, raw, directory / place, 1, progress=progress)
        sides.append(_Side(name, data, manifest, FeatureEncoder.load(directory / place)))
    first, second = sides
    comparison = _Comparison(first, second)
    done = progress("compare", sum(first.rows_per_file))
    for chunk in _reader(first, second, raw):
        comparison.add(chunk)
        done(chunk.read)
    return comparison.result()


class _Side:
    """One recipe: where it puts rows, what it makes of them, and what it has seen of each table's rows."""

    def __init__(self, name: str, data: DataConfig, manifest: Manifest, encoder: FeatureEncoder) -> None:
        self.name = name
        self.data = data
        self.encoder = encoder
        self.rows_per_file = [file["rows"] for file in manifest.recipe["raw"]]
        self.sizes = {table.name: table.vocabulary_size for table in encoder.spec.tables}
        self._raw = [file["path"] for file in manifest.recipe["raw"]]
        self._plan = self._make_plan()
        counted = [name for name, coding in self._codings.items() if coding.kind == "vocabulary"]
        self._trained = {name: np.zeros(self.sizes[name], np.bool_) for name in counted}
        self._judged = {name: np.zeros(self.sizes[name], np.bool_) for name in counted}
        self.place_counts = np.zeros(len(PLACES), np.int64)

    def _make_plan(self) -> SplitPlan:
        column = self.data.format.time
        if self.data.split.by != "time" or column is None:
            return SplitPlan.make(self.data.split, self.rows_per_file)
        reader = RawReader(self.data.format, self._raw, extra=[column], required=[column], max_bad_share=1.0)
        return SplitPlan.make(self.data.split, self.rows_per_file, read_times(reader, column))

    def places(self, chunk: RawChunk) -> Array:
        """Return the place of each row, an index into `PLACES`."""
        kept = kept_rows(chunk.rows, chunk.frame["label"].to_numpy(), self.data.drop_negatives, self.data.drop_seed)
        places: Array = np.where(kept, self._plan.codes(chunk), _LEFT_OUT)
        self.place_counts += np.bincount(places, minlength=len(PLACES))
        return places

    def encode(self, chunk: RawChunk, places: Array) -> tuple[dict[str, Array], Array]:
        """Return the batch of the rows that are not left out, and which rows those are."""
        here = np.flatnonzero(places != _LEFT_OUT)
        frame = chunk.frame if len(here) == chunk.frame.height else chunk.frame[here]
        batch = self.encoder.encode_frame(frame, file=chunk.file)
        trains = np.isin(places[here], (TRAIN, EVERYWHERE))
        for feature in self.encoder.spec.sparse:
            if feature.table not in self._trained:
                continue
            ids = batch["sparse"][:, slice(*self.encoder.spec.id_columns[feature.name])]
            for seen, rows in ((self._trained, trains), (self._judged, ~trains)):
                own = ids[rows]
                seen[feature.table][own[own >= 0]] = True
        return batch, here

    def leaks(self) -> tuple[str, ...]:
        """Say what was learnt from rows that validate or test."""
        count = dict(zip(PLACES, self.place_counts.tolist(), strict=True))
        judged = count["validation"] + count["test"] + count["all three"]
        found = []
        if count["all three"]:
            found.append(
                f"{count['all three']:,} of {judged:,} rows that validate or test are trained on: the result "
                "is that of rows it has seen."
            )
        only = self._only_judged()
        if self.data.vocabulary_rows == "all" and only:
            found.append(
                f"the vocabulary is counted on {judged:,} rows that validate or test; {sum(only.values()):,} ids in "
                f"{sum(map(bool, only.values()))} of {len(only)} tables are of values that no training row has."
            )
        if any(column.transform == "log_file_minimum" for column in self.data.dense):
            found.append(f"numbers are shifted by minimums taken over {judged:,} rows that validate or test, too.")
        if self.data.drop_negatives:
            found.append(
                f"{count['left out']:,} rows without a click are left out, of those that validate and test too: "
                "click rate and log loss are those of the rest."
            )
        return tuple(found)

    @property
    def _codings(self) -> Mapping[str, TableCoding]:
        return self.encoder.encoding.tables

    def _only_judged(self) -> dict[str, int]:
        """Return how many rows of each table, those of missing, rare and unseen values aside, no training row reads."""
        counts = {}
        for name, judged in self._judged.items():
            only = judged & ~self._trained[name]
            coding = self._codings[name]
            only[[row for row in coding.reserved_rows if row < coding.first_id]] = False
            counts[name] = int(only.sum())
        return counts


class _Comparison:
    """Counts differences chunk by chunk."""

    def __init__(self, a: _Side, b: _Side) -> None:
        self._a, self._b = a, b
        self._rows = 0
        self._compared = 0
        self._places = np.zeros((len(PLACES), len(PLACES)), np.int64)
        dense = [name for name in a.encoder.spec.dense_names if name in b.encoder.spec.dense_names]
        self._dense = {name: [0, 0.0, 0.0] for name in dense}
        others = {feature.name: feature for feature in b.encoder.spec.sparse}
        both = [(f, others[f.name]) for f in a.encoder.spec.sparse if f.name in others]
        self._pairs = {one.name: _Pairs() for one, other in both if one.hotness == other.hotness}
        self._bags = {one.name: (one.hotness, other.hotness) for one, other in both if one.hotness != other.hotness}

    def add(self, chunk: RawChunk) -> None:
        """Compare the rows of a chunk."""
        places = self._a.places(chunk), self._b.places(chunk)
        np.add.at(self._places, places, 1)
        (batch_a, here_a), (batch_b, here_b) = (
            side.encode(chunk, own) for side, own in zip((self._a, self._b), places, strict=True)
        )
        _, in_a, in_b = np.intersect1d(here_a, here_b, assume_unique=True, return_indices=True)
        self._rows += chunk.frame.height
        self._compared += len(in_a)
        for name, total in self._dense.items():
            x, y = (
                batch["dense"][rows, side.encoder.spec.dense_names.index(name)].astype(np.float64)
                for side, batch, rows in ((self._a, batch_a, in_a), (self._b, batch_b, in_b))
            )
            distance = np.abs(x - y)
            total[0] += int(np.count_nonzero(distance))
            total[1] = max(total[1], float(distance.max(initial=0.0)))
            total[2] += float(distance.sum())
        for name, pairs in self._pairs.items():
            a, b = (slice(*side.encoder.spec.id_columns[name]) for side in (self._a, self._b))
            pairs.add(batch_a["sparse"][in_a, a].ravel(), batch_b["sparse"][in_b, b].ravel())

    def result(self) -> RecipeDiff:
        """Return what was found."""
        a, b = self._a, self._b
        return RecipeDiff(
            names=(a.name, b.name),
            settings=changed_settings(a.data, b.data),
            rows=self._rows,
            places={
                one: {other: int(n) for other, n in zip(PLACES, row, strict=True) if n}
                for one, row in zip(PLACES, self._places, strict=True)
                if row.any()
            },
            only={a.name: _missing_in(a, b), b.name: _missing_in(b, a)},
            dense=tuple(
                DenseDiff(name, int(differ), largest, total / max(self._compared, 1))
                for name, (differ, largest, total) in self._dense.items()
            ),
            sparse=tuple(
                pairs.diff(name, a.sizes[_feature(a, name).table], b.sizes[_feature(b, name).table])
                for name, pairs in self._pairs.items()
            ),
            bags=self._bags,
            leaks={a.name: a.leaks(), b.name: b.leaks()},
        )


class _Pairs:
    """The pairs of ids that occur together, each once: 8 bytes a pair, 16 where a table has 2^31 rows or more."""

    def __init__(self) -> None:
        self._ids = self._differ = 0
        self._known = pl.DataFrame()
        self._waiting: list[pl.DataFrame] = []

    def add(self, a: Array, b: Array) -> None:
        self._ids += len(a)
        self._differ += int(np.count_nonzero(a != b))
        self._waiting.append(pl.DataFrame({"a": a, "b": b}).unique())
        if sum(frame.height for frame in self._waiting) >= max(_MERGE_ABOVE, self._known.height):
            self._merge()

    def diff(self, name: str, rows_a: int, rows_b: int) -> SparseDiff:
        self._merge()
        split, merged = (self._known.group_by(side).len().filter(pl.col("len") > 1).height for side in ("a", "b"))
        return SparseDiff(name, rows_a, rows_b, self._ids, self._differ, split, merged)

    def _merge(self) -> None:
        known = [self._known] if self._known.width else []
        self._known = pl.concat([*known, *self._waiting]).unique()
        self._waiting = []


def _reader(a: _Side, b: _Side, raw: Sequence[str | Path]) -> RawReader:
    """Return a reader of all columns that the two recipes read, hexadecimal ones as keys where both can take them."""
    columns = [side.encoder.columns for side in (a, b)]
    numbers = dict.fromkeys(name for c in columns for name in c.numbers)
    strings = dict.fromkeys(name for c in columns for name in c.strings)
    mixed = sorted(numbers.keys() & strings.keys())
    if mixed:
        raise ConfigError(
            f"column `{mixed[0]}` must be a number in both recipes or text in both. Received: one of each."
        )
    joined = {name for table in a.data.format.side_tables for name in SideFile(table).provides}
    as_text = {source for side in (a, b) for source in _text_sources(side)} | joined
    splits = [side.data.split for side in (a, b)]
    time = a.data.format.time
    times = [time] if time is not None and any(split.by == "time" for split in splits) else []
    keys = [split.key for split in splits if split.by == "hash" and split.key is not None]
    return RawReader(
        a.data.format,
        raw,
        dense=list(numbers),
        strings=[name for name in strings if name in as_text],
        keys=[name for name in strings if name not in as_text],
        extra=list(dict.fromkeys([*times, *keys])),
        required=times,
        max_bad_share=1.0,  # how many there may be was for `prepare` to judge
    )


def _text_sources(side: _Side) -> set[str]:
    encoding = side.encoder.encoding
    return {
        coding.source
        for feature in side.encoder.spec.sparse
        if (coding := encoding.features[feature.name]).separator is not None
        or encoding.tables[feature.table].value != "hex"
    }


def _feature(side: _Side, name: str) -> SparseFeature:
    return next(feature for feature in side.encoder.spec.sparse if feature.name == name)


def _missing_in(side: _Side, other: _Side) -> tuple[str, ...]:
    own = (*side.encoder.spec.dense_names, *side.encoder.spec.sparse_names)
    others = {*other.encoder.spec.dense_names, *other.encoder.spec.sparse_names}
    return tuple(name for name in own if name not in others)

"""The held-out rows of a run cut into slices: by the frequent values of each feature, and by day or file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tfdlrm.data.blocks import BlockReader, block_places, spread_blocks
from tfdlrm.data.encoder_files import ENCODER_FILE, vocabulary_paths
from tfdlrm.data.inspection import values_of
from tfdlrm.data.parts import parts_of
from tfdlrm.data.raw_bags import PADDING
from tfdlrm.data.vocabulary import vocabulary_pieces
from tfdlrm.metrics.binary import BinaryMetrics, evaluate_binary
from tfdlrm.pipelines.reporting.days import held_out_days
from tfdlrm.pipelines.stages.context import Run
from tfdlrm.report.slices import OTHERS, Slice, slice_of

MOST_VALUES = 5
"""Values of a feature that have slices of their own; what is left is one more slice."""
_MOST_IDS = 1 << 25
"""Ids that are in memory at a time: of long bags fewer rows are read."""


class Slices(NamedTuple):
    """What the held-out rows were cut into.

    Attributes:
        by: Feature, or `"day"` or `"file"`, to its slices.
        whole: Metrics of all rows that were read.
        rows: How many these are.
    """

    by: dict[str, list[Slice]]
    whole: BinaryMetrics
    rows: int


class _Scored(NamedTuple):
    """Rows and what is known about them, all `[n]`."""

    labels: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    weight: npt.NDArray[Any] | None

    def slice(self, name: str, chosen: npt.NDArray[np.bool_]) -> Slice:
        """Judge the chosen rows."""
        weight = None if self.weight is None else self.weight[chosen]
        return slice_of(name, self.labels[chosen], self.scores[chosen], weight)


def slices_of(run: Run, columns: Mapping[str, npt.NDArray[Any]], weights: str, split: str) -> Slices:
    """Cut the held-out rows, or blocks spread evenly over them, into slices.

    A row with a bag is in the slice of each of its values.

    Args:
        run: The run; `report.slice_rows` says about how many rows are read.
        columns: What the stage `evaluate` left: `label`, scores, and `sample_weight` if there is one.
        weights: Which of the scores.
        split: Split that they are of.

    Raises:
        DataError: a prepared file is not what the manifest says.
    """
    manifest = run.manifest
    reader = BlockReader(run.work_dir.data, manifest)
    rows = min(run.config.report.slice_rows, _MOST_IDS // max(manifest.spec.n_ids, 1))
    share = min(1.0, rows / max(manifest.split(split).rows, 1))
    places = spread_blocks(block_places(manifest, split), share)
    ids = np.concatenate([reader.read(place)["sparse"] for place in places])
    numbers = np.concatenate([np.arange(place.first_row, place.first_row + place.info.rows) for place in places])
    weight = columns.get("sample_weight")
    scored = _Scored(columns["label"][numbers], columns[weights][numbers], None if weight is None else weight[numbers])
    return Slices(
        {**_by_part(run, split, numbers, scored), **_by_value(run, ids, scored)},
        evaluate_binary(scored.labels, scored.scores, scored.weight),
        len(numbers),
    )


def _by_part(run: Run, split: str, numbers: npt.NDArray[np.int64], scored: _Scored) -> dict[str, list[Slice]]:
    parts = parts_of(run.manifest, [split])
    if parts.kind in ("day", "file") and len(parts.items) > 1:
        chosen = {part.name: (numbers >= part.start) & (numbers < part.stop) for part in parts.items}
        return {parts.kind: [scored.slice(name, rows) for name, rows in chosen.items() if rows.any()]}
    days = held_out_days(run, split)
    if days is None:
        return {}
    own = days[numbers]
    return {"day": [scored.slice(day, own == day) for day in np.unique(own)]}


def _by_value(run: Run, ids: npt.NDArray[Any], scored: _Scored) -> dict[str, list[Slice]]:
    spec, codings = run.manifest.spec, run.manifest.encoding.tables
    data = run.work_dir.data
    vocabularies = vocabulary_paths(data) if (data / ENCODER_FILE).exists() else {}
    found = {}
    for feature in spec.sparse:
        bags = ids[:, slice(*spec.id_columns[feature.name])]
        values, counts = np.unique(bags[bags != PADDING], return_counts=True)
        top = values[np.argsort(-counts, kind="stable")]
        if len(top) > MOST_VALUES + 1:
            top = top[:MOST_VALUES]
        path = vocabularies.get(feature.table)
        pieces = () if path is None else vocabulary_pieces(path)
        texts = values_of(top.tolist(), codings[feature.table], pieces)
        own, left = [], np.ones(len(bags), np.bool_)
        for value, text in zip(top, texts, strict=True):
            chosen = (bags == value).any(axis=1)
            left &= ~chosen
            own.append(scored.slice(f"id {value}" if text is None else text, chosen))
        if left.any():
            own.append(scored.slice(OTHERS, left))
        if len(own) > 1:
            found[feature.name] = own
    return found

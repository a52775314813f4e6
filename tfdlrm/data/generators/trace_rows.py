"""Rows whose ids follow traces: every feature has a generator that lives on across samples, batches and epochs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from tfdlrm.data.generators.laws import WRITE_ROWS, RowLaw, Rows, seed_of
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.trace import Ids, Mode, TraceGenerator
from tfdlrm.data.generators.trace_check import TraceCheck, TraceResult
from tfdlrm.spec.errors import ConfigError, DataError, did_you_mean
from tfdlrm.spec.features import FeatureSpec


class TraceRows:
    """Draws rows whose ids follow traces, one for each sparse feature: its bags one after the other, row by row.

    Args:
        spec: The features.
        distances: Distribution and ids of each sparse feature, by its name.
        mode: `"lru"`, `"rand"` or `"paper"`; see `TraceGenerator`. In `"paper"` every bag starts afresh, is sorted,
            and loses its repeated ids.
        law: Law of bags, dense numbers and labels.
        seed: Seed, at least 0.
        split: Rows of another split are other rows.
        padding: Whether new ids are drawn only during warm-up.
        warm_start: Whether traces begin where their warm-up would end.
        check: Whether to measure what comes out; see `results`.

    Raises:
        ConfigError: `distances` does not have exactly the sparse features, or `mode` is unknown.
        DataError: an id is beyond its table, in another mode than `"paper"`, which folds it back.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        distances: Mapping[str, StackDistances],
        mode: Mode = "lru",
        law: RowLaw | None = None,
        seed: int = 0,
        split: str = "train",
        padding: bool = False,
        warm_start: bool = False,
        check: bool = False,
    ) -> None:
        for name in spec.sparse_names:
            if name not in distances:
                raise ConfigError(f"`distances` must have every sparse feature. Received: none of `{name}`.")
        for name in distances:
            if name not in spec.sparse_names:
                hint = did_you_mean(name, spec.sparse_names)
                raise ConfigError(f"`distances` must have sparse features of the spec. Received: `{name}`.{hint}")
        self.spec = spec
        self._law = RowLaw() if law is None else law
        self._random = np.random.default_rng(seed_of(seed, split))
        self._traces = {}
        for number, feature in enumerate(spec.sparse):
            own, table_rows = distances[feature.name], spec.table_of(feature).vocabulary_size
            if mode != "paper" and own.ids.max() >= table_rows:
                raise DataError(
                    f"ids of feature `{feature.name}` must be below the {table_rows} rows of its table. "
                    f"Received: {own.ids.max()}."
                )
            self._traces[feature.name] = TraceGenerator(own, mode, seed_of(seed, split, number), padding, warm_start)
        self._checks = {
            name: TraceCheck(trace.distances, padding, trace.in_use_at_first)
            for name, trace in self._traces.items()
            if check
        }

    def batch(self, rows: int) -> Rows:
        """Draw the next rows, as `RandomRows.batch` returns them."""
        if rows < 1:
            raise ConfigError(f"`rows` must be at least 1. Received: {rows}.")
        sparse = np.full((rows, self.spec.n_ids), -1, self.spec.id_dtype)
        for feature in self.spec.sparse:
            start, stop = self.spec.id_columns[feature.name]
            table_rows = self.spec.table_of(feature).vocabulary_size
            sparse[:, start:stop] = self._bags(feature.name, rows, feature.hotness, table_rows)
        return {"sparse": sparse, **self._law.others(self._random, rows, self.spec)}

    def batches(self, rows: int) -> Iterator[Rows]:
        """Yield the next `rows` rows, 65,536 at a time."""
        for start in range(0, rows, WRITE_ROWS):
            yield self.batch(min(WRITE_ROWS, rows - start))

    def results(self) -> dict[str, TraceResult]:
        """Return how the distances of what was drawn so far compare with what went in, by feature, if checked."""
        return {name: check.result() for name, check in self._checks.items()}

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on from here; it can be pickled. The check is not part of it."""
        traces = {name: trace.state() for name, trace in self._traces.items()}
        return {"random": self._random.bit_generator.state, "traces": traces}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was called, in rows made with the same arguments."""
        self._random.bit_generator.state = copy.deepcopy(state["random"])
        for name, trace in self._traces.items():
            trace.restore(state["traces"][name])

    def _bags(self, name: str, rows: int, hotness: int, table_rows: int) -> Ids:
        """Draw the bags of a feature, `[rows, hotness]`, and hand what was drawn to its check."""
        trace, check = self._traces[name], self._checks.get(name)
        if trace.mode == "paper":
            sizes = np.full(rows, hotness)
            if self._law.bags == "variable":  # the end sizes at half weight, as there
                drawn = np.rint(self._random.random(rows) * min(table_rows, hotness))
                sizes = np.maximum(1, drawn.astype(np.int64))
            bags = trace.paper_bags(sizes, hotness, table_rows)
            if check is not None:
                check.add_plainly(bags[bags >= 0])
            return bags
        sizes = self._law.sizes(self._random, rows, hotness)
        draws = trace.draw(int(sizes.sum()))
        if check is not None:
            check.add(draws)
        bags = np.full((len(sizes), hotness), -1, np.int64)
        bags[np.arange(hotness) < sizes[:, np.newaxis]] = draws.ids
        return bags

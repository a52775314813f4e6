"""Does what came out of a trace generator have the stack distances that went in?"""

from __future__ import annotations

import dataclasses
from typing import cast

import numpy as np
import numpy.typing as npt

from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.stack_profile import StackProfiler, add_counts
from tfdlrm.data.generators.trace import Draws

KS_LIMIT = 0.01
"""Largest Kolmogorov-Smirnov distance of a trace that is what it should be, given draws enough."""
_CHANCE = 2.3
"""Fewer draws may be off by this over their root: once in 20,000 traces, by Kolmogorov's distribution."""


@dataclasses.dataclass(frozen=True)
class TraceResult:
    """What the check of a trace found.

    Attributes:
        draws: Ids drawn.
        in_use: Different ids used by then.
        warm_up: Draws before the check began.
        values: Distances that went in or came out, int64 `[m]`, ascending.
        expected: Share of draws up to each that went in, float64 `[m]`.
        measured: Share of draws up to each that came out after warm-up, float64 `[m]`.
    """

    draws: int
    in_use: int
    warm_up: int
    values: npt.NDArray[np.int64]
    expected: npt.NDArray[np.float64]
    measured: npt.NDArray[np.float64]

    @property
    def ks(self) -> float | None:
        """Kolmogorov-Smirnov distance of the two; `None` where the warm-up never ended."""
        return float(np.abs(self.expected - self.measured).max()) if self.draws > self.warm_up else None

    @property
    def limit(self) -> float:
        """What `ks` must stay under: 0.01, and more where the draws are so few that chance alone exceeds that."""
        return max(KS_LIMIT, _CHANCE / float(np.sqrt(max(1, self.draws - self.warm_up))))


class TraceCheck:
    """Measures the stack distances of ids that were drawn, anew, from the ids alone.

    What was drawn as new after all ids were in use is counted as new, provided that it was the least recently used of
    them. Draws of the warm-up are not counted.

    Args:
        distances: What went in.
        padding: Whether new ids were drawn during warm-up only.
        in_use_at_first: Ids that count as seen before the first draw, the least recently used first, int64.
    """

    def __init__(
        self,
        distances: StackDistances,
        padding: bool = False,
        in_use_at_first: npt.NDArray[np.int64] | None = None,
    ) -> None:
        self._distances = distances
        self._padding = padding
        self._profiler = StackProfiler()
        if in_use_at_first is not None:
            self._profiler.add(in_use_at_first)
        self._draws = 0
        self._warm_up = 0
        self._counts = np.zeros(1, np.int64)

    def add(self, draws: Draws) -> None:
        """Measure the next draws of the trace."""
        before = len(self._profiler)
        measured = self._profiler.add(draws.ids)
        in_use = before + np.cumsum(measured == 0)
        front = draws.new & (measured == in_use) & (in_use == len(self._distances.ids))
        self._count(np.where(front, 0, measured), draws.warm_up)

    def add_plainly(self, ids: npt.NDArray[np.int64]) -> None:
        """Measure ids of which nothing else is known: no warm-up, and an id is new only if it never came before."""
        self._count(self._profiler.add(ids), 0)

    def result(self) -> TraceResult:
        """Compare what came out so far with what went in."""
        counted = np.flatnonzero(self._counts)
        values = np.union1d(self._distances.values, counted)
        went_in = np.concatenate([[0.0], self._distances.after_warm_up(self._padding)])
        came_out = np.concatenate([[0.0], np.cumsum(self._counts[counted]) / max(1, self._counts.sum())])
        return TraceResult(
            draws=self._draws,
            in_use=len(self._profiler),
            warm_up=self._warm_up,
            values=values,
            expected=went_in[np.searchsorted(self._distances.values, values, "right")],
            measured=cast(npt.NDArray[np.float64], came_out[np.searchsorted(counted, values, "right")]),
        )

    def _count(self, distances: npt.NDArray[np.int64], warm_up: int) -> None:
        self._counts = add_counts(self._counts, distances[warm_up:])
        self._draws += len(distances)
        self._warm_up += warm_up

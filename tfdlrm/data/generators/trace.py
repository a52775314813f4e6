"""Synthetic traces: ids drawn so that their stack distances follow a given distribution.

The method is that of the paper's code (arXiv 1906.00091, section 5), with the faults of its emission mended: there the
list of ids starts afresh with every sample, so that the first id of every bag is the same and no locality crosses
samples, and each draw moves half the list. Here the list lives on, and a draw takes O(log n).
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from tfdlrm.data.generators.recency import RecencyList
from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.spec.errors import ConfigError

Mode = Literal["lru", "rand", "paper"]
MODES: tuple[Mode, ...] = get_args(Mode)
Ids = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True)
class Draws:
    """Consecutive ids of a trace.

    Attributes:
        ids: int64 `[n]`.
        new: Which of them were drawn as new, bool `[n]`: an id not yet used or, once all were, the least recently used.
        warm_up: How many of them, from the first on, were drawn before as many ids were in use as the largest
            distance asks for; until then larger distances cannot be drawn.
    """

    ids: Ids
    new: npt.NDArray[np.bool_]
    warm_up: int


class TraceGenerator:
    """Draws the ids of one trace.

    Args:
        distances: Which distances to draw, and the ids. New ids come in their order.
        mode: `"lru"` draws an id at the drawn distance in the list of last uses; its distances follow `distances`.
            `"rand"` is the variant of the paper's code in which an id that is used again keeps its place in the list.
            `"paper"` is the paper's emission: each call of `draw` and each bag starts afresh. Defaults to `"lru"`.
        seed: Seed, a number or several, at least 0.
        padding: Whether new ids are drawn only during warm-up. Defaults to `False`.
        warm_start: Whether to begin where the warm-up would end, with as many ids in use as the largest distance asks
            for. A warm-up takes about as many draws as the trace had that was profiled. Defaults to `False`.

    Raises:
        ConfigError: `mode` is unknown, or it is `"paper"` and `warm_start` is true.

    Example:
        >>> distances = StackDistances(np.arange(3), np.array([0, 1, 3]), np.array([0.2, 0.8, 1.0]))
        >>> TraceGenerator(distances, seed=1).draw(12).ids.tolist()
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2]
    """

    def __init__(
        self,
        distances: StackDistances,
        mode: Mode = "lru",
        seed: int | tuple[int, ...] = 0,
        padding: bool = False,
        warm_start: bool = False,
    ) -> None:
        if mode not in MODES:
            raise ConfigError(f"`mode` must be one of {', '.join(MODES)}. Received: {mode!r}.")
        if mode == "paper" and warm_start:
            raise ConfigError('`warm_start` must be false in mode "paper", which starts afresh. Received: True.')
        self.distances = distances
        self.mode = mode
        self.padding = padding
        self.in_use_at_first = distances.ids[: distances.values[-1] if warm_start else 0]
        self._random = np.random.default_rng(seed)
        self._start_afresh()

    def draw(self, count: int) -> Draws:
        """Draw the next ids; 1,000 at once or in two parts are the same ids, but in mode `"paper"`.

        Args:
            count: How many, at least 0.
        """
        if self.mode == "paper":
            self._start_afresh()
        before = self._new_ids
        drawn, warm_up = self._draw_distances(count)
        new = drawn == 0
        if self.mode == "rand":
            new_ids = before + np.cumsum(new)  # after each draw
            place = np.where(new, new_ids - 1, new_ids - drawn)
            return Draws(self.distances.ids[place % len(self.distances.ids)], new, warm_up)
        fresh = self.distances.ids[before : self._new_ids].tolist()
        return Draws(np.array(self._used.replay(drawn.tolist(), fresh), np.int64), new, warm_up)

    def state(self) -> dict[str, Any]:
        """Return what `restore` needs to go on from here; it can be pickled."""
        return {"random": self._random.bit_generator.state, "new_ids": self._new_ids, "used": self._used.values()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was called, in a generator made with the same arguments."""
        self._random.bit_generator.state = copy.deepcopy(state["random"])
        self._new_ids = state["new_ids"]
        self._used = RecencyList(state["used"])

    def paper_bags(self, sizes: Ids, hotness: int, rows: int) -> Ids:
        """Draw the bags of samples as the paper's code does, whatever the mode.

        Every bag starts with the list as it was at first; what it draws is sorted, repeated ids are dropped, and ids
        out of range are taken modulo the table's rows. All bags are drawn side by side: O(hotness^2) each.

        Args:
            sizes: Draws of each bag, `[samples]`, from 1 to `hotness`.
            hotness: Width of the result.
            rows: Rows of the table.

        Returns:
            int64 `[samples, hotness]`, padded with -1 at the end.
        """
        ids, values, cumulative = self.distances.ids, self.distances.values, self.distances.cumulative
        new_ids = np.zeros(len(sizes), np.int64)
        depths = np.zeros((len(sizes), hotness), np.int64)
        for step in range(hotness):
            reach = np.searchsorted(values, np.minimum(new_ids, values[-1]), "right") - 1
            u = self._random.random(len(sizes)) * cumulative[reach]
            if self.padding:
                u = np.where(new_ids < values[-1], u, self._without_new(u / cumulative[-1]))
            drawn = values[np.searchsorted(cumulative, u)]
            new_ids += drawn == 0
            # The list holds all ids from the start: the next new one is its first.
            depths[:, step] = np.where(drawn == 0, len(ids), drawn)
        # Where was what a step takes before any step? A step that takes depth d moves depths 1 to d - 1 by one, and
        # what is at depth 1 after it came from depth d.
        for step in range(hotness - 2, -1, -1):
            later, moved = depths[:, step + 1 :], depths[:, step, np.newaxis]
            depths[:, step + 1 :] = np.where(later == 1, moved, np.where(later <= moved, later - 1, later))
        bags = ids[len(ids) - depths]
        missing = np.iinfo(np.int64).max  # sorts to the end
        bags[np.arange(hotness) >= sizes[:, np.newaxis]] = missing
        bags.sort(axis=1)
        bags[:, 1:][bags[:, 1:] == bags[:, :-1]] = missing
        bags.sort(axis=1)
        return cast(Ids, np.where(bags == missing, -1, bags % rows))

    def _start_afresh(self) -> None:
        self._new_ids = len(self.in_use_at_first)  # and draws so far that were new
        self._used = RecencyList(self.in_use_at_first.tolist())

    def _draw_distances(self, count: int) -> tuple[Ids, int]:
        """Draw distances, 0 for a new id, and tell how many of them belong to the warm-up."""
        values, cumulative = self.distances.values, self.distances.cumulative
        u = self._random.random(count)
        warm_up = self._scale_warm_up(u)
        rest = u[warm_up:]
        # Rounded shares may end below 1; scaled to the last of them, no number is beyond.
        rest[:] = self._without_new(rest) if self.padding else rest * cumulative[-1]
        drawn = values[np.searchsorted(cumulative, u)]
        self._new_ids += int(np.count_nonzero(drawn[warm_up:] == 0))
        return drawn, warm_up

    def _scale_warm_up(self, u: npt.NDArray[np.float64]) -> int:
        """Scale the numbers of the warm-up, where a distance can reach no deeper than ids are in use; count them."""
        values, cumulative = self.distances.values.tolist(), self.distances.cumulative.tolist()
        largest, share_new = values[-1], cumulative[0]
        reach = -1
        scales = []
        for number in u.tolist() if self._new_ids < largest else ():
            if self._new_ids >= largest:
                break
            while values[reach + 1] <= self._new_ids:  # the last distance is larger
                reach += 1
            scales.append(cumulative[reach])
            self._new_ids += number * cumulative[reach] <= share_new
        u[: len(scales)] *= scales
        return len(scales)

    def _without_new(self, u: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Map numbers from [0, 1) past the share of new ids, where there are other distances."""
        cumulative = self.distances.cumulative
        share_new = np.nextafter(cumulative[0], 2) if len(cumulative) > 1 else 0.0
        return cast(npt.NDArray[np.float64], np.minimum(share_new + u * (cumulative[-1] - share_new), cumulative[-1]))

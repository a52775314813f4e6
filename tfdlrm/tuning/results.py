"""What trials leave: figures averaged over seeds, a table of all, the best of them, and those that nothing beats."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl

from tfdlrm.spec.frozen import Frozen
from tfdlrm.tuning.sweep_config import Objective, SweepConfig

METRICS: tuple[Objective, ...] = ("log_loss", "auc", "normalized_entropy")
Status = Literal["completed", "failed", "refused"]
"""`"failed"`: it crashed, diverged, or has values that contradict each other; `"refused"`: it breaks a budget."""


class Proposal(NamedTuple):
    """What a trial is to try.

    Attributes:
        trial: Its name.
        values: What it sets, by dotted key.
        share: Share of a full training's rows that it is to see.
        goes_on_from: The trial of the same values that has seen the first of them; `None` to begin afresh.
    """

    trial: str
    values: dict[str, Any]
    share: float = 1.0
    goes_on_from: str | None = None


class SeedResult(Frozen):
    """One training of a trial.

    Attributes:
        seed: Its seed.
        metrics: Of the best weights on validation rows, by name.
        rows: Samples seen.
        steps: Updates of the weights.
        seconds: In training.
        stopped_early: Whether it was given up.
    """

    seed: int
    metrics: dict[str, float]
    rows: int
    steps: int
    seconds: float
    stopped_early: bool = False


class Spent(Frozen):
    """What one training of a trial has spent, however it ended.

    Attributes:
        seed: Its seed.
        rows: Samples seen, those of the training that it went on with included.
        seconds: In training, likewise.
        rows_before: Samples that the training had seen which it went on with, in another trial.
    """

    seed: int
    rows: int = 0
    seconds: float = 0.0
    rows_before: int = 0


class Spending(Frozen):
    """What a trial has spent.

    Attributes:
        seconds: Of its processes, all of them where one was killed.
        seeds: Its trainings that have begun.
    """

    seconds: float = 0.0
    seeds: tuple[Spent, ...] = ()


class TrialResult(Frozen):
    """A trial.

    Attributes:
        trial: Its name, in the order of proposal.
        status: How it ended.
        reason: Why, where it is not `"completed"`.
        values: What it set, by dotted key.
        seeds: Its trainings; those that ended where another one failed.
        spent: What each training that began has spent.
        table_bytes: Embedding tables as they are stored; `None` where that was never known.
        bytes: Of all weights, with the optimizer's slots.
        parameters: Weights of the model.
        share: Share of a full training's rows that was asked for; below 1 only in Hyperband's first rounds.
        goes_on_from: The trial whose training it went on with; its rows are counted here, too.
        seconds: From the start of its process to its end; of all of them, where one was killed and it went on.
        worker: Which worker ran it.
        parent_bytes: Memory of the process that ran it, after it.
    """

    trial: str
    status: Status
    reason: str = ""
    values: dict[str, Any] = {}
    seeds: tuple[SeedResult, ...] = ()
    spent: tuple[Spent, ...] = ()
    table_bytes: int | None = None
    bytes: int | None = None
    parameters: int | None = None
    share: float = 1.0
    goes_on_from: str | None = None
    seconds: float = 0.0
    worker: str = ""
    parent_bytes: int | None = None

    @property
    def rows(self) -> int:
        """Samples that its trainings have seen, those that failed among them."""
        return sum(seed.rows for seed in self.spent)

    @property
    def rows_per_second(self) -> float | None:
        """Samples a second of training."""
        seconds = sum(seed.seconds for seed in self.seeds)
        return sum(seed.rows for seed in self.seeds) / seconds if seconds else None

    def mean(self, metric: str) -> float | None:
        """Return the mean of a metric over the seeds; `None` where it has not completed."""
        return float(np.mean([s.metrics[metric] for s in self.seeds])) if self.status == "completed" else None

    def spread(self, metric: str) -> float | None:
        """Return the standard deviation over the seeds; `None` with fewer than two."""
        if self.status != "completed" or len(self.seeds) < 2:
            return None
        return float(np.std([s.metrics[metric] for s in self.seeds], ddof=1))


def best_of(trials: Sequence[TrialResult], config: SweepConfig) -> TrialResult | None:
    """Return the trial with the best objective among those that saw all the rows they may; `None` without any.

    Where Hyperband let none see all, those that saw most compete.
    """
    completed = [trial for trial in trials if trial.status == "completed"]
    most = max((trial.share for trial in completed), default=1.0)
    best: TrialResult | None = None
    for trial in (trial for trial in completed if trial.share == most):
        if best is None or config.better(_value(trial, config), _value(best, config)):
            best = trial
    return best


def rows_seen(trials: Sequence[TrialResult]) -> int:
    """Return the samples that all trials together were trained on; what one went on from counts once."""
    return sum(seed.rows - seed.rows_before for trial in trials for seed in trial.spent)


def ranked(trials: Sequence[TrialResult], config: SweepConfig) -> list[TrialResult]:
    """Return the completed trials, those that saw most first, then the best."""
    sign = -1 if config.direction == "max" else 1
    completed = [trial for trial in trials if trial.status == "completed"]
    return sorted(completed, key=lambda trial: (-trial.share, sign * _value(trial, config)))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Return the places of points that none beats in both coordinates, of which more is better, by the first.

    Example:
        >>> pareto_front([(1.0, 5.0), (2.0, 4.0), (1.5, 3.0), (2.0, 4.5)])
        [0, 3]
    """
    front: list[int] = []
    for place in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1], i)):
        if not front or points[place][1] > points[front[-1]][1]:
            front.append(place)
    return front[::-1]


def frame(trials: Sequence[TrialResult], keys: Sequence[str]) -> pl.DataFrame:
    """Return one row a trial: how it ended, its metrics, its cost, then the value of each key of the space.

    Lists and tables among the values are JSON texts, and so is all of a column that holds some.
    """
    columns: dict[str, list[Any]] = {
        "trial": [trial.trial for trial in trials],
        "status": [trial.status for trial in trials],
        "reason": [trial.reason for trial in trials],
    }
    for metric in METRICS:
        columns[metric] = [trial.mean(metric) for trial in trials]
        columns[f"{metric}_spread"] = [trial.spread(metric) for trial in trials]
    columns |= {
        "seeds": [len(trial.seeds) for trial in trials],
        "share": [trial.share for trial in trials],
        "rows": [trial.rows for trial in trials],
        "seconds": [trial.seconds for trial in trials],
        "rows_per_second": [trial.rows_per_second for trial in trials],
        "table_bytes": [trial.table_bytes for trial in trials],
        "bytes": [trial.bytes for trial in trials],
        "parameters": [trial.parameters for trial in trials],
        "worker": [trial.worker for trial in trials],
        "parent_bytes": [trial.parent_bytes for trial in trials],
    }
    types: dict[str, Any] = dict.fromkeys(
        (name for name in columns if name.endswith("_spread") or name in METRICS or "seconds" in name), pl.Float64
    )
    types |= dict.fromkeys(("table_bytes", "bytes", "parameters", "parent_bytes"), pl.Int64)
    table = pl.DataFrame(columns, schema_overrides=types)
    return table.with_columns(_column(key, [trial.values for trial in trials]) for key in keys)


def _column(key: str, values: Sequence[Mapping[str, Any]]) -> pl.Series:
    cells = [own.get(key) for own in values]
    kinds = {type(cell) for cell in cells if cell is not None}
    if kinds <= {int, float} or len(kinds) == 1 and kinds <= {str, bool}:
        return pl.Series(key, cells, strict=False)
    return pl.Series(key, [None if cell is None else json.dumps(cell) for cell in cells], dtype=pl.String)


def _value(trial: TrialResult, config: SweepConfig) -> float:
    value = trial.mean(config.objective)
    assert value is not None  # it has completed
    return value

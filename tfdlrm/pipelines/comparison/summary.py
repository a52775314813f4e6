"""From cells to figures: mean and spread over seeds, paired tests against the reference, mean learning curves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tfdlrm.metrics.significance import holm, paired_test
from tfdlrm.report.comparison import Curve, Panel
from tfdlrm.spec.compare import CompareConfig

METRICS = ("auc", "log_loss", "normalized_entropy", "accuracy")
TESTED = ("auc", "log_loss")

Result = dict[str, Any]
Group = tuple[str, str, str]
"""Data set, optimizer, model."""


@dataclass(frozen=True)
class Planned:
    """The cells that belong together.

    Attributes:
        folds: Folds of each seed; `(None,)` where there are none.
        seeds: Seeds, in order.
        results: What is done, by seed and fold.
    """

    folds: tuple[int | None, ...]
    seeds: tuple[int, ...]
    results: Mapping[tuple[int, int | None], Result]

    def of_seed(self, seed: int) -> list[Result] | None:
        """Return the results of a seed, all folds; `None` where one is missing or diverged."""
        found = [self.results.get((seed, fold)) for fold in self.folds]
        return None if any(r is None or "diverged" in r for r in found) else [r for r in found if r is not None]

    def per_seed(self, metric: str) -> dict[int, float]:
        """Return a metric of the held-out rows for every finished seed: the mean over its folds."""
        values = {}
        for seed in self.seeds:
            own = [r["metrics"][metric] for r in self.of_seed(seed) or () if r["metrics"]]
            if own and all(value is not None for value in own):
                values[seed] = statistics.fmean(own)
        return values


def summarize(config: CompareConfig, groups: Mapping[Group, Planned]) -> list[Result]:
    """Return one line for every data set, optimizer and model that has a finished or a diverged seed.

    Returns:
        Lines with `dataset`, `optimizer`, `model`, `n` (seeds finished), `diverged` (cells), parameters,
        `rows_per_second`, `<metric>` and `<metric>_spread` (mean and sample standard deviation over seeds, folds
        averaged first), and for the tested metrics `<metric>_difference` to the reference, `<metric>_pairs`,
        `<metric>_p` of the paired t-test over seeds and `<metric>_p_holm`, corrected for the models of one data set
        and optimizer.
    """
    lines = []
    for dataset in config.datasets:
        for optimizer in config.optimizers:
            own = {
                m.label: groups[key]
                for m in config.models
                if (key := (dataset.name, optimizer.label, m.label)) in groups
            }
            found = {label: _line(planned) for label, planned in own.items() if planned.results}
            for metric in TESTED:
                _compare(own, found, config.reference_label, metric)
            names = {"dataset": dataset.name, "optimizer": optimizer.label}
            lines += [{**names, "model": label, **line} for label, line in found.items()]
    return lines


def _line(planned: Planned) -> Result:
    done = [result for seed in planned.seeds for result in planned.of_seed(seed) or ()]
    every = list(planned.results.values())
    line: Result = {
        "n": len(planned.per_seed(METRICS[0])),
        "folds": len(planned.folds),
        "diverged": sum("diverged" in result for result in every),
        "dense_parameters": every[0]["dense_parameters"],
        # Folds count their vocabularies each for itself.
        "table_parameters": round(statistics.fmean(r["table_parameters"] for r in done)) if done else None,
        "rows_per_second": statistics.fmean(r["rows_per_second"] for r in done) if done else None,
        "seconds": sum(result["seconds"] for result in every),
    }
    for metric in METRICS:
        values = list(planned.per_seed(metric).values())
        line[metric] = statistics.fmean(values) if values else None
        line[f"{metric}_spread"] = statistics.stdev(values) if len(values) > 1 else None
    best = [r["best_possible"]["auc"] for r in done if r.get("best_possible")]
    line["best_possible_auc"] = statistics.fmean(best) if best else None
    return line


def _compare(groups: Mapping[str, Planned], lines: Mapping[str, Result], reference: str, metric: str) -> None:
    """Put differences to the reference and their p-values into the lines."""
    against = groups[reference].per_seed(metric) if reference in groups else {}
    p_values = {}
    for label, line in lines.items():
        values = groups[label].per_seed(metric)
        both = [seed for seed in values if seed in against] if label != reference else []
        test = paired_test([values[s] for s in both], [against[s] for s in both]) if both else None
        line[f"{metric}_difference"] = test.difference if test else None
        line[f"{metric}_pairs"] = test.n if test else None
        line[f"{metric}_p"] = p_values[label] = test.p if test else None
    for label, p in holm(p_values).items():
        lines[label][f"{metric}_p_holm"] = p


def panels(config: CompareConfig, groups: Mapping[Group, Planned], metric: str) -> list[Panel]:
    """Return the panels of the figure: a data set and an optimizer each, in the order of the configuration."""
    shown = config.figure_models or tuple(model.label for model in config.models)
    found: list[Panel] = []
    for dataset in config.datasets:
        for optimizer in config.optimizers:
            curves: list[Curve] = []
            for label in shown:
                planned = groups.get((dataset.name, optimizer.label, label))
                runs = [run for seed in planned.seeds if (run := planned.of_seed(seed))] if planned else []
                for part in ("training", "validation") if runs else ():
                    curves.append(Curve(label, part, *mean_curve(runs, part, metric)))
            found.append(Panel(dataset.name, optimizer.label, curves))
    return found


def mean_curve(
    seeds: Sequence[Sequence[Mapping[str, Any]]], part: str, metric: str
) -> tuple[list[int], list[float], list[float]]:
    """Return steps, means and spreads over seeds of a metric, at the steps that all runs have.

    Args:
        seeds: The results of each seed, one a fold; folds are averaged first. Their `curve` holds entries with `step`,
            `training` and `validation`. Runs that stopped early end the mean where the shortest of them ends.
        part: `"training"` or `"validation"`.
        metric: Which of their metrics.
    """
    known = [
        [{e["step"]: e[part][metric] for e in run["curve"] if e[part][metric] is not None} for run in runs]
        for runs in seeds
    ]
    steps = sorted(set.intersection(*(set(run) for runs in known for run in runs)))
    values = np.array([[statistics.fmean(run[step] for run in runs) for step in steps] for runs in known], np.float64)
    spreads = values.std(axis=0, ddof=1) if len(seeds) > 1 else np.zeros(len(steps))
    return steps, values.mean(axis=0).tolist(), spreads.tolist()

"""What a sweep leaves beside its trials: `trials.csv`, `index.html` and `best.toml`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tfdlrm.data.files import write_atomic
from tfdlrm.pipelines.sweeping.folder import SweepFolder
from tfdlrm.pipelines.work_dir import config_toml
from tfdlrm.report.html import Plot, Section, Table, render
from tfdlrm.spec.byte_sizes import bytes_in_words
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.train_config import TrainConfig
from tfdlrm.tuning.results import TrialResult, best_of, frame, pareto_front, ranked, rows_seen
from tfdlrm.tuning.space import Space
from tfdlrm.tuning.sweep_config import SweepConfig

LABELS = {"log_loss": "log loss", "auc": "AUC", "normalized_entropy": "normalized entropy"}
_BEST = 10


def write_outputs(folder: SweepFolder, config: SweepConfig, space: Space) -> None:
    """Write all files that can be written of the trials that have ended."""
    results = folder.results()
    if not results:
        return
    keys = list(space.parameters)
    write_atomic(folder.root / "trials.csv", frame(results, keys).write_csv())
    best = best_of(results, config)
    if best is not None:
        write_atomic(folder.root / "best.toml", best_toml(config, space, best))
    write_atomic(folder.root / "index.html", html(config, keys, results))


def best_config(config: SweepConfig, space: Space, best: TrialResult) -> RunConfig:
    """Return the recipe with the values of the best trial, trained and chosen as there.

    What a trial may spend is the sweep's affair, and is not in it.
    """
    found = space.apply(best.values)
    train = {**dict(found.train), **config.selection(found.train.batch_size)}
    return found.model_copy(update={"train": TrainConfig(**train)})


def best_toml(config: SweepConfig, space: Space, best: TrialResult) -> str:
    """Return `best_config` as a file, all defaults stated."""
    found = best_config(config, space, best)
    named = found.model_copy(update={"name": f"{found.name}-best"})
    spread = best.spread(config.objective)
    said = f"{best.mean(config.objective):.5f}" + ("" if spread is None else f" ± {spread:.5f}")
    return (
        f"# Found by the sweep `{config.name}`: trial {best.trial}, {LABELS[config.objective]} {said} on validation "
        f"rows, {len(best.seeds)} seed(s).\n"
        f"# {values_in_words(best.values)}\n" + config_toml(named)
    )


def trial_line(result: TrialResult, config: SweepConfig) -> str:
    """Say in a line how a trial ended."""
    values = values_in_words(result.values)
    if result.status != "completed":
        return f"trial {result.trial} {result.status}: {result.reason} ({values})"
    metrics = ", ".join(f"{LABELS[name]} {result.mean(name):.5f}" for name in dict.fromkeys((config.objective, "auc")))
    share = f", {result.share:.0%} of the rows" if result.share < 1 else ""
    return f"trial {result.trial}: {metrics}{share} ({result.seconds:,.1f} s; {values})"


def values_in_words(values: dict[str, Any]) -> str:
    """Return what a trial set, in a line."""
    return ", ".join(f"{key}={_short(value)}" for key, value in values.items())


def html(config: SweepConfig, keys: Sequence[str], results: Sequence[TrialResult]) -> str:
    """Return the page of a sweep; it needs no other file."""
    from tfdlrm.report import sweep as pictures

    order = ranked(results, config)
    sections = [
        Section(
            "Summary",
            text=[
                f"{len(results)} trials, {len(order)} completed, {rows_seen(results):,} samples seen, "
                f"{sum(result.seconds for result in results):,.0f} s. Metrics are those of validation rows, averaged "
                "over the seeds of a trial; no test row was looked at."
            ],
            tables=[_best_table(config, keys, order[:_BEST])] if order else [],
        )
    ]
    if order:
        sections += _figures(config, keys, order, pictures)
    others = [result for result in results if result.status != "completed"]
    if others:
        rows = [[r.trial, r.status, r.reason, values_in_words(r.values)] for r in others]
        table = Table("Trials without a result", ["trial", "status", "reason", "values"], rows)
        sections.append(Section("Failed and refused", tables=[table]))
    memory = [result.parent_bytes for result in results if result.parent_bytes]
    if memory:
        words = f"from {bytes_in_words(min(memory))} to {bytes_in_words(max(memory))}"
        sections.append(
            Section("Memory of the process that ran the trials", text=[f"{words}, noted after each trial."])
        )
    settings = json.dumps(config.model_dump(mode="json", exclude_unset=True), indent=1)
    return render(f"Sweep {config.name}", [*sections, Section("Settings", code=[settings])])


def _figures(config: SweepConfig, keys: Sequence[str], order: Sequence[TrialResult], pictures: Any) -> list[Section]:
    objective = LABELS[config.objective]
    columns = {key: [result.values.get(key) for result in order] for key in keys}
    scores = [result.mean(config.objective) for result in order]
    found = [
        Section(
            "All trials",
            plots=[
                Plot(
                    f"Parallel coordinates: a line is a trial, dark where its {objective} is good; a gap is a key "
                    "that it did not set.",
                    pictures.parallel_coordinates(columns, objective, scores, config.direction == "min"),
                )
            ],
        )
    ]
    plots = []
    for title, costs, more_is_better in (
        ("bytes of weights and slots", [result.bytes for result in order], False),
        ("rows/s in training", [result.rows_per_second for result in order], True),
    ):
        aucs = [result.mean("auc") for result in order]
        points = [
            (auc, cost, result.trial)
            for auc, cost, result in zip(aucs, costs, order, strict=True)
            if auc is not None and cost is not None
        ]
        if points:
            sign = 1.0 if more_is_better else -1.0
            front = pareto_front([(sign * cost, auc) for auc, cost, _ in points])
            plots.append(
                Plot(
                    f"AUC against {title}. Nothing beats the marked trials in both: "
                    f"{', '.join(points[place][2] for place in front)}.",
                    pictures.pareto([(cost, auc) for auc, cost, _ in points], front, title, not more_is_better),
                )
            )
    return [*found, Section("Pareto fronts", plots=plots)] if plots else found


def _best_table(config: SweepConfig, keys: Sequence[str], best: Sequence[TrialResult]) -> Table:
    columns = ["trial", *LABELS.values(), "rows/s", "bytes", "samples", *keys]
    rows = []
    for result in best:
        rate, size = result.rows_per_second, result.bytes
        rows.append(
            [result.trial, *(_with_spread(result, name) for name in LABELS)]
            + ["-" if rate is None else f"{rate:,.0f}", "-" if size is None else bytes_in_words(size)]
            + [f"{result.rows:,}", *(_short(result.values.get(key)) for key in keys)]
        )
    return Table(f"The best trials by {LABELS[config.objective]}", columns, rows)


def _with_spread(result: TrialResult, metric: str) -> str:
    spread = result.spread(metric)
    return f"{result.mean(metric):.5f}" + ("" if spread is None else f" ± {spread:.5f}")


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:.4g}"
        if isinstance(value, float)
        else json.dumps(value)
        if isinstance(value, list | dict)
        else str(value)
    )

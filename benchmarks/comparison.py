"""The results of a comparison: what each process measured, medians, ratios, tables."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

OURS = "tfdlrm"


@dataclass(frozen=True)
class Case:
    """One column of the table."""

    optimizer: str
    batch_size: int

    def __str__(self) -> str:
        return f"{self.optimizer}, B {self.batch_size}"


@dataclass(frozen=True)
class Contestant:
    """One row of the table.

    Attributes:
        name: `tfdlrm` or the name of a peer.
        precision: `"float32"` or `"bfloat16"`.
        command: From a case and a file for the figures to the command that measures, `None` where it cannot.
    """

    name: str
    precision: str
    command: Callable[[Case, Path], list[str] | None]

    def __str__(self) -> str:
        return f"{self.name}, {self.precision}"


@dataclass(frozen=True)
class Run:
    """What one process measured."""

    case: Case
    contestant: Contestant
    rows_per_second: float
    others_share: float


def turns_bar() -> Progress:
    """Return a bar that counts processes and says the time left, on the standard error and where someone watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
    )


Cells = tuple[str, list[str], list[list[str]]]


def medians(runs: Iterable[Run]) -> dict[Contestant, dict[Case, list[float]]]:
    """Return the rates of each contestant in each case, in order of appearance."""
    rates: dict[Contestant, dict[Case, list[float]]] = {}
    for run in runs:
        rates.setdefault(run.contestant, {}).setdefault(run.case, []).append(run.rows_per_second)
    return rates


def _cases(runs: Iterable[Run]) -> list[Case]:
    return list(dict.fromkeys(run.case for run in runs))


def rates_table(runs: Sequence[Run]) -> Cells:
    """Return title, columns and rows: medians in rows/s, with the slowest and fastest round."""
    cases, rates = _cases(runs), medians(runs)
    rows = []
    for contestant, by_case in rates.items():
        cells = []
        for case in cases:
            found = by_case.get(case)
            text = f"{statistics.median(found):,.0f} ({min(found):,.0f} to {max(found):,.0f})" if found else ""
            cells.append(text)
        rows.append([str(contestant), *cells])
    return "rows/s, median (slowest to fastest)", ["", *map(str, cases)], rows


def ratio_table(runs: Sequence[Run]) -> Cells:
    """Return title, columns and rows: ours over each peer, and over the best peer of each case."""
    cases, rates = _cases(runs), medians(runs)
    ours = {c: by_case for c, by_case in rates.items() if c.name == OURS}
    peers = {c: by_case for c, by_case in rates.items() if c.name != OURS}
    rows = []
    for mine, my_rates in ours.items():
        for label, theirs in [
            *((str(peer), [by_case]) for peer, by_case in peers.items()),
            ("best peer", peers.values()),
        ]:
            cells = []
            for case in cases:
                best = max((statistics.median(r[case]) for r in theirs if case in r), default=None)
                have = best is not None and case in my_rates
                cells.append(f"{statistics.median(my_rates[case]) / best:.2f}x" if have else "")
            rows.append([f"{mine} / {label}", *cells])
    return "ours / peer, ratio of medians", ["", *map(str, cases)], rows


def rich_table(title: str, columns: list[str], rows: list[list[str]]) -> Table:
    """Return a table for the terminal."""
    table = Table(title=title)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    for row in rows:
        table.add_row(*row)
    return table


def markdown(title: str, columns: list[str], rows: list[list[str]]) -> str:
    """Return a table as Markdown under a line that says what it holds."""
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] + ["---:"] * (len(columns) - 1), *rows)]
    return f"{title}:\n\n" + "\n".join(lines) + "\n"


def as_json(runs: Sequence[Run], failures: Sequence[str], settings: Mapping[str, Any]) -> str:
    """Return everything that was measured."""
    entries = [
        {
            "name": contestant.name,
            "precision": contestant.precision,
            "optimizer": case.optimizer,
            "batch_size": case.batch_size,
            "rows_per_second": statistics.median(rates),
            "rates": rates,
        }
        for contestant, by_case in medians(runs).items()
        for case, rates in by_case.items()
    ]
    content = {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
        "figures": entries,
        "others_share": max((run.others_share for run in runs), default=0.0),
        "failures": list(failures),
    }
    return json.dumps(content, indent=1) + "\n"

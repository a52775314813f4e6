from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from tests.pipelines.small_runs import call
from tfdlrm.pipelines import tabular
from tfdlrm.pipelines.reporting.days import held_out_days
from tfdlrm.pipelines.stages.context import opened
from tfdlrm.pipelines.work_dir import existing_run

ROWS = 400
START = 1_700_000_000


def seconds(step: int) -> np.ndarray:
    """Return times that jump about, `step` seconds apart in the mean."""
    return START + np.random.default_rng(0).permutation(ROWS) * step


def days_of(folder: Path, times: list[str], by: str = "time") -> tuple[np.ndarray | None, list[int]]:
    """Prepare a table with these times; return the days of its test rows, and the numbers of these in the file."""
    labels = np.random.default_rng(1).integers(0, 2, ROWS)
    lines = [f"{label},{row},{time}" for row, (label, time) in enumerate(zip(labels, times, strict=True))]
    (folder / "shop.csv").write_text("\n".join(["bought,shop,when", *lines]) + "\n")
    raw_format = {"delimiter": ",", "header": True, "label": "bought", "time": "when"}
    split = {"by": by, "fractions": [0.5, 0.25, 0.25], **({"key": "shop"} if by == "hash" else {})}
    data = {
        "raw": [str(folder / "shop.csv")],
        "format": raw_format,
        "dense": [],
        "sparse": [{"name": "shop", "value": "string"}, {"name": "again", "source": "shop", "value": "string"}],
        "split": split,
    }
    recipe = folder / "shop.toml"
    recipe.write_text(tomli_w.dumps({"name": "shop", "data": data, "model": {"bottom_units": []}}))
    outcome = call(tabular.main, "--config", recipe, "--work-dir", folder / "run", "--stages", "prepare")
    assert outcome.code == 0, outcome.err
    with opened(*existing_run(folder / "run")) as run:
        found = held_out_days(run, "test")
    order = np.argsort(times, kind="stable") if by == "time" else np.arange(ROWS)
    return found, sorted(order[300:].tolist())


@pytest.mark.parametrize("by", ["time", "order"])
def test_days_are_those_of_the_raw_rows(tmp_path: Path, by: str) -> None:
    times = seconds(7200)
    found, rows = days_of(tmp_path, [str(time) for time in times], by)
    assert found.tolist() == [f"{datetime.fromtimestamp(times[row], UTC):%Y-%m-%d}" for row in rows]
    assert len(set(found)) > 5


def test_many_days_become_months(tmp_path: Path) -> None:
    times = seconds(86_400)
    found, rows = days_of(tmp_path, [str(time) for time in times])
    assert found.tolist() == [f"{datetime.fromtimestamp(times[row], UTC):%Y-%m}" for row in rows]


def test_dates_are_taken_as_they_are_written(tmp_path: Path) -> None:
    times = [f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S}" for time in seconds(7200)]
    found, rows = days_of(tmp_path, times)
    assert found.tolist() == [times[row][:10] for row in rows]


@pytest.mark.parametrize(("times", "by"), [(range(ROWS), "time"), (range(START, START + ROWS), "hash")])
def test_what_is_not_known_is_not_told(tmp_path: Path, times: range, by: str) -> None:
    """Numbers that are no seconds since 1970, and rows that are chosen by what they hold."""
    assert days_of(tmp_path, [f"{time}" for time in times], by)[0] is None

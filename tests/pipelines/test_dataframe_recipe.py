"""Tables in memory and their recipes: files that are read to the same rows, recipes given, exports that keep to one."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

import tfdlrm
from tests.pipelines.small_runs import call
from tfdlrm.data.dataset import packed_dataset
from tfdlrm.export.errors import VerifyError
from tfdlrm.export.warmup import WARMUP_FILE
from tfdlrm.pipelines import tabular
from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.errors import ConfigError, DataError

ROWS = 240


def rows(**columns: Any) -> pl.DataFrame:
    rng = np.random.default_rng(5)
    frame = pl.DataFrame(
        {
            "city": rng.choice(["Bern", "Rome", "Oslo"], ROWS),
            "visits": rng.integers(0, 900, ROWS),
            "y": rng.integers(0, 2, ROWS),
        }
    )
    return frame.with_columns(**{name: pl.Series(values) for name, values in columns.items()})


def of_files(table: tfdlrm.TableData, folder: Path) -> dict[str, tuple[Any, Any]]:
    """Return what the pipeline makes of the rows as a CSV, by the recipe."""
    path = table.write_csv(folder / "rows.csv")
    (folder / "recipe.toml").write_text(table.recipe(path), encoding="utf-8")
    outcome = call(
        tabular.main, "--config", folder / "recipe.toml", "--work-dir", folder / "run", "--stages", "prepare"
    )
    assert outcome.code == 0, outcome.err
    data = folder / "run" / "data"
    return {
        split: next(packed_dataset(data, split, count).as_numpy_iterator())
        for split, count in table.rows.items()
        if count
    }


AUTUMN = datetime.datetime(2024, 10, 26, 19, tzinfo=datetime.UTC)
HOURS = [
    (AUTUMN + datetime.timedelta(minutes=3 * minute)).astimezone(ZoneInfo("Europe/Zurich")) for minute in range(ROWS)
]
SHARES = (0.5, 0.25, 0.25)
CASES = {
    "a key that is a dense number": ({}, {"split": {"key": "visits"}, "dense": ["visits"]}),
    "a key of whole floats": ({"k": [float(i % 50) for i in range(ROWS)]}, {"split": {"key": "k"}, "drop": ["k"]}),
    "a key that is true or false": (
        {"k": [i % 3 == 0 for i in range(ROWS)]},
        {"split": {"key": "k"}, "drop": ["k"], "fractions": (0.96, 0.02, 0.02)},  # "true" trains, "1" would not
    ),
    "a label that is true or false": ({"y": [i % 3 == 0 for i in range(ROWS)]}, {"label": "y == true"}),
    "a label that is 1 where true": ({"y": [i % 3 == 0 for i in range(ROWS)]}, {"label": "y"}),
    "a label of fractions": ({"y": pl.Series([0.1, 0.0] * (ROWS // 2), dtype=pl.Float32)}, {"label": "y > 0.1"}),
    # The cut between training and validation rows, at 1 o'clock UTC, lies in the hour that comes twice.
    "times where clocks go back": ({"t": HOURS}, {"split": {"time": "t"}}),
    "lengths of time": ({"t": [datetime.timedelta(i * 7 % ROWS) for i in range(ROWS)]}, {"split": {"time": "t"}}),
}


@pytest.mark.parametrize("case", CASES)
def test_files_are_read_to_the_same_rows(case: str, tmp_path: Path) -> None:
    columns, options = CASES[case]
    table = tfdlrm.from_dataframe(rows(**columns), **{"label": "y", "fractions": SHARES, **options})
    for split, (features, labels) in of_files(table, tmp_path).items():
        wanted, answers = table.arrays(split)
        np.testing.assert_array_equal(labels, answers)
        np.testing.assert_array_equal(features["sparse"], wanted["sparse"])
        np.testing.assert_array_equal(features["dense"], wanted["dense"])


@pytest.fixture(scope="module")
def table() -> tfdlrm.TableData:
    return tfdlrm.from_dataframe(rows(), label="y", split="order", embedding_dim=4)


def test_text_is_not_read_as_keys(table: tfdlrm.TableData) -> None:
    """As files would not be: "cafe" is a key, and "Bern" is none."""
    data = table.config.data
    coding = data.coding.model_copy(update={"value": "hex"})
    config = table.config.model_copy(update={"data": data.model_copy(update={"coding": coding})})
    with pytest.raises(DataError, match=r"^`city` must be up to 16 hexadecimal digits. Received: '[BRO]"):
        tfdlrm.from_dataframe(rows(), recipe=config)
    keys = rows().with_columns(pl.col("city").replace({"Bern": "cafe", "Rome": "CAFE", "Oslo": "0b"}))
    assert tfdlrm.from_dataframe(keys, recipe=config).spec.table("city").vocabulary_size == 4


@pytest.mark.parametrize(
    "given",
    [
        {"label": "y"},
        {"dense": ["visits"]},
        {"split": "random"},
        {"fractions": (0.8, 0.1, 0.1)},
        {"min_count": 3},
        {"embedding_dim": 8},
        {"batch_size": 9},
        {"seed": 0},
        {"name": "x"},
    ],
)
def test_a_recipe_says_everything(table: tfdlrm.TableData, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        tfdlrm.from_dataframe(rows(), recipe=table.config, **given)
    (name,) = given
    assert str(caught.value) == f"`{name}` must not be given beside `recipe`, which says all of that."


def test_what_the_first_rows_are_for_is_said_of_our_coding_only(table: tfdlrm.TableData) -> None:
    assert "row 0 is for missing values, row 1 for those that training rows have fewer than 2 times" in str(table)
    for change in ({"kind": "hash", "buckets": 10}, {"oov_row": 0}, {"max_values": 2}, {"first_id": 5}):
        other = tfdlrm.from_dataframe(rows(), recipe=_changed(table.config, coding=change))
        assert "Tables: 1" in str(other) and "row 0 is" not in str(other)


def _changed(config: RunConfig, coding: dict[str, Any] | None = None, **export: Any) -> RunConfig:
    changed = config.model_dump()
    changed["data"]["coding"] |= coding or {}
    return RunConfig(**{**changed, "export": {**changed["export"], **export}})


def test_an_export_keeps_to_the_recipe(table: tfdlrm.TableData, tmp_path: Path) -> None:
    settings = {"directory": str(tmp_path), "model_name": "shop", "rank_candidates": ["city"], "unseen": "zeros"}
    config = _changed(table.config, {"oov_row": None, "min_count": 1}, warmup_batch_sizes=[], **settings)
    given = tfdlrm.from_dataframe(rows(), recipe=config)
    path = given.export(given.model(), verify=False)
    assert path == tmp_path / "shop" / "1"
    assert f"--model_name shop --model_base_path {tmp_path / 'shop'}" in given.serve_command()
    record = json.loads((path / "assets.extra" / "tfdlrm.json").read_text())
    assert record["rank_candidates"] == ["city"] == record["config"]["export"]["rank_candidates"]
    assert record["encoding"]["tables"]["city"]["oov_row"] == -1
    assert not (path / "assets.extra" / WARMUP_FILE).exists()
    own = given.export(given.model(), tmp_path / "own", verify=False, rank_candidates=["visits"])
    record = json.loads((own / "assets.extra" / "tfdlrm.json").read_text())
    assert record["rank_candidates"] == ["visits"] == record["config"]["export"]["rank_candidates"]


def test_a_model_that_is_not_good_enough_for_the_recipe(table: tfdlrm.TableData, tmp_path: Path) -> None:
    given = tfdlrm.from_dataframe(rows(), recipe=_changed(table.config, min_auc=0.99))
    message = r"AUC must be at least `export.min_auc`, 0.99. Received: 0.\d+ on 24 test rows"
    with pytest.raises(VerifyError, match=message):
        given.export(given.model(), tmp_path / "shop", verify=False)
    assert not list(tmp_path.glob("shop/[0-9]*"))


@pytest.mark.parametrize(
    ("export", "options", "message"),
    [
        ({"tables": "int8"}, {}, '`export.tables` must be "float32" for a table in memory'),
        ({"no_regression": True}, {"verify": False}, "`export.no_regression` must be false where `verify` is"),
    ],
)
def test_what_an_export_cannot_keep_to_is_refused(
    table: tfdlrm.TableData, tmp_path: Path, export: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    given = tfdlrm.from_dataframe(rows(), recipe=_changed(table.config, **export))
    with pytest.raises(ConfigError) as caught:
        given.export(given.model(), tmp_path, **options)
    assert str(caught.value).startswith(message)


def test_without_held_out_rows_nothing_is_judged(table: tfdlrm.TableData, tmp_path: Path) -> None:
    config = _changed(table.config, min_auc=0.6)
    split = config.data.split.model_copy(update={"fractions": (1.0, 0.0, 0.0)})
    config = config.model_copy(update={"data": config.data.model_copy(update={"split": split})})
    given = tfdlrm.from_dataframe(rows(), recipe=config)
    with pytest.raises(ConfigError, match="`export.min_auc` must be absent where every row trains"):
        given.export(given.model(), tmp_path)

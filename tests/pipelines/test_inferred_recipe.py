"""Recipes for files that nobody has described, and the whole way from such a file to a model."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from tests.pipelines.small_runs import call, refusal
from tfdlrm.data.generators.small_tables import shop_visits
from tfdlrm.pipelines import tabular
from tfdlrm.pipelines.inferred_recipe import infer_recipe
from tfdlrm.spec.config import load_config
from tfdlrm.spec.errors import ConfigError, DataError

QUICK = ("--set", "evaluate.baseline=false", "--set", "report.importance_rows=0", "--set", "train.epochs=1")


@pytest.fixture(scope="module")
def visits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a CSV of 2,000 visits."""
    path = tmp_path_factory.mktemp("shop") / "shop visits.csv"
    shop_visits(2000).with_columns(pl.col("tags").list.join(";")).write_csv(path)
    return path


def test_columns_are_taken_for_what_they_look_like(visits: Path) -> None:
    config, choices = infer_recipe([str(visits)], "bought", "time:when", drop=["member"])
    assert config.name == "shop_visits"
    assert [column.name for column in config.data.dense] == ["price", "visits_before"]
    assert [column.name for column in config.data.sparse] == ["user_id", "city", "device", "tags"]
    tags = config.data.sparse[-1]
    longest = shop_visits(2000).sort("when").head(1600)["tags"].list.len().max()  # of the rows that train
    assert (tags.separator, tags.hotness, tags.combiner) == (";", longest, "mean")
    assert config.data.sparse[1].separator is None
    assert (config.data.split.by, config.data.format.time, config.data.format.label) == ("time", "when", "bought")
    assert {choice.name: choice.use for choice in choices}["member"] == "dropped"


def test_any_delimiter_packed_or_plain(visits: Path, tmp_path: Path) -> None:
    frame = pl.read_csv(visits).drop("when")
    with gzip.open(tmp_path / "rows.tsv.gz", "wb") as file:
        frame.write_csv(file, separator="\t")
    plain, packed = tmp_path / "rows.csv", tmp_path / "rows.tsv.gz"
    frame.write_csv(plain, separator="|")
    by_tab, by_bar = (infer_recipe([str(path)], "bought")[0] for path in (packed, plain))
    assert (by_tab.data.format.delimiter, by_bar.data.format.delimiter) == ("\t", "|")
    assert by_tab.name == by_bar.name == "rows"
    assert by_tab.data.sparse == by_bar.data.sparse and by_tab.data.dense == by_bar.data.dense


def test_names_with_a_bar_are_no_bags(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    pl.DataFrame({"what": [f"x|{i}" for i in range(40)], "y": [0, 1] * 20}).write_csv(path)
    (column,) = infer_recipe([str(path)], "y")[0].data.sparse
    assert column.separator is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "`--config` must name a recipe"),
        (("--label", "bought"), "`--raw` must name the files where --label is given without --config."),
        (("--label", "bougth", "--raw", "FILE"), "`bougth`"),
        (("--label", "bought", "--raw", "FILE"), "when"),
        (("--label", "bought", "--raw", "FILE", "--split", "time"), "`--split` must be random, order"),
        (("--label", "bought", "--raw", "FILE", "--drop", "where"), "`where`"),
        (("--label", "bought", "--raw", "nowhere.csv"), "nowhere.csv"),
    ],
)
def test_a_slip_is_one_line(visits: Path, arguments: tuple[str, ...], message: str) -> None:
    given = [str(visits) if word == "FILE" else word for word in arguments]
    assert message in refusal(*given, main=tabular.main)


def test_empty_and_broken_files(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "header.csv").write_text("a,b,y\n")
    for name in ("empty.csv", "header.csv"):
        with pytest.raises(DataError, match=name):
            infer_recipe([str(tmp_path / name)], "y")
    (tmp_path / "one.csv").write_text("a,y\nx,1\n")
    with pytest.raises(ConfigError, match="--split"):
        infer_recipe([str(tmp_path / "one.csv")], "y", "by:day")


def test_from_a_file_to_a_model_and_again_by_the_recipe_that_was_written(
    visits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = ("--raw", visits, "--label", "bought", "--split", "time:when", *QUICK)
    shown = call(tabular.main, *asked, "--dry-run")
    assert shown.code == 0 and "# user_id: sparse" in shown.out
    (tmp_path / "shop.toml").write_text(shown.out, encoding="utf-8")
    outcome = call(tabular.main, *asked)
    assert (outcome.code, outcome.err) == (0, "")
    assert "columns:   price: dense" in outcome.out
    metrics = json.loads((tmp_path / "runs" / "shop_visits" / "metrics.json").read_text())
    assert metrics["stages"]["verify"]["rows"] > 0 and metrics["stages"]["prepare"]["rows"] == 2000
    assert load_config(tmp_path / "runs" / "shop_visits" / "config.toml") == load_config(tmp_path / "shop.toml")
    again = call(tabular.main, "--config", "shop.toml", "--stages", "prepare,train")
    assert again.code == 0 and again.out.count("done before") == 2

"""Somebody's own CSV: header, quotes, bags expanded and weighted, a side table, weights, a split by a key's hash."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.pipelines.small_runs import Outcome, call, write_recipe
from tfdlrm.data.encoder import FeatureEncoder
from tfdlrm.data.manifest import Manifest
from tfdlrm.pipelines import tabular
from tfdlrm.pipelines.cli import recipe

ROWS = 2500
CITIES = ["Bern", "Rome, Italy", 'the "Big" one', "", "Łódź"]
UNKNOWN = {f"u{i}" for i in range(20)}
TAGS = ["new", "sale", "red", "large"]


def write_shop(folder: Path) -> None:
    """Write visits.csv (score 1 to 5, price with gaps, city, tags, a weight) and users.txt (age group by user)."""
    rng = np.random.default_rng(3)
    ages = {f"u{i}": ["young", "old"][i % 2] for i in range(200)}
    with (folder / "users.txt").open("w", encoding="latin-1") as file:
        file.writelines(f"{user};{age};é\n" for user, age in ages.items() if user not in UNKNOWN)
    with (folder / "visits.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["user", "price", "city", "tags", "weight_of_tags", "score", "importance"])
        for _ in range(ROWS):
            user, city, price = f"u{rng.integers(200)}", rng.choice(CITIES), rng.gamma(2.0, 10.0)
            tags = [tag for tag in TAGS if rng.random() < 0.4]
            score = 2.6 + ("sale" in tags) + 0.8 * (ages[user] == "old") - 0.02 * price + rng.normal(0, 0.8)
            shown = "" if rng.random() < 0.1 else f"{price:.2f}"
            weight = f"{rng.uniform(0.5, 2):.3f}"
            weights = ";".join(f"{rng.random():.3f}" for _ in tags)
            writer.writerow([user, shown, city, ";".join(tags), weights, int(np.clip(round(score), 1, 5)), weight])


def shop_recipe(folder: Path) -> Path:
    users = {"file": "$SHOP/users.txt", "key": "user", "delimiter": ";", "columns": ["user", "age", "note"]}
    rows = {"delimiter": ",", "header": True, "quote": '"', "label": "score >= 4", "weight": "importance"}
    return write_recipe(
        folder,
        data={
            "raw": ["$SHOP/visits.csv"],
            "format": {**rows, "side_tables": [{**users, "encoding": "latin-1"}]},
            "dense": [{"name": "price", "transform": "standardize"}],
            "sparse": [
                {"name": "user", "hotness": 4, "expand": {"distribution": "pareto"}},
                *({"name": name} for name in ("city", "age")),
                {"name": "tags", "separator": ";", "hotness": 3, "combiner": "mean", "weights": "weight_of_tags"},
            ],
            "coding": {"value": "string", "min_count": 2},
            "split": {"by": "hash", "key": "user", "fractions": [0.7, 0.15, 0.15]},
        },
        train={"epochs": 3, "batch_size": 64},
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outcome]:
    folder = tmp_path_factory.mktemp("shop")
    write_shop(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SHOP", str(folder))
        argv = ["--config", shop_recipe(folder), "--work-dir", folder / "run"]
        return folder, call(tabular.main, *argv)


@pytest.fixture(scope="module")
def visits(shop: tuple[Path, Outcome]) -> list[dict[str, str]]:
    with (shop[0] / "visits.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def metrics(shop: tuple[Path, Outcome]) -> dict[str, Any]:
    return json.loads((shop[0] / "run" / "metrics.json").read_text())["stages"]


def test_every_stage_ends_well_and_the_model_learns(shop: tuple[Path, Outcome]) -> None:
    assert shop[1].code == 0, shop[1].err
    assert metrics(shop)["evaluate"]["metrics"]["best"]["auc"] > 0.65
    assert max(metrics(shop)["verify"]["differences"].values()) <= 1e-5
    assert "bayes" not in metrics(shop)["evaluate"]["metrics"]


def test_users_never_fall_on_two_sides(shop: tuple[Path, Outcome], visits: list[dict[str, str]]) -> None:
    """Labels and weights of the test rows, in file order, are those of all visits of some set of users."""
    with np.load(shop[0] / "run" / "report" / "predictions.npz") as file:
        labels, weights, best = file["label"], file["sample_weight"], file["best"]
    rows = list(zip(labels.tolist(), weights.tolist(), strict=True))
    as_rows = [(float(int(v["score"]) >= 4), float(np.float32(v["importance"]))) for v in visits]
    of_users: dict[str, list[tuple[float, float]]] = {}
    for visit, row in zip(visits, as_rows, strict=True):
        of_users.setdefault(visit["user"], []).append(row)
    tested = {user for user, own in of_users.items() if set(own) <= set(rows) and len(own) > 2}
    assert [row for visit, row in zip(visits, as_rows, strict=True) if visit["user"] in tested] == rows
    assert metrics(shop)["prepare"]["rows"] == ROWS
    expected = roc_auc_score(labels, best, sample_weight=weights)
    assert metrics(shop)["evaluate"]["metrics"]["best"]["auc"] == pytest.approx(expected, abs=1e-9)


def test_encoder_reads_quotes_bags_and_the_side_table(shop: tuple[Path, Outcome], visits: list[dict[str, str]]) -> None:
    encoder = FeatureEncoder.load(shop[0] / "run" / "data")
    sizes = {table.name: table.vocabulary_size for table in encoder.spec.tables}
    assert sizes["city"] == 2 + len(CITIES) - 1  # two rows are reserved, and the empty city is a missing one
    assert sizes["tags"] == 2 + len(TAGS)
    assert sizes["age"] == 2 + 2
    assert encoder.columns.numbers == ("price",)
    shares = metrics(shop)["prepare"]["statistics"]["shares"]["train"]
    empty = sum(visit["tags"] == "" for visit in visits) / ROWS
    assert shares["tags"]["missing"] > 0 and abs(empty - 0.6**4) < 0.03
    assert 0 < shares["age"]["missing"] < 0.2  # users who are not in the side table
    assert 0.05 < shares["price"]["missing"] < 0.15


def test_a_served_row_is_expanded_and_weighted_as_in_training(shop: tuple[Path, Outcome]) -> None:
    spec = Manifest.load(shop[0] / "run" / "data").spec
    bags = {feature.name: (feature.hotness, feature.weighted) for feature in spec.sparse}
    assert (bags["user"], bags["tags"]) == ((4, False), (3, True))
    assert {"HTTP by columns", "HTTP by rows"} == set(metrics(shop)["verify"]["differences"])


def test_request_holds_a_row_as_it_must_be_asked(shop: tuple[Path, Outcome]) -> None:
    curl = shop[1].out.splitlines()[-1]
    assert curl.startswith("  curl -d ")
    (row,) = json.loads((shop[0] / "run" / "report" / "request.json").read_text())["instances"]
    assert set(row) == {"price", "user", "city", "age", "tags", "weight_of_tags"}
    assert isinstance(row["price"], float) and row["city"] in CITIES
    assert math.isnan(row["price"]) or row["price"] > 0


def test_movielens_recipe(shared_data: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shared_data("movielens_100k")
    monkeypatch.setenv("MOVIELENS", str(folder))
    argv = [
        "--config",
        recipe("movielens_100k"),
        "--work-dir",
        tmp_path,
        "--set",
        "train.epochs=1",
        "--set",
        "train.batch_size=2048",
    ]
    outcome = call(tabular.main, *argv, "--stages", "prepare,train,evaluate")
    assert outcome.code == 0, outcome.err
    stages = json.loads((tmp_path / "metrics.json").read_text())["stages"]
    assert {name: split["rows"] for name, split in stages["prepare"]["splits"].items()} == {
        **{"train": 80_000, "validation": 10_000, "test": 10_000}
    }
    with (folder / "u.data").open() as file:
        liked = [int(line.split("\t")[2]) >= 4 for line in file]
    assert stages["prepare"]["splits"]["test"]["positives"] == sum(liked[90_000:])
    genres = FeatureEncoder.load(tmp_path / "data").spec.sparse[-1]
    assert (genres.name, genres.hotness) == ("genres", 6)
    assert stages["evaluate"]["metrics"]["best"]["auc"] > 0.7

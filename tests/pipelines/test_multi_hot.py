"""Expanded and weighted bags the whole way: raw rows to a model whose served answers are the trained one's."""

from __future__ import annotations

import json
import random
from pathlib import Path

from tests.pipelines.small_runs import call, write_recipe
from tfdlrm.data.manifest import Manifest
from tfdlrm.pipelines import tabular


def test_a_served_row_is_expanded_and_weighted_as_in_training(tmp_path: Path) -> None:
    rng, lines = random.Random(1), []
    for _ in range(400):
        tags = [f"t{rng.randrange(9)}" for _ in range(rng.randrange(5))]
        weights = [f"{rng.random():.3f}" for _ in tags]
        lines.append(f"{rng.randrange(2)},u{rng.randrange(20)},{'|'.join(tags)},{'|'.join(weights)}\n")
    raw = tmp_path / "rows.csv"
    raw.write_text("".join(lines))
    data = {
        "raw": [str(raw)],
        "format": {"columns": ["label", "user", "tags", "weight_of_tags"], "delimiter": ","},
        "coding": {"value": "string"},
        "dense": [],
        "sparse": [
            {"name": "user", "hotness": 4, "expand": {"distribution": "pareto"}},
            {"name": "tags", "separator": "|", "hotness": 3, "combiner": "mean", "weights": "weight_of_tags"},
        ],
    }
    recipe = write_recipe(
        tmp_path, data=data, model={"interaction": "cat"}, train={"epochs": 1}, export={"verify_rows": 40}
    )
    stages = ("--stages", "prepare,train,export,verify")
    outcome = call(tabular.main, "--config", recipe, "--work-dir", tmp_path / "run", *stages)
    assert outcome.code == 0, outcome
    spec = Manifest.load(tmp_path / "run" / "data").spec
    assert [(feature.hotness, feature.weighted) for feature in spec.sparse] == [(4, False), (3, True)]
    verified = json.loads((tmp_path / "run" / "metrics.json").read_text())["stages"]["verify"]
    assert {"HTTP by columns", "HTTP by rows"} < set(verified["differences"])

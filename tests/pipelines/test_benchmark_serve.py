"""Questions a second of a server: a model of Criteo's form is exported, served and asked by other processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from tests.pipelines.small_runs import call, refusal
from tfdlrm.pipelines.benchmark import main
from tfdlrm.pipelines.benchmarks.load import LoadError, load
from tfdlrm.pipelines.benchmarks.served_model import (
    candidate_columns,
    questions,
    random_vocabularies,
    rank_question,
    rest_body,
    with_reserved_rows,
    write_model,
)
from tfdlrm.pipelines.local_server import LocalServer
from tfdlrm.serving import PredictClient
from tfdlrm.spec.config import RunConfig, load_config
from tfdlrm.spec.criteo import criteo_spec

SMALL = ["--set", "model.embedding_dim=4", "--set", "model.bottom_units=[8, 4]", "--set", "model.top_units=[8, 1]"]


def config() -> RunConfig:
    return load_config(None, SMALL[1::2])


def test_tables_are_full_of_distinct_keys() -> None:
    spec = criteo_spec([3] * 25 + [5000], 4)
    found = random_vocabularies(spec, config(), np.random.default_rng(0))
    assert [vocabulary.rows for vocabulary in found.values()] == [3] * 25 + [5000]
    ids = found["C26"].ids
    assert sorted(ids.tolist()) == list(range(2, 5000)) and (np.diff(ids) < 0).any()
    assert with_reserved_rows(criteo_spec([1] * 26, 4), config()).table_rows == 26 * 3


def test_every_load_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    sizes = ["--table-rows", 2000, "--seconds", 0.2, "--clients", 3, "--candidates", 5, "--rounds", 2]
    done = call(main, "serve", *SMALL, *sizes, "--json", file, "--folder", tmp_path)
    assert done.code == 0, done
    figures = json.loads(file.read_text())
    loads = [
        f"{t} {what}" for t in ("rest", "grpc") for what in ("predict 1", "predict 3", "rank 1", "empty 1", "empty 3")
    ]
    assert sorted(figures["plain"]) == sorted(loads)
    for figure in figures["plain"].values():
        assert 0 < figure["p50"] <= figure["p99"] and figure["per_second"] > 0 and figure["first"] > 0
    assert figures["bare"]["predict"] > 0 and figures["bare"]["rank"] > 0
    assert (tmp_path / "kaggle" / "1" / "saved_model.pb").is_file()
    assert figures["rounds"] == 2
    assert "rest predict" in done.out and "over" in done.out and "empty" in done.out
    refused = refusal("serve", *SMALL, *sizes, "--seed", 1, "--folder", tmp_path, main=main)
    assert "`--folder` must hold no model, or one of these settings" in refused


def test_questions_are_answered_and_refusals_told(tmp_path: Path) -> None:
    spec = with_reserved_rows(criteo_spec([40] * 26, 4), config())
    version = write_model(tmp_path / "m", spec, config(), seed=3)
    from tfdlrm.pipelines.benchmarks.serving import _encoder

    columns = questions(_encoder(spec, config(), 3), 6, seed=1)
    names = candidate_columns(spec)
    ranked = rank_question(columns, names)
    with LocalServer("m", version.parent, tmp_path / "log.txt") as server:
        with PredictClient(server.url, "m") as client:
            server.wait_until_ready(client)
            repeated = {name: values if name in names else np.repeat(values[:1], 6) for name, values in columns.items()}
            answer = client.predict(columns=ranked, signature_name="rank")
            assert isinstance(answer, dict)
            np.testing.assert_allclose(answer["scores"][0], np.ravel(client.predict(columns=repeated)), atol=1e-6)
        url = f"{server.url}/v1/models/m:predict"
        body = rest_body({name: values[:1] for name, values in columns.items()}, "serving_default")
        figures = asyncio.run(load("rest", url, [body], 2, 0.2, 0.0))
        assert figures["requests"] > 0
        with pytest.raises(LoadError, match="400"):
            asyncio.run(load("rest", url, [b"{}"], 1, 0.2, 0.0))
        with pytest.raises(LoadError, match="200"):
            asyncio.run(load("rest", url, [body], 1, 0.2, 0.0, refused=True))


def test_a_slip_is_one_line(tmp_path: Path) -> None:
    assert "key of `model`" in refusal("serve", "--set", "train.epochs=2", main=main)
    assert "`--batching` must name a file" in refusal("serve", "--batching", tmp_path / "none", main=main)

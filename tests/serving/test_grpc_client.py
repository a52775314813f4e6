"""The gRPC client against a running server, and an exported model asked by both clients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.pipelines.small_runs import call, write_recipe
from tfdlrm.pipelines import criteo
from tfdlrm.serving import GrpcPredictClient, PredictClient, PredictError, Retries


@pytest.fixture
def client(server):
    with GrpcPredictClient(server.grpc_address, "m") as client:
        yield client


def test_predictions(client):
    np.testing.assert_array_equal(client.predict({"x": [1.0, 2.0]}), np.float32([2.5, 3.0]))
    np.testing.assert_array_equal(client.predict({"x": np.float32([np.nan, np.inf])}), [np.nan, np.inf])
    found = client.predict({"x": [1.5, 4.0]}, signature_name="two")
    assert {name: array.tolist() for name, array in found.items()} == {"twice": [3.0, 8.0], "whole": [1, 4]}
    assert client.predict({"x": [1.5]}, signature_name="two", outputs=["whole"]).tolist() == [1]
    assert client.predict({"i": [1, 2]}, signature_name="count").tolist() == [1, 2]
    for texts in (["é", ""], np.array(["é", ""]), np.array(["é".encode(), b""], object)):
        assert client.predict({"s": texts}, signature_name="text").tolist() == ["é".encode(), b""]


def test_frames(client):
    frame = pl.DataFrame({"x": [1, None, 4]})
    found = client.predict_frame(frame, signature_name="two")
    assert found["whole"].to_list()[::2] == [1, 4]
    np.testing.assert_array_equal(found["twice"].to_numpy(), [2.0, np.nan, 8.0])


def test_examples(client, server):
    examples = [{"x": 1.0}, {"x": np.float32(-2.0), "bias": [1.0]}, {}]
    assert client.regress(examples).tolist() == [2.5, 2.0, 2.0]
    classes = client.classify(examples)
    assert [[name for name, _ in found] for found in classes] == [["low", "high"]] * 3
    assert [found[1][1] for found in classes] == [2.5, 2.0, 2.0]
    with PredictClient(server.url, "m") as rest:
        assert rest.regress([{"x": 1.0}, {"x": -2.0, "bias": 1.0}, {}]).tolist() == [2.5, 2.0, 2.0]
        assert rest.classify([{"x": 1.0}]) == [[("low", -1.5), ("high", 2.5)]]


def test_what_the_server_tells_of_a_model(client, server):
    with PredictClient(server.url, "m") as rest:
        assert client.status() == rest.status()
        told = rest.metadata()
    assert told["model_spec"] == {"name": "m", "signature_name": "", "version": "1"}
    assert "signature_def" in client.metadata().metadata
    client.wait_until_ready(timeout=5)


def test_refusals_carry_code_and_message(client, server):
    with pytest.raises(PredictError, match="400: INVALID_ARGUMENT"):
        client.predict({"x": ["a"]})
    with pytest.raises(PredictError, match="FAILED_PRECONDITION"):
        client.predict({"x": [1.0]}, signature_name="nothing")
    with (
        GrpcPredictClient(server.grpc_address, "m", version=7) as old,
        pytest.raises(PredictError, match="404") as error,
    ):
        old.predict({"x": [1.0]})
    assert error.value.status == 404
    with (
        GrpcPredictClient(server.grpc_address, "m", label="none") as labelled,
        pytest.raises(PredictError, match="400"),
    ):
        labelled.predict({"x": [1.0]})
    for kind in (GrpcPredictClient, PredictClient):
        with pytest.raises(ValueError, match="`version` or `label` must be given, not both"):
            kind("http://127.0.0.1:1", "m", version=1, label="stable")


def test_nobody_there():
    quick = Retries(first_seconds=0.01, longest_seconds=0.01)
    with GrpcPredictClient("127.0.0.1:9", "m", retries=quick, timeout=5) as client:
        with pytest.raises(PredictError, match="503: UNAVAILABLE"):
            client.predict({"x": [1.0]})
        with pytest.raises(TimeoutError, match="not ready after 0.2 s"):
            client.wait_until_ready(timeout=0.2)


def test_an_answer_that_comes_too_late(client, server):
    with (
        GrpcPredictClient(server.grpc_address, "m", timeout=0.2) as hasty,
        pytest.raises(PredictError, match="504: DEADLINE_EXCEEDED"),
    ):
        hasty.predict({"steps": np.int32([3_000_000])}, signature_name="slow")
    assert client.predict({"x": [1.0]}).tolist() == [2.5]


def test_a_token_over_both(model_path, start_server, tmp_path):
    file = tmp_path / "token"
    file.write_text("a-secret-of-length-24\n")
    server = start_server(model_path.parent, "--auth_token_file", str(file))
    with GrpcPredictClient(server.grpc_address, "m", token="a-secret-of-length-24") as client:
        assert client.predict({"x": [1.0]}).tolist() == [2.5]
    with PredictClient(server.url, "m", token="a-secret-of-length-24") as rest:
        assert rest.predict(columns=[1.0]).tolist() == [2.5]
    with GrpcPredictClient(server.grpc_address, "m") as client, pytest.raises(PredictError, match="401"):
        client.predict({"x": [1.0]})
    with PredictClient(server.url, "m") as rest, pytest.raises(PredictError, match="401"):
        rest.predict(columns=[1.0])


def test_an_exported_model_answers_both_clients_alike(tmp_path: Path, start_server):
    recipe = write_recipe(
        tmp_path, train={"epochs": 1}, export={"verify_rows": 40, "rank_candidates": ["C1", "C2", "I3"]}
    )
    done = call(criteo.main, "--config", recipe, "--work-dir", tmp_path / "run", "--stages", "prepare,train,export")
    assert done.code == 0, done
    server = start_server(tmp_path / "models" / "small")
    rng = np.random.default_rng(0)
    rows = {f"I{i}": np.where(rng.random(6) < 0.2, np.nan, rng.integers(0, 50, 6)).astype("f4") for i in range(1, 14)}
    texts = {
        f"C{i}": [f"{rng.integers(2**32):08x}" if rng.random() < 0.8 else "" for _ in range(6)] for i in range(1, 27)
    }
    columns = {**rows, **texts}
    shared = {name: values[0] for name, values in columns.items() if name not in ("C1", "C2", "I3")}
    candidates = {name: columns[name] for name in ("C1", "C2", "I3")}
    mask = [True, True, False, True, True, True]
    examples = [
        {name: values[row] for name, values in columns.items() if values[row] == values[row] and values[row] != ""}
        for row in range(6)
    ]
    with GrpcPredictClient(server.grpc_address, "m") as grpc, PredictClient(server.url, "m") as rest:
        expected = grpc.predict(columns)
        assert expected.shape == (6, 1) and expected.dtype == np.float32
        np.testing.assert_allclose(rest.predict(columns=columns), expected, atol=1e-7)
        np.testing.assert_allclose(grpc.regress(examples), expected[:, 0], atol=1e-6)
        np.testing.assert_allclose([found[1][1] for found in grpc.classify(examples)], expected[:, 0], atol=1e-6)
        as_json = [{name: float(v) if isinstance(v, np.float32) else v for name, v in e.items()} for e in examples]
        np.testing.assert_allclose(rest.regress(as_json), expected[:, 0], atol=1e-6)
        assert [[name for name, _ in found] for found in rest.classify(as_json)] == [["0", "1"]] * 6
        repeated = {name: np.repeat(np.asarray(values)[:1], 6) for name, values in columns.items() if name in shared}
        alone = grpc.predict({**repeated, **candidates})[:, 0]
        for client in (grpc, rest):
            scores, order = client.rank(shared, candidates, mask)
            np.testing.assert_allclose(scores, np.where(mask, alone, 0), atol=1e-6)
            assert order[-1] == 2 and (np.diff(scores[order[:-1]]) <= 0).all()

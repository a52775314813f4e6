"""The gRPC client against a running server."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

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

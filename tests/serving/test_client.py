"""The client against a running server."""

from __future__ import annotations

import numpy as np
import pytest

from tfdlrm.serving import PredictClient, PredictError


@pytest.fixture
def client(server):
    with PredictClient(server.url, "m") as client:
        yield client


def test_rows_and_columns(client):
    np.testing.assert_array_equal(client.predict(rows=[1.0, 2.0]), [2.5, 3.0])
    np.testing.assert_array_equal(client.predict(rows=[{"x": np.float32(1)}]), [2.5])
    np.testing.assert_array_equal(client.predict(columns=np.float32([1.0, 2.0])), [2.5, 3.0])
    np.testing.assert_array_equal(client.predict(columns={"x": [1.0, 2.0]}), [2.5, 3.0])
    matrix = client.predict(columns={"x": np.ones((3, 2))}, signature_name="matrix")
    np.testing.assert_array_equal(matrix, np.full((3, 2), 2.0))


def test_several_outputs_come_by_name(client):
    for found in (
        client.predict(rows=[1.5, 4.0], signature_name="two"),
        client.predict(columns=[1.5, 4.0], signature_name="two"),
    ):
        assert set(found) == {"twice", "whole"}
        np.testing.assert_array_equal(found["twice"], [3.0, 8.0])
        np.testing.assert_array_equal(found["whole"], [1, 4])


def test_missing_numbers_and_bytes(client):
    found = client.predict(rows=[float("nan"), float("inf"), 1.0])
    np.testing.assert_array_equal(found, [np.nan, np.inf, 2.5])
    sent = [b"\x00\xff", b"", "text"]
    for found in (
        client.predict(rows=sent, signature_name="binary"),
        client.predict(columns=sent, signature_name="binary"),
    ):
        assert found.astype(object).tolist() == [b"\x00\xff", b"", b"text"]


def test_errors_carry_status_and_message(client, server):
    with pytest.raises(PredictError, match="400: .*not of expected type: float") as error:
        client.predict(rows=["a"])
    assert error.value.status == 400
    with PredictClient(server.url, "a/b") as other, pytest.raises(PredictError, match="404: .*a/b"):
        other.status()
    with PredictClient(server.url, "m", version=7) as old, pytest.raises(PredictError, match="404"):
        old.predict(rows=[1.0])


@pytest.mark.parametrize("both", [{}, {"rows": [1.0], "columns": [1.0]}])
def test_exactly_one_of_rows_and_columns(client, both):
    with pytest.raises(ValueError, match="exactly one of `rows` and `columns` must be given"):
        client.predict(**both)


def test_values_json_has_no_form_for(client):
    with pytest.raises(TypeError, match="must hold numbers, strings, bytes, lists and arrays. Received: <class 'set'>"):
        client.predict(rows=[{1.0}])


def test_status_and_version(client, server):
    assert [version["state"] for version in client.status()] == ["AVAILABLE"]
    with PredictClient(server.url, "m", version=1) as first:
        first.wait_until_ready(timeout=5)
        assert first.predict(rows=[1.0]).tolist() == [2.5]


def test_waiting_ends(server):
    with PredictClient(server.url, "nobody") as client, pytest.raises(TimeoutError, match="not ready after 0.3 s: 404"):
        client.wait_until_ready(timeout=0.3)
    with PredictClient("http://127.0.0.1:9", "m") as client, pytest.raises(TimeoutError, match="not ready"):
        client.wait_until_ready(timeout=0.3)

"""The transport in this process: limits, compression, health, and bodies made up at random."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Callable

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tfdlrm.serving.app import Carriage, create_app
from tfdlrm.serving.limits import Limits
from tfdlrm.serving.rest import Rest
from tfdlrm.serving.servable import load_servable
from tfdlrm.serving.store import ModelStore

PREDICT = "/v1/models/m:predict"
BODY = b'{"instances": [1.0]}'


@pytest.fixture(scope="module")
def store(model_path) -> ModelStore:
    store = ModelStore("m", model_path.parent, load_servable, poll_seconds=0)
    store.start()
    return store


@pytest.fixture(scope="module")
def send(store) -> Callable[..., httpx.Response]:
    """Return a function that sends one request to an application with a small body limit."""
    app = create_app({"m": store}, Carriage(Limits(body_bytes=1000)))

    def request(method: str, path: str, **what) -> httpx.Response:
        async def run() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
                return await client.request(method, path, **what)

        return asyncio.run(run())

    return request


async def in_parts(*parts: bytes):
    for part in parts:
        yield part


def test_a_body_in_parts(send):
    assert send("POST", PREDICT, content=in_parts(BODY[:5], b"", BODY[5:])).json() == {"predictions": [2.5]}


def test_the_limit_holds_with_and_without_a_declared_length(send):
    assert send("POST", PREDICT, content=BODY + b" " * (1000 - len(BODY))).status_code == 200
    assert send("POST", PREDICT, content=BODY + b" " * (1001 - len(BODY))).status_code == 413
    assert send("POST", PREDICT, content=in_parts(*[b" " * 100] * 11)).status_code == 413
    assert send("POST", PREDICT, content=in_parts(*[b" " * 100] * 1000)).status_code == 413


def test_a_client_that_asks_first_is_told_before_it_sends(send):
    async def never():
        raise AssertionError("the body was read")
        yield b""

    headers = {"content-length": "5000", "expect": "100-continue"}
    assert send("POST", PREDICT, content=never(), headers=headers).status_code == 413


def test_gzip(send):
    def packed(body: bytes) -> httpx.Response:
        return send("POST", PREDICT, content=body, headers={"content-encoding": "gzip"})

    assert packed(gzip.compress(BODY)).json() == {"predictions": [2.5]}
    assert packed(gzip.compress(BODY + b" " * 500)).status_code == 200
    assert packed(gzip.compress(b" " * 100_000)).status_code == 413
    for body in (b"", BODY, gzip.compress(BODY)[:-9], b"\x1f\x8b" + b"\xff" * 30):
        response = packed(body)
        assert response.status_code == 400
        assert "must be gzip" in response.json()["error"]


def test_head_is_answered_without_a_body(send):
    response = send("HEAD", "/v1/models/m")
    assert (response.status_code, response.content) == (400, b"")


def test_health_follows_the_models(store, send, tmp_path):
    assert send("GET", "/healthz").json() == {"status": "ok", "models": {"m": "1"}}
    idle = ModelStore("idle", tmp_path, load_servable, poll_seconds=0)
    app = create_app({"m": store, "idle": idle})

    async def run() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            return await client.get("/healthz")

    response = asyncio.run(run())
    assert response.status_code == 503
    assert response.json() == {"status": "unavailable", "models": {"m": "1", "idle": None}}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just({"b64": "aGk="}),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["x", "s", "i"]), inner, max_size=2),
    max_leaves=8,
)
names = st.sampled_from(["serving_default", "matrix", "anything", "two", "scalar", "count", "text", "pick", "nope"])
bodies = st.fixed_dictionaries({}, optional={"instances": values, "inputs": values, "signature_name": names | values})


@settings(deadline=None, database=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(body=bodies, cut=st.integers(0, 40), junk=st.binary(max_size=4))
def test_no_body_is_the_servers_fault(store, body, cut, junk):
    rest = Rest({"m": store})
    whole = json.dumps(body).encode()
    for sent in (whole, whole[: -cut or None] + junk):
        answer = rest.answer("POST", PREDICT, sent)
        assert answer.status in (200, 400), answer.body
        found = json.loads(answer.body)
        assert set(found) == (
            {"error"} if answer.status == 400 else {"predictions" if "instances" in body else "outputs"}
        )


@settings(deadline=None, database=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(method=st.sampled_from(["GET", "POST", "PUT"]), tail=st.text("m/:%0a1versionslabelpredict?", max_size=30))
def test_no_path_is_the_servers_fault(store, method, tail):
    answer = Rest({"m": store}).answer(method, f"/v1/models{tail}", BODY)
    assert answer.status in (200, 400, 404)

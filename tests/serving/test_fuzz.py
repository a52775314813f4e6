"""Bodies made up at random, sent to a live server: none is the server's fault, and none ends it.

200 bodies, or as many as TFDLRM_FUZZ_BODIES says; 5,000 with TFDLRM_SOAK set.
"""

from __future__ import annotations

import json
import os

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

BODIES = int(os.environ.get("TFDLRM_FUZZ_BODIES", 5000 if os.environ.get("TFDLRM_SOAK") else 200))

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-5, 5)
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([{"b64": "aGk="}, {"b64": "%"}, {"b64": 1}, 2**63, -(2**63) - 1, 1e39, "\ud800", "\x00"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["x", "s", "i", "age", "b64", ""]), inner, max_size=3)
    ),
    max_leaves=12,
)
names = st.sampled_from(
    ["serving_default", "matrix", "anything", "mixed", "two", "scalar", "count", "text", "binary", "pick", "nope", ""]
)
free = st.dictionaries(
    st.sampled_from(["signature_name", "instances", "inputs", "examples", "context", "other"]), values, max_size=4
)
near = st.fixed_dictionaries(
    {},
    optional={
        "signature_name": names,
        "instances": st.lists(values, max_size=4),
        "inputs": values,
        "examples": st.lists(st.dictionaries(st.sampled_from(["x", "age", "city"]), values, max_size=3), max_size=3),
        "context": st.dictionaries(st.sampled_from(["x", "age"]), scalars, max_size=2),
    },
)
texts = (near | near | free | values).map(lambda value: json.dumps(value).encode())
cut = st.tuples(texts, st.integers(0, 30), st.binary(max_size=6)).map(
    lambda parts: parts[0][: -parts[1] or None] + parts[2]
)


@pytest.mark.timeout(1800)
def test_no_body_is_the_servers_fault(server):
    with httpx.Client(base_url=server.url, timeout=60) as client:

        @settings(deadline=None, database=None, max_examples=BODIES, suppress_health_check=list(HealthCheck))
        @given(
            body=texts | texts | cut | st.binary(max_size=40), verb=st.sampled_from(["predict", "classify", "regress"])
        )
        def send(body, verb):
            response = client.post(f"/v1/models/m:{verb}", content=body)
            # 501 is the contract's word for a method or a type that is not offered; no other 5xx is anybody's fault.
            assert response.status_code in (200, 400, 501), response.text
            answer = json.loads(response.content)
            keys = {"predictions", "outputs", "results"} if response.status_code == 200 else {"error"}
            assert len(answer) == 1 and set(answer) <= keys

        send()
        assert client.post("/v1/models/m:predict", json={"instances": [1.0]}).json() == {"predictions": [2.5]}
    assert server.process.poll() is None

"""Metrics and logs of a real server: names, labels and counts, and nothing of what requests hold."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tfdlrm.serving.logs import AccessLog
from tfdlrm.serving.metrics import DEFAULT_PATH, Metrics, read_monitoring_config
from tfdlrm.serving.note import Note
from tfdlrm.spec.errors import ConfigError

PREDICT = "/v1/models/m:predict"


@pytest.fixture
def watched(model_path, start_server, tmp_path):
    config, batching = tmp_path / "monitoring.txt", tmp_path / "batching.txt"
    config.write_text("prometheus_config { enable: true }")
    batching.write_text('max_batch_size { value: 8 } allowed_batch_sizes: [4, 8] thread_pool_name { value: "pool" }')
    flags = ["--monitoring_config_file", str(config), "--json_logs", "--access_log"]
    server = start_server(
        model_path.parent, *flags, "--enable_batching=true", "--batching_parameters_file", str(batching)
    )
    server.log = Path(tmp_path / "log0.txt")
    return server


def samples(page: str) -> dict[tuple[str, frozenset], float]:
    """Return each sample by its name and labels, read by the library's parser."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def test_metrics_and_log_lines_of_a_server(watched):
    secret = "a-value-of-a-client"
    bodies = [
        ({"instances": [1.0, 2.0, 3.0]}, 200),
        ({"instances": [1.0]}, 200),
        ({"instances": [secret]}, 400),
        ({"signature_name": "text", "instances": [secret]}, 200),
    ]
    for body, status in bodies:
        response = watched.client.post(PREDICT, json=body, headers={"x-request-id": "abc-1"})
        assert (response.status_code, response.headers["x-request-id"]) == (status, "abc-1")
    hostile = watched.client.post("/v1/models/nope:predict", json=bodies[0][0], headers={"x-request-id": "a\tb" * 99})
    assert hostile.status_code == 404
    assert "x-request-id" not in hostile.headers
    watched.client.get("/v1/models/m")

    response = watched.client.get(DEFAULT_PATH)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for name, kind in (
        ("request_count", "counter"),
        ("request_latency", "histogram"),
        ("runtime_latency", "histogram"),
    ):
        assert f"\n# TYPE :tensorflow:serving:{name} {kind}\n" in f"\n{response.text}"
    found = samples(response.text)

    def value(name: str, **labels: str) -> float:
        return found[f":tensorflow:serving:{name}", frozenset(labels.items())]

    # The parser would end the names of counters in `_total`; TensorFlow Serving's have no such end.
    for model, status, count in (("m", "OK", 3), ("m", "INVALID_ARGUMENT", 1), ("(unknown)", "NOT_FOUND", 1)):
        line = f':tensorflow:serving:request_count{{model_name="{model}",status="{status}"}} {count}.0'
        assert line in response.text.splitlines()
    latency = {"model_name": "m", "API": "Predict", "entrypoint": "REST"}
    assert value("request_latency_count", **latency) == 3
    assert value("request_latency_bucket", **latency, le="+Inf") == 3
    assert value("request_latency_sum", **latency) > 3 * 10
    assert value("runtime_latency_count", model_name="m", API="Predict", runtime="TF2") == 3
    assert value("batching_session:input_batch_size_sum") == 5
    assert value("batching_session:processed_batch_size_sum") == 12
    assert value("batching_session:padding_size_sum", execution_batch_size="4") == 7
    assert value("batching_session:queuing_latency_count", thread_pool_name="pool") == 3

    watched.terminate()
    text = watched.log.read_text()
    assert secret not in text
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]  # TensorFlow writes its own
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    requests = [line for line in lines if line["logger"] == "tfdlrm.access"]
    assert [(line["verb"], line["status"], line["rows"], line["version"]) for line in requests] == [
        ("predict", "OK", 3, 1),
        ("predict", "OK", 1, 1),
        ("predict", "INVALID_ARGUMENT", 0, None),
        ("predict", "OK", 1, 1),
        ("predict", "NOT_FOUND", 0, None),
        ("status", "OK", 0, None),
    ]
    assert [line["request_id"] for line in requests] == ["abc-1"] * 4 + [None] * 2
    assert all(line["entrypoint"] == "REST" and line["milliseconds"] > 0 for line in requests)


def test_metrics_are_off_by_default(server):
    assert server.client.get(DEFAULT_PATH).status_code == 404


def test_buckets_are_those_of_tensorflow():
    metrics = Metrics()
    metrics.answered(Note("REST", "m", "predict", runtime_seconds=0.001), "OK", 200, 0.002)
    bounds = [
        float(dict(labels)["le"])
        for name, labels in samples(metrics.page().decode())
        if name == ":tensorflow:serving:request_latency_bucket"
    ]
    assert len(bounds) == 34
    assert min(bounds) == 10
    assert sorted(bounds)[1] == 18
    assert sorted(bounds)[32] == pytest.approx(10 * 1.8**32)
    assert max(bounds) == float("inf")


def test_made_up_names_take_no_memory():
    metrics = Metrics({"m"}.__contains__)
    for number in range(1000):
        metrics.answered(Note("REST", f"made-up-{number}", "predict"), "NOT_FOUND", 404, 0.001)
    assert b"made-up" not in metrics.page()
    assert len(samples(metrics.page().decode())) < 200


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("", None),
        ("prometheus_config { enable: false }", None),
        ("prometheus_config { enable: true }", DEFAULT_PATH),
        ('prometheus_config { enable: true, path: "/m" }', "/m"),
    ],
)
def test_the_monitoring_config(tmp_path, text, path):
    (tmp_path / "file").write_text(text)
    assert read_monitoring_config(tmp_path / "file") == path


@pytest.mark.parametrize(
    "text",
    ["enable: true", 'prometheus_config { path: "metrics" }', 'prometheus_config { path: "/v1/models" }', "\xff"],
)
def test_a_wrong_monitoring_config(tmp_path, text):
    (tmp_path / "file").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as error:
        read_monitoring_config(tmp_path / "file")
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="`monitoring_config_file` must be a file that can be read: No such file"):
        read_monitoring_config(tmp_path / "nowhere")


def test_sampled_lines_keep_every_failure(caplog):
    caplog.set_level(logging.INFO, "tfdlrm.access")
    log = AccessLog(share=0.0)
    log.answered(Note("REST", "m", "predict"), "OK", 200, 0.001)
    log.answered(Note("REST", "m", "predict"), "INTERNAL", 500, 0.001)
    assert [record.request["status"] for record in caplog.records] == ["INTERNAL"]


def test_a_plain_line_stays_one_line(caplog):
    caplog.set_level(logging.INFO, "tfdlrm.access")
    AccessLog().answered(Note("REST", "m\nERROR forged", "predict"), "NOT_FOUND", 404, 0.001)
    assert "\n" not in caplog.records[0].getMessage()


def test_no_line_without_the_switch(model_path, start_server, tmp_path):
    server = start_server(model_path.parent)
    assert httpx.post(f"{server.url}{PREDICT}", json={"instances": [1.0]}).status_code == 200
    server.terminate()
    assert "predict" not in (tmp_path / "log0.txt").read_text()

"""Recorded requests, replayed before a version answers."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tests.serving.fixtures import warmup_records
from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.servable import Servable, load_servable
from tfdlrm.serving.store import ModelStore
from tfdlrm.serving.warmup import REQUESTS_FILE, replay, warmed


@pytest.fixture(scope="module")
def servable(model_path) -> Servable:
    return load_servable(model_path, 1)


def write_records(path: Path, records: list[bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records:
            writer.write(record)
    return path


def counting(servable: Servable) -> tuple[Servable, dict[str, int]]:
    """Return the servable with signatures that count their calls."""
    calls: dict[str, int] = {}

    def counted(name: str) -> Callable:
        def call(arrays):
            calls[name] = calls.get(name, 0) + 1
            return servable.signature(name)(arrays)

        return call

    return dataclasses.replace(servable, signatures={name: counted(name) for name in servable.signatures}), calls


@pytest.mark.parametrize("iterations", [1, 3])
def test_every_kind_is_replayed(servable, tmp_path, iterations):
    watched, calls = counting(servable)
    file = write_records(tmp_path / "requests", warmup_records())
    assert replay(watched, file, iterations) == 4
    assert calls == {"serving_default": iterations, "classify": 2 * iterations, "regress": 2 * iterations}


def test_a_thousand_records_and_no_more(servable, tmp_path):
    empty = prediction_log_pb2.PredictionLog().SerializeToString()  # neither kind: read, and nothing to do
    assert replay(servable, write_records(tmp_path / "some", [empty] * 1000)) == 1000
    with pytest.raises(StatusError, match=r"exceeds the maximum \(1000\)") as error:
        replay(servable, write_records(tmp_path / "more", [empty] * 1001))
    assert error.value.code == Code.INVALID_ARGUMENT


def predict_record(signature: str, array: np.ndarray) -> bytes:
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = signature
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(array))
    return log.SerializeToString()


def session_record() -> bytes:
    log = prediction_log_pb2.PredictionLog()
    log.session_run_log.SetInParent()
    return log.SerializeToString()


@pytest.mark.parametrize(
    ("record", "code", "message"),
    [
        (b"\xff\xff\xff", Code.INVALID_ARGUMENT, "Failed to parse warmup record"),
        (predict_record("nope", np.float32([1])), Code.FAILED_PRECONDITION, '"nope" not found'),
        (predict_record("matrix", np.float32([1])), Code.INVALID_ARGUMENT, "must have the shape"),
        (session_record(), Code.UNIMPLEMENTED, "Unsupported log_type for warmup: session_run_log"),
    ],
    ids=["no record", "unknown signature", "wrong shape", "session run"],
)
def test_records_that_cannot_be_answered(servable, tmp_path, record, code, message):
    with pytest.raises(StatusError, match=message) as error:
        replay(servable, write_records(tmp_path / "requests", [warmup_records()[0], record]))
    assert error.value.code == code


@pytest.mark.parametrize("damage", ["text", "cut"])
def test_a_file_that_is_no_tfrecord_is_data_loss(servable, tmp_path, damage):
    file = write_records(tmp_path / "requests", warmup_records())
    file.write_bytes(b"these are no records" * 10 if damage == "text" else file.read_bytes()[:-3])
    with pytest.raises(StatusError, match="verify your warmup data is in TFRecord format") as error:
        replay(servable, file)
    assert error.value.code == Code.DATA_LOSS


def test_a_version_whose_replay_fails_is_not_served(model_path, tmp_path):
    base = tmp_path / "m"
    for version in "12":
        shutil.copytree(model_path, base / version)
    write_records(base / "2" / REQUESTS_FILE, [predict_record("nope", np.float32([1]))])
    store = ModelStore("m", base, warmed(load_servable), poll_seconds=0)
    store.start()
    assert store.servable().version == 1
    assert store.statuses(2)[0].code == Code.FAILED_PRECONDITION


def test_a_version_is_loading_until_its_replay_is_done(model_path, tmp_path):
    shutil.copytree(model_path, tmp_path / "m" / "1")
    write_records(tmp_path / "m" / "1" / REQUESTS_FILE, [predict_record("", np.float32([1]))])
    seen: list[str] = []

    def load(path: Path, version: int) -> Servable:
        def spy(arrays):
            seen.append(store.statuses(1)[0].state)
            return loaded.signature("serving_default")(arrays)

        loaded = load_servable(path, version)
        return dataclasses.replace(loaded, signatures={"serving_default": spy})

    store = ModelStore("m", tmp_path / "m", warmed(load), poll_seconds=0)
    store.start()
    assert seen == ["LOADING"]
    assert store.statuses(1)[0].state == "AVAILABLE"


def test_the_server_replays_unless_told_not_to(model_path, tmp_path, start_server):
    base = tmp_path / "m"
    shutil.copytree(model_path, base / "1")
    shutil.copytree(model_path, base / "2")
    (base / "2" / REQUESTS_FILE).write_bytes(b"these are no records" * 10)
    server = start_server(base)
    shown = server.client.get("/v1/models/m/versions/2").json()["model_version_status"][0]
    assert (shown["state"], shown["status"]["error_code"]) == ("END", "DATA_LOSS")
    assert "recorded requests replayed" in (tmp_path / "log0.txt").read_text(), "version 1 has records that can be read"
    server.close()
    server = start_server(base, "--enable_model_warmup=false")
    assert server.client.get("/v1/models/m/versions/2").json()["model_version_status"][0]["state"] == "AVAILABLE"

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfdlrm.export.errors import VerifyError
from tfdlrm.export.row_examples import row_examples
from tfdlrm.export.saved_model import export_model
from tfdlrm.export.verify import verify
from tfdlrm.export.warmup import warmup_requests, write_warmup
from tfdlrm.spec.errors import ConfigError, DataError

FILE = "assets.extra/tf_serving_warmup_requests"
SIZES = (1, 3, 11)


@pytest.fixture(scope="module")
def version(world, tmp_path_factory):
    base = tmp_path_factory.mktemp("warm") / "small"
    return export_model(
        world.model, world.encoder, base, rank_candidates=["ad"], warmup=world.rows, warmup_batch_sizes=SIZES
    )


@pytest.fixture(scope="module")
def logs(version):
    records = tf.data.TFRecordDataset(str(version / FILE)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


def rows_of(log):
    kind = log.WhichOneof("log_type")
    if kind != "predict_log":
        return len(getattr(log, kind).request.input.example_list.examples)
    inputs = {name: tf.make_ndarray(value) for name, value in log.predict_log.request.inputs.items()}
    return inputs["mask"].shape[1] if "mask" in inputs else len(next(iter(inputs.values())))


def test_every_signature_in_every_size(logs):
    found = [(getattr(log, log.WhichOneof("log_type")).request.model_spec, log.WhichOneof("log_type")) for log in logs]
    assert {spec.name for spec, _ in found} == {"small"}
    kinds = {"classify": "classify_log", "regress": "regress_log"}
    names = ("serving_default", "serve_ids", "tf_examples", "rank", *kinds)
    expected = {(name, kinds.get(name, "predict_log"), size) for name in names for size in SIZES}
    assert {
        (spec.signature_name, kind, rows_of(log)) for (spec, kind), log in zip(found, logs, strict=True)
    } == expected
    assert len(logs) == len(expected)


def test_they_hold_the_rows_and_too_few_come_again(world, logs):
    by_name = {
        (getattr(log, log.WhichOneof("log_type")).request.model_spec.signature_name, rows_of(log)): log for log in logs
    }
    places = np.arange(11) % 8
    inputs = by_name["serving_default", 11].predict_log.request.inputs
    for name, values in world.rows.items():
        found = tf.make_ndarray(inputs[name])
        expected = [v.encode() if isinstance(v, str) else v for v in values[places]]
        np.testing.assert_array_equal(found, np.array(expected, found.dtype))
    ids = by_name["serve_ids", 3].predict_log.request.inputs
    np.testing.assert_array_equal(tf.make_ndarray(ids["sparse"]), world.batch["sparse"][:3])
    np.testing.assert_array_equal(tf.make_ndarray(ids["dense"]), world.batch["dense"][:3])
    examples = by_name["regress", 3].regress_log.request.input.example_list.examples
    wanted = row_examples({name: values[:3] for name, values in world.rows.items()})
    assert list(examples) == [tf.train.Example.FromString(text) for text in wanted]
    rank = by_name["rank", 3].predict_log.request.inputs
    assert {name: tf.make_ndarray(value).shape for name, value in rank.items()} == {
        name: (1, 3) if name in ("ad", "mask") else (1,) for name in [*world.rows, "mask"]
    }


def test_a_fresh_process_replays_them(world, version):
    report = verify(version, world.rows, world.answers(), ids=world.batch)
    assert report.warmup_requests == 6 * len(SIZES)


def test_the_same_rows_make_the_same_bytes(world, version, tmp_path):
    again = warmup_requests("small", world.encoder, world.rows, SIZES, ["ad"])
    write_warmup(tmp_path / "again", again)
    first, second = (hashlib.sha256(path.read_bytes()).digest() for path in (version / FILE, tmp_path / "again"))
    assert first == second


def test_requests_have_the_types_of_the_signatures_whatever_the_rows_have(world, version, tmp_path):
    """NumPy's own: float64, and strings of fixed width, which end before their NUL bytes."""
    rows = {
        name: values.astype(np.str_ if name in world.strings else np.float64) for name, values in world.rows.items()
    }
    assert {values.dtype.kind for values in rows.values()} == {"f", "U"}
    requests = warmup_requests("small", world.encoder, rows, SIZES[:2], ["ad"])
    assert len(requests) == 12
    assert requests == warmup_requests("small", world.encoder, world.rows, SIZES[:2], ["ad"])
    logged = [request.predict_log.request for request in requests]
    (raw, *_) = (request.inputs for request in logged if request.model_spec.signature_name == "serving_default")
    assert {name: raw[name].dtype for name in raw} == {
        name: spec.dtype.as_datatype_enum for name, spec in world.encoder.raw_signature().items()
    }


def test_a_request_of_another_type_is_refused(world, version):
    good = (version / FILE).read_bytes()
    (log,) = (
        one
        for one in warmup_requests("small", world.encoder, world.rows, [2])
        if one.predict_log.request.model_spec.signature_name == "serving_default"
    )
    log.predict_log.request.inputs["price"].CopyFrom(tf.make_tensor_proto([1.0, 2.0], tf.float64))
    try:
        write_warmup(version / FILE, [log])
        with pytest.raises(VerifyError, match="`price` of `serving_default` must be float32. Received: float64."):
            verify(version, world.rows, world.answers())
    finally:
        (version / FILE).write_bytes(good)


def test_what_a_server_would_refuse_is_refused(world, version, tmp_path):
    good = (version / FILE).read_bytes()
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.model_spec.signature_name = "absent"
    absent = tmp_path / "absent"
    write_warmup(absent, [log])
    cases = [(good[:-3], "not a file of warm-up requests"), (absent.read_bytes(), "request 0: must fit a signature")]
    try:
        for content, message in cases:
            (version / FILE).write_bytes(content)
            with pytest.raises(VerifyError, match=message):
                verify(version, world.rows, world.answers())
    finally:
        (version / FILE).write_bytes(good)


def test_wrong_arguments(world, tmp_path):
    def requests(rows=world.rows, sizes=(1,)):
        return warmup_requests("m", world.encoder, rows, sizes)

    with pytest.raises(DataError, match="`warmup` must have the column `ad`. Did you mean `add`"):
        requests({**{n: v for n, v in world.rows.items() if n not in ("ad", "ad_before")}, "add": world.rows["ad"]})
    with pytest.raises(DataError, match="at least one row"):
        requests({name: values[:0] for name, values in world.rows.items()})
    with pytest.raises(ConfigError, match="must be at least 1. Received: \\[0\\]"):
        requests(sizes=[0])
    with pytest.raises(ConfigError, match="must make at most 1000 requests, 5 a size. Received: 201 sizes"):
        requests(sizes=[1] * 201)
    with pytest.raises(ConfigError, match="`warmup` must be absent where there is no `encoder`"):
        rows = {table.name: 0 for table in world.model.spec.tables}
        export_model(world.model, None, tmp_path / "m", oov_rows=rows, warmup=world.rows)
    assert requests(sizes=[]) == []

"""The gRPC services of a running server process."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    input_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.serving.fixtures import ECHOED

CODE = grpc.StatusCode


@pytest.fixture(scope="module")
def channel(server):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.grpc_address, options) as channel:
        yield channel


@pytest.fixture(scope="module")
def service(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def spec(signature: str = "", name: str = "m", **choice) -> model_pb2.ModelSpec:
    made = model_pb2.ModelSpec(name=name, signature_name=signature)
    if "version" in choice:
        made.version.value = choice["version"]
    if "label" in choice:
        made.version_label = choice["label"]
    return made


def predict_request(signature: str = "", only=(), model=None, **arrays) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest(model_spec=model or spec(signature), output_filter=only)
    for name, array in arrays.items():
        request.inputs[name].CopyFrom(array if isinstance(array, TensorProto) else tf.make_tensor_proto(array))
    return request


def fails(call, request, code: grpc.StatusCode, message: str = "") -> None:
    with pytest.raises(grpc.RpcError) as error:
        call(request)
    assert error.value.code() == code
    assert message in error.value.details()


def floats(*values: float) -> np.ndarray:
    return np.float32(values)


def example(**features: float) -> tf.train.Example:
    made = tf.train.Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def examples(*listed: tf.train.Example, context: tf.train.Example | None = None) -> input_pb2.Input:
    if context is not None:
        together = input_pb2.ExampleListWithContext(examples=listed, context=context)
        return input_pb2.Input(example_list_with_context=together)
    return input_pb2.Input(example_list=input_pb2.ExampleList(examples=listed))


# --- predict --------------------------------------------------------------------------------------------------------


def test_predict(service):
    response = service.Predict(predict_request(x=floats(1, 2)))
    assert (response.model_spec.name, response.model_spec.signature_name) == ("m", "serving_default")
    assert response.model_spec.version.value == 1
    assert list(response.outputs) == ["y"]
    assert list(response.outputs["y"].float_val) == [2.5, 3.0]
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), floats(2.5, 3))


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_every_type_goes_through_unchanged(service, rows):
    rng = np.random.default_rng(rows)
    sent = {}
    for name in ECHOED:
        if name == "string":
            sent[name] = np.array([b"a\x00", b"", b"\xff"][:rows], object)
        else:
            sent[name] = rng.integers(0, 2 if name == "bool" else 100, rows).astype(tf.as_dtype(name).as_numpy_dtype)
    request = predict_request("echo", **{name: tf.make_tensor_proto(a, tf.as_dtype(name)) for name, a in sent.items()})
    response = service.Predict(request)
    for name, array in sent.items():
        found = tf.make_ndarray(response.outputs[f"same_{name}"])
        assert found.dtype == array.dtype, name
        assert found.tolist() == array.tolist(), name


def test_every_form_of_a_tensor_is_read(service):
    shape = tf.TensorShape([3]).as_proto()
    dtype = tf.float32.as_datatype_enum
    for tensor, expected in (
        (TensorProto(dtype=dtype, tensor_shape=shape, float_val=[1, 2, 3]), [2.5, 3, 3.5]),
        (TensorProto(dtype=dtype, tensor_shape=shape, tensor_content=floats(1, 2, 3).tobytes()), [2.5, 3, 3.5]),
        (TensorProto(dtype=dtype, tensor_shape=shape, float_val=[1, 2]), [2.5, 3, 3]),
        (TensorProto(dtype=dtype, tensor_shape=shape), [2, 2, 2]),
    ):
        assert list(service.Predict(predict_request(x=tensor)).outputs["y"].float_val) == expected


def test_a_large_message(service):
    values = np.arange(2_000_000, dtype=np.float32)  # 8 MB: twice what gRPC takes by default
    response = service.Predict(predict_request(x=values))
    np.testing.assert_array_equal(tf.make_ndarray(response.outputs["y"]), values * np.float32(0.5) + 2)


def test_output_filter(service):
    assert list(service.Predict(predict_request("two", only=["whole"], x=floats(1.5))).outputs) == ["whole"]
    assert set(service.Predict(predict_request("two", x=floats(1.5))).outputs) == {"whole", "twice"}


def test_unknown_or_repeated_output_filter_is_an_invalid_argument(service):
    for only, message in (
        (["nope"], "output tensor alias not found in signature: nope"),
        (["twice", "twice"], "duplicate output tensor alias: twice"),
    ):
        fails(service.Predict, predict_request("two", only=only, x=floats(1)), CODE.INVALID_ARGUMENT, message)


def test_unknown_signature_is_a_failed_precondition(service):
    request = predict_request("nope", x=floats(1))
    fails(service.Predict, request, CODE.FAILED_PRECONDITION, 'Serving signature key "nope" not found.')


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (predict_pb2.PredictRequest(), CODE.INVALID_ARGUMENT, "Missing ModelSpec"),
        (predict_request(model=spec(name="")), CODE.INVALID_ARGUMENT, "ModelSpec has no name specified."),
        (predict_request(model=spec(name="nobody")), CODE.NOT_FOUND, "Servable not found for request: Latest(nobody)"),
        (predict_request(model=spec(version=7)), CODE.NOT_FOUND, "Servable not found for request: Specific(m, 7)"),
        (predict_request(model=spec(label="x")), CODE.INVALID_ARGUMENT, "Unrecognized servable version label: x"),
        (predict_request(), CODE.INVALID_ARGUMENT, "Sent extra: {}. Missing but required: {x}."),
        (
            predict_request(x=floats(1), z=floats(1)),
            CODE.INVALID_ARGUMENT,
            "Sent extra: {z}. Missing but required: {}.",
        ),
        (predict_request(z=floats(1)), CODE.INVALID_ARGUMENT, "Sent extra: {z}. Missing but required: {x}."),
        (predict_request(x=np.float64([1])), CODE.INVALID_ARGUMENT, "float"),
        (predict_request(x=np.float32(1)), CODE.INVALID_ARGUMENT, ""),
        (predict_request("pick", i=np.int32([3])), CODE.INVALID_ARGUMENT, "is not in [0, 3)"),
    ],
)
def test_requests_that_do_not_fit(service, request_, code, message):
    fails(service.Predict, request_, code, message)


@pytest.mark.parametrize(
    "tensor",
    [
        {"shape": [3], "tensor_content": b"abcd"},
        {"shape": [1], "float_val": [1, 2]},
        {"shape": [1 << 40], "float_val": [1]},
        {"shape": [1 << 62, 1 << 62], "float_val": [1]},
        {"shape": [-1], "float_val": [1]},
        {"shape": [-1, -1], "float_val": [1]},
        {"shape": None, "float_val": [1]},
        {"shape": [1] * 65, "float_val": [1]},
        {"shape": [1], "dtype": tf.int8.as_datatype_enum, "int_val": [300]},
    ],
    ids=[
        "content_cut",
        "too_many",
        "a_terabyte",
        "beyond_64_bits",
        "no_size",
        "no_sizes",
        "no_rank",
        "high_rank",
        "beyond_the_type",
    ],
)
def test_tensors_that_contradict_themselves(service, tensor):
    fields = {"dtype": tf.float32.as_datatype_enum, **tensor}
    shape = fields.pop("shape")
    made = TensorProto(**fields)
    if shape is None:
        made.tensor_shape.unknown_rank = True
    for size in shape or ():
        made.tensor_shape.dim.add(size=size)
    if made.dtype == tf.float32:
        request, name = predict_request(x=made), "x"
    else:  # of a type that few signatures have: one input of the signature that has them all
        name = tf.as_dtype(made.dtype).name
        others = {other: tf.zeros([1], other) for other in ECHOED if other not in (name, "string")}
        request = predict_request("echo", string=np.array([b""], object), **{**others, name: made})
    fails(service.Predict, request, CODE.INVALID_ARGUMENT, f"Input {name} ")


# --- classify, regress and both -------------------------------------------------------------------------------------


def test_classify(service):
    request = classification_pb2.ClassificationRequest(
        model_spec=spec("classify"), input=examples(example(x=1), example())
    )
    response = service.Classify(request)
    assert (response.model_spec.signature_name, response.model_spec.version.value) == ("classify", 1)
    found = [[(one.label, one.score) for one in row.classes] for row in response.result.classifications]
    assert found == [[("low", -1.5), ("high", 2.5)], [("low", -1.0), ("high", 2.0)]]


def test_regress(service):
    listed = examples(example(x=1), example(bias=-1.0), context=example(bias=10))
    response = service.Regress(regression_pb2.RegressionRequest(model_spec=spec("regress"), input=listed))
    assert [one.value for one in response.result.regressions] == [12.5, 1.0]


def test_multi_inference(service):
    request = inference_pb2.MultiInferenceRequest(input=examples(example(x=1)))
    request.tasks.add(model_spec=spec("regress"), method_name="tensorflow/serving/regress")
    request.tasks.add(model_spec=spec("classify_scores"), method_name="tensorflow/serving/classify")
    first, second = service.MultiInference(request).results
    assert [one.value for one in first.regression_result.regressions] == [2.5]
    assert [one.score for one in second.classification_result.classifications[0].classes] == [2.5]
    assert (second.model_spec.signature_name, second.model_spec.version.value) == ("classify_scores", 1)


def task(signature: str, method: str = "regress", name: str = "m") -> inference_pb2.InferenceTask:
    return inference_pb2.InferenceTask(
        model_spec=spec(signature, name=name), method_name=f"tensorflow/serving/{method}"
    )


@pytest.mark.parametrize(
    ("tasks", "code", "message"),
    [
        ([], CODE.INVALID_ARGUMENT, "ModelSpec has no name"),
        ([task("regress"), task("regress")], CODE.INVALID_ARGUMENT, "Duplicate evaluation of signature: regress"),
        ([task("regress"), task("regress_column", name="other")], CODE.INVALID_ARGUMENT, "the same model name"),
        ([task("regress"), task("nope")], CODE.INVALID_ARGUMENT, "not found in model graph: nope"),
        ([task("regress", "predict")], CODE.UNIMPLEMENTED, "Unsupported signature method_name"),
        ([task("classify")], CODE.INVALID_ARGUMENT, "Expected one output Tensor."),
        ([task("regress", name="nobody")], CODE.NOT_FOUND, "Latest(nobody)"),
    ],
)
def test_tasks_that_do_not_fit(service, tasks, code, message):
    fails(
        service.MultiInference,
        inference_pb2.MultiInferenceRequest(tasks=tasks, input=examples(example())),
        code,
        message,
    )


def test_no_examples_are_an_invalid_argument(service):
    for call, request in (
        (service.Classify, classification_pb2.ClassificationRequest(model_spec=spec("classify"))),
        (service.Regress, regression_pb2.RegressionRequest(model_spec=spec("regress"), input=examples())),
    ):
        fails(call, request, CODE.INVALID_ARGUMENT, "Input is empty.")


def test_a_predict_signature_cannot_classify_or_regress(service):
    request = classification_pb2.ClassificationRequest(model_spec=spec(), input=examples(example()))
    fails(service.Classify, request, CODE.INVALID_ARGUMENT, "No classification inputs found in SignatureDef")
    request = regression_pb2.RegressionRequest(model_spec=spec(), input=examples(example()))
    fails(service.Regress, request, CODE.INVALID_ARGUMENT, "No regression inputs found in SignatureDef")


# --- metadata and status --------------------------------------------------------------------------------------------


def test_metadata(service):
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec(), metadata_field=["signature_def"])
    response = service.GetModelMetadata(request)
    assert (response.model_spec.name, response.model_spec.version.value) == ("m", 1)
    found = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(found)
    assert found.signature_def["serving_default"].inputs["x"].dtype == tf.float32.as_datatype_enum
    assert found.signature_def["regress"].method_name == "tensorflow/serving/regress"


def test_metadata_of_other_fields(service):
    for fields, message in ([], "at least one metadata_field"), (["graph"], "Metadata field graph is not supported"):
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec(), metadata_field=fields)
        fails(service.GetModelMetadata, request, CODE.INVALID_ARGUMENT, message)


def test_status(models):
    for model in (spec(), spec(version=1), spec(label="ignored")):
        (found,) = models.GetModelStatus(
            get_model_status_pb2.GetModelStatusRequest(model_spec=model)
        ).model_version_status
        assert (found.version, found.state) == (1, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
        assert (found.status.error_code, found.status.error_message) == (0, "")


@pytest.mark.parametrize(
    ("model", "message"),
    [(spec(name="nobody"), "any versions of model nobody"), (spec(version=7), "version 7 of model m")],
    ids=["model", "version"],
)
def test_status_of_the_unknown(models, model, message):
    request = get_model_status_pb2.GetModelStatusRequest(model_spec=model)
    fails(models.GetModelStatus, request, CODE.NOT_FOUND, f"Could not find {message}")


def test_status_of_no_model(models):
    fails(
        models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest(), CODE.INVALID_ARGUMENT, "Missing ModelSpec"
    )


# --- the transport --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"])
@pytest.mark.parametrize("sent", [b"\xff" * 20, b"\x0a\x7f", b""], ids=["garbage", "cut", "empty"])
def test_bytes_that_are_no_request_are_refused(channel, service, method, sent):
    call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
    fails(call, sent, CODE.INVALID_ARGUMENT if sent == b"" else CODE.INTERNAL)
    assert list(service.Predict(predict_request(x=floats(1))).outputs["y"].float_val) == [2.5]


def test_a_method_that_is_not_there(channel):
    fails(channel.unary_unary("/tensorflow.serving.PredictionService/Nothing"), b"", CODE.UNIMPLEMENTED)


def test_a_long_message_is_cut(service, models):
    """A status travels in headers, which bear little: a longer one would end the call without it."""
    long = spec(name="n" * 20_000)
    fails(service.Predict, predict_request(model=long), CODE.NOT_FOUND, "Latest(nnnn")
    fails(models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest(model_spec=long), CODE.NOT_FOUND, "nnnn")
    wide = predict_request(model=spec(name="\u00fc" * 20_000))
    fails(service.Predict, wide, CODE.NOT_FOUND, "Latest(\u00fc\u00fc")


PREDICT = "/tensorflow.serving.PredictionService/Predict"


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer sixteen-letters-1"], ids=["none", "wrong", "right"])
def test_calls_that_send_no_message_do_not_stop_the_port(model_path, start_server, tmp_path, header):
    """More of them than there are threads; a client that asks properly waits for the time to receive at most."""
    (tmp_path / "token").write_text("sixteen-letters-1")
    server = start_server(
        *(model_path.parent, "--auth_token_file", str(tmp_path / "token")),
        *("--receive_timeout_seconds", "1", "--grpc_max_threads", "4"),
    )
    with grpc.insecure_channel(server.grpc_address) as channel:
        ended = threading.Event()

        def nothing():
            ended.wait(30)
            yield from ()

        silent = channel.stream_unary(PREDICT)
        metadata = () if header is None else (("authorization", header),)
        calls = [silent.future(nothing(), metadata=metadata) for _ in range(8)]
        time.sleep(0.3)
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        started = time.monotonic()
        right = (("authorization", "Bearer sixteen-letters-1"),)
        answer = service.Predict(predict_request(x=floats(1)), timeout=20, metadata=right)
        taken = time.monotonic() - started
        assert list(answer.outputs["y"].float_val) == [2.5]
        codes = {call.code() for call in calls}
        ended.set()
    if header == right[0][1]:
        assert codes == {CODE.CANCELLED}
        assert taken < 10
    else:
        assert codes == {CODE.UNAUTHENTICATED}
        assert taken < 1


def test_a_full_queue_is_unavailable_at_once_and_observed(model_path, start_server):
    """Two calls that take long are all there may be; those beyond are refused while those are computed."""
    server = start_server(model_path.parent, "--max_queued_requests", "2", "--access_log", "--grpc_max_threads", "2")
    with grpc.insecure_channel(server.grpc_address) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        service.Predict(predict_request(x=floats(1)), timeout=60)
        long = predict_request("slow", steps=np.int32([200_000]))
        slow = [service.Predict.future(long, timeout=60) for _ in range(2)]
        time.sleep(0.3)
        for _ in range(20):
            fails(service.Predict, predict_request(x=floats(1)), CODE.UNAVAILABLE, "2 requests are waiting already")
        assert not any(call.done() for call in slow)
        assert [list(call.result().outputs["y"].float_val) for call in slow] == [[1.0]] * 2
        # A place is free again, also after calls that were given up while they waited.
        for _ in range(5):
            with pytest.raises(grpc.RpcError):
                service.Predict(long, timeout=0.05)
        end = time.monotonic() + 30
        while True:
            try:
                service.Predict(predict_request(x=floats(1)), timeout=60)
                break
            except grpc.RpcError:
                assert time.monotonic() < end
                time.sleep(0.05)
    log = server.log.read_text()
    assert log.count("UNAVAILABLE") >= 20


def test_concurrent_clients_each_get_their_own_answer(service):
    def ask(client: int) -> bool:
        sent = [float(client), client + 0.25]
        found = service.Predict(predict_request(x=floats(*sent)), timeout=60).outputs["y"].float_val
        return list(found) == [value * 0.5 + 2 for value in sent]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(500)))


def test_a_call_on_its_way_is_answered_before_the_server_ends(model_path, start_server):
    server = start_server(model_path.parent)
    with grpc.insecure_channel(server.grpc_address) as channel:
        service = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        service.Predict(predict_request(x=floats(1)), timeout=60)  # the connection stands
        slow = service.Predict.future(predict_request("slow", steps=np.int32([100_000])), timeout=60)
        time.sleep(0.3)
        assert not slow.done()
        assert server.terminate() == 0
        assert list(slow.result().outputs["y"].float_val) == [1.0]
        fails(service.Predict, predict_request(x=floats(1)), CODE.UNAVAILABLE)

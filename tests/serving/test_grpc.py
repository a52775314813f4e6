"""The gRPC services of a running server process: what they answer."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework.tensor_pb2 import TensorProto
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from tests.serving.fixtures import ECHOED
from tests.serving.grpc_requests import CODE, example, examples, floats, predict_request, refusal, spec

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
        code, told = refusal(service.Predict, predict_request("two", only=only, x=floats(1)))
        assert code == CODE.INVALID_ARGUMENT
        assert message in told


def test_unknown_signature_is_a_failed_precondition(service):
    request = predict_request("nope", x=floats(1))
    assert refusal(service.Predict, request) == (
        CODE.FAILED_PRECONDITION,
        'Serving signature key "nope" not found.',
    )


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
        (predict_request(x=np.float32(1)), CODE.INVALID_ARGUMENT, "Input x must have the shape [?]"),
        (predict_request("pick", i=np.int32([3])), CODE.INVALID_ARGUMENT, "is not in [0, 3)"),
    ],
)
def test_requests_that_do_not_fit(service, request_, code, message):
    found, told = refusal(service.Predict, request_)
    assert found == code
    assert message in told


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
    code, told = refusal(service.Predict, request)
    assert code == CODE.INVALID_ARGUMENT
    assert told.startswith(f"Input {name} ")


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
    request = inference_pb2.MultiInferenceRequest(tasks=tasks, input=examples(example()))
    found, told = refusal(service.MultiInference, request)
    assert found == code
    assert message in told


def test_no_examples_are_an_invalid_argument(service):
    for call, request in (
        (service.Classify, classification_pb2.ClassificationRequest(model_spec=spec("classify"))),
        (service.Regress, regression_pb2.RegressionRequest(model_spec=spec("regress"), input=examples())),
    ):
        assert refusal(call, request) == (CODE.INVALID_ARGUMENT, "Input is empty.")


def test_a_predict_signature_cannot_classify_or_regress(service):
    request = classification_pb2.ClassificationRequest(model_spec=spec(), input=examples(example()))
    code, told = refusal(service.Classify, request)
    assert code == CODE.INVALID_ARGUMENT
    assert "No classification inputs found in SignatureDef" in told
    code, told = refusal(
        service.Regress, regression_pb2.RegressionRequest(model_spec=spec(), input=examples(example()))
    )
    assert code == CODE.INVALID_ARGUMENT
    assert "No regression inputs found in SignatureDef" in told


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
        code, told = refusal(service.GetModelMetadata, request)
        assert code == CODE.INVALID_ARGUMENT
        assert message in told


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
    assert refusal(models.GetModelStatus, request) == (CODE.NOT_FOUND, f"Could not find {message}")


def test_status_of_no_model(models):
    request = get_model_status_pb2.GetModelStatusRequest()
    assert refusal(models.GetModelStatus, request) == (CODE.INVALID_ARGUMENT, "Missing ModelSpec")

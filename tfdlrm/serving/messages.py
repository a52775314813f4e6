"""Requests of PredictionService on one servable, message in and message out.

The gRPC service and the replay at load both end here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    inference_pb2,
    predict_pb2,
    regression_pb2,
)

from tfdlrm.serving import inference
from tfdlrm.serving.codec import DEFAULT_SIGNATURE
from tfdlrm.serving.errors import Code, StatusError, invalid
from tfdlrm.serving.examples import with_context
from tfdlrm.serving.proto_tensors import from_proto, to_proto
from tfdlrm.serving.tensors import Array

if TYPE_CHECKING:
    from tfdlrm.serving.servable import Servable

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
SIGNATURE_DEF = "signature_def"


def predict(servable: Servable, request: Any) -> Any:
    """Answer a PredictRequest with a PredictResponse.

    Raises:
        StatusError: The signature is unknown (FAILED_PRECONDITION), or inputs or `output_filter` do not fit it.
    """
    name = _signature_name(request.model_spec)
    if name not in servable.definitions:
        raise StatusError(Code.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
    definition = servable.definitions[name]
    arrays = _inputs(servable, name, request.inputs)
    wanted = list(request.output_filter)
    for index, alias in enumerate(wanted):
        if alias not in definition.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} Outputs expected to be in the set "
                f"{{{','.join(sorted(definition.outputs))}}}."
            )
        if alias in wanted[:index]:
            raise invalid(f"duplicate output tensor alias: {alias}")
    outputs = servable.signature(name)(arrays)
    response = predict_pb2.PredictResponse()
    _describe(response.model_spec, servable, request.model_spec)
    for alias in wanted or outputs:
        response.outputs[alias].CopyFrom(to_proto(outputs[alias]))
    return response


def classify(servable: Servable, request: Any) -> Any:
    """Answer a ClassificationRequest with a ClassificationResponse.

    Raises:
        StatusError: As `inference.classify`.
    """
    labels, scores = inference.classify(servable, _signature_name(request.model_spec), _examples(request.input))
    response = classification_pb2.ClassificationResponse()
    _describe(response.model_spec, servable, request.model_spec)
    _fill_classes(response.result, labels, scores)
    return response


def regress(servable: Servable, request: Any) -> Any:
    """Answer a RegressionRequest with a RegressionResponse.

    Raises:
        StatusError: As `inference.regress`.
    """
    values = inference.regress(servable, _signature_name(request.model_spec), _examples(request.input))
    response = regression_pb2.RegressionResponse()
    _describe(response.model_spec, servable, request.model_spec)
    _fill_values(response.result, values)
    return response


def multi_inference(servable: Servable, request: Any) -> Any:
    """Answer a MultiInferenceRequest with a MultiInferenceResponse: all tasks are judged before the first is run.

    Raises:
        StatusError: A task that names no model, another model or a signature twice; a method that is neither classify
            nor regress (UNIMPLEMENTED); or as for either.
    """
    seen: set[str] = set()
    for task in request.tasks:
        name = _signature_name(task.model_spec)
        if not task.model_spec.name:
            raise invalid("Found ModelSpec with an empty model name.")
        if task.model_spec.name != request.tasks[0].model_spec.name:
            raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
        if name in seen:
            raise invalid(f"Duplicate evaluation of signature: {name}")
        seen.add(name)
        if name not in servable.definitions:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in (CLASSIFY, REGRESS):
            raise StatusError(Code.UNIMPLEMENTED, f"Unsupported signature method_name: {task.method_name}")
        check = inference.check_classify if task.method_name == CLASSIFY else inference.check_regress
        check(servable.definitions[name])
    examples = _examples(request.input)
    response = inference_pb2.MultiInferenceResponse()
    for task in request.tasks:
        name = _signature_name(task.model_spec)
        result = response.results.add()
        _describe(result.model_spec, servable, task.model_spec)
        if task.method_name == CLASSIFY:
            _fill_classes(result.classification_result, *inference.classify(servable, name, examples))
        else:
            _fill_values(result.regression_result, inference.regress(servable, name, examples))
    return response


def metadata(servable: Servable, request: Any) -> Any:
    """Answer a GetModelMetadataRequest with a GetModelMetadataResponse.

    Raises:
        StatusError: No field is asked for, or one that is not `signature_def`.
    """
    if not request.metadata_field:
        raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
    for field in request.metadata_field:
        if field != SIGNATURE_DEF:
            raise invalid(f"Metadata field {field} is not supported")
    definitions = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in servable.definitions.items():
        definitions.signature_def[name].CopyFrom(definition)
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = request.model_spec.name
    response.model_spec.version.value = servable.version
    response.metadata[SIGNATURE_DEF].Pack(definitions)
    return response


def _inputs(servable: Servable, name: str, sent: Any) -> dict[str, Array]:
    """Return an array for each input of a signature, its default where it has one and none was sent."""
    types = servable.input_types(name)
    if len(sent) == len(types) and all(alias in sent for alias in types):
        return {alias: from_proto(alias, sent[alias], kind) for alias, kind in types.items()}
    defaults = servable.definitions[name].defaults
    missing = sorted(alias for alias in types if alias not in sent)
    extra = sorted(alias for alias in sent if alias not in types)
    if extra or any(alias not in defaults for alias in missing):
        names = [",".join(sorted(keys)) for keys in (sent, types)]
        raise invalid(
            f"input size does not match signature: {len(sent)}!={len(types)} len({{{names[0]}}}) != "
            f"len({{{names[1]}}}). Sent extra: {{{','.join(extra)}}}. Missing but required: {{{','.join(missing)}}}."
        )
    return {
        alias: from_proto(alias, sent[alias] if alias in sent else defaults[alias], kind)
        for alias, kind in types.items()
    }


def _examples(message: Any) -> list[bytes]:
    """Return the serialized examples of an Input, each with its context."""
    if message.WhichOneof("kind") == "example_list_with_context":
        listed = message.example_list_with_context
        context = bytes(listed.context.SerializeToString())
        return with_context(context, [one.SerializeToString() for one in listed.examples])
    return [one.SerializeToString() for one in message.example_list.examples]


def _signature_name(spec: Any) -> str:
    return spec.signature_name or DEFAULT_SIGNATURE


def _describe(target: Any, servable: Servable, asked: Any) -> None:
    target.name = asked.name
    target.signature_name = _signature_name(asked)
    target.version.value = servable.version


def _fill_classes(result: Any, labels: Array, scores: Array) -> None:
    for row_labels, row_scores in zip(labels, scores, strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(row_labels, row_scores, strict=True):
            classes.add(label=label.decode("utf-8", "replace"), score=score)


def _fill_values(result: Any, values: Array) -> None:
    for value in values:
        result.regressions.add(value=value)

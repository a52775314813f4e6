"""A client of TensorFlow Serving's gRPC services, with the methods of `PredictClient`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    input_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tfdlrm.serving.any_client import AnyClient, Array, PredictError, ranked, refuse_both
from tfdlrm.serving.errors import Code
from tfdlrm.serving.frames import frame_columns, frame_like, is_frame, rank_columns
from tfdlrm.serving.retries import Retries


class GrpcPredictClient(AnyClient):
    """Asks one model for predictions over gRPC; one client may serve several threads.

    Example:
        >>> with GrpcPredictClient("127.0.0.1:8500", "ctr") as client:  # doctest: +SKIP
        ...     client.predict({"age": [31.0, float("nan")], "city": ["Paris", ""]})
        array([[0.31], [0.02]], dtype=float32)
    """

    def __init__(
        self,
        target: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 30.0,
        retries: Retries | None = None,
        token: str | None = None,
        root_certificates: bytes | None = None,
        secure: bool = False,
    ) -> None:
        """Describe where the model is; nothing is sent yet.

        Args:
            target: Host and port of the server.
            model: Name of the model.
            version: The version to ask; None for the latest.
            label: The label of the version to ask, in place of its number.
            timeout: Seconds until an answer must be there, retries included.
            retries: When a question is asked again. Defaults to `Retries()`.
            token: Sent as `authorization: Bearer <token>`; None sends nothing.
            root_certificates: Certificate authorities to trust, PEM; None for those of this machine. Implies `secure`.
            secure: Whether to speak TLS.

        Raises:
            ValueError: Both version and label are given.
        """
        refuse_both(version, label)
        self._spec = model_pb2.ModelSpec(name=model)
        if version is not None:
            self._spec.version.value = version
        if label is not None:
            self._spec.version_label = label
        self._timeout = timeout
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        options = [
            ("grpc.service_config", (retries or Retries()).service_config()),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        if secure or root_certificates is not None:
            self._channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(root_certificates), options)
        else:
            self._channel = grpc.insecure_channel(target, options)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)

    def predict(
        self,
        columns: Mapping[str, Any],
        *,
        signature_name: str = "serving_default",
        outputs: Sequence[str] = (),
    ) -> Array | dict[str, Array]:
        """Ask for predictions.

        Args:
            columns: A mapping from input name to the values of all rows, or a pandas or Polars frame. NumPy arrays are
                sent in their own type; lists of whole numbers as int64, of other numbers as float32. The type must be
                that of the input: float32 for a raw number column.
            signature_name: Which function of the model to call.
            outputs: Names of the outputs wanted. Defaults to all.

        Returns:
            The output, one row for each row asked, or a mapping by name where several came. Strings are `bytes`.

        Raises:
            PredictError: The server refused, could not be reached, or did not answer in time.
        """
        request = predict_pb2.PredictRequest(model_spec=self._spec, output_filter=outputs)
        request.model_spec.signature_name = signature_name
        given = frame_columns(columns) if is_frame(columns) else columns
        for name, values in given.items():
            request.inputs[name].CopyFrom(_tensor(values))
        answer = self._call(self._predictions.Predict, request)
        found = {name: tf.make_ndarray(tensor) for name, tensor in answer.outputs.items()}
        return next(iter(found.values())) if len(found) == 1 else found

    def predict_frame(self, frame: Any, *, signature_name: str = "serving_default") -> Any:
        """Ask for predictions of the rows of a frame; numbers are sent as float32. See `PredictClient`.

        Raises:
            PredictError: The server refused, could not be reached, or did not answer in time.
        """
        columns = {
            name: np.array(values, np.float32) if values and not isinstance(values[0], str | bytes) else values
            for name, values in frame_columns(frame).items()
        }
        outputs = self.predict(columns, signature_name=signature_name)
        return frame_like(frame, outputs if isinstance(outputs, dict) else {"probability": outputs})

    def rank(
        self, shared: Mapping[str, Any], candidates: Mapping[str, Any], mask: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Score and order candidates with the signature `rank`; numbers are sent as float32. See `PredictClient`.

        Raises:
            PredictError: The server refused, could not be reached, or did not answer in time.
        """
        columns, alone = rank_columns(shared, candidates, mask)
        outputs = self.predict(
            {name: array.astype(np.float32) if array.dtype.kind in "fiu" else array for name, array in columns.items()},
            signature_name="rank",
        )
        return ranked(outputs, alone)

    def classify(
        self, examples: Sequence[Mapping[str, Any]], *, signature_name: str = "classify"
    ) -> list[list[tuple[str, float]]]:
        """Return the classes of each example with their scores; an example maps feature names to values.

        Raises:
            PredictError: The server refused, could not be reached, or did not answer in time.
        """
        request = classification_pb2.ClassificationRequest(model_spec=self._spec, input=_input(examples))
        request.model_spec.signature_name = signature_name
        answer = self._call(self._predictions.Classify, request)
        return [[(c.label, c.score) for c in found.classes] for found in answer.result.classifications]

    def regress(self, examples: Sequence[Mapping[str, Any]], *, signature_name: str = "regress") -> NDArray[np.float64]:
        """Return one number for each example; an example maps feature names to values.

        Raises:
            PredictError: The server refused, could not be reached, or did not answer in time.
        """
        request = regression_pb2.RegressionRequest(model_spec=self._spec, input=_input(examples))
        request.model_spec.signature_name = signature_name
        answer = self._call(self._predictions.Regress, request)
        return np.array([found.value for found in answer.result.regressions], np.float64)

    def metadata(self) -> get_model_metadata_pb2.GetModelMetadataResponse:
        """Return the signatures of the model, as the server tells them.

        Raises:
            PredictError: The server refused, could not be reached, or did not answer in time.
        """
        request = get_model_metadata_pb2.GetModelMetadataRequest(
            model_spec=self._spec, metadata_field=["signature_def"]
        )
        return self._call(self._predictions.GetModelMetadata, request)

    def status(self) -> list[dict[str, Any]]:
        """Return the state of each version of the model, as `PredictClient.status` does.

        Raises:
            PredictError: The server refused, could not be reached, or did not answer in time.
        """
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec)
        answer = self._call(self._models.GetModelStatus, request)
        state = get_model_status_pb2.ModelVersionStatus.State
        return [
            {
                "version": str(version.version),
                "state": state.Name(version.state),
                "status": {
                    "error_code": Code(version.status.error_code).name,
                    "error_message": version.status.error_message,
                },
            }
            for version in answer.model_version_status
        ]

    @property
    def _where(self) -> str:
        return f"model {self._spec.name}"

    def _call(self, method: Any, request: Any) -> Any:
        try:
            return method(request, timeout=self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            code = Code(error.code().value[0])
            raise PredictError(code.http_status, f"{code.name}: {error.details()}") from error

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


def _tensor(values: Any) -> Any:
    """Return values as a TensorProto: plain lists in the types of raw columns, arrays as they are."""
    array = np.asarray(values)
    if not isinstance(values, np.ndarray) and array.dtype == np.float64:
        array = array.astype(np.float32)
    # TensorFlow writes strings of NumPy's fixed width with an encoding of their own.
    return tf.make_tensor_proto(array.astype(object) if array.dtype.kind in "US" else array)


def _input(examples: Sequence[Mapping[str, Any]]) -> input_pb2.Input:
    """Return examples as the services take them; whole numbers as int64, other numbers as float, text as bytes."""
    found = input_pb2.Input()
    for example in examples:
        features = found.example_list.examples.add().features.feature
        for name, value in example.items():
            values = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
            if all(isinstance(item, str | bytes) for item in values):
                features[name].bytes_list.value.extend(v.encode() if isinstance(v, str) else v for v in values)
            elif all(isinstance(item, int | np.integer) for item in values):
                features[name].int64_list.value.extend(values)
            else:
                features[name].float_list.value.extend(values)
    return found

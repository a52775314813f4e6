"""TensorFlow Serving's gRPC services over the models of a server."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from tfdlrm.serving import messages
from tfdlrm.serving.errors import Code, StatusError, invalid, shown
from tfdlrm.serving.model_config import settings_from
from tfdlrm.serving.models import Models, find_servable, find_statuses
from tfdlrm.serving.servable import Servable

_LOG = logging.getLogger(__name__)
_MAX_MESSAGE_BYTES = 2**31 - 1
_STATUS = {status.value[0]: status for status in grpc.StatusCode}


def create_grpc_server(
    models: Models,
    address: str,
    *,
    threads: int,
    credentials: grpc.ServerCredentials | None = None,
    interceptors: Sequence[grpc.ServerInterceptor] = (),
) -> grpc.Server:
    """Return a server that is bound to its port and not yet started.

    Args:
        models: The models, which a request may change.
        address: Host and port to listen on, such as "127.0.0.1:8500".
        threads: Requests computed at a time; further ones wait their turn.
        credentials: For TLS; None listens without.
        interceptors: See every call before the services do, and bound how many wait.

    Raises:
        RuntimeError: The port cannot be had.
    """
    options = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),  # or two servers would share a port, and each get some of the requests
    ]
    pool = ThreadPoolExecutor(threads, thread_name_prefix="grpc")
    server = grpc.server(pool, None, interceptors, options)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(models), server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Model(models), server)
    if credentials is None:
        server.add_insecure_port(address)
    else:
        server.add_secure_port(address, credentials)
    return server


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, models: Models) -> None:
        self._models = models

    def Predict(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return _answer(context, lambda: messages.predict(self._servable(request), request))

    def Classify(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return _answer(context, lambda: messages.classify(self._servable(request), request))

    def Regress(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return _answer(context, lambda: messages.regress(self._servable(request), request))

    def MultiInference(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        def work() -> Any:
            if not request.tasks:
                raise invalid("ModelSpec has no name specified.")
            return messages.multi_inference(self._servable(request.tasks[0]), request)

        return _answer(context, work)

    def GetModelMetadata(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        return _answer(context, lambda: messages.metadata(self._servable(request), request))

    def _servable(self, request: Any) -> Servable:
        spec = _spec(request)
        choice = spec.WhichOneof("version_choice")
        version = spec.version.value if choice == "version" else None
        return find_servable(
            self._models, spec.name, version, spec.version_label if choice == "version_label" else None
        )


class _Model(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, models: Models) -> None:
        self._models = models

    def GetModelStatus(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        def work() -> Any:
            if not request.HasField("model_spec"):
                raise invalid("Missing ModelSpec")
            spec = request.model_spec
            response = get_model_status_pb2.GetModelStatusResponse()
            # Labels are ignored here, as over REST.
            for status in find_statuses(
                self._models, spec.name, spec.version.value if spec.HasField("version") else None
            ):
                shown = response.model_version_status.add(version=status.version)
                shown.state = get_model_status_pb2.ModelVersionStatus.State.Value(status.state)
                shown.status.error_code = int(status.code)
                shown.status.error_message = status.message
            return response

        return _answer(context, work)

    def HandleReloadConfigRequest(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802
        def work() -> Any:
            if request.config.WhichOneof("config") != "model_config_list":
                raise invalid(
                    "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                    "Only ModelConfigList is currently supported"
                )
            self._models.reconfigure(settings_from(request.config))
            return model_management_pb2.ReloadConfigResponse()

        return _answer(context, work)


def _spec(request: Any) -> Any:
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    if not request.model_spec.name:
        raise invalid("ModelSpec has no name specified.")
    return request.model_spec


def _answer(context: grpc.ServicerContext, work: Callable[[], Any]) -> Any:
    """Return what `work` does, or end the call with the code and message of its error."""
    try:
        return work()
    except StatusError as error:
        code, message = error.code, error.message
    except Exception:
        _LOG.exception("a call failed")
        code, message = Code.INTERNAL, "Internal error; the log of the server says more"
    context.abort(_STATUS[code], shown(message))

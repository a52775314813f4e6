"""The gRPC services of a running server process: how calls are carried, bounded and ended."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from tensorflow_serving.apis import get_model_status_pb2, prediction_service_pb2_grpc

from tests.serving.grpc_requests import CODE, floats, predict_request, refusal, spec


@pytest.mark.parametrize("method", ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"])
@pytest.mark.parametrize("sent", [b"\xff" * 20, b"\x0a\x7f", b""], ids=["garbage", "cut", "empty"])
def test_bytes_that_are_no_request_are_refused(channel, service, method, sent):
    call = channel.unary_unary(f"/tensorflow.serving.PredictionService/{method}")
    code, _ = refusal(call, sent)
    assert code == (CODE.INVALID_ARGUMENT if sent == b"" else CODE.INTERNAL)
    assert list(service.Predict(predict_request(x=floats(1))).outputs["y"].float_val) == [2.5]


def test_a_method_that_is_not_there(channel):
    code, _ = refusal(channel.unary_unary("/tensorflow.serving.PredictionService/Nothing"), b"")
    assert code == CODE.UNIMPLEMENTED


def test_a_long_message_is_cut(service, models):
    """A status travels in headers, which bear little: a longer one would end the call without it."""
    long, wide = spec(name="n" * 20_000), spec(name="\u00fc" * 20_000)
    for call, request, begin in (
        (service.Predict, predict_request(model=long), "Servable not found for request: Latest(nnnn"),
        (models.GetModelStatus, get_model_status_pb2.GetModelStatusRequest(model_spec=long), "Could not find"),
        (service.Predict, predict_request(model=wide), "Servable not found for request: Latest(\u00fc\u00fc"),
    ):
        code, told = refusal(call, request)
        assert code == CODE.NOT_FOUND
        assert told.startswith(begin)
        assert 1000 < len(told.encode()) <= 1024


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
            code, told = refusal(service.Predict, predict_request(x=floats(1)))
            assert code == CODE.UNAVAILABLE
            assert "2 requests are waiting already" in told
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
        code, _ = refusal(service.Predict, predict_request(x=floats(1)))
        assert code == CODE.UNAVAILABLE

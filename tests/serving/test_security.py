"""Token and certificates, over real sockets, with certificates made by openssl."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import httpx
import numpy as np
import pytest
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfdlrm.serving.codec import TensorInfo
from tfdlrm.serving.deadline import seconds_left
from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.grpc_carriage import Interceptor
from tfdlrm.serving.note import noted
from tfdlrm.serving.security import is_loopback, read_ssl_config, read_token, rest_tls
from tfdlrm.serving.servable import Servable
from tfdlrm.spec.errors import ConfigError

PREDICT = "/v1/models/m:predict"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> SimpleNamespace:
    if shutil.which("openssl") is None:
        pytest.skip("openssl makes the certificates")
    folder = tmp_path_factory.mktemp("certificate")

    def make(name: str, *options: str) -> None:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
            + ["-keyout", f"{folder}/{name}.key", "-out", f"{folder}/{name}.pem", "-subj", "/CN=localhost"]
            + ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", *options],
            check=True,
            capture_output=True,
        )

    make("server", "-nodes")
    make("locked", "-passout", "pass:secret")
    return SimpleNamespace(
        cert=folder / "server.pem", key=folder / "server.key", locked_cert=folder / "locked.pem",
        locked_key=folder / "locked.key",
    )  # fmt: skip


def test_https_with_a_token(certificate, model_path, start_server, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    config = tmp_path / "monitoring"
    config.write_text("prometheus_config { enable: true }")
    server = start_server(
        model_path.parent,
        *("--rest_tls_cert_file", str(certificate.cert), "--rest_tls_key_file", str(certificate.key)),
        *("--auth_token_file", str(tmp_path / "token"), "--monitoring_config_file", str(config)),
    )
    url = server.url.replace("http:", "https:")
    assert server.ready_line == f"tfdlrm.serving: REST on {url}/v1/models/m\n"
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"{url}/healthz")
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{server.url}/healthz")

    with httpx.Client(base_url=url, verify=ssl.create_default_context(cafile=str(certificate.cert))) as client:

        def status(path: str, header: str | None, method: str = "GET") -> int:
            response = client.request(method, path, headers={} if header is None else {"authorization": header})
            if response.status_code == 401:
                assert response.headers["www-authenticate"] == "Bearer"
                assert response.json() == {"error": "A bearer token is needed"}
            return response.status_code

        assert status("/healthz", None) == 200
        for path in ("/v1/models/m", "/v1/models/unknown", "/monitoring/prometheus/metrics", "/nowhere"):
            for header in (None, "", TOKEN, "Bearer", f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x", f"Basic {TOKEN}"):
                assert status(path, header) == 401
        assert status("/v1/models/m", f"Bearer {TOKEN}") == 200
        assert status("/v1/models/m", f"bearer {TOKEN}") == 200
        assert status("/monitoring/prometheus/metrics", f"Bearer {TOKEN}") == 200
        assert status(PREDICT, None, "POST") == 401
        answer = client.post(PREDICT, json={"instances": [2.0]}, headers={"authorization": f"Bearer {TOKEN}"})
        assert answer.json() == {"predictions": [3.0]}
    server.terminate()
    assert TOKEN not in (tmp_path / "log0.txt").read_text()


def test_a_warning_beyond_this_machine(model_path, start_server, tmp_path):
    start_server(model_path.parent, "--host", "0.0.0.0").terminate()
    start_server(model_path.parent).terminate()
    warning = "listening on 0.0.0.0, beyond this machine, without --auth_token_file: anyone may ask\n"
    assert (tmp_path / "log0.txt").read_text().count(warning) == 1
    assert "anyone may ask" not in (tmp_path / "log1.txt").read_text()


def test_addresses():
    assert is_loopback("127.0.0.1") and is_loopback("127.8.8.8") and is_loopback("::1")
    assert not is_loopback("0.0.0.0") and not is_loopback("::") and not is_loopback("fe80::1%eth0")


@pytest.mark.parametrize(
    "text", ["", "short", "two words that are long", "line-one-is-long\nline-two-is-long", "ü" * 20]
)
def test_a_wrong_token_file(tmp_path, text):
    (tmp_path / "token").write_text(text)
    with pytest.raises(ConfigError, match="`auth_token_file` must hold one token") as error:
        read_token(tmp_path / "token")
    assert len(text) < 10 or text not in str(error.value)


def test_wrong_certificate_files(certificate, tmp_path):
    with pytest.raises(ConfigError, match="must be given together"):
        rest_tls(certificate.cert, None)
    for cert, key in (
        (certificate.cert, certificate.locked_key),
        (certificate.locked_cert, certificate.locked_key),
        (certificate.key, certificate.cert),
        (tmp_path / "nowhere", certificate.key),
    ):
        with pytest.raises(ConfigError, match="must be a PEM certificate and its key"):
            rest_tls(cert, key)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "`server_key` of `ssl_config_file` must be a PEM text"),
        (
            'server_key: "-----BEGIN A" server_cert: "server.pem"',
            "`server_cert` of `ssl_config_file` must be a PEM text",
        ),
        ('server_key: "-----BEGIN A" server_cert: "-----BEGIN B" client_verify: true', "must come with `custom_ca`"),
        ("key: 1", "must hold a SSLConfig in text form"),
    ],
)
def test_a_wrong_ssl_config(tmp_path, text, message):
    (tmp_path / "ssl").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_ssl_config(tmp_path / "ssl")
    assert message in str(error.value)


class Observed:
    def __init__(self) -> None:
        self.seen: list[tuple] = []

    def answered(self, note, status, http_status, seconds) -> None:
        self.seen.append((note.entrypoint, note.model, note.verb, note.version, note.rows, note.request_id, status))


class Doubling:
    def __init__(self) -> None:
        self.inputs = {"x": TensorInfo("float", (None,))}

    def __call__(self, arrays):
        return {"y": arrays["x"] * 2}


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Answers with the version that computed two rows, or fails as the name of the model says."""

    def __init__(self) -> None:
        self.left: list[float | None] = []
        self.servable = noted(Servable(7, {"s": Doubling()}, {}, None))

    def Predict(self, request, context):  # noqa: N802  # gRPC's name
        self.left.append(seconds_left())
        if request.model_spec.name == "missing":
            raise StatusError(Code.NOT_FOUND, "no such model")
        if request.model_spec.name == "aborted":
            context.abort(grpc.StatusCode.UNAVAILABLE, "full")
        if request.model_spec.name == "broken":
            raise ValueError("a fault")
        self.servable.signature("s")({"x": np.float32([1, 2])})
        return predict_pb2.PredictResponse()


def test_grpc_calls_are_carried_likewise(certificate, tmp_path):
    """Over a real TLS port: the token, the deadline, and what observers are told."""
    lines = [
        f"{name}: {path.read_text()!r}"
        for name, path in (("server_key", certificate.key), ("server_cert", certificate.cert))
    ]
    (tmp_path / "ssl").write_text("\n".join(lines))
    observed, service = Observed(), Service()
    server = grpc.server(ThreadPoolExecutor(2), interceptors=[Interceptor(TOKEN.encode(), [observed])])
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_secure_port("127.0.0.1:0", read_ssl_config(tmp_path / "ssl").credentials())
    server.start()
    credentials = grpc.ssl_channel_credentials(certificate.cert.read_bytes())
    try:
        with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

            def ask(model: str, header: str | None = f"Bearer {TOKEN}") -> str:
                request = predict_pb2.PredictRequest()
                request.model_spec.name = model
                metadata = [("x-request-id", "id-1")] + ([] if header is None else [("authorization", header)])
                try:
                    stub.Predict(request, timeout=20, metadata=metadata)
                except grpc.RpcError as error:
                    return error.code().name
                return "OK"

            for header in (None, TOKEN, "Bearer wrong"):
                assert ask("m", header) == "UNAUTHENTICATED"
            assert service.left == []
            assert ask("m") == "OK"
            assert 0 < service.left[0] < 25
            assert [ask("missing"), ask("aborted"), ask("broken")] == ["NOT_FOUND", "UNAVAILABLE", "UNKNOWN"]
    finally:
        server.stop(0).wait(10)
    assert observed.seen[3:] == [
        ("GRPC", "m", "predict", 7, 2, "id-1", "OK"),
        ("GRPC", "missing", "predict", None, 0, "id-1", "NOT_FOUND"),
        ("GRPC", "aborted", "predict", None, 0, "id-1", "UNAVAILABLE"),
        ("GRPC", "broken", "predict", None, 0, "id-1", "UNKNOWN"),
    ]
    assert [line[-1] for line in observed.seen[:3]] == ["UNAUTHENTICATED"] * 3

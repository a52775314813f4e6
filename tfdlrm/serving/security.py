"""Who may ask, and over what: bearer token and certificates. All of it is off unless a flag names a file."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
import ssl
from pathlib import Path
from typing import Any

from tfdlrm.serving.text_proto import read_text_proto
from tfdlrm.spec.errors import ConfigError

_TOKEN = re.compile(rb"[A-Za-z0-9._~+/-]{16,}=*")


def read_token(path: Path) -> bytes:
    """Read the bearer token, the only line of a file.

    Raises:
        ConfigError: The file cannot be read, or what it holds is no token of at least 16 characters.
    """
    try:
        token = path.read_bytes().strip()
    except OSError as error:
        raise ConfigError(
            f"`auth_token_file` must be a file that can be read: {error.strerror}. Received: {path}"
        ) from error
    if not _TOKEN.fullmatch(token):
        raise ConfigError(
            "`auth_token_file` must hold one token of at least 16 letters, digits and -._~+/ (what it holds is not "
            f"shown). Received: {path}"
        )
    return token


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address that is listened on."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def rest_tls(certificate: Path | None, key: Path | None) -> dict[str, Any]:
    """Return uvicorn's options for HTTPS; none where no files are given.

    Raises:
        ConfigError: One file without the other, or files that are no certificate and its key.
    """
    if certificate is None and key is None:
        return {}
    if certificate is None or key is None:
        raise ConfigError(
            f"`rest_tls_cert_file` and `rest_tls_key_file` must be given together. Received: {certificate} and {key}"
        )
    try:
        # Tried now, so that a wrong file is said before a model is loaded. A key with a passphrase would be asked for
        # at the terminal, which a server has not.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            "`rest_tls_cert_file` and `rest_tls_key_file` must be a PEM certificate and its key, without a "
            f"passphrase: {error.strerror or error}. Received: {certificate} and {key}"
        ) from error
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


@dataclasses.dataclass(frozen=True)
class GrpcTls:
    """An SSLConfig: PEM texts, as in TensorFlow Serving not the names of files.

    Attributes:
        server_key: The server's private key.
        server_cert: Its certificate chain.
        custom_ca: Certificates of authorities that client certificates are checked against; empty for none.
        client_verify: Whether clients must have a certificate.
    """

    server_key: bytes
    server_cert: bytes
    custom_ca: bytes = b""
    client_verify: bool = False

    def credentials(self) -> Any:
        """Return them for `grpc.Server.add_secure_port`."""
        import grpc

        return grpc.ssl_server_credentials(
            [(self.server_key, self.server_cert)], self.custom_ca or None, self.client_verify
        )


def read_ssl_config(path: Path) -> GrpcTls:
    """Read an `--ssl_config_file`: an SSLConfig in text form.

    Raises:
        ConfigError: The file cannot be read, or lacks key or certificate.
    """
    config = read_text_proto("ssl_config_file", path, "SSLConfig")
    texts = [getattr(config, name).encode() for name in ("server_key", "server_cert", "custom_ca")]
    for name, text in zip(("server_key", "server_cert"), texts, strict=False):
        if b"-----BEGIN " not in text:
            raise ConfigError(f"`{name}` of `ssl_config_file` must be a PEM text, not a file name. Received: {path}")
    if config.client_verify and not texts[2]:
        raise ConfigError(f"`client_verify` must come with `custom_ca`. Received: {path}")
    key, certificate, authority = texts
    return GrpcTls(key, certificate, authority, config.client_verify)

"""Who answers: an exported version loaded here, or a server that is asked."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt

from tfdlrm.export.saved_model import ASSETS, RECORD_FILE
from tfdlrm.export.versions import published_versions
from tfdlrm.serving.any_client import PredictError
from tfdlrm.serving.client import PredictClient
from tfdlrm.serving.errors import StatusError
from tfdlrm.spec.errors import ConfigError, DataError, MachineError
from tfdlrm.spec.raw import RawFormat

Array = npt.NDArray[Any]
_NUMBERS = ("float", "DT_FLOAT")


class Scorer(ABC):
    """Answers rows.

    Attributes:
        name: What messages call it.
        identity: What its answers depend on, ready for JSON.
        numbers: Inputs that are numbers.
        strings: Inputs that are strings.
        format: How raw rows lay in the files that it was trained on, where that is known.
    """

    name: str
    identity: Mapping[str, Any]
    numbers: tuple[str, ...]
    strings: tuple[str, ...]
    format: RawFormat | None = None

    @abstractmethod
    def score(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name, each with one row for each row of the columns.

        Args:
            columns: Inputs by name, each `[n]`: float32 with NaN where missing, objects of `str` with `""`.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of what it holds."""

    def _take_inputs(self, types: Mapping[str, str]) -> None:
        """Note inputs by type, as TensorFlow Serving names it."""
        self.numbers = tuple(name for name, kind in types.items() if kind in _NUMBERS)
        self.strings = tuple(name for name in types if name not in self.numbers)
        if not types or any(types[name] not in ("string", "DT_STRING") for name in self.strings):
            raise ConfigError(
                f"{self.name}: the signature must take raw columns, numbers and strings of one value a row. "
                f"Received: {dict(types) or 'no inputs'}."
            )


class LocalScorer(Scorer):
    """An exported version in this process.

    Args:
        path: A version's directory, or the folder of the versions, of which the newest is taken.
        signature_name: The signature to ask.

    Raises:
        DataError: there is no version, or it cannot be loaded.
        ConfigError: it has no such signature, or one that does not take raw columns.
    """

    def __init__(self, path: Path, signature_name: str) -> None:
        from tfdlrm.serving.servable import load_servable

        versions = published_versions(path)
        version = path / str(versions[-1]) if versions else path
        if not (version / "saved_model.pb").is_file():
            raise DataError(f"{path}: no exported model, nor a folder of versions of one.")
        self.name = str(version)
        stat = (version / "saved_model.pb").stat()
        self.identity = {"version": str(version.resolve()), "time": stat.st_mtime_ns, "signature": signature_name}
        try:
            self._signature = load_servable(version, 0).signature(signature_name)
        except StatusError as error:
            raise ConfigError(f"{version}: {error.message}.") from None
        self._take_inputs({name: info.dtype for name, info in self._signature.inputs.items()})
        self.format = _format(version / ASSETS / RECORD_FILE)

    def score(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Call the signature."""
        try:
            return self._signature(columns)
        except StatusError as error:
            raise DataError(f"{self.name}: {error.message}.") from None

    def close(self) -> None:
        """Leave it to the collector."""


class ServedScorer(Scorer):
    """A model of a server.

    Args:
        url: Scheme, host and port.
        model: Name of the model.
        version: The version to ask; `None` for the latest there is now.
        signature_name: The signature to ask.
        token: Bearer token, where the server wants one.
        timeout: Seconds to wait for each part of an answer.

    Raises:
        MachineError: the server cannot be reached.
        DataError: it has no such model.
        ConfigError: the model has no such signature, or one that does not take raw columns.
    """

    def __init__(
        self,
        url: str,
        model: str,
        version: int | None,
        signature_name: str,
        token: str | None = None,
        timeout: float = 60.0,
    ) -> None:
        self._signature_name = signature_name
        self.name = f"{url}, model {model}"
        try:
            client = PredictClient(url, model, version=version, token=token, timeout=timeout)
            metadata = _told(self.name, client.metadata)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise ConfigError(f"`--url` must be such as http://127.0.0.1:8501. Received: {url}: {error}.") from None
        # All rows are answered by one version, whatever is published meanwhile.
        number = int(metadata["model_spec"]["version"])
        client.close()
        self.name += f", version {number}"
        self.identity = {"url": url, "model": model, "version": number, "signature": signature_name}
        signatures = metadata["metadata"]["signature_def"]["signature_def"]
        if signature_name not in signatures:
            raise ConfigError(
                f"`--signature` must be one of {', '.join(sorted(signatures))}. Received: {signature_name}."
            )
        self._take_inputs({name: info["dtype"] for name, info in sorted(signatures[signature_name]["inputs"].items())})
        self._client = PredictClient(url, model, version=number, token=token, timeout=timeout)

    def score(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Ask the server."""
        answer = _told(self.name, lambda: self._client.predict(columns=columns, signature_name=self._signature_name))
        return answer if isinstance(answer, dict) else {"probability": answer.astype(np.float32)}

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _told(name: str, ask: Any) -> Any:
    """Return what a question brings; what a server refuses is the user's, what the way there does to it is not."""
    try:
        return ask()
    except PredictError as error:
        kind = MachineError if error.status >= 500 or error.status == 429 else DataError
        raise kind(f"{name}: {error}.") from None
    except httpx.TransportError as error:
        if isinstance(error, httpx.UnsupportedProtocol):
            raise
        raise MachineError(f"{name}: cannot be reached, or does not answer: {error}.") from None


def _format(record: Path) -> RawFormat | None:
    """Return what the record of an export says of raw rows; one of a model that no run trained says nothing."""
    if not record.is_file():
        return None
    config = json.loads(record.read_text(encoding="utf-8"))["config"]
    return None if config is None else RawFormat.model_validate(config["data"]["format"])

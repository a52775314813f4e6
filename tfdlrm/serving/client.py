"""A client of the REST contract; it talks to TensorFlow Serving and to this package's server alike."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class PredictError(RuntimeError):
    """An answer other than 200.

    Attributes:
        status: The HTTP status.
        message: What the server said.
    """

    def __init__(self, status: int, message: str) -> None:
        """Keep both parts."""
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message


class PredictClient:
    """Asks one model for predictions.

    Example:
        >>> with PredictClient("http://127.0.0.1:8501", "ctr") as client:  # doctest: +SKIP
        ...     client.predict(rows=[{"age": 31.0, "city": "Paris"}, {"age": float("nan"), "city": ""}])
        array([[0.31], [0.02]])
    """

    def __init__(self, url: str, model: str, *, version: int | None = None, timeout: float = 30.0) -> None:
        """Describe where the model is; nothing is sent yet.

        Args:
            url: Scheme, host and port of the server.
            model: Name of the model.
            version: The version to ask; None for the latest.
            timeout: Seconds to wait for a connection and for each part of an answer.
        """
        self._path = f"/v1/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        self._http = httpx.Client(base_url=url, timeout=timeout)

    def predict(
        self,
        rows: Sequence[Any] | None = None,
        columns: Mapping[str, Any] | Sequence[Any] | Array | None = None,
        *,
        signature_name: str = "serving_default",
    ) -> Array | dict[str, Array]:
        """Ask for predictions; give exactly one of rows and columns.

        Args:
            rows: One mapping from input name to value per row, or plain values where the model has one input.
            columns: A mapping from input name to the values of all rows, or the values where the model has one input.
                Values are numbers, strings, `bytes` (sent as base64), nested lists of them, or NumPy arrays.
            signature_name: Which function of the model to call.

        Returns:
            The output, one row for each row asked, or a mapping by name where the model has several outputs.

        Raises:
            PredictError: The server refused.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        if (rows is None) == (columns is None):
            raise ValueError("exactly one of `rows` and `columns` must be given. Received: both or neither")
        body = {"instances": rows} if columns is None else {"inputs": columns}
        # NaN stands for a missing number; the contract has it as a bare token, as Python writes it.
        content = json.dumps({"signature_name": signature_name, **body}, default=_to_json)
        response = self._http.post(
            f"{self._path}:predict", content=content, headers={"content-type": "application/json"}
        )
        answer = _read(response)
        if columns is not None:
            outputs = answer["outputs"]
            if isinstance(outputs, dict) and "b64" not in outputs:
                return {name: _to_array(values) for name, values in outputs.items()}
            return _to_array(outputs)
        predictions = answer["predictions"]
        if predictions and isinstance(predictions[0], dict) and "b64" not in predictions[0]:
            return {name: _to_array([row[name] for row in predictions]) for name in predictions[0]}
        return _to_array(predictions)

    def status(self) -> list[dict[str, Any]]:
        """Return the state of each version of the model, newest first.

        Raises:
            PredictError: There is no such model or version.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        versions: list[dict[str, Any]] = _read(self._http.get(self._path))["model_version_status"]
        return versions

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as a version is available.

        Args:
            timeout: Seconds after which to give up.

        Raises:
            TimeoutError: None was available in time.
        """
        end = time.monotonic() + timeout
        while True:
            try:
                if any(version["state"] == "AVAILABLE" for version in self.status()):
                    return
                state = "no version is available"
            except (httpx.HTTPError, PredictError) as error:
                state = str(error)
            if time.monotonic() > end:
                raise TimeoutError(f"{self._http.base_url}{self._path} is not ready after {timeout:g} s: {state}")
            time.sleep(0.1)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> PredictClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _to_json(value: Any) -> Any:
    """Write what the json module cannot: arrays, NumPy scalars and bytes."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, bytes):
        return {"b64": base64.b64encode(value).decode()}
    raise TypeError(
        f"`rows` and `columns` must hold numbers, strings, bytes, lists and arrays. Received: {type(value)}"
    )


def _to_array(values: Any) -> Array:
    return np.array(_unwrap(values))


def _unwrap(value: Any) -> Any:
    if isinstance(value, list):
        return [_unwrap(item) for item in value]
    return base64.b64decode(value["b64"]) if isinstance(value, dict) else value


def _read(response: httpx.Response) -> Any:
    try:
        answer = json.loads(response.content)
    except ValueError:
        answer = None
    if response.status_code != 200 or answer is None:
        message = answer.get("error") if isinstance(answer, dict) else None
        raise PredictError(response.status_code, str(message or response.text[:200] or response.reason_phrase))
    return answer

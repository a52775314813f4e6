"""A client of the REST contract; it talks to TensorFlow Serving and to this package's server alike."""

from __future__ import annotations

import base64
import itertools
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray

from tfdlrm.serving.any_client import AnyClient, Array, PredictError, ranked, refuse_both
from tfdlrm.serving.frames import frame_columns, frame_like, is_frame, rank_columns
from tfdlrm.serving.retries import Budget, Retries

_BUSY = (429, 503)
# The connection broke before an answer came; one that was kept alive may have been closed just then.
_BROKEN = (httpx.ConnectError, httpx.ConnectTimeout, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


class PredictClient(AnyClient):
    """Asks one model for predictions; one client may serve several threads.

    Example:
        >>> with PredictClient("http://127.0.0.1:8501", "ctr") as client:  # doctest: +SKIP
        ...     client.predict(rows=[{"age": 31.0, "city": "Paris"}, {"age": float("nan"), "city": ""}])
        array([[0.31], [0.02]])
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 30.0,
        retries: Retries | None = None,
        token: str | None = None,
        verify: str | bool = True,
        connections: int = 100,
    ) -> None:
        """Describe where the model is; nothing is sent yet.

        Args:
            url: Scheme, host and port of the server.
            model: Name of the model.
            version: The version to ask; None for the latest.
            label: The label of the version to ask, in place of its number.
            timeout: Seconds to wait for a connection and for each part of an answer.
            retries: When a question is asked again. Defaults to `Retries()`.
            token: Sent as `authorization: Bearer <token>`; None sends nothing.
            verify: Over TLS: True for the certificate authorities of this machine, or a file of some; False trusts
                anybody.
            connections: Most connections at a time; further threads wait for one.

        Raises:
            ValueError: Both version and label are given.
        """
        refuse_both(version, label)
        self._path = f"/v1/models/{quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        if label is not None:
            self._path += f"/labels/{quote(label, safe='')}"
        self._retries = retries or Retries()
        self._budget = Budget(self._retries)
        trusted = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        self._http = httpx.Client(
            base_url=url,
            timeout=timeout,
            headers={} if token is None else {"authorization": f"Bearer {token}"},
            verify=trusted,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

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
                Values are numbers, strings, `bytes` (sent as base64), nested lists of them, or NumPy arrays. A pandas
                or Polars frame is such a mapping too; what is null in it is sent as NaN or `""`.
            signature_name: Which function of the model to call.

        Returns:
            The output, one row for each row asked, or a mapping by name where the model has several outputs.

        Raises:
            PredictError: The server refused.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        if (rows is None) == (columns is None):
            raise ValueError("exactly one of `rows` and `columns` must be given. Received: both or neither")
        if is_frame(columns):
            columns = frame_columns(columns)
        body = {"instances": rows} if columns is None else {"inputs": columns}
        # NaN stands for a missing number; the contract has it as a bare token, as Python writes it.
        content = json.dumps({"signature_name": signature_name, **body}, default=_to_json)
        answer = self._post("predict", content)
        if columns is not None:
            outputs = answer["outputs"]
            if isinstance(outputs, dict) and "b64" not in outputs:
                return {name: _to_array(values) for name, values in outputs.items()}
            return _to_array(outputs)
        predictions = answer["predictions"]
        if predictions and isinstance(predictions[0], dict) and "b64" not in predictions[0]:
            return {name: _to_array([row[name] for row in predictions]) for name in predictions[0]}
        return _to_array(predictions)

    def predict_frame(self, frame: Any, *, signature_name: str = "serving_default") -> Any:
        """Ask for predictions of the rows of a frame.

        Args:
            frame: A pandas or Polars DataFrame whose columns are the inputs; other columns are ignored by the server.
            signature_name: Which function of the model to call.

        Returns:
            A frame of the same kind with one column for each output, of the same index where it is a pandas frame.

        Raises:
            PredictError: The server refused.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        outputs = self.predict(columns=frame, signature_name=signature_name)
        return frame_like(frame, outputs if isinstance(outputs, dict) else {"probability": outputs})

    def rank(
        self, shared: Mapping[str, Any], candidates: Mapping[str, Any], mask: Any = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Score and order the candidates of one or more questions with the signature `rank`.

        Args:
            shared: Values of the columns that hold for a whole question: one each, or `[Q]`.
            candidates: Values of the columns that differ between candidates: `[N]`, or `[Q, N]`.
            mask: Which candidates there are, bool of the form of a candidate column. Defaults to all.

        Returns:
            Scores, float32, and the candidates' positions from the best to the worst, int32; both `[N]` where the
            candidates were, else `[Q, N]`.

        Raises:
            PredictError: The server refused.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        columns, alone = rank_columns(shared, candidates, mask)
        scores, order = ranked(self.predict(columns=columns, signature_name="rank"), alone)
        return scores.astype(np.float32), order.astype(np.int32)

    def classify(
        self, examples: Sequence[Mapping[str, Any]], *, signature_name: str | None = None
    ) -> list[list[tuple[str, float]]]:
        """Ask for classes and scores of examples, each a mapping from feature name to value.

        Returns:
            For each example its classes with their scores.

        Raises:
            PredictError: The server refused.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        results = self._post("classify", _examples(examples, signature_name or "classify"))["results"]
        return [[(str(name), float(score)) for name, score in classes] for classes in results]

    def regress(
        self, examples: Sequence[Mapping[str, Any]], *, signature_name: str | None = None
    ) -> NDArray[np.float64]:
        """Ask for one number for each example, as `classify` asks.

        Raises:
            PredictError: The server refused.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        return np.array(self._post("regress", _examples(examples, signature_name or "regress"))["results"], np.float64)

    def metadata(self) -> dict[str, Any]:
        """Return the signatures of the model: inputs and outputs with types and shapes, as the server tells them.

        Raises:
            PredictError: There is no such model or version.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        answer: dict[str, Any] = _read(self._ask("GET", self._path + "/metadata"))
        return answer

    def status(self) -> list[dict[str, Any]]:
        """Return the state of each version of the model, newest first.

        Raises:
            PredictError: There is no such model or version.
            httpx.HTTPError: The server could not be reached or did not answer in time.
        """
        versions: list[dict[str, Any]] = _read(self._ask_once("GET", self._path))["model_version_status"]
        return versions

    @property
    def _where(self) -> str:
        return f"{self._http.base_url}{self._path}"

    def _missing(self) -> str | None:
        try:
            return super()._missing()
        except httpx.HTTPError as error:
            return str(error)

    def _post(self, verb: str, content: str) -> Any:
        return _read(self._ask("POST", f"{self._path}:{verb}", content))

    def _ask(self, method: str, path: str, content: str | None = None) -> httpx.Response:
        """Ask until there is an answer, the attempts are used up, or the budget is."""
        for attempt in itertools.count(1):
            response = failure = None
            try:
                response = self._ask_once(method, path, content)
            except _BROKEN as error:
                failure = error
            if response is not None and response.status_code not in _BUSY:
                self._budget.answered()
                return response
            if not self._budget.failed() or attempt == self._retries.attempts:
                if response is not None:
                    return response
                raise failure  # type: ignore[misc]
            time.sleep(max(self._retries.pause(attempt), _asked_to_wait(response, self._retries.longest_seconds)))
        raise AssertionError("unreachable")

    def _ask_once(self, method: str, path: str, content: str | None = None) -> httpx.Response:
        return self._http.request(method, path, content=content, headers={"content-type": "application/json"})

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _asked_to_wait(response: httpx.Response | None, longest: float) -> float:
    """Return the seconds that a server asked for, within bounds."""
    asked = response.headers.get("retry-after", "") if response is not None else ""
    return min(float(asked), longest) if asked.isdecimal() else 0.0


def _examples(examples: Sequence[Mapping[str, Any]], signature_name: str) -> str:
    return json.dumps({"signature_name": signature_name, "examples": list(examples)}, default=_to_json)


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

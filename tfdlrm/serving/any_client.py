"""What the clients of both protocols share: one model, waiting for it, and their end."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

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


class AnyClient(ABC):
    """A client of one model, over whatever protocol."""

    @abstractmethod
    def close(self) -> None:
        """Close the connections."""

    @abstractmethod
    def status(self) -> list[dict[str, Any]]:
        """Return the state of each version of the model."""

    @property
    @abstractmethod
    def _where(self) -> str:
        """What is waited for, as a message names it."""

    def wait_until_ready(self, timeout: float = 60.0) -> None:
        """Return as soon as a version is available.

        Args:
            timeout: Seconds after which to give up.

        Raises:
            TimeoutError: None was available in time.
        """
        end = time.monotonic() + timeout
        while (state := self._missing()) is not None:
            if time.monotonic() > end:
                raise TimeoutError(f"{self._where} is not ready after {timeout:g} s: {state}")
            time.sleep(0.1)

    def _missing(self) -> str | None:
        """Return why no version answers, None where one does."""
        try:
            states = [version["state"] for version in self.status()]
        except PredictError as error:
            return str(error)
        return None if "AVAILABLE" in states else "no version is available"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def refuse_both(version: int | None, label: str | None) -> None:
    """Raise where a version is named twice.

    Raises:
        ValueError: Both version and label are given.
    """
    if version is not None and label is not None:
        raise ValueError(f"`version` or `label` must be given, not both. Received: {version} and {label!r}")


def ranked(outputs: Array | Mapping[str, Array], alone: bool) -> tuple[Array, Array]:
    """Return scores and order of an answer of the signature `rank`.

    Args:
        outputs: The answer.
        alone: Whether one question was asked without a dimension of its own.

    Raises:
        PredictError: The signature has other outputs.
    """
    if not isinstance(outputs, Mapping):
        raise PredictError(200, "the signature `rank` must have the outputs `scores` and `order`")
    scores, order = outputs["scores"], outputs["order"]
    return (scores[0], order[0]) if alone else (scores, order)

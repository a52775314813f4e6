"""Prometheus metrics under the names, labels and buckets of TensorFlow Serving."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest

from tfdlrm.serving.text_proto import read_text_proto
from tfdlrm.spec.errors import ConfigError

if TYPE_CHECKING:
    from tfdlrm.serving.note import Note

DEFAULT_PATH = "/monitoring/prometheus/metrics"

_APIS = {"predict": "Predict", "classify": "Classify", "regress": "Regress", "multiinference": "MultiInference"}
_OTHER = "(unknown)"


def _exponential(scale: float, growth: float, count: int) -> list[float]:
    """Return the upper bounds of TensorFlow's exponential buckets; the one without bound comes by itself."""
    return [scale * growth**i for i in range(count)]


_MICROSECONDS = _exponential(10, 1.8, 33)
_ROWS = _exponential(1, 2, 14)


def read_monitoring_config(path: Path) -> str | None:
    """Read a `--monitoring_config_file`: a MonitoringConfig in text form.

    Returns:
        The path metrics are served at, or None where they are off.

    Raises:
        ConfigError: The file cannot be read, or the path is none.
    """
    config = read_text_proto("monitoring_config_file", path, "MonitoringConfig").prometheus_config
    where = str(config.path) or DEFAULT_PATH
    if not where.startswith("/") or where.lower().startswith("/v1/") or where == "/healthz":
        raise ConfigError(f"`prometheus_config.path` must begin with / and be free. Received: {where}")
    return where if config.enable else None


class Metrics:
    """What is counted, from requests and from batches; safe to call from any thread."""

    def __init__(self, known: Callable[[str], bool] = lambda model: True, thread_pool_name: str = "") -> None:
        """Begin at 0.

        Args:
            known: Whether a model of that name is served. Others are counted together: names are made up by clients,
                and every one of them would take memory.
            thread_pool_name: Label of the time that requests wait for a batch.
        """
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._known = known
        self._registry = CollectorRegistry()
        self._request_count = Counter(
            ":tensorflow:serving:request_count",
            "The total number of requests.",
            ["model_name", "status"],
            registry=self._registry,
        )
        self._request_latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Wall time (in microseconds) of answered requests.",
            ["model_name", "API", "entrypoint"],
            buckets=_MICROSECONDS,
            registry=self._registry,
        )
        self._runtime_latency = Histogram(
            ":tensorflow:serving:runtime_latency",
            "Wall time (in microseconds) in the signature.",
            ["model_name", "API", "runtime"],
            buckets=_MICROSECONDS,
            registry=self._registry,
        )
        session = ":tensorflow:serving:batching_session:"
        self._queuing_latency = Histogram(
            f"{session}queuing_latency",
            "Wall time (in microseconds) spent waiting for a batch to be computed.",
            ["thread_pool_name"],
            buckets=_exponential(100, 1.2, 52),
            registry=self._registry,
        ).labels(thread_pool_name)
        self._padding_size = Histogram(
            f"{session}padding_size",
            "Rows of padding of a batch.",
            ["execution_batch_size"],
            buckets=_ROWS,
            registry=self._registry,
        )
        self._input_batch_size = Histogram(
            f"{session}input_batch_size", "Rows of a request.", buckets=_ROWS, registry=self._registry
        )
        self._processed_batch_size = Histogram(
            f"{session}processed_batch_size", "Rows of a batch.", buckets=_ROWS, registry=self._registry
        )

    def answered(self, note: Note, status: str, http_status: int, seconds: float) -> None:
        """Count a request; as in TensorFlow Serving those that ask a model to compute, with times of good ones."""
        api = _APIS.get(note.verb)
        if api is None:
            return
        model = note.model if self._known(note.model) else _OTHER
        self._request_count.labels(model, status).inc()
        if status == "OK":
            self._request_latency.labels(model, api, note.entrypoint).observe(seconds * 1e6)
        if note.runtime_seconds is not None:
            self._runtime_latency.labels(model, api, "TF2").observe(note.runtime_seconds * 1e6)

    def enqueued(self, rows: int) -> None:
        """Count a request that waits for a batch."""
        self._input_batch_size.observe(rows)

    def batched(self, rows: int, padding: int, waited_micros: list[float]) -> None:
        """Count a batch."""
        self._processed_batch_size.observe(rows)
        self._padding_size.labels(rows).observe(padding)
        for micros in waited_micros:
            self._queuing_latency.observe(micros)

    def page(self) -> bytes:
        """Return everything in Prometheus' text format."""
        # The library ends every counter's name in `_total`, which TensorFlow Serving's has not.
        return re.sub(
            rb"(?m)^(# \w+ )?(:tensorflow:serving:request_count)_total", rb"\1\2", generate_latest(self._registry)
        )

"""Dynamic batching: rows of requests that wait at the same time are computed in one call.

The queue, its bounds and its errors are those of TensorFlow Serving's batching session. Two things are kinder here:
requests whose rows have other shapes never meet in a batch, and when a batch fails, its requests are computed one by
one, so that each fails by its own fault alone.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from tfdlrm.serving.deadline import exceeded, seconds_left
from tfdlrm.serving.errors import Code, StatusError, invalid
from tfdlrm.serving.servable import Servable, Signature
from tfdlrm.serving.tensors import Array
from tfdlrm.serving.text_proto import read_text_proto
from tfdlrm.spec.errors import ConfigError

_Arrays = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class BatchingParameters:
    """How requests are gathered; names and defaults are TensorFlow Serving's.

    Attributes:
        max_batch_size: Rows of one batch, and of one request.
        batch_timeout_micros: Microseconds a batch that is not full waits for more, once a thread is free.
        max_enqueued_batches: Batches that may wait for a thread; beyond them a request is refused as UNAVAILABLE.
        num_batch_threads: Batches computed at a time, over all models.
        allowed_batch_sizes: Sizes that batches are padded to, ascending; empty for any size.
        enable_large_batch_splitting: Whether a request may be spread over several batches.
        max_execution_batch_size: With splitting, rows of one batch; `max_batch_size` then bounds the request alone.
        thread_pool_name: Name of the threads, a label of the metrics.
    """

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = dataclasses.field(default_factory=lambda: os.cpu_count() or 1)
    allowed_batch_sizes: tuple[int, ...] = ()
    enable_large_batch_splitting: bool = False
    max_execution_batch_size: int | None = None
    thread_pool_name: str = "model_server_batch_threads"

    def __post_init__(self) -> None:
        """Check what the fields must be to each other.

        Raises:
            ConfigError: They do not fit.
        """
        for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads", "max_execution_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"`{name}` must be at least 1. Received: {value}")
        if self.batch_timeout_micros < 0:
            raise ConfigError(f"`batch_timeout_micros` must be at least 0. Received: {self.batch_timeout_micros}")
        if self.execution_size > self.max_batch_size:
            raise ConfigError(
                f"`max_execution_batch_size` must be at most max_batch_size, {self.max_batch_size}. "
                f"Received: {self.execution_size}"
            )
        sizes = self.allowed_batch_sizes
        if not sizes:
            return
        if any(after <= before for before, after in zip((0, *sizes), sizes, strict=False)):
            raise ConfigError(f"`allowed_batch_sizes` must be positive and ascending. Received: {list(sizes)}")
        if sizes[-1] != self.execution_size:
            which = "max_execution_batch_size" if self.enable_large_batch_splitting else "max_batch_size"
            raise ConfigError(
                f"`allowed_batch_sizes` must end with {which}, {self.execution_size}. Received: {list(sizes)}"
            )

    @property
    def execution_size(self) -> int:
        """Rows of one batch at most."""
        if self.enable_large_batch_splitting and self.max_execution_batch_size is not None:
            return self.max_execution_batch_size
        return self.max_batch_size


def read_parameters(path: Path) -> BatchingParameters:
    """Read a `--batching_parameters_file`: a BatchingParameters message in text form.

    Raises:
        ConfigError: The file cannot be read, or its values do not fit.
    """
    message = read_text_proto("batching_parameters_file", path, "BatchingParameters")
    if message.pad_variable_length_inputs:
        raise ConfigError("`pad_variable_length_inputs` must be false: rows of other lengths are never merged here")
    given = {field.name: getattr(message, field.name) for field, _ in message.ListFields()}
    given.pop("pad_variable_length_inputs", None)
    sizes = tuple(given.pop("allowed_batch_sizes", ()))
    return BatchingParameters(allowed_batch_sizes=sizes, **{name: value.value for name, value in given.items()})


class Observer(Protocol):
    """What a batcher reports, for metrics."""

    def batched(self, rows: int, padding: int, waited_micros: list[float]) -> None:
        """Take note of a batch that is about to be computed: rows with padding, and what each request waited."""

    def enqueued(self, rows: int) -> None:
        """Take note of a request that was accepted."""


@dataclasses.dataclass
class _Task:
    """A request, or a part of one, on its way to a batch."""

    arrays: _Arrays
    rows: int
    kind: tuple[Any, ...]
    answer: Future[_Arrays]
    since: float


@dataclasses.dataclass
class _Batch:
    tasks: list[_Task]
    rows: int
    since: float


class _Queue:
    """The batches of one signature, the last of them open for more rows. The batcher's lock guards it."""

    def __init__(self, signature: Signature) -> None:
        self.signature = signature
        self.batches: deque[_Batch] = deque()


class Batcher:
    """The threads that compute batches, shared by the queues of all signatures of all models."""

    def __init__(self, parameters: BatchingParameters, observer: Observer | None = None) -> None:
        """Start the threads; they end with the process or at `close`."""
        self.parameters = parameters
        self._observer = observer
        self._changed = threading.Condition()
        self._active: deque[_Queue] = deque()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{parameters.thread_pool_name}-{number}", daemon=True)
            for number in range(parameters.num_batch_threads)
        ]
        for thread in self._threads:
            thread.start()

    def batched(self, servable: Servable) -> Servable:
        """Return a servable whose signatures gather their calls, each in a queue of its own."""
        signatures = {name: BatchedSignature(plain, self) for name, plain in servable.signatures.items()}
        return dataclasses.replace(servable, signatures=signatures)

    def close(self) -> None:
        """Compute what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def submit(self, queue: _Queue, arrays: _Arrays, rows: int) -> list[Future[_Arrays]]:
        """Put a request into a queue.

        Args:
            queue: The queue of its signature.
            arrays: Its inputs, all with `rows` rows.
            rows: Their first dimension.

        Returns:
            The answers to come: one, or one for each part where the request is spread over several batches.

        Raises:
            StatusError: INVALID_ARGUMENT for more rows than a request may have, UNAVAILABLE where the queue is full.
        """
        limit, splitting = self.parameters.execution_size, self.parameters.enable_large_batch_splitting
        if rows > self.parameters.max_batch_size:
            what = "maximum input batch size" if splitting else "maximum batch size"
            raise invalid(f"Task size {rows} is larger than {what} {self.parameters.max_batch_size}")
        kind = tuple((name, array.shape[1:], array.dtype) for name, array in arrays.items())
        now = time.monotonic()
        with self._changed:
            batches = queue.batches
            open_batch = batches[-1] if batches and batches[-1].tasks[0].kind == kind else None
            room = limit - open_batch.rows if open_batch is not None else 0
            joins = open_batch is not None and (rows <= room or (splitting and room > 0))
            first = min(rows, room) if joins else 0
            sizes = [first] if joins else []
            sizes += [min(limit, rows - start) for start in range(first, rows, limit)]
            sizes = sizes or [0]  # a request without rows has an answer too
            new = len(sizes) - joins
            if len(batches) + new > self.parameters.max_enqueued_batches:
                raise StatusError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; currently "
                    f"{len(batches)} batches enqueued and max_enqueued_batches is "
                    f"{self.parameters.max_enqueued_batches}",
                )
            batches.extend(_Batch([], 0, now) for _ in range(new))
            answers: list[Future[_Arrays]] = []
            start = 0
            for batch, size in zip(list(batches)[-len(sizes) :], sizes, strict=True):
                part = arrays if size == rows else {name: a[start : start + size] for name, a in arrays.items()}
                answers.append(Future())
                batch.tasks.append(_Task(part, size, kind, answers[-1], now))
                batch.rows += size
                start += size
            if queue not in self._active:
                self._active.append(queue)
            if new or batches[-1].rows >= limit:
                self._changed.notify(max(1, new))
        if self._observer is not None:
            self._observer.enqueued(rows)
        return answers

    def _work(self) -> None:
        while (found := self._next()) is not None:
            self._compute(*found)

    def _next(self) -> tuple[Signature, _Batch] | None:
        """Wait for a batch that is due: full, followed by another, or as old as the timeout; None at the end."""
        patience = self.parameters.batch_timeout_micros / 1e6
        with self._changed:
            while True:
                now = time.monotonic()
                wait: float | None = None
                for _ in range(len(self._active)):
                    queue = self._active.popleft()
                    batch = queue.batches[0]
                    left = batch.since + patience - now
                    full = len(queue.batches) > 1 or batch.rows >= self.parameters.execution_size
                    if not full and left > 0 and not self._closed:
                        self._active.append(queue)
                        wait = left if wait is None else min(wait, left)
                        continue
                    queue.batches.popleft()
                    if queue.batches:
                        self._active.append(queue)
                    if self._active:
                        self._changed.notify()  # another thread now watches what is left
                    return queue.signature, batch
                if self._closed:
                    return None
                self._changed.wait(wait)

    def _compute(self, signature: Signature, batch: _Batch) -> None:
        started = time.monotonic()
        # A request whose time has passed has taken its answer back.
        tasks = [task for task in batch.tasks if task.answer.set_running_or_notify_cancel()]
        if not tasks:
            return
        rows = sum(task.rows for task in tasks)
        padding = self._padding(rows)
        if self._observer is not None:
            self._observer.batched(rows + padding, padding, [(started - task.since) * 1e6 for task in tasks])
        try:
            parts = _split(signature(_merge(tasks, padding)), tasks, padding)
        except Exception as error:
            if len(tasks) == 1:
                tasks[0].answer.set_exception(error)
            else:
                self._compute_singly(signature, tasks)
            return
        for task, part in zip(tasks, parts, strict=True):
            task.answer.set_result(part)

    def _compute_singly(self, signature: Signature, tasks: list[_Task]) -> None:
        for task in tasks:
            padding = self._padding(task.rows)
            try:
                (part,) = _split(signature(_merge([task], padding)), [task], padding)
            except Exception as error:
                task.answer.set_exception(error)
            else:
                task.answer.set_result(part)

    def _padding(self, rows: int) -> int:
        sizes = self.parameters.allowed_batch_sizes
        return sizes[bisect.bisect_left(sizes, rows)] - rows if sizes and rows else 0


def batched(servable: Servable, parameters: BatchingParameters) -> Servable:
    """Return a servable whose signatures gather their calls into batches, on threads of its own.

    Args:
        servable: A loaded version.
        parameters: How to gather.
    """
    return Batcher(parameters).batched(servable)


class BatchedSignature(Signature):
    """A signature as it was, but for its calls: they wait in a queue and are computed together with others."""

    def __init__(self, plain: Signature, batcher: Batcher) -> None:
        """Take over everything the plain signature knows of itself."""
        self.__dict__.update(vars(plain))
        self._batcher = batcher
        self._queue = _Queue(plain)

    def __call__(self, arrays: Mapping[str, Array]) -> _Arrays:
        """Compute the rows of one request together with those of others.

        Args:
            arrays: As in `Signature`.

        Returns:
            The outputs of these rows.

        Raises:
            StatusError: As in `Signature`; INVALID_ARGUMENT where first dimensions differ or the request is too large
                for a batch, UNAVAILABLE where the queue is full, FAILED_PRECONDITION where an output has no row for
                each row of the inputs, DEADLINE_EXCEEDED where the request's time has passed in the queue.
        """
        inputs = {name: arrays[name] for name in self.inputs}
        self.check_shapes(inputs)
        answers = self._batcher.submit(self._queue, inputs, _count_rows(inputs))
        try:
            parts = [answer.result(seconds_left()) for answer in answers]
        except (FutureTimeoutError, CancelledError):
            for answer in answers:
                answer.cancel()
            raise exceeded() from None
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _count_rows(arrays: Mapping[str, Array]) -> int:
    sizes = set()
    for array in arrays.values():
        if array.ndim == 0:
            raise invalid("Batching Run() input tensors must have at least one dimension")
        sizes.add(len(array))
    if not sizes:
        raise invalid("Batching Run() must have at least one input tensor")
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def _merge(tasks: list[_Task], padding: int) -> _Arrays:
    """Join the rows of all tasks; the first row of the last task, known to be sound, is repeated as padding."""
    if len(tasks) == 1 and not padding:
        return tasks[0].arrays
    merged = {}
    for name, last in tasks[-1].arrays.items():
        parts = [task.arrays[name] for task in tasks]
        if padding:
            filler = next(part for part in reversed(parts) if len(part))[:1]
            parts += [filler] * padding
        merged[name] = np.concatenate(parts) if len(parts) > 1 else last
    return merged


def _split(outputs: _Arrays, tasks: list[_Task], padding: int) -> list[_Arrays]:
    rows = sum(task.rows for task in tasks)
    for array in outputs.values():
        if array.ndim == 0:
            raise StatusError(Code.FAILED_PRECONDITION, "Batched output tensor has 0 dimensions")
        if len(array) != rows + padding:
            raise StatusError(
                Code.FAILED_PRECONDITION,
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the input "
                "tensors",
            )
    ends = np.cumsum([task.rows for task in tasks]).tolist()
    starts = [0, *ends[:-1]]
    return [{name: a[start:end] for name, a in outputs.items()} for start, end in zip(starts, ends, strict=True)]

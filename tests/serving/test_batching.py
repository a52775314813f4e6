"""Dynamic batching: the parameters file, the rules of the queue, and that each request gets its own answer."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfdlrm.serving.batching import Batcher, BatchingParameters, batched, read_parameters
from tfdlrm.serving.codec import TensorInfo
from tfdlrm.serving.deadline import deadline
from tfdlrm.serving.errors import Code, StatusError
from tfdlrm.serving.servable import Servable, load_servable
from tfdlrm.spec.errors import ConfigError


class Recorder:
    """A signature that doubles `x` and keeps the batches it was called with; `gate` holds it up."""

    def __init__(self) -> None:
        self.inputs = {"x": TensorInfo("float", None)}
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[np.ndarray] = []

    def check_shapes(self, arrays) -> None:
        """Any shape will do."""

    def __call__(self, arrays):
        self.entered.release()
        assert self.gate.wait(30)
        self.batches.append(arrays["x"])
        if np.any(arrays["x"] < 0):
            raise StatusError(Code.OUT_OF_RANGE, "below 0")
        return {"y": arrays["x"] * 2}


@pytest.fixture
def start() -> Iterator[Callable[..., SimpleNamespace]]:
    """Return a function that starts a batcher over a recorder."""
    batchers = []
    recorders = []

    def build(**parameters) -> SimpleNamespace:
        parameters = {"num_batch_threads": 1, **parameters}
        recorders.append(Recorder())
        batchers.append(Batcher(BatchingParameters(**parameters)))
        servable = batchers[-1].batched(Servable(1, {"s": recorders[-1]}, {}, None))
        return SimpleNamespace(call=servable.signature("s"), recorder=recorders[-1])

    yield build
    for recorder in recorders:
        recorder.gate.set()
    for batcher in batchers:
        batcher.close()


def column(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array(values, np.float32)}


class Held:
    """One thread of the batcher held up by a first request, so that later ones gather in the queue."""

    def __init__(self, setup: SimpleNamespace) -> None:
        self.setup = setup
        self.pool = ThreadPoolExecutor(32)

    def __enter__(self) -> Held:
        self.setup.recorder.gate.clear()
        while self.setup.recorder.entered.acquire(blocking=False):
            pass  # of earlier requests: the one that counts is the next
        self.first = self.pool.submit(self.setup.call, column(0.0))
        assert self.setup.recorder.entered.acquire(timeout=10)
        return self

    def send(self, arrays):
        """Send a request and wait until it is in the queue, or refused."""
        queue = self.setup.call._queue
        before = sum(len(batch.tasks) for batch in list(queue.batches))
        future = self.pool.submit(self.setup.call, arrays)
        end = time.monotonic() + 10
        while sum(len(batch.tasks) for batch in list(queue.batches)) == before and not future.done():
            assert time.monotonic() < end
            time.sleep(0.001)
        return future

    def __exit__(self, *error) -> None:
        self.setup.recorder.gate.set()
        self.first.result(10)
        self.pool.shutdown()


def sizes(setup: SimpleNamespace) -> list[int]:
    """Return the rows of each batch after the one that held the thread up."""
    return [len(batch) for batch in setup.recorder.batches[1:]]


def test_waiting_requests_are_computed_together_and_get_their_own_rows(start):
    setup = start(max_batch_size=10)
    with Held(setup) as held:
        answers = [held.send(column(*range(n, 2 * n))) for n in (1, 2, 3)]
    for n, answer in zip((1, 2, 3), answers, strict=True):
        assert answer.result()["y"].tolist() == [2 * value for value in range(n, 2 * n)]
    assert sizes(setup) == [6]


def test_a_full_batch_is_followed_by_another(start):
    setup = start(max_batch_size=4)
    with Held(setup) as held:
        for n in (3, 2, 2, 1):
            held.send(column(*[1.0] * n))
    assert sizes(setup) == [3, 4, 1]


def test_other_shapes_never_meet(start):
    setup = start(max_batch_size=10)
    with Held(setup) as held:
        flat = held.send(column(1.0, 2.0))
        wide = held.send({"x": np.ones((2, 3), np.float32)})
        flat_again = held.send(column(3.0))
    assert flat.result()["y"].tolist() == [2.0, 4.0]
    assert wide.result()["y"].shape == (2, 3)
    assert flat_again.result()["y"].tolist() == [6.0]
    assert sizes(setup) == [2, 2, 1]


def test_padding_repeats_a_row_and_is_cut_off(start):
    setup = start(max_batch_size=8, allowed_batch_sizes=(2, 4, 8))
    with Held(setup) as held:
        first, second = held.send(column(5.0, 6.0)), held.send(column(7.0, 8.0, 9.0))
    assert [answer.result()["y"].tolist() for answer in (first, second)] == [[10.0, 12.0], [14.0, 16.0, 18.0]]
    assert setup.recorder.batches[1].tolist() == [5, 6, 7, 8, 9, 7, 7, 7]
    assert setup.recorder.batches[0].tolist() == [0, 0]


def test_a_request_without_rows(start):
    setup = start(max_batch_size=8, allowed_batch_sizes=(4, 8))
    assert setup.call(column())["y"].shape == (0,)
    with Held(setup) as held:
        some, none = held.send(column(1.0)), held.send(column())
    assert some.result()["y"].tolist() == [2.0]
    assert none.result()["y"].shape == (0,)


def test_too_many_rows(start):
    setup = start(max_batch_size=4)
    with pytest.raises(StatusError, match="Task size 5 is larger than maximum batch size 4") as error:
        setup.call(column(*range(5)))
    assert error.value.code is Code.INVALID_ARGUMENT


def test_a_full_queue(start):
    setup = start(max_batch_size=2, max_enqueued_batches=2)
    with Held(setup) as held:
        taken = [held.send(column(float(n))) for n in range(4)]
        with pytest.raises(StatusError, match="is full; currently 2 batches enqueued") as error:
            setup.call(column(9.0))
    assert error.value.code is Code.UNAVAILABLE
    assert [answer.result()["y"].tolist() for answer in taken] == [[0.0], [2.0], [4.0], [6.0]]
    assert setup.call(column(9.0))["y"].tolist() == [18.0]


def test_splitting(start):
    setup = start(
        max_batch_size=10, enable_large_batch_splitting=True, max_execution_batch_size=4, allowed_batch_sizes=(2, 4)
    )
    with Held(setup) as held:
        small, large = held.send(column(1.0)), held.send(column(*range(10)))
    assert small.result()["y"].tolist() == [2.0]
    assert large.result()["y"].tolist() == [2.0 * n for n in range(10)]
    assert sizes(setup) == [4, 4, 4]  # 1 + 3, 4, 3 and a row of padding
    with pytest.raises(StatusError, match="larger than maximum input batch size 10"):
        setup.call(column(*range(11)))


def test_splitting_into_more_batches_than_may_wait(start):
    setup = start(
        max_batch_size=10, enable_large_batch_splitting=True, max_execution_batch_size=2, max_enqueued_batches=3
    )
    with Held(setup), pytest.raises(StatusError, match="is full"):
        setup.call(column(*range(10)))
    assert sizes(setup) == []


def test_a_fault_stays_with_its_request(start):
    setup = start(max_batch_size=10)
    with Held(setup) as held:
        good, bad, other = held.send(column(1.0)), held.send(column(-1.0)), held.send(column(3.0))
    assert good.result()["y"].tolist() == [2.0]
    assert other.result()["y"].tolist() == [6.0]
    with pytest.raises(StatusError, match="below 0"):
        bad.result()


def test_idle_threads_take_a_request_at_once_or_after_the_timeout(start):
    def seconds(**parameters) -> float:
        setup = start(max_batch_size=4, **parameters)
        setup.call(column(1.0))
        began = time.monotonic()
        setup.call(column(1.0))
        return time.monotonic() - began

    assert seconds(batch_timeout_micros=0) < 0.2
    assert 0.3 <= seconds(batch_timeout_micros=300_000) < 2


def test_a_full_batch_does_not_wait_for_the_timeout(start):
    setup = start(max_batch_size=2, batch_timeout_micros=60_000_000)
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(setup.call, column(n)) for n in (1.0, 2.0)]
        assert [answer.result(10)["y"].tolist() for answer in answers] == [[2.0], [4.0]]


def test_every_waiting_queue_is_watched():
    """Two signatures and two threads: while one computes, the other lets the second queue's batch out in time."""
    recorders = {"a": Recorder(), "b": Recorder()}
    batcher = Batcher(BatchingParameters(num_batch_threads=2, batch_timeout_micros=100_000))
    servable = batcher.batched(Servable(1, recorders, {}, None))
    recorders["a"].gate.clear()
    with ThreadPoolExecutor(2) as pool:
        a = pool.submit(servable.signature("a"), column(1.0))
        time.sleep(0.05)
        assert pool.submit(servable.signature("b"), column(2.0)).result(10)["y"].tolist() == [4.0]
        assert not a.done()
        recorders["a"].gate.set()
        assert a.result(10)["y"].tolist() == [2.0]
    batcher.close()


def test_a_request_whose_time_has_passed_is_not_computed(start):
    setup = start(max_batch_size=10)
    with Held(setup):
        with pytest.raises(StatusError) as error, deadline(time.monotonic() + 0.05):
            setup.call(column(42.0))
        assert error.value.code is Code.DEADLINE_EXCEEDED
    setup.call(column(1.0))
    assert all(42.0 not in batch for batch in setup.recorder.batches)


def test_what_cannot_be_batched(model_path):
    servable = batched(load_servable(model_path, 1), BatchingParameters(num_batch_threads=1))

    def refusal(name: str, arrays) -> tuple[Code, str]:
        with pytest.raises(StatusError) as error:
            servable.signature(name)(arrays)
        return error.value.code, error.value.message

    ages = {"age": np.float32([1, 2]), "price": np.float32([1])}
    words = {"city": np.array([b"a"], object), "country": np.array([b"b"], object)}
    rest = {"clicks": np.int64([1]), "member": np.array([True]), "level": np.int32([1])}
    assert refusal("mixed", {**ages, **words, **rest}) == (
        Code.INVALID_ARGUMENT,
        "Batching Run() input tensors must have equal 0th-dimension size",
    )
    assert refusal("anything", {"x": np.float32(1)})[1] == (
        "Batching Run() input tensors must have at least one dimension"
    )
    assert refusal("scalar", {"x": np.float32([1])}) == (
        Code.FAILED_PRECONDITION,
        "Batched output tensor has 0 dimensions",
    )
    assert refusal("none_left", {"x": np.float32([1])})[1].startswith("Batched output tensor's 0th dimension does not")
    assert "must have the shape [?,2]" in refusal("matrix", {"x": np.float32([[1, 2, 3]])})[1]


@settings(deadline=None, max_examples=20)
@given(st.lists(st.lists(st.floats(-100, 100, width=32), max_size=6), min_size=1, max_size=12))
def test_every_request_gets_the_answer_it_would_get_alone(requests):
    recorder = Recorder()
    recorder.inputs = {"x": TensorInfo("float", None)}
    servable = Servable(1, {"s": recorder}, {}, None)
    parameters = BatchingParameters(
        num_batch_threads=2,
        max_batch_size=6,
        max_enqueued_batches=100,
        enable_large_batch_splitting=True,
        max_execution_batch_size=4,
        allowed_batch_sizes=(1, 3, 4),
    )
    batcher = Batcher(parameters)
    call = batcher.batched(servable).signature("s")
    with ThreadPoolExecutor(12) as pool:
        answers = [pool.submit(call, column(*values)) for values in requests]
        for values, answer in zip(requests, answers, strict=True):
            if any(value < 0 for value in values):
                with pytest.raises(StatusError, match="below 0"):
                    answer.result(10)
            else:
                assert answer.result(10)["y"].tolist() == [2 * value for value in values]
    batcher.close()


def test_the_parameters_file(tmp_path):
    file = tmp_path / "batching.txt"
    file.write_text(
        "max_batch_size { value: 128 }\nbatch_timeout_micros { value: 0 }\nmax_enqueued_batches { value: 1000000 }\n"
        "num_batch_threads { value: 8 }\nallowed_batch_sizes: 1\nallowed_batch_sizes: 64\nallowed_batch_sizes: 128\n"
        'thread_pool_name { value: "mine" }\n'
    )
    assert read_parameters(file) == BatchingParameters(128, 0, 1_000_000, 8, (1, 64, 128), thread_pool_name="mine")
    file.write_text("")
    assert dataclasses.asdict(read_parameters(file)) == dataclasses.asdict(BatchingParameters())
    file.write_text("enable_large_batch_splitting { value: true } max_execution_batch_size { value: 32 }")
    assert read_parameters(file).execution_size == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_batch_size { value: 0 }", "`max_batch_size` must be at least 1. Received: 0"),
        ("num_batch_threads { value: -1 }", "`num_batch_threads` must be at least 1. Received: -1"),
        ("max_enqueued_batches { value: 0 }", "`max_enqueued_batches` must be at least 1"),
        ("batch_timeout_micros { value: -5 }", "`batch_timeout_micros` must be at least 0"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [4, 2, 8]", "must be positive and ascending"),
        ("max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]", "must end with max_batch_size, 8"),
        ("pad_variable_length_inputs: true", "`pad_variable_length_inputs` must be false"),
        ("max_batch_size: 8", "must hold a BatchingParameters in text form"),
        ("batch_size { value: 8 }", "batch_size"),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 8 enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 4 }",
            "must end with max_execution_batch_size, 4",
        ),
        (
            "max_batch_size { value: 8 } enable_large_batch_splitting { value: true } "
            "max_execution_batch_size { value: 9 }",
            "`max_execution_batch_size` must be at most max_batch_size, 8",
        ),
    ],
)
def test_a_wrong_parameters_file(tmp_path, text, message):
    file = tmp_path / "batching.txt"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        read_parameters(file)
    assert message in str(error.value)


def test_a_server_that_batches(model_path, start_server, tmp_path):
    """Many clients of a real server: each gets what the signature answers to it alone."""
    file = tmp_path / "batching.txt"
    file.write_text("max_batch_size { value: 16 } allowed_batch_sizes: [4, 16] batch_timeout_micros { value: 2000 }")
    server = start_server(model_path.parent, "--enable_batching", "--batching_parameters_file", str(file))

    def ask(client_number: int) -> list[tuple[int, object]]:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            values = [[float(client_number * 100 + i)] for i in range(10)]
            return [
                (value[0], client.post("/v1/models/m:predict", json={"instances": value}).json()) for value in values
            ]

    with ThreadPoolExecutor(16) as pool:
        for answers in pool.map(ask, range(16)):
            assert all(found == {"predictions": [value * 0.5 + 2.0]} for value, found in answers)
    too_many = server.client.post("/v1/models/m:predict", json={"instances": [0.0] * 17})
    assert (too_many.status_code, too_many.json()["error"]) == (
        400,
        "Task size 17 is larger than maximum batch size 16",
    )

"""Results in order, few at a time, and errors in the order of what they are about."""

from __future__ import annotations

import threading
import time

import pytest

from tfdlrm.data.parallel import ordered_map, usable_cores


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order(threads):
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    assert list(ordered_map(work, range(40), threads)) == [item * item for item in range(40)]
    assert list(ordered_map(work, [], threads)) == []


def test_few_items_are_taken_ahead():
    taken = []

    def items():
        for item in range(100):
            taken.append(item)
            yield item

    results = ordered_map(lambda item: item, items(), 2)
    for place in range(5):
        assert next(results) == place
    assert len(taken) <= 5 + 2 + 1
    results.close()


def test_work_runs_side_by_side():
    both = threading.Barrier(2, timeout=20)
    assert list(ordered_map(lambda item: both.wait() >= 0, range(4), 2)) == [True] * 4


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("fails_at", [0, 4, 9])
def test_an_error_comes_after_the_results_before_it(threads, fails_at):
    def work(item: int) -> int:
        if item == fails_at:
            raise ValueError(item)
        return item

    seen = []
    with pytest.raises(ValueError, match=str(fails_at)):
        for result in ordered_map(work, range(10), threads):
            seen.append(result)
    assert seen == list(range(fails_at))


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_the_source_comes_after_all_items_before_it(threads):
    def items():
        yield from range(5)
        raise OSError("cut short")

    seen = []
    with pytest.raises(OSError, match="cut short"):
        for result in ordered_map(lambda item: item, items(), threads):
            seen.append(result)
    assert seen == list(range(5))


def test_cores_are_counted():
    assert usable_cores() >= 1

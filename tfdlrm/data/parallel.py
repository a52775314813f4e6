"""Work on several threads whose results come in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ordered_map(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """Yield `work(item)` for each item, in the order of the items.

    Polars, NumPy and TensorFlow let go of Python's lock while they work, so threads are enough. Items are taken by the
    calling thread, few ahead of what is yielded, so memory does not depend on their number. Errors, too, come in the
    order of the items: one of an item is raised before one of taking a later item.

    Args:
        work: Called on other threads.
        items: What to work on.
        threads: How many items are worked on at a time; with 1 the calling thread does it all.
    """
    if threads == 1:
        yield from map(work, items)
        return
    source, failure = iter(items), None
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            while True:
                try:
                    waiting.append(pool.submit(work, next(source)))
                except StopIteration:
                    break
                except BaseException as error:  # told after what came before it
                    failure = error
                    break
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
    if failure is not None:
        raise failure

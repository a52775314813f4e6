"""Arrays are mapped by many threads at a time, each of which may be put aside at any allocation."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tfdlrm.data.disk_arrays import DiskArrays
from tfdlrm.data.mapped_arrays import map_array


@pytest.fixture
def restless_collector():
    """Collect garbage all the time, letting other threads in whenever it is done."""
    before = gc.get_threshold()

    def let_others_in(phase: str, info: dict[str, int]) -> None:
        time.sleep(1e-5)

    gc.callbacks.append(let_others_in)
    gc.set_threshold(11)
    yield
    gc.set_threshold(*before)
    gc.callbacks.remove(let_others_in)


def test_threads_do_not_disturb_each_other(tmp_path, restless_collector):
    path = tmp_path / "array.npy"
    np.save(path, np.arange(7))
    with ThreadPoolExecutor(4) as pool:
        sums = list(pool.map(lambda _: int(map_array(path).sum()), range(400)))
    assert sums == [21] * 400


def test_an_array_is_mapped_and_may_not_be_written(tmp_path):
    np.save(tmp_path / "array.npy", np.arange(6, dtype=np.uint32))
    array = map_array(tmp_path / "array.npy")
    assert isinstance(array, np.memmap) and array.dtype == np.uint32 and array.tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 9


def test_threads_that_make_arrays_do_not_disturb_each_other_either(tmp_path, restless_collector):
    arrays = DiskArrays(tmp_path, "new")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: arrays(str(number), 7, np.int64).shape, range(400)))
    assert made == [(7,)] * 400

import numpy as np
import pytest

from tfdlrm.data.generators.recency import RecencyList


def replayed(values, depths, fresh):
    values, fresh, taken = list(values), list(fresh), []
    for depth in depths:
        value = fresh.pop(0) if depth == 0 and fresh else values.pop(-depth if depth else 0)
        values.append(value)
        taken.append(value)
    return values, taken


@pytest.mark.parametrize("count", [1, 2, 1023, 1024, 1025, 2048, 9000])
def test_equals_a_plain_list(count):
    random = np.random.default_rng(count)
    used = RecencyList(range(count))
    expected = list(range(count))
    for part in range(3):
        fresh = list(range(10**6 * (part + 1), 10**6 * (part + 1) + 300))
        # Mostly shallow, often anywhere, sometimes new: more new ones than are fresh.
        depths = np.minimum(random.geometric(0.01, 6000), count)
        anywhere = random.random(6000) < 0.3
        depths[anywhere] = random.integers(1, count + 1, anywhere.sum())
        depths[random.random(6000) < 0.1] = 0
        expected, taken = replayed(expected, depths.tolist(), fresh)
        assert used.replay(depths.tolist(), fresh) == taken
        assert used.values() == expected
        assert len(used) == count + 300 * (part + 1)


def test_starts_empty():
    used = RecencyList()
    assert len(used) == 0
    assert used.replay([0, 1, 0, 2, 0], [7, 8]) == [7, 7, 8, 7, 8]

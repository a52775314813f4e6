import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfdlrm.data.generators.stack_profile import StackProfiler, stack_distances
from tfdlrm.spec.errors import DataError

EXAMPLE = [1, 2, 3, 4, 5, 3, 4, 1, 1, 6, 3]


def searched(ids):
    """The paper's own way: search the list of all ids seen so far."""
    seen, distances = [], []
    for value in ids:
        if value in seen:
            place = seen.index(value)
            distances.append(len(seen) - place)
            seen.append(seen.pop(place))
        else:
            distances.append(0)
            seen.append(value)
    return distances


def test_example_of_the_paper():
    profiler = StackProfiler()
    assert profiler.add(EXAMPLE).tolist() == [0, 0, 0, 0, 0, 3, 3, 5, 1, 0, 4]
    distances = profiler.distribution()
    assert distances.ids.tolist() == [1, 2, 3, 4, 5, 6]
    assert distances.values.tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_allclose(distances.cumulative, np.array([6, 7, 9, 10, 11]) / 11, rtol=1e-15)
    assert [round(x, 2) for x in distances.cumulative] == [0.55, 0.64, 0.82, 0.91, 1.0]


@given(st.lists(st.lists(st.integers(0, 9), max_size=30), max_size=4))
def test_pieces_of_a_trace_equal_a_search_of_the_whole(pieces):
    profiler = StackProfiler()
    distances = [d for piece in pieces for d in profiler.add(np.array(piece, np.int32)).tolist()]
    ids = [value for piece in pieces for value in piece]
    assert distances == searched(ids)
    assert profiler.first_seen.tolist() == list(dict.fromkeys(ids))


@pytest.mark.parametrize("count", [255, 256, 257, 1500])
def test_long_traces_equal_a_search(count):
    random = np.random.default_rng(count)
    ids = (random.pareto(0.5, count) * 3).astype(np.int64) + 2**40
    assert stack_distances(ids).tolist() == searched(ids.tolist())


def test_padding_adds_new_ids():
    profiler = StackProfiler()
    profiler.add(EXAMPLE)
    # 11 distances of at most 5: three more zeros.
    padded = profiler.distribution(padding=True).cumulative
    np.testing.assert_allclose(padded, np.array([9, 10, 12, 13, 14]) / 14, rtol=1e-15)


def test_padding_leaves_a_trace_without_repeats():
    profiler = StackProfiler()
    profiler.add([5, 3, 8])
    assert profiler.distribution(padding=True).cumulative.tolist() == [1.0]


def test_ids_can_be_hidden():
    profiler = StackProfiler()
    profiler.add([70, 20, 70, 50])
    assert profiler.distribution(keep_ids=False).ids.tolist() == [0, 1, 2]
    assert profiler.distribution().ids.tolist() == [70, 20, 50]


def test_nothing_has_no_distribution():
    with pytest.raises(DataError, match="`ids` must be different whole numbers of at least 0, one or more"):
        StackProfiler().distribution()

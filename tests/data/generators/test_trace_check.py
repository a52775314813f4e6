import numpy as np
import pytest
from scipy import stats

from tfdlrm.data.generators.stack_distances import StackDistances
from tfdlrm.data.generators.trace import Draws, TraceGenerator
from tfdlrm.data.generators.trace_check import TraceCheck

TRACE = StackDistances(np.arange(4), np.array([0, 1, 3]), np.array([0.25, 0.75, 1.0]))


def draws_of(ids, new, warm_up=0):
    return Draws(np.array(ids), np.array(new, bool), warm_up)


def test_counts_by_hand():
    check = TraceCheck(TRACE)
    # Distances 0 0 0 1 3 0, the last four after warm-up.
    check.add(draws_of([0, 1, 2, 2, 0, 3], [1, 1, 1, 0, 0, 1], warm_up=2))
    # 1 was used least recently, so it counts as new; 3, said to be new, was not: it counts by its distance of 2.
    check.add(draws_of([1, 3], [1, 1]))
    result = check.result()
    assert (result.draws, result.in_use, result.warm_up) == (8, 4, 2)
    assert result.values.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(result.expected, [0.25, 0.75, 0.75, 1.0])
    np.testing.assert_allclose(result.measured, np.array([3, 4, 5, 6]) / 6)
    assert result.ks == pytest.approx(0.25)


def test_an_early_front_is_not_new():
    check = TraceCheck(TRACE)
    check.add(draws_of([0, 1, 0], [1, 1, 1]))  # two ids were never used
    assert check.result().measured.tolist() == pytest.approx([2 / 3, 2 / 3, 1, 1])


def test_a_warm_up_that_never_ends_is_not_judged():
    check = TraceCheck(TRACE)
    assert check.result().ks is None
    check.add(draws_of([0, 0], [1, 0], warm_up=2))
    assert check.result().ks is None


def test_another_trace_is_told_apart():
    near = StackDistances(np.arange(4), np.array([0, 1, 3]), np.array([0.25, 0.73, 1.0]))
    check = TraceCheck(TRACE)
    check.add(TraceGenerator(near, seed=1).draw(50_000))
    result = check.result()
    assert result.ks == pytest.approx(0.02, abs=0.005)
    assert result.ks > result.limit


def test_few_draws_may_be_off_by_chance():
    check = TraceCheck(TRACE)
    check.add(TraceGenerator(TRACE, seed=1).draw(1003))
    result = check.result()
    assert stats.kstwobign.sf(result.limit * 1000**0.5) == pytest.approx(1 / 20_000, rel=0.1)
    assert result.ks < result.limit

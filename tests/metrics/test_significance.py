"""Paired tests against SciPy and by hand; Holm's correction by hand and by its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tfdlrm.metrics.significance import holm, paired_test


def test_by_hand():
    # Differences 1, 2, 3: mean 2, standard error 1 / sqrt(3), t = 2 sqrt(3) on 2 degrees of freedom.
    test = paired_test([3, 5, 7], [2, 3, 4])
    assert (test.n, test.difference) == (3, 2.0)
    assert test.t == pytest.approx(2 * math.sqrt(3))
    # Student's distribution function of 2 degrees of freedom is 1/2 + t / (2 sqrt(2 + t^2)).
    assert test.p == pytest.approx(1 - 2 * math.sqrt(3) / math.sqrt(2 + 12))


def test_against_one_sample_test_of_the_differences():
    rng = np.random.default_rng(3)
    first, second = rng.normal(size=9), rng.normal(0.4, size=9)
    test, other = paired_test(first, second), stats.ttest_1samp(first - second, 0)
    assert (test.t, test.p) == pytest.approx((other.statistic, other.pvalue))
    assert paired_test(second, first).p == pytest.approx(test.p)


@pytest.mark.parametrize("values", [([0.8], [0.7]), ([0.5, 0.7], [0.25, 0.45]), ([0.5, 0.6], [0.5, 0.6])])
def test_no_p_where_nothing_varies(values):
    first, second = map(np.array, values)
    # 0.7 - 0.45 is not 0.25 in binary: what is equal but for rounding is not significant.
    test = paired_test(first, second)
    assert (test.t, test.p) == (None, None)
    assert test.difference == pytest.approx((first - second).mean())


@pytest.mark.parametrize("values", [([], []), ([1.0], [1.0, 2.0])])
def test_what_does_not_pair_up_is_refused(values):
    with pytest.raises(ValueError, match="must pair up"):
        paired_test(*values)


def test_holm_by_hand():
    # In order 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04, and never falling.
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.7, "b": None}) == {"a": 0.7, "b": None}
    assert holm({"a": 0.7, "b": 0.8}) == {"a": 1.0, "b": 1.0}


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=8), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_stepping_down_rejects(p_values, alpha):
    corrected = holm({str(i): p for i, p in enumerate(p_values)})
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - rank) * p_values[i] > alpha:
            break
        rejected.add(p_values[i])
    assert {p_values[int(i)] for i, p in corrected.items() if p <= alpha} == rejected

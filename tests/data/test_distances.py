"""Distances between histograms against formulas written out and against what chance gives."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import entropy

from tfdlrm.data.distances import distance, number_distance


def test_jensen_shannon_is_the_root_of_the_mean_divergence_from_the_middle():
    first, second = np.array([10, 0, 30, 60]), np.array([5, 5, 0, 10])
    p, q = first / first.sum(), second / second.sum()
    middle = (p + q) / 2
    expected = math.sqrt((entropy(p, middle, base=2) + entropy(q, middle, base=2)) / 2)
    assert distance(first, second).jensen_shannon == pytest.approx(expected)


def test_psi_by_hand():
    found = distance(np.array([99, 0, 199]), np.array([199, 0, 99]))
    p = 99.5 / 299
    assert found.psi == pytest.approx(2 * (1 - 2 * p) * math.log((1 - p) / p))  # the empty bin is none


def test_ends_of_the_range():
    assert distance(np.array([1, 2, 0]), np.array([10, 20, 0])).jensen_shannon == 0
    assert distance(np.array([5, 0]), np.array([0, 5])).jensen_shannon == pytest.approx(1)
    assert distance(np.zeros(3), np.ones(3)) is None
    one = distance(np.array([7]), np.array([3]))
    assert (one.jensen_shannon, one.psi, one.by_chance) == (0, 0, 0)


def test_chance_is_what_two_samples_of_one_distribution_show():
    rng = np.random.default_rng(3)
    shares = rng.dirichlet(np.full(40, 5.0))
    found = [distance(rng.multinomial(4000, shares), rng.multinomial(9000, shares)) for _ in range(100)]
    squares = np.mean([f.jensen_shannon**2 for f in found])
    assert squares == pytest.approx(found[0].by_chance ** 2, rel=0.1)
    beyond = [f.beyond_chance**2 for f in found]
    assert max(beyond) < squares and beyond.count(0.0) > 25
    assert beyond == pytest.approx([max(f.jensen_shannon**2 - f.by_chance**2, 0) for f in found])


def test_numbers_are_compared_in_groups_of_equal_share():
    rng = np.random.default_rng(4)
    bins = np.arange(1001) - 0.5
    first, second, moved = (np.histogram(rng.normal(m, 80, 20_000), bins)[0] for m in (500, 500, 520))
    same, far = number_distance(first, second), number_distance(first, moved)
    assert same.jensen_shannon < 1.5 * same.by_chance
    assert far.jensen_shannon > 5 * far.by_chance
    # 20 groups: two normal distributions a quarter of a deviation apart have a PSI of 1/16.
    assert far.psi == pytest.approx(1 / 16, rel=0.15)
    assert number_distance(np.zeros(5), np.ones(5)) is None

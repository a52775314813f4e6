"""Which rows are left out: the same however they are read, in the share asked for, and never a click."""

from __future__ import annotations

import numpy as np
import pytest

from tfdlrm.data.dropped_rows import kept_rows

ROWS = np.arange(20_000)
LABELS = (ROWS % 5 == 0).astype(np.float32)


@pytest.mark.parametrize("share", [0.1, 0.875])
def test_share_of_negatives(share):
    kept = kept_rows(ROWS, LABELS, share, seed=3)
    assert kept[LABELS == 1].all()
    deviation = np.sqrt(share * (1 - share) / 16_000)
    assert abs(kept[LABELS == 0].mean() - (1 - share)) < 4 * deviation


def test_a_row_alone_is_as_it_is_among_others():
    whole = kept_rows(ROWS, LABELS, 0.5, seed=1)
    for start, stop, step in ((0, 7, 1), (5, 6, 1), (4093, 9001, 13), (19_999, 20_000, 1)):
        part = slice(start, stop, step)
        np.testing.assert_array_equal(kept_rows(ROWS[part], LABELS[part], 0.5, seed=1), whole[part])


def test_seeds_differ_and_nothing_is_nothing():
    assert (kept_rows(ROWS, LABELS, 0.5, seed=1) != kept_rows(ROWS, LABELS, 0.5, seed=2)).any()
    assert kept_rows(ROWS, LABELS, 0.0, seed=1).all()
    assert kept_rows(ROWS[:0], LABELS[:0], 0.5, seed=1).shape == (0,)

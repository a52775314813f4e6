"""The mixed-dimension rule against numbers worked out by hand."""

from __future__ import annotations

import pytest

from tfdlrm.spec.criteo import KAGGLE
from tfdlrm.spec.errors import SpecError
from tfdlrm.spec.mixed_dimensions import MixedDimensions, mixed_dimensions

KAGGLE_03 = {
    **{"C4": 1, "C5": 4, "C6": 8, "C8": 4, "C9": 16, "C14": 8, "C17": 8, "C20": 16, "C25": 8, "C23": 8},
    **{"C3": 1, "C12": 1, "C16": 1, "C21": 1},
}


def by_name(rows):
    return {f"C{number}": count for number, count in enumerate(rows, 1)}


def test_powers_of_ten_by_hand():
    # alpha 0.5: 64 / sqrt(10^k) = 64, 20.24, 6.4, 2.02, 0.64
    rows = {"a": 1, "b": 10, "c": 100, "d": 1000, "e": 10_000}
    plain = mixed_dimensions(rows, 64, 0.5, round_to_powers=False)
    assert plain == {"a": 64, "b": 20, "c": 6, "d": 2, "e": 1}
    # log2 of 20 is 4.32, of 6 is 2.58
    assert mixed_dimensions(rows, 64, 0.5) == {"a": 64, "b": 16, "c": 8, "d": 2, "e": 1}


def test_kaggle_by_hand():
    """16 (3 / n)^0.3: 305 gives 3.998, 24 gives 8.574, 10 gives 11.15, 105 gives 5.506 (6, so 8), 4 gives 14.68."""
    found = mixed_dimensions(by_name(KAGGLE), 16, 0.3)
    assert {name: found[name] for name in KAGGLE_03} == KAGGLE_03
    whole = mixed_dimensions(by_name(KAGGLE), 16, 0.3, round_to_powers=False)
    by_hand = {"C5": 4, "C6": 9, "C8": 3, "C9": 16, "C17": 11, "C20": 15, "C25": 6}
    assert {name: whole[name] for name in by_hand} == by_hand
    # The four large tables, 31 of 33.8 million rows, have one column: 1/16 of their bytes.
    assert sum(n * found[name] for name, n in by_name(KAGGLE).items()) == pytest.approx(33_762_577, rel=0.01)


def test_no_temperature_keeps_every_width():
    assert set(mixed_dimensions(by_name(KAGGLE), 16, 0).values()) == {16}


def test_threshold_keeps_tables_up_to_it():
    rows = {"a": 10, "b": 1000, "c": 1001}
    assert mixed_dimensions(rows, 16, 0.5, threshold=1000) == {"a": 16, "b": 16, "c": 2}


def test_no_width_above_the_full_one():
    # 12 is nearest to 16 by logarithm, but 12 is all there is
    assert mixed_dimensions({"a": 10, "b": 11}, 12, 0.1) == {"a": 12, "b": 12}


def test_order_of_tables_does_not_matter():
    rows = by_name(KAGGLE)
    turned = mixed_dimensions(dict(reversed(rows.items())), 16, 0.3)
    assert turned == mixed_dimensions(rows, 16, 0.3)
    assert mixed_dimensions({}, 16, 0.3) == {}


@pytest.mark.parametrize("alpha", [-0.1, float("nan"), float("inf")])
def test_bad_alpha(alpha):
    with pytest.raises(SpecError, match="`alpha` must be at least 0. Received: "):
        mixed_dimensions({"a": 1}, 16, alpha)
    with pytest.raises(SpecError, match="`alpha`: .*Received: "):
        MixedDimensions(alpha=alpha)

"""Differences of trees of settings, each under its own name."""

from __future__ import annotations

import pytest

from tfdlrm.data.settings_diff import SettingChange, changed_settings, differences
from tfdlrm.spec.recipes import named_recipe


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 2]}}, []),
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}}, [("b.c[1]", 2, 3)]),
        ({"a": [1]}, {"a": [1, 2]}, [("a", [1], [1, 2])]),
        ({"a": [{"n": "x"}, {"n": "y"}]}, {"a": [{"n": "x"}, {"n": "z"}]}, [("a[1].n", "y", "z")]),
        ({"a": None}, {"a": 0}, [("a", None, 0)]),
        ({}, {"a": {"b": 1}}, [("a", None, {"b": 1})]),
        ({"a": 1, "b": 2, "c": 3}, {"c": 4, "a": 0, "b": 2}, [("a", 1, 0), ("c", 3, 4)]),
    ],
)
def test_differences_are_named_as_deep_inside_as_they_are(old, new, found):
    assert list(differences(old, new)) == [SettingChange(*change) for change in found]


def test_a_list_may_be_one_setting():
    assert list(differences([1, 2], [1, 3], "x", into_lists=False)) == [SettingChange("x", [1, 2], [1, 3])]


def test_recipes_differ_by_columns():
    changes = {change.key: (change.a, change.b) for change in changed_settings(named_recipe("fb"), named_recipe("tfm"))}
    assert changes["coding.modulus"] == (None, 5_000_000)
    assert changes["split.last_day"] == ("test_first", "test")
    assert "split.fractions" not in changes

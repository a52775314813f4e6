from __future__ import annotations

import pytest

from tfdlrm.export.input_names import input_names
from tfdlrm.spec.errors import SpecError


def test_plain_names_are_their_own():
    names = ["C1", "I13", "user_id", "a", "name", "args"]
    assert input_names(names) == {name: name for name in names}


@pytest.mark.parametrize("odd", ["user id", "c1", "class", "1st", "_x", "größe", "a-b", "x "])
def test_one_odd_name_has_all_traced_under_others(odd):
    names = input_names(["C1", odd, "b"])
    assert sorted(names.values()) == ["column_00000", "column_00001", "column_00002"]
    assert [column for column, _ in sorted(names.items(), key=lambda item: item[1])] == sorted(["C1", odd, "b"])


@pytest.mark.parametrize("name", ["", "self"])
def test_names_that_cannot_be_inputs(name):
    with pytest.raises(SpecError, match=f"Received: '{name}'"):
        input_names(["a", name])


@pytest.mark.parametrize("pair", [("a b", "a_b"), ("a.b", "a-b"), ("1", "arg_1")])
def test_names_that_cannot_be_told_apart(pair):
    with pytest.raises(SpecError, match="raw columns must differ in letters or digits"):
        input_names(pair)

"""What a recipe says of the files that were read is true of what was read."""

from __future__ import annotations

import os

import pytest

from tfdlrm.data.recipe import identity_of, refuse_changed_side_tables
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.raw import RawFormat, SideTable


@pytest.fixture
def items(tmp_path):
    path = tmp_path / "items.csv"
    path.write_text("i1,red\ni2,blue\n")
    return path


def known(items):
    table = SideTable(file=str(items), key="item", delimiter=",", columns=("item", "colour"))
    data = DataConfig(format=RawFormat(columns=("label", "item"), side_tables=(table,)))
    return identity_of(data, [])["side_tables"]


def replaced(items):
    stat = items.stat()
    items.write_text("i1,red\ni2,pink\n")  # of the same length
    os.utime(items, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))


@pytest.mark.parametrize("change", [replaced, lambda items: items.write_text("i1,red\n")])
def test_a_side_table_that_changed_is_refused(items, change):
    before = known(items)
    refuse_changed_side_tables(before)
    change(items)
    with pytest.raises(DataError) as caught:
        refuse_changed_side_tables(before)
    assert str(caught.value) == f"{items}: changed while it was read."


def test_a_side_table_that_is_gone_is_refused(items):
    before = known(items)
    items.unlink()
    with pytest.raises(DataError, match="items.csv: cannot be read: No such file"):
        refuse_changed_side_tables(before)

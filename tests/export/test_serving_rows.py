from __future__ import annotations

import numpy as np
import pytest

from tfdlrm.export import serving_rows as module
from tfdlrm.export.serving_rows import serving_rows
from tfdlrm.spec.errors import SpecError


def tables_of(model):
    return {table.name: model.embedding.get_table(table.name) for table in model.spec.tables}


def test_rows_are_the_mean_inside_the_block_only(world, new_model, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK_ROWS", 3)  # several chunks in tables of a handful of rows
    model = new_model(world.model.spec)
    before = tables_of(model)
    with serving_rows(model, {"hashed": [1, 1, 12], "tag": ()}):
        inside = tables_of(model)
    np.testing.assert_allclose(
        inside["hashed"][[1, 12]], np.tile(np.delete(before["hashed"], [1, 12], 0).mean(0), [2, 1]), atol=1e-6
    )
    np.testing.assert_array_equal(np.delete(inside["hashed"], [1, 12], 0), np.delete(before["hashed"], [1, 12], 0))
    for name in set(before) - {"hashed"}:
        np.testing.assert_array_equal(inside[name], before[name])
    for name, rows in tables_of(model).items():
        np.testing.assert_array_equal(rows, before[name])


def test_rows_come_back_after_an_error(world, new_model):
    model = new_model(world.model.spec)
    before = tables_of(model)
    with pytest.raises(KeyboardInterrupt), serving_rows(model, {"ad": [1], "site": [0, 2]}):
        raise KeyboardInterrupt
    for name, rows in tables_of(model).items():
        np.testing.assert_array_equal(rows, before[name])


def test_a_table_nobody_touched_stays(world, new_model):
    model = new_model(world.model.spec)
    before = model.embedding.get_table("tag")
    with serving_rows(model, {"tag": range(len(before))}):
        np.testing.assert_array_equal(model.embedding.get_table("tag"), before)


@pytest.mark.parametrize(
    ("untouched", "message"),
    [
        ({"tag": [1], "ad": [99, -1]}, r"`untouched` rows of table `ad` must lie in \[0, \d+\)\. Received: \[-1, 99\]"),
        ({"tagg": [1]}, "must be a table of the spec. Received: `tagg`. Did you mean `tag`"),
    ],
)
def test_wrong_rows_are_refused_before_anything_changes(world, new_model, untouched, message):
    model = new_model(world.model.spec)
    before = tables_of(model)
    with pytest.raises(SpecError, match=message), serving_rows(model, untouched):
        pass
    for name, rows in tables_of(model).items():
        np.testing.assert_array_equal(rows, before[name])

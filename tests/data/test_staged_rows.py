"""Rows put aside come back as they were."""

from __future__ import annotations

import shutil

import polars as pl
import pytest

from tfdlrm.data.staged_rows import StagedRows, refuse_full_disk
from tfdlrm.spec.errors import DataError


def test_frames_come_back_and_outlive_their_files(tmp_path):
    staged = StagedRows(tmp_path / "staged")
    frames = [
        pl.DataFrame({"x": pl.Series([1.5, None], dtype=pl.Float32), "c": ["", "é"], "k": pl.Series([1, 2], dtype=t)})
        for t in (pl.UInt32, pl.UInt64)
    ]
    sizes = [staged.write(index, frame) for index, frame in enumerate(frames)]
    assert sizes == [path.stat().st_size for path in sorted((tmp_path / "staged").iterdir())]
    staged.sync()
    back = [staged.read(index) for index in (1, 0)]
    assert staged.read(0, ["c", "absent"]).equals(frames[0].select("c"))
    for index in (0, 1, 1):
        staged.forget(index)
    assert not staged.has(0) and list((tmp_path / "staged").iterdir()) == []
    assert back[0].equals(frames[1]) and back[1].equals(frames[0])
    assert [frame.schema for frame in back] == [frame.schema for frame in reversed(frames)]


def test_a_full_disk_is_refused_before_it_is_full(tmp_path):
    folder = tmp_path / "data.tmp-1"
    folder.mkdir()
    free = shutil.disk_usage(folder).free
    refuse_full_disk(folder, free / 2)
    with pytest.raises(DataError) as caught:
        refuse_full_disk(folder, 1e18)
    assert str(caught.value).startswith(f"{tmp_path}: must have some 1000000000.0 GB of free disk. Received: ")

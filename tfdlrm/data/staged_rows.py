"""Parsed rows put aside between two passes, so that raw text is parsed once."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl

from tfdlrm.spec.errors import DataError


class StagedRows:
    """Frames in a folder, one uncompressed Arrow file each: a few times quicker to read back than text to parse.

    Args:
        directory: Made here, and removed by `remove`.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir()

    def write(self, index: int, frame: pl.DataFrame) -> int:
        """Put a frame aside under a number; return how many bytes it takes. May be called from several threads."""
        path = self._path(index)
        frame.write_ipc(path, compression="uncompressed")
        return path.stat().st_size

    def read(self, index: int) -> pl.DataFrame:
        """Return a frame that was put aside, for the last time: its file is removed."""
        path = self._path(index)
        frame = pl.read_ipc(path)  # mapped into memory, which outlives the file's name
        path.unlink()
        return frame

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._directory)

    def _path(self, index: int) -> Path:
        return self._directory / f"{index:08d}.arrow"


def refuse_full_disk(directory: Path, needed: float) -> None:
    """Raise `DataError` if a file system has fewer free bytes than needed."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DataError(
            f"{directory.parent}: must have some {needed / 1e9:.1f} GB of free disk. Received: {free / 1e9:.1f} GB."
        )

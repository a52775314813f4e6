"""Parsed rows put aside between two passes, so that raw text is parsed once."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

import polars as pl

from tfdlrm.data.files import fsync_file, temporary_name
from tfdlrm.spec.errors import DiskFullError


class StagedRows:
    """Frames in a folder, one uncompressed Arrow file each: a few times quicker to read back than text to parse.

    Args:
        directory: Made if it is missing; what it holds is taken over.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(exist_ok=True)
        # Waiting for the disk takes no processor: rows are made durable while others are parsed.
        self._syncing = ThreadPoolExecutor(1)
        self._waiting: list[Future[None]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._syncing.shutdown(cancel_futures=True)

    def write(self, index: int, frame: pl.DataFrame) -> int:
        """Put a frame aside under a number; return how many bytes it takes. May be called from several threads."""
        path = self._path(index)
        temporary = temporary_name(path)
        frame.write_ipc(temporary, compression="uncompressed")
        size = temporary.stat().st_size
        os.replace(temporary, path)
        with self._lock:
            self._waiting.append(self._syncing.submit(_sync, path))
        return size

    def sync(self) -> None:
        """Wait until all that was written would outlive a loss of power."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
        for future in waiting:
            future.result()

    def read(self, index: int, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return a frame that was put aside, or those of its columns that are named; mapped into memory."""
        frame = pl.read_ipc(self._path(index))
        return frame if columns is None else frame.select([name for name in columns if name in frame.columns])

    def has(self, index: int) -> bool:
        """Tell whether a frame is still there."""
        return self._path(index).exists()

    def forget(self, index: int) -> None:
        """Remove a frame; what was read of it before stays good."""
        self._path(index).unlink(missing_ok=True)

    def _path(self, index: int) -> Path:
        return self._directory / f"{index:08d}.arrow"


def refuse_full_disk(directory: Path, needed: float) -> None:
    """Raise `DiskFullError` if a file system has fewer free bytes than needed."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise DiskFullError(
            f"{directory.parent}: must have some {_size(needed)} of free disk. Received: {_size(free)}. "
            "What is done so far is kept: free some space and start again to go on from there."
        )


def _size(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _sync(path: Path) -> None:
    with suppress(FileNotFoundError):  # forgotten meanwhile
        fsync_file(path)

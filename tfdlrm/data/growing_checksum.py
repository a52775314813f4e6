"""The checksum of a file that is still being written."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_SYNC_EVERY = 32 << 20
_PIECE = 1 << 20


class GrowingChecksum:
    """SHA-256 of a file, computed on a thread of its own while the file grows.

    That thread also has the disk take what is there from time to time, so that little is left to wait for at the end.

    Args:
        path: The file; it must exist.
    """

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115, closed by `finish`
        self._sha256 = hashlib.sha256()
        self._unsynced = 0
        self._thread = ThreadPoolExecutor(1)
        self._reads: list[Future[None]] = []

    def go_on(self) -> None:
        """Read on to the present end of the file, some time soon."""
        self._reads.append(self._thread.submit(self._read))

    def finish(self) -> str:
        """Return the checksum of the whole file as 64 hexadecimal digits; nothing may be written after this.

        Raises:
            OSError: the file could not be read, or the disk could not take it.
        """
        self.go_on()
        try:
            for read in self._reads:
                read.result()
        finally:
            self._thread.shutdown()
            self._file.close()
        return self._sha256.hexdigest()

    def _read(self) -> None:
        while piece := self._file.read(_PIECE):
            self._sha256.update(piece)
            self._unsynced += len(piece)
        if self._unsynced >= _SYNC_EVERY:
            getattr(os, "fdatasync", os.fsync)(self._file.fileno())  # macOS has no fdatasync
            self._unsynced = 0

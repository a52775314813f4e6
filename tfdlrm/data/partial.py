"""The folder in which prepared data grow: locked, known by what goes into it, and kept for the next try."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tfdlrm.data.files import TEMPORARY_SUFFIX, fsync_directory, write_atomic
from tfdlrm.spec.errors import ConfigError, DataError, UserError

SUFFIX = ".partial"
_IDENTITY = "identity.json"
_OUT = "out"
_FULL = ("no space left on device", "disk quota exceeded", "file too large")


class PartialData:
    """What a run of `prepare` has done so far; the next one, of the same settings and files, goes on from there.

    Attributes:
        folder: Everything that is wanted until the end.
        out: What becomes the finished folder.
        resumed: Whether an earlier run left something to go on from.
    """

    def __init__(self, folder: Path, resumed: bool) -> None:
        self.folder = folder
        self.out = folder / _OUT
        self.resumed = resumed

    def subfolder(self, name: str) -> Path:
        """Return a folder inside, made if it is missing."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def read(self, name: str) -> Any:
        """Return what `write` wrote under a name, `None` if nothing."""
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, name: str, content: Any) -> None:
        """Write something, ready for JSON, whole or not at all."""
        write_atomic(self.folder / name, json.dumps(content))


def partial_folder(directory: Path) -> Path:
    """Return where the data of a directory grow."""
    return directory.with_name(directory.name + SUFFIX)


@contextmanager
def partial_data(directory: Path, identity: Mapping[str, Any]) -> Iterator[PartialData]:
    """Yield the growing data of a directory; they get its name when the block ends well.

    What `directory` held is gone then. A block that is broken off - killed, interrupted, out of disk - leaves
    `<directory>.partial` behind, from which the next one of the same identity goes on; one of another identity
    starts anew. An error of the data or of the settings (`UserError`) removes it.

    Args:
        directory: Final name; its parents are made.
        identity: All that the result depends on, ready for JSON.

    Yields:
        The folder to work in.

    Raises:
        ConfigError: another process is preparing the same directory.
        DataError: the disk is full.
    """
    folder = partial_folder(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f".{folder.name}.lock"), directory):
            partial = _open(folder, json.loads(json.dumps(identity)))
            try:
                yield partial
            except UserError:
                shutil.rmtree(folder, ignore_errors=True)
                raise
            _take_the_name(partial.out, directory)
            shutil.rmtree(folder)
            fsync_directory(directory.parent)
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DataError(
            f"{directory.parent}: the disk is full. What is done so far is kept in {folder}: "
            "free some space and start again to go on from there."
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, of Python, Polars or TensorFlow, says that there is no room to write."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(text in str(error).lower() for text in _FULL)


def _open(folder: Path, identity: Mapping[str, Any]) -> PartialData:
    known = folder / _IDENTITY
    resumed = known.exists() and json.loads(known.read_text(encoding="utf-8")) == identity
    if not resumed:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / _OUT).mkdir()
        write_atomic(known, json.dumps(identity))
    for leftover in folder.rglob(f".*{TEMPORARY_SUFFIX}"):  # of files that a killed process was writing
        leftover.unlink()
    return PartialData(folder, resumed)


def _take_the_name(out: Path, directory: Path) -> None:
    fsync_directory(out)
    if directory.exists():
        old = out.with_name("replaced")
        os.rename(directory, old)
    os.rename(out, directory)


@contextmanager
def _lock(path: Path, directory: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it when the process ends, however it does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or os.stat(path).st_ino != os.fstat(handle).st_ino:
                raise BlockingIOError  # who held the lock is just removing it
        except BlockingIOError:
            raise ConfigError(
                f"{directory}: another process is preparing it. Wait for it, or choose another directory."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)

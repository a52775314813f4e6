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

from tfdlrm.data.files import TEMPORARY_SUFFIX, fsync_directory, temporary_name, write_atomic
from tfdlrm.spec.errors import ConfigError, DiskFullError, MachineError, UserError

SUFFIX = ".partial"
_IDENTITY = "identity.json"
_OUT, _REPLACED = "out", "replaced"
_FULL = ("no space left on device", "disk quota exceeded", "file too large")


class PartialData:
    """What a run of `prepare` has done so far; the next one, of the same settings and files, goes on from there.

    Args:
        folder: Everything that is wanted until the end.

    Attributes:
        folder: The same.
        out: What becomes the finished folder; a file may take its place.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.out = folder / _OUT

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
    starts anew. An error of the data or of the settings removes it; a `MachineError` does not.

    Args:
        directory: Final name, of a folder or a file; its parents are made.
        identity: All that the result depends on, ready for JSON.

    Yields:
        The folder to work in.

    Raises:
        ConfigError: another process is preparing the same directory, or it is a mount point.
        DiskFullError: the disk is full.
    """
    folder = partial_folder(directory)
    if os.path.ismount(directory):
        raise ConfigError(f"{directory}: must not be a mount point, as it is replaced whole. Take a folder inside.")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _lock(directory):
            yield from _grow(folder, _as_json(identity), directory)
            _discard(folder)
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{directory.parent}: the disk is full. What is done so far is kept in {folder}: "
            "free some space and start again to go on from there."
        ) from error


def finish_published(directory: Path, identity: Mapping[str, Any]) -> bool:
    """Tell whether a run of this identity was broken off when all was done, and clear up after it.

    Its result has the name `directory` then.

    Args:
        directory: Final name.
        identity: As for `partial_data`.

    Raises:
        ConfigError: another process is preparing the same directory.
    """
    folder = partial_folder(directory)
    if not folder.exists():
        return False
    with _lock(directory):
        published = _is_of(folder, _as_json(identity)) and not (folder / _OUT).exists() and directory.exists()
        if published:
            _discard(folder)
    return published


def is_disk_full(error: BaseException) -> bool:
    """Tell whether an error, of Python, Polars or TensorFlow, says that there is no room to write."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    return any(text in str(error).lower() for text in _FULL)


def _grow(folder: Path, identity: Mapping[str, Any], directory: Path) -> Iterator[PartialData]:
    for leftover in folder.parent.glob(f".{folder.name}.*{TEMPORARY_SUFFIX}"):  # of a removal that was broken off
        shutil.rmtree(leftover)
    if not _is_of(folder, identity):
        _discard(folder)
        folder.mkdir()
        (folder / _OUT).mkdir()
        write_atomic(folder / _IDENTITY, json.dumps(identity))
    for leftover in folder.rglob(f".*{TEMPORARY_SUFFIX}"):  # of files that a killed process was writing
        leftover.unlink()
    try:
        yield PartialData(folder)
    except MachineError:
        raise
    except UserError:
        _discard(folder)
        raise
    fsync_directory(folder / _OUT)
    if directory.exists():
        os.rename(directory, folder / _REPLACED)
    os.rename(folder / _OUT, directory)
    fsync_directory(directory.parent)


def _as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as it comes back from a file."""
    read: dict[str, Any] = json.loads(json.dumps(identity))
    return read


def _is_of(folder: Path, identity: Mapping[str, Any]) -> bool:
    known = folder / _IDENTITY
    return known.exists() and bool(json.loads(known.read_text(encoding="utf-8")) == identity)


def _discard(folder: Path) -> None:
    """Remove a folder; it loses its name first, so that half of it is never taken for the whole."""
    if folder.exists():
        aside = temporary_name(folder)
        os.rename(folder, aside)
        shutil.rmtree(aside)


@contextmanager
def _lock(directory: Path) -> Iterator[None]:
    """Hold a lock file while the block runs; the system lets go of it when the process ends, however it does."""
    path = directory.with_name(f".{directory.name}{SUFFIX}.lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not path.exists() or os.stat(path).st_ino != os.fstat(handle).st_ino:
                raise BlockingIOError  # who held the lock is just removing it
        except BlockingIOError:
            raise ConfigError(
                f"{directory}: another process is preparing it. Wait for it, or choose another name."
            ) from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)

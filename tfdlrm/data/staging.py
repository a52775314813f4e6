"""A directory that is either whole or absent under its final name."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tfdlrm.data.files import fsync_directory

_MARK = ".tmp-"


@contextmanager
def staged_directory(directory: Path) -> Iterator[Path]:
    """Yield a new directory beside `directory` that takes its name when the block ends well.

    What `directory` held is gone then. When the block raises, the new directory is removed and `directory` stays as
    it was. A process killed inside the block leaves its new directory behind; the next one to come here removes it,
    knowing by its lock that nobody writes it any more.

    Args:
        directory: Final name; its parents are made.

    Yields:
        The directory to write to. Its files must be closed and synced when the block ends.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    for leftover in directory.parent.glob(f"{directory.name}{_MARK}*"):
        _remove_unless_locked(leftover)
    temporary = _temporary_name(directory)
    temporary.mkdir()
    handle = os.open(temporary, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield temporary
        fsync_directory(temporary)
        if directory.exists():
            old = _temporary_name(directory)
            os.rename(directory, old)
            os.rename(temporary, directory)
            shutil.rmtree(old)
        else:
            os.rename(temporary, directory)
        fsync_directory(directory.parent)
    finally:
        os.close(handle)
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_name(directory: Path) -> Path:
    return directory.with_name(f"{directory.name}{_MARK}{secrets.token_hex(4)}")


def _remove_unless_locked(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(directory)
    except BlockingIOError:
        pass
    finally:
        os.close(handle)

"""Version directories of one model: `base/1`, `base/2` ..., each whole or absent."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tfdlrm.data.files import TEMPORARY_SUFFIX, fsync_directory, fsync_file, temporary_name
from tfdlrm.spec.errors import ConfigError

_EXPORT = "export"
# Servers read a version as a signed 64-bit number.
_LARGEST = 2**63 - 1


def published_versions(base: Path) -> list[int]:
    """Return the version numbers in use under `base`, ascending: every name a server would take for a version."""
    if not base.is_dir():
        return []
    return sorted(int(path.name) for path in base.iterdir() if path.name.isascii() and path.name.isdigit())


def newest_version(base: Path) -> Path | None:
    """Return the directory of the highest version under `base`, `None` where there is none."""
    highest = max(published_versions(base), default=None)
    if highest is None:
        return None
    return next(
        path for path in base.iterdir() if path.name.isascii() and path.name.isdigit() and int(path.name) == highest
    )


def publish_version(
    base: Path,
    write: Callable[[Path], None],
    version: int | None = None,
    bless: Callable[[Path], None] | None = None,
) -> Path:
    """Have a version written and give it its number once it is complete and on disk.

    It is written under a name that servers overlook. Exports into one `base` take turns, so that neither their
    numbers nor their files collide; what a killed one left behind is removed by the next.

    Args:
        base: Folder of the model's versions; made if it is missing.
        write: Told an empty directory to fill. Whatever it raises is passed on, and nothing stays behind.
        version: The number; must be free. Defaults to the one after the highest in use, from 1.
        bless: Told the complete directory before it has a number. What it raises is passed on, and nothing stays.

    Returns:
        `base/<version>`.

    Raises:
        ConfigError: the number is taken or out of range, or `base` is no folder.

    Example:
        >>> import tempfile
        >>> base = Path(tempfile.mkdtemp())
        >>> publish_version(base, lambda directory: None).name, publish_version(base, lambda directory: None).name
        ('1', '2')
    """
    if version is not None and not 0 <= version <= _LARGEST:
        raise ConfigError(f"`version` must be at least 0 and below 2^63. Received: {version}.")
    with _turn(base):
        _refuse_taken(base, version)
        for leftover in base.glob(f".{_EXPORT}.*{TEMPORARY_SUFFIX}"):
            shutil.rmtree(leftover)
        temporary = temporary_name(base / _EXPORT)
        temporary.mkdir()
        try:
            write(temporary)
            if bless is not None:
                bless(temporary)
            _sync_tree(temporary)
            final = _rename(temporary, base, version)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        fsync_directory(base)
    return final


@contextmanager
def _turn(base: Path) -> Iterator[None]:
    """Hold the lock of `base`, which ends with the process that holds it."""
    try:
        base.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"`base` must be a folder of versions. Received: {base}.") from None
    handle = os.open(base, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _refuse_taken(base: Path, version: int | None) -> None:
    if version is not None and version in published_versions(base):
        raise ConfigError(f"`version` must be a free number. Received: {version}, which {base} has already.")


def _rename(temporary: Path, base: Path, version: int | None) -> Path:
    while True:
        _refuse_taken(base, version)
        number = max(published_versions(base), default=0) + 1 if version is None else version
        try:
            os.rename(temporary, base / str(number))
        except OSError as error:
            # A writer that takes no turns, `cp -r` say, was quicker: another look finds its number in use.
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
        else:
            return base / str(number)


def _sync_tree(directory: Path) -> None:
    for folder, _, files in os.walk(directory):
        for name in files:
            fsync_file(os.path.join(folder, name))
        fsync_directory(folder)

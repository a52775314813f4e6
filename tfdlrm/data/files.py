"""Files that are either whole or absent under their final name."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
"""How every temporary name ends, so that leftovers of a killed process can be told from data."""


def temporary_name(path: Path) -> Path:
    """Return a fresh hidden name beside `path`; a rename from it never crosses a file system."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")


def fsync_file(path: Path | str) -> None:
    """Make what a finished file holds durable; its name needs `fsync_directory`, too."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_directory(directory: Path | str) -> None:
    """Make the names in `directory` durable: a rename alone may be lost with the power."""
    fsync_file(directory)


def publish(temporary: Path, path: Path) -> None:
    """Sync the finished file `temporary` and give it its final name `path`, replacing what was there."""
    fsync_file(temporary)
    os.replace(temporary, path)
    fsync_directory(path.parent)


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; its file gets the final name when the block ends well.

    The folder is made if it is missing. When the block raises, the temporary file is removed and `path` keeps
    what it held before.

    Args:
        path: Final name.

    Yields:
        The path to write to. The block must close the file it wrote.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "ids.bin"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_bytes(b"abc")
        >>> target.read_bytes()
        b'abc'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        publish(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def write_atomic(path: Path | str, content: bytes | str) -> None:
    """Write `content` (text as UTF-8) to `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def sha256_of(path: Path | str) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""Files for Apache Beam: wherever Beam's file systems reach, or on a local disk that all workers share."""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from tfdlrm.data.files import TEMPORARY_SUFFIX, publish, write_atomic
from tfdlrm.data.raw_blocks import expand_path
from tfdlrm.spec.errors import ConfigError


def is_remote(location: str) -> bool:
    """Tell whether a location is a URL, such as `gs://bucket/day_0.gz`, rather than a path."""
    return FileSystems.get_scheme(location) is not None


def location_of(path: object) -> str:
    """Return a URL as it is, and a path as an absolute one, environment variables expanded.

    Raises:
        ConfigError: Beam cannot reach such URLs.
    """
    text = str(path)
    if not is_remote(text):
        return os.path.abspath(expand_path(text))
    try:
        FileSystems.get_filesystem(text)
    except ValueError:
        raise ConfigError(
            f"{text}: no file system for this URL. Beam has those of Google Cloud, AWS and Azure as extras: "
            'pip install "apache-beam[gcp]"'
        ) from None
    return text


class BeamFile:
    """A raw file by its location, opened wherever it is; see `RawPath`."""

    def __init__(self, location: str) -> None:
        self._location = location

    def __str__(self) -> str:
        return self._location

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot."""
        return posixpath.splitext(self._location)[1]

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Open the file, its bytes as they are stored."""
        with _errors_with_reason():
            file: BinaryIO = FileSystems.open(self._location, compression_type=CompressionTypes.UNCOMPRESSED)
        return file

    def stat(self) -> os.stat_result:
        """Return size and time of the last change."""
        if not is_remote(self._location):
            return os.stat(self._location)
        with _errors_with_reason():
            found = FileSystems.get_filesystem(self._location).metadata(self._location)
        changed = float(found.last_updated_in_seconds or 0)
        places = {"st_mtime_ns": int(changed * 1e9)}
        return os.stat_result((0, 0, 0, 0, 0, 0, found.size_in_bytes, 0, int(changed), 0), places)


class Place:
    """A folder that the driver and all workers read and write, files in it being whole or absent.

    Args:
        root: A URL, or a path that is the same folder on every machine.

    Attributes:
        root: The same.
        local: It as a path, `None` for a URL.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self.local = None if is_remote(root) else Path(root)

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Yield a folder of this machine's for a while; in a local place, files move out of it at no cost."""
        parent = None if self.local is None else self.local / "scratch"
        if parent is not None:
            parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=parent) as folder:
            yield Path(folder)

    def write(self, name: str, content: bytes | str) -> None:
        """Write a file."""
        if self.local is not None:
            write_atomic(self.local / name, content)
            return
        with self.scratch() as scratch:
            (scratch / "file").write_bytes(content.encode() if isinstance(content, str) else content)
            self.take(scratch / "file", name)

    def take(self, path: Path, name: str) -> None:
        """Move a file that was finished in `scratch` here. Several may bring the same one: the last stays."""
        if self.local is not None:
            (self.local / name).parent.mkdir(parents=True, exist_ok=True)
            publish(path, self.local / name)
            return
        target = self._at(name)
        temporary = f"{target}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
        with (
            open(path, "rb") as source,
            FileSystems.create(temporary, compression_type=CompressionTypes.UNCOMPRESSED) as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
        rename(temporary, target)

    def take_folder(self, folder: Path, name: str) -> None:
        """Move all files of a folder here, into one of another name."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.take(path, f"{name}/{path.relative_to(folder).as_posix()}")

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        if self.local is not None:
            return (self.local / name).read_bytes()
        with FileSystems.open(self._at(name), compression_type=CompressionTypes.UNCOMPRESSED) as file:
            content: bytes = file.read()
        return content

    def fetch(self, name: str, scratch: Path) -> Path:
        """Return the local path of a file, copied into `scratch` where the place is remote."""
        if self.local is not None:
            return self.local / name
        path = scratch / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            FileSystems.open(self._at(name), compression_type=CompressionTypes.UNCOMPRESSED) as source,
            open(path, "wb") as copy,
        ):
            shutil.copyfileobj(source, copy, 1 << 20)
        return path

    def names(self, folder: str = "") -> list[str]:
        """Return the names of all files of a remote place, or of a folder in it, in order."""
        matches = FileSystems.match([self._at(f"{folder}/**" if folder else "**")])[0].metadata_list
        return sorted(match.path.removeprefix(f"{self.root}/") for match in matches)

    def fetch_folder(self, name: str, scratch: Path) -> Path:
        """Return the local path of a folder, copied into `scratch` where the place is remote."""
        if self.local is None:
            for file in self.names(name):
                if not file.endswith(TEMPORARY_SUFFIX):
                    self.fetch(file, scratch)
        folder = (self.local or scratch) / name
        folder.mkdir(exist_ok=True)
        return folder

    def hand_over(self, name: str, other: Place, target: str) -> None:
        """Move a file to another place on the same remote file system."""
        rename(self._at(name), other._at(target))

    def remove(self, names: Sequence[str]) -> None:
        """Remove files of a remote place."""
        FileSystems.delete([self._at(name) for name in names])

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}"


def rename(source: str, target: str) -> None:
    """Give a file its final name; where a file system refuses to replace, what is there is removed first."""
    try:
        FileSystems.rename([source], [target])
    except BeamIOError:
        if not FileSystems.exists(target):
            raise
        FileSystems.delete([target])
        FileSystems.rename([source], [target])


@contextmanager
def _errors_with_reason() -> Iterator[None]:
    """Let errors of Beam's file systems say why, as those of the operating system do."""
    try:
        yield
    except OSError as error:
        if error.strerror is not None:
            raise
        raise OSError(errno.EIO, str(error)) from error

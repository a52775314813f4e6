"""Raw files as blocks of whole lines: plain or gzip, in bounded memory, never silently short."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple, Protocol, Self

import numpy as np

from tfdlrm.spec.errors import ConfigError, DataError, MachineError

CHUNK_BYTES = 16 << 20
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_LONGEST_LINE = 64 << 20
_COUNTED_AT_ONCE = 1 << 20
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


class RawPath(Protocol):
    """A raw file: a path, or what stands for a file elsewhere. Its text is what messages call it."""

    @property
    def suffix(self) -> str:
        """The end of the name, from its last dot."""

    def open(self, mode: Literal["rb"]) -> BinaryIO:
        """Open the file."""

    def stat(self) -> os.stat_result:
        """Return size and time of the last change."""


class Span(NamedTuple):
    """A block of whole lines of one file.

    Attributes:
        start, stop: Its bytes, of the unpacked text where the file is packed.
        rows: Its lines, a header not counted.
    """

    start: int
    stop: int
    rows: int


class _Digest:
    """A SHA-256 that is computed on a thread of its own, while the next piece is read."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self._thread = ThreadPoolExecutor(1)
        self._running: Future[None] | None = None

    def update(self, data: bytes) -> None:
        """Go on with `data`, once the piece before is done."""
        if self._running is not None:
            self._running.result()
        self._running = self._thread.submit(self._sha256.update, data)

    def hexdigest(self) -> str:
        """Return the digest of all that was given."""
        if self._running is not None:
            self._running.result()
        return self._sha256.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: object) -> None:
        self._thread.shutdown()


@dataclass(frozen=True)
class RawFile:
    """What one pass over a raw file tells.

    Attributes:
        path: The file.
        rows: Lines, a header not counted.
        size: Bytes on disk.
        mtime_ns: Time of the last change, in nanoseconds.
        sha256: Of the bytes on disk, 64 hexadecimal digits.
    """

    path: RawPath
    rows: int
    size: int
    mtime_ns: int
    sha256: str

    @property
    def identity(self) -> dict[str, str | int]:
        """What tells the file from others without reading it."""
        place = self.path.resolve() if isinstance(self.path, Path) else self.path
        return {"path": str(place), "size": self.size, "mtime_ns": self.mtime_ns}


def expand_path(text: str | Path) -> Path:
    """Return `text` as a path with `$NAME`, `${NAME}` and a leading `~` replaced.

    Raises:
        ConfigError: a variable is not set.

    Example:
        >>> os.environ["CRITEO"] = "/data/criteo"
        >>> str(expand_path("$CRITEO/train.txt"))
        '/data/criteo/train.txt'
    """
    for match in _VARIABLE.finditer(str(text)):
        name = match[1] or match[2]
        if name not in os.environ:
            raise ConfigError(f"{text}: environment variable `{name}` is not set.")
    return Path(os.path.expandvars(str(text))).expanduser()


def is_packed(path: RawPath) -> bool:
    """Tell whether a file is gzip, by its first bytes."""
    with path.open("rb") as file:
        return file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC


def read_pieces(path: RawPath, size: int = 1 << 20, digest: _Digest | None = None) -> Iterator[bytes]:
    """Yield the content of a file in order; gzip is told by its first bytes and unpacked.

    A gzip file may hold several members. One that was cut exactly between two members cannot be told from a
    whole one: nothing in the format says how many there are.

    Args:
        path: File.
        size: Most bytes a piece holds.
        digest: Fed with the bytes on disk.

    Raises:
        DataError: the file cannot be read, is no gzip file though named so, or its gzip data is cut or corrupt.
    """
    try:
        with path.open("rb") as file:
            first = file.read(max(size, len(_GZIP_MAGIC)))
            magic = first[: len(_GZIP_MAGIC)]
            pieces: Iterator[bytes] = itertools.chain([first] if first else [], iter(lambda: file.read(size), b""))
            del first  # as large as a chunk
            if digest is not None:
                pieces = _digested(pieces, digest)
            if magic == _GZIP_MAGIC:
                yield from _unpack(path, pieces, size)
            elif magic and path.suffix == ".gz":
                raise DataError(f"{path}: not a gzip file.")
            else:
                yield from pieces
    except OSError as error:
        raise MachineError(f"{path}: cannot be read: {error.strerror}.") from None


def read_blocks(path: RawPath, chunk_bytes: int = CHUNK_BYTES, digest: _Digest | None = None) -> Iterator[bytes]:
    r"""Yield blocks of whole lines, each ending with `\n`; a byte order mark and the `\r` of CRLF are gone.

    Args:
        path: Plain or gzip file.
        chunk_bytes: Bytes read at a time; a block is as long, give or take a line.
        digest: Fed with the bytes on disk.

    Raises:
        DataError: as in `read_pieces`, or a line is longer than 64 MiB.
    """
    for _, block in _placed_blocks(path, chunk_bytes, digest):
        yield block


def _placed_blocks(path: RawPath, chunk_bytes: int, digest: _Digest | None) -> Iterator[tuple[tuple[int, int], bytes]]:
    """Yield blocks as `read_blocks` does, each with the place where its bytes start and stop in the unpacked file."""
    rest, start = b"", 0
    for piece in itertools.chain(read_pieces(path, chunk_bytes, digest), [None]):
        if piece is None:
            block, rest = rest, b""
        else:
            cut = piece.rfind(b"\n") + 1
            lines = memoryview(piece)[:cut]  # not a copy of its own
            block, rest = (b"".join((rest, lines)), piece[cut:]) if cut else (b"", rest + piece)
        if len(rest) > _LONGEST_LINE:
            raise DataError(f"{path}: a line is longer than {_LONGEST_LINE} bytes.")
        stop = start + len(block)
        lines_only = plain_lines(block, start == 0)
        if lines_only:
            yield (start, stop), lines_only
        start = stop


def plain_lines(block: bytes, first: bool) -> bytes:
    r"""Return whole lines, each ending with `\n`, without a byte order mark and the `\r` of CRLF.

    Args:
        block: Lines; the last may lack its end.
        first: Whether a file begins with them.
    """
    if first:
        block = block.removeprefix(_BOM)
    if block and not block.endswith(b"\n"):
        block += b"\n"
    return block.replace(b"\r\n", b"\n") if b"\r" in block else block


def count_lines(block: bytes) -> int:
    """Return how often a line ends in a block; several times quicker than `bytes.count` where it often does."""
    content = np.frombuffer(block, np.uint8)
    parts = (content[start : start + _COUNTED_AT_ONCE] for start in range(0, len(content), _COUNTED_AT_ONCE))
    return sum(int(np.count_nonzero(part == ord("\n"))) for part in parts)


def survey(
    path: RawPath,
    header: bool = False,
    chunk_bytes: int = 1 << 20,
    progress: Callable[[int], None] = lambda rows: None,
) -> RawFile:
    """Read a file once and return its number of rows and what tells whether it has changed.

    Args:
        path: Plain or gzip file.
        header: Whether the first line is a header.
        chunk_bytes: Bytes read at a time. Defaults to 1 MiB.
        progress: Called with the number of rows just counted.

    Raises:
        DataError: as in `read_blocks`, or there are no rows.
    """
    return survey_blocks(path, header, chunk_bytes, progress)[0]


def survey_blocks(
    path: RawPath, header: bool, chunk_bytes: int, progress: Callable[[int], None] = lambda rows: None
) -> tuple[RawFile, list[Span]]:
    """Return what `survey` returns, and where the blocks that have rows lie; see `survey` for the rest."""
    spans = []
    without = int(header)
    with _Digest() as digest:
        for (start, stop), block in _placed_blocks(path, chunk_bytes, digest):
            rows = count_lines(block) - without
            without = 0
            progress(rows)
            if rows:
                spans.append(Span(start, stop, rows))
        sha256 = digest.hexdigest()
    if not spans:
        raise DataError(f"{path}: no rows.")
    stat = path.stat()
    return RawFile(path, sum(span.rows for span in spans), stat.st_size, stat.st_mtime_ns, sha256), spans


def _digested(pieces: Iterator[bytes], digest: _Digest) -> Iterator[bytes]:
    for piece in pieces:
        digest.update(piece)
        yield piece


def _unpack(path: RawPath, pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    decoder, inside = zlib.decompressobj(wbits=31), False
    for piece in pieces:
        while piece := piece if inside else piece.lstrip(b"\0"):  # zeros may pad the space after a member
            inside = True
            try:
                content = decoder.decompress(piece, size)
            except zlib.error:
                raise DataError(f"{path}: corrupt gzip data.") from None
            if content:
                yield content
            piece = decoder.unconsumed_tail
            if decoder.eof:
                piece = decoder.unused_data
                decoder, inside = zlib.decompressobj(wbits=31), False
    if inside:
        raise DataError(f"{path}: gzip data is cut short.")

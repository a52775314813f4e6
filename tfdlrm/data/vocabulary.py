"""Vocabularies: which row of a table each value of the training rows gets."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tfdlrm.data.files import atomic_path
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.errors import DataError

Entries = tuple[npt.NDArray[np.int64], npt.NDArray[Any]]
"""Keys and ids, of one length."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The rows of one table's values: 12 bytes an entry, 16 in a table of 2^31 rows or more.

    Attributes:
        keys: int64 keys, strictly ascending.
        ids: Row of each key; int32, or int64 where `rows` is at least 2^31. Same length as `keys`.
        rows: Rows of the table, reserved rows included.

    Raises:
        DataError: the arrays are not of that form.
    """

    keys: npt.NDArray[np.int64]
    ids: npt.NDArray[Any]
    rows: int

    def __post_init__(self) -> None:
        wanted = id_dtype(self.rows)
        if self.keys.dtype != np.int64 or self.ids.dtype != wanted or self.keys.shape != self.ids.shape:
            raise DataError(
                f"`keys` and `ids` must be int64 and {wanted} arrays of one length. Received: {self.keys.dtype} "
                f"{list(self.keys.shape)} and {self.ids.dtype} {list(self.ids.shape)}."
            )
        if self.keys.ndim != 1 or bool((self.keys[1:] <= self.keys[:-1]).any()):
            raise DataError("`keys` must be one strictly ascending row of numbers.")
        if self.ids.size and not 0 <= int(self.ids.min()) <= int(self.ids.max()) < self.rows:
            raise DataError(f"`ids` must lie in [0, {self.rows}). Received: {self.ids.min()} to {self.ids.max()}.")

    @property
    def nbytes(self) -> int:
        """Bytes of both arrays."""
        return int(self.keys.nbytes + self.ids.nbytes)

    @classmethod
    def empty(cls, coding: TableCoding) -> Vocabulary:
        """Return the vocabulary of a table without values of its own: one that hashes, or that saw none."""
        rows = table_rows(coding, coding.buckets or 0)
        return cls(np.empty(0, np.int64), np.empty(0, id_dtype(rows)), rows)

    def save(self, path: Path | str) -> None:
        """Write the vocabulary to `path` (NumPy's `.npz`), whole or not at all."""
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, keys=self.keys, ids=self.ids, rows=np.int64(self.rows))

    @classmethod
    def load(cls, path: Path | str) -> Vocabulary:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, or holds no vocabulary.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["keys"], arrays["ids"], int(arrays["rows"]))
        except FileNotFoundError:
            raise DataError(f"{path}: no such file.") from None
        except Exception as error:  # NumPy and zipfile raise what they like on damaged files
            raise DataError(f"{path}: not a vocabulary: {error}") from None


def vocabulary_pieces(path: Path | str, at_once: int = 1 << 20) -> Iterator[Entries]:
    """Yield keys and ids of a vocabulary that was saved, piece by piece, so that it need not fit into memory.

    Args:
        path: What `Vocabulary.save` wrote.
        at_once: Entries of a piece.

    Raises:
        DataError: the file is missing, or holds no vocabulary.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open("keys.npy") as keys, archive.open("ids.npy") as ids:
            (entries, key_dtype), (_, dtype) = _header(keys), _header(ids)
            for start in range(0, entries, at_once):
                count = min(at_once, entries - start)
                piece = keys.read(count * key_dtype.itemsize), ids.read(count * dtype.itemsize)
                yield np.frombuffer(piece[0], key_dtype), np.frombuffer(piece[1], dtype)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a vocabulary: {error}") from None


def _header(file: IO[bytes]) -> tuple[int, np.dtype[Any]]:
    """Read the length and type of an array that begins here."""
    np.lib.format.read_magic(file)
    (length,), _, dtype = np.lib.format.read_array_header_1_0(file)
    return length, dtype


def id_dtype(rows: int) -> npt.DTypeLike:
    """Return the NumPy type of row ids below `rows`."""
    return np.dtype(np.int32 if rows < 2**31 else np.int64)


def table_rows(coding: TableCoding, values: int) -> int:
    """Return the rows of a table with `values` values (or buckets) of its own, reserved rows included."""
    reserved = [coding.rare_row] if coding.min_count > 1 or coding.max_values else []
    reserved += [coding.missing_row] if coding.missing_key is None else []
    reserved += [coding.oov_row] if coding.oov_row is not None else []
    return max([coding.first_id + values, *(1 + row for row in reserved)])

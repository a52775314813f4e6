"""Arrays that are files of a folder: a full disk is told when they are made or written, not when they are used."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from tfdlrm.data.files import fsync_file
from tfdlrm.data.mapped_arrays import map_array

_BLOCK = 1 << 20


class DiskArrays:
    """Makes arrays of one dimension that are files of a folder, mapped into memory.

    Args:
        folder: The folder.
        name: Begins the names of the files, which go on with a dot, the name of the array, and `.npy`.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name

    def __call__(self, name: str, length: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Return a new array, which replaces that of an earlier try; one of length 0 is in memory alone.

        Raises:
            OSError: the disk has no room for it.
        """
        if not length:  # no file can be mapped of which there is nothing
            return np.empty(0, dtype)
        path = self._folder / f"{self._name}.{name}.npy"
        with open(path, "wb") as file:
            _write_header(file, length, np.dtype(dtype))
            _reserve(file, length * np.dtype(dtype).itemsize)
        return map_array(path, "r+")

    def remove(self, name: str) -> None:
        """Remove the file of an array, if there is one; where it is mapped, it stays so."""
        (self._folder / f"{self._name}.{name}.npy").unlink(missing_ok=True)


def keep_array(array: npt.NDArray[Any], path: Path) -> None:
    """Make an array durable as NumPy's file `path`, which may be the one that it is mapped from.

    Raises:
        OSError: the disk has no room for it.
    """
    if isinstance(array, np.memmap) and array.filename and path.exists() and os.path.samefile(array.filename, path):
        array.flush()
        fsync_file(path)
        return
    with open(path, "wb") as file:
        _write_header(file, len(array), array.dtype)
        write_array(file, array)
    fsync_file(path)


def write_array(file: BinaryIO, array: npt.NDArray[Any]) -> None:
    """Write the bytes of an array; NumPy's own way does not tell a full disk from other failures."""
    file.write(np.ascontiguousarray(array).data)


def _write_header(file: BinaryIO, length: int, dtype: np.dtype[Any]) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(file, header)


def _reserve(file: BinaryIO, size: int) -> None:
    """Make room on the disk: where a mapped file has none, writing to it kills the process."""
    file.flush()
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), file.tell(), size)
        return
    for start in range(0, size, _BLOCK):
        file.write(bytes(min(_BLOCK, size - start)))

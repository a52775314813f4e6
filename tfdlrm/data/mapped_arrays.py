"""Arrays mapped from `.npy` files, by several threads at a time."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

# NumPy reads a header with `ast.literal_eval`. Up to CPython 3.11.7 all threads share the count of its recursion, and
# one that lets another in on the way fails with "SystemError: AST constructor recursion depth mismatch"
# (python/cpython#106905).
_ONE_AT_A_TIME = threading.Lock()


def map_array(path: Path, mode: Literal["r", "r+"] = "r") -> npt.NDArray[Any]:
    """Return the array of a file, mapped into memory for reading, or with `"r+"` for writing too."""
    with _ONE_AT_A_TIME:
        array: npt.NDArray[Any] = np.load(path, mmap_mode=mode)
    return array

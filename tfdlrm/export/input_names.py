"""Raw column names as names of a signature's inputs, where TensorFlow would change or refuse them.

A column may be called `user id`, `class` or both `C1` and `c1`. TensorFlow makes inputs out of the parameters of a
Python function, so it takes none of these; a SavedModel does, once it is written. So the function is traced with
names made up here, and `tfdlrm.export.signature_file` gives the file the real ones.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable

from tfdlrm.spec.errors import SpecError

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


def input_names(columns: Iterable[str]) -> dict[str, str]:
    """Return the name to trace each column with, by column; all are their own where TensorFlow takes them as they are.

    Args:
        columns: Raw column names.

    Raises:
        SpecError: a column can be no input: it is called `""` or `self`, or two differ in nothing but characters other
            than letters and digits, which TensorFlow's Python loader does not tell apart.

    Example:
        >>> input_names(["age", "user id"])
        {'age': 'column_00000', 'user id': 'column_00001'}
    """
    columns = list(columns)
    spoken: dict[str, str] = {}
    for column in columns:
        if column in ("", "self"):
            raise SpecError(f'raw columns must not be called "" or "self" to be inputs. Received: {column!r}.')
        other = spoken.setdefault(_as_parameter(column), column)
        if other != column:
            raise SpecError(
                f"raw columns must differ in letters or digits to be inputs. Received: {other!r} and {column!r}."
            )
    folded = {column.casefold() for column in columns}
    if len(folded) == len(columns) and all(_PLAIN.fullmatch(c) and not keyword.iskeyword(c) for c in columns):
        return {column: column for column in columns}
    # Inputs lie in the order of their sorted names, which must stay the same one when they are renamed.
    order = {column: number for number, column in enumerate(sorted(columns))}
    return {column: f"column_{order[column]:05d}" for column in columns}


def _as_parameter(column: str) -> str:
    """Return the Python parameter that TensorFlow makes of a name."""
    swapped = "".join(c if c.isalnum() else "_" for c in column)
    return swapped if swapped[0].isalpha() else f"arg_{swapped}"

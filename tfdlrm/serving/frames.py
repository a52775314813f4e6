"""Frames and candidates as a client sends them: columns of plain values, and answers as a frame of the same kind."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def is_frame(value: Any) -> bool:
    """Whether a value is a pandas or Polars DataFrame; neither library is imported for it."""
    return _library(value) is not None


def _library(value: Any) -> str | None:
    library = type(value).__module__.partition(".")[0]
    return library if library in ("pandas", "polars") and type(value).__name__ == "DataFrame" else None


def frame_columns(frame: Any) -> dict[str, list[Any]]:
    """Return the columns of a frame as lists, NaN for what is missing in a column of numbers and `""` elsewhere.

    Args:
        frame: A pandas or Polars DataFrame.

    Example:
        >>> import polars as pl
        >>> frame_columns(pl.DataFrame({"age": [31, None], "city": [None, "Paris"]}))
        {'age': [31, nan], 'city': ['', 'Paris']}
    """
    columns: dict[str, list[Any]] = {}
    for name in frame.columns:
        column = frame[name]
        if _library(frame) == "polars":
            numbers, values = column.dtype.is_numeric(), column.to_list()
        else:
            numbers = column.dtype.kind in "iufb"
            values = column.astype(object).where(column.notna(), None).tolist()
        missing: Any = float("nan") if numbers else ""
        columns[str(name)] = [missing if value is None else value for value in values]
    return columns


def frame_like(frame: Any, outputs: Mapping[str, NDArray[Any]]) -> Any:
    """Return outputs as a frame of the kind of another; outputs of one value a row become plain columns."""
    flat = {name: values[:, 0] if values.shape[1:] == (1,) else values for name, values in outputs.items()}
    if _library(frame) == "polars":
        return type(frame)({name: values if values.ndim == 1 else values.tolist() for name, values in flat.items()})
    plain = {name: values if values.ndim == 1 else list(values) for name, values in flat.items()}
    return type(frame)(plain, index=frame.index)


def rank_columns(
    shared: Mapping[str, Any], candidates: Mapping[str, Any], mask: Any
) -> tuple[dict[str, NDArray[Any]], bool]:
    """Return the inputs of the signature `rank`, and whether they came as a single question.

    Args:
        shared: One value a question by column, or `[Q]`.
        candidates: `[N]` or `[Q, N]` by column.
        mask: Bool of the form of a candidate column, or None for all.

    Raises:
        ValueError: There is no candidate column, or columns differ in form.
    """
    arrays = {name: np.asarray(values) for name, values in candidates.items()}
    forms = {name: array.shape for name, array in arrays.items()}
    if len(set(forms.values())) != 1 or next(iter(forms.values())) == () or len(next(iter(forms.values()))) > 2:
        raise ValueError(f"`candidates` must be columns of one form, [N] or [Q, N]. Received: {forms or 'none'}")
    (form,) = set(forms.values())
    alone = len(form) == 1
    present = np.ones(form, bool) if mask is None else np.asarray(mask, bool)
    if present.shape != form:
        raise ValueError(f"`mask` must have the form of a candidate column, {form}. Received: {present.shape}")
    questions = 1 if alone else form[0]
    wide = {name: np.broadcast_to(np.asarray(value), (questions,)) for name, value in shared.items()}
    columns = {**arrays, "mask": present}
    return wide | {name: array[np.newaxis] if alone else array for name, array in columns.items()}, alone

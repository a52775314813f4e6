"""What each column of a table is taken for where nobody has said it: the rules, and why each was applied."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.any_frame import as_lists, number_values, text_values
from tfdlrm.spec.config import DenseColumn, SparseColumn
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import DenseTransform

FEW = 20
"""Whole numbers with at most so many different values are categories, if each is there ten times on average."""
LONGEST_BAG = 50
"""Values of a longer bag are dropped."""
_ROWS_PER_VALUE = 10
_LARGE = 2**24
"""Whole numbers beyond lose digits as float32."""
_EPOCH = 10**8
_LONG_TAIL = 10
_NEARLY_ALL = 0.9
_JOINING = ("|", ";")
"""What joins several values in one text, where it is told by the texts themselves."""
_MANY = 0.1
_SEPARATORS = ("|", ";", ",", " ", "\x1f")
_ID_WORDS = frozenset(
    (
        *("id", "ids", "uid", "uuid", "guid", "key", "code", "hash", "sku", "isbn", "zip", "zipcode", "postcode"),
        *("user", "customer", "session", "device", "ip", "item", "product", "article", "movie", "film"),
        *("ad", "campaign", "advertiser", "publisher", "site", "app", "host", "store", "shop", "seller"),
        *("category", "query"),
    )
)
_TIME_WORDS = frozenset(("time", "timestamp", "ts", "date", "datetime", "epoch", "day", "when", "at"))
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_ISO_DATE = r"^\d{4}-\d{2}-\d{2}([ T]|$)"
DATE_HELP = (
    "Leave it out (drop=[{name!r}]), split by it (split={{'time': {name!r}}}), or make numbers of it first, such as "
    "the hour or the day of the week."
)


@dataclass(frozen=True)
class ColumnChoice:
    """What a column is taken for.

    Attributes:
        name: The column.
        use: `"dense"`, `"sparse"`, or what else it is for: `"label"`, `"time"`, `"dropped"`.
        detail: How it is read, in a few words.
        why: The rule that decided, or `"as asked for"`.
        feature: The feature it becomes; `None` for other columns.
    """

    name: str
    use: str
    detail: str
    why: str
    feature: DenseColumn | SparseColumn | None = None


def choose_columns(
    frame: pl.DataFrame,
    trains: npt.NDArray[np.bool_],
    dense: Mapping[str, DenseTransform | None],
    sparse: Collection[str],
    left_out: Mapping[str, str],
) -> list[ColumnChoice]:
    """Decide what each column is, by its kind and by the values of training rows.

    - Text, categories, true and false, and lists of them are sparse. Text in which `|` or `;` stands between values
      that come again in other texts is a bag of them.
    - Whole numbers are sparse where the name says that they name something (its last word is `id`, `code`, `user` ...),
      where few are different (at most 20, each ten times on average), or where most are above 2^24; else dense.
      Floats that are whole count as whole if the name says so, or if there are gaps: pandas keeps them as floats.
    - Other numbers are dense.
    - Dense numbers are read through log1p where none is below 0 and one is 10 or more, else standardized.

    Args:
        frame: All rows.
        trains: Which of them train, `[rows]`.
        dense: Columns that are dense whatever they look like, with their transform, `None` for the rule's.
        sparse: Columns that are sparse whatever they look like.
        left_out: What the columns that are no features are for.

    Raises:
        DataError: a column is of a kind that cannot be a feature, holds dates or nothing, and was not left out.
    """
    choices = []
    for series in frame:
        name = series.name
        if name in left_out:
            choices.append(ColumnChoice(name, left_out[name], "", "as asked for"))
            continue
        training = series.filter(pl.Series(trains))
        if name in dense:
            choices.append(_dense(training, dense[name], "as asked for"))
        elif name in sparse:
            choices.append(_sparse(series, training, "as asked for"))
        else:
            choices.append(_inferred(series, training))
    return choices


def _inferred(series: pl.Series, training: pl.Series) -> ColumnChoice:
    name, kind = series.name, series.dtype
    if kind.is_temporal() or _holds_dates(training):
        raise DataError(f"column `{name}` holds dates, which are no feature as they are. {DATE_HELP.format(name=name)}")
    if training.null_count() == len(training) or (kind.is_float() and training.is_nan().fill_null(True).all()):
        raise DataError(f"column `{name}` has no value in any training row. Leave it out: drop=[{name!r}].")
    if kind == pl.Boolean:
        return _sparse(series, training, "true or false")
    if kind in (pl.String, pl.Categorical, pl.Enum):
        return _sparse(series, training, "text")
    if isinstance(kind, (pl.List, pl.Array)) and not (kind.inner.is_float() or kind.inner.is_nested()):
        return _sparse(series, training, "lists")
    if not kind.is_numeric():
        raise DataError(
            f"column `{name}` must hold numbers, text, true and false, or lists of them. Received: {kind}. "
            f"Leave it out (drop=[{name!r}]), or make columns of such values of it first."
        )
    there = training.drop_nulls()
    if kind.is_float():
        there = there.drop_nans()
        if not (there == there.floor()).all():
            return _dense(training, None, "numbers with a fraction")
    elif not kind.is_integer():
        return _dense(training, None, f"numbers of the kind {kind}")
    return _whole_number(series, training, meant_as_float=kind.is_float() and len(there) == len(training))


def _whole_number(series: pl.Series, training: pl.Series, meant_as_float: bool) -> ColumnChoice:
    name = series.name
    words = [word.lower() for word in _WORD.findall(name)]
    last = words[-1] if words else ""
    values = number_values(training).drop_nans().to_numpy()
    middle = float(np.median(np.abs(values))) if len(values) else 0.0
    if last in _ID_WORDS:
        return _sparse(series, training, f"whole numbers, and the name says that they name a thing ({last})")
    if meant_as_float:
        return _dense(training, None, "floats without a gap, though whole ones")
    if _TIME_WORDS & set(words) and middle > _EPOCH:
        raise DataError(
            f"column `{name}` holds points in time, which are no feature as they are. {DATE_HELP.format(name=name)} "
            f"Or insist: dense=[{name!r}]."
        )
    distinct = len(np.unique(values))
    if distinct <= FEW and len(values) >= _ROWS_PER_VALUE * distinct:
        return _sparse(series, training, f"whole numbers, few different ones (at most {FEW})")
    if middle > _LARGE:
        return _sparse(series, training, "whole numbers above 2^24, too large for amounts")
    return _dense(training, None, "whole numbers, many different ones")


def _dense(training: pl.Series, transform: DenseTransform | None, why: str) -> ColumnChoice:
    values = number_values(training).drop_nans().to_numpy()
    low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    if transform is None:
        transform = "log1p" if low >= 0 and high >= _LONG_TAIL else "standardize"
    detail = f"{transform}, {low:,.6g} to {high:,.6g}"
    return ColumnChoice(training.name, "dense", detail, why, DenseColumn(name=training.name, transform=transform))


def _sparse(series: pl.Series, training: pl.Series, why: str) -> ColumnChoice:
    name = series.name
    series, training = as_lists(series), as_lists(training)
    if not isinstance(series.dtype, pl.List):
        texts = text_values(training)
        sign = _joining(texts) if series.dtype == pl.String else None
        if sign is not None:
            return _bag(name, texts.filter(texts != "").str.split(sign), sign, f"{why}, with {sign!r} between values")
        distinct = texts.filter(texts != "").n_unique()
        alone = distinct > FEW and distinct > _NEARLY_ALL * len(texts)
        note = "; nearly every row has its own, so that there may be nothing to learn" if alone else ""
        return ColumnChoice(name, "sparse", f"{distinct:,} values", why + note, SparseColumn(name=name))
    # Rows that do not train are joined, too.
    values = text_values(series.explode().drop_nulls())
    free = [separator for separator in _SEPARATORS if not values.str.contains(separator, literal=True).any()]
    if not free:
        raise DataError(f"column `{name}`: the values of its lists must do without one of {_SEPARATORS}, to be joined.")
    return _bag(name, training, free[0], why)


def _bag(name: str, lists: pl.Series, separator: str, why: str) -> ColumnChoice:
    distinct = text_values(lists.explode().drop_nulls()).n_unique()
    longest: int = lists.list.len().max() or 1  # type: ignore[assignment]
    hotness = min(longest, LONGEST_BAG)
    feature = SparseColumn(name=name, separator=separator, hotness=hotness, combiner="mean")
    return ColumnChoice(name, "sparse", f"{distinct:,} values, up to {hotness} a row", why, feature)


def _joining(texts: pl.Series) -> str | None:
    """Return what joins several values in texts, `None` where nothing does.

    It does if one text in ten holds it, and the parts are fewer than the texts: their combinations are what is many.
    """
    for sign in _JOINING:
        often = texts.str.contains(sign, literal=True).sum() >= _MANY * len(texts)
        if often and texts.str.split(sign).explode().n_unique() < texts.n_unique():
            return sign
    return None


def _holds_dates(series: pl.Series) -> bool:
    if series.dtype != pl.String:
        return False
    there = series.drop_nulls()
    there = there.filter(there != "")
    return len(there) > 0 and bool(there.str.contains(_ISO_DATE).all())

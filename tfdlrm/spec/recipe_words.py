"""A recipe in words: what happens to rows, numbers and categories, and which results of it deserve a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.config import DataConfig
from tfdlrm.spec.derive import encoding_of
from tfdlrm.spec.features import DenseTransform
from tfdlrm.spec.raw import Split

_TRANSFORMS: dict[DenseTransform, str] = {
    "log1p": "ln(x + 1), a negative number counting as 0; a missing one becomes 0.",
    "identity": "as it is; a missing one becomes 0.",
    "standardize": "(x - mean) / standard deviation, both of the training rows; a missing one becomes 0.",
    "log3": "ln(x + 3); a missing number, and one of -3 or less, becomes 0.",
    "log3_half": "ln(x + 3), rounded to half precision; a missing number, and one of -3 or less, becomes 0.",
    "log3_filled": "ln(x + 3), a missing number counting as 0, so that it becomes ln(3); one of -3 or less becomes 0.",
    "log_file_minimum": "ln(x - m + 2), where m is the smallest number of the raw file over all these columns; a "
    "missing number counts as 0, in m too.",
}
_ORDERS = {
    "count": "The most frequent value comes first; equally frequent ones in the order of their keys.",
    "count_digits": "The most frequent value comes first; equally frequent ones in the order of their keys' decimal "
    "digits as text, the last one first.",
    "first_seen": "The value that is first in the raw files comes first.",
    "key": "The value with the smallest key comes first.",
}
_VALUES = {
    "hex": "A value is the number that its hexadecimal digits stand for",
    "string": "A value is its text, known by a 64-bit fingerprint",
    "number": "A value is the bucket of a number",
}


@dataclass(frozen=True)
class Explanation:
    """A recipe in words.

    Attributes:
        topics: Sentences by topic, in the order in which rows meet them.
        warnings: What makes a result incomparable with one of rows never seen.
    """

    topics: dict[str, str]
    warnings: tuple[str, ...]


def explain_recipe(data: DataConfig) -> Explanation:
    """Say a recipe in words.

    Raises:
        SpecError: features that share a table ask for different codings.
    """
    tables = encoding_of(data).tables
    has_vocabulary = any(coding.kind == "vocabulary" for coding in tables.values())
    transforms = {column.name: _TRANSFORMS[column.transform] for column in data.dense}
    topics = {
        "Split": _split(data.split),
        "Rows left out": _left_out(data.drop_negatives),
        "Numbers": _by_text(transforms),
        "Values": _of_tables(tables, _value),
        "Missing values": _of_tables(tables, _missing),
        "Counted on": _counted(data) if has_vocabulary else "Nothing is counted.",
        "Thresholds": _of_tables(tables, _threshold),
        "Order": _of_tables(tables, lambda c: _ORDERS[c.id_order] if c.kind == "vocabulary" else "None."),
        "Numbering": _of_tables(tables, _numbering),
        "Unseen values": _of_tables(tables, _unseen),
    }
    sizes = {name: coding.buckets or coding.id_modulus for name, coding in tables.items()}
    if any(sizes.values()):
        topics["Table rows"] = ", ".join(f"{name} {size:,}" for name, size in sizes.items() if size) + "."
    return Explanation({name: text for name, text in topics.items() if text}, tuple(_warnings(data, tables)))


def _split(split: Split) -> str:
    train, validation, test = (f"{share:.0%}" for share in split.fractions)
    shares = f"{train} of the rows train, {validation} validate, {test} test"
    halves = ("first", "second") if split.last_day != "validation_first" else ("second", "first")
    odd = f"The {split.odd_row} half has the odd row." if split.last_day != "test" else ""
    last = (
        "all of it tests and nothing validates."
        if split.last_day == "test"
        else f"the {halves[0]} half tests, the {halves[1]} half validates. {odd}"
    )
    days = f"{split.days} consecutive parts of equal length" if split.days else "one part a raw file"
    return {
        "order": f"In the order of the files, {shares}.",
        "time": f"In the order of time, {shares}.",
        "hash": f"By the hash of `{split.key}`, {shares}.",
        "random": f"By a number drawn for each row, {shares}.",
        "fold": f"{split.folds} consecutive parts of equal length; part {split.fold} tests, the others train.",
        "days": f"{days[0].upper()}{days[1:]}; all but the last train. Of the last part {last}",
        "whole_and_half": "Every row trains; the second half of the rows (the smaller one) validates and tests too.",
    }[split.by]


def _left_out(share: float) -> str:
    return f"{share:.1%} of the rows with label 0, in every split, before anything is counted." if share else "None."


def _value(coding: TableCoding) -> str:
    text = _VALUES[coding.value]
    return f"{text}, modulo {coding.modulus:,}." if coding.modulus else f"{text}."


def _missing(coding: TableCoding) -> str:
    if coding.missing_key is not None:
        return f"A missing value counts as the value {coding.missing_key}, and shares its row."
    also = [name for name, row in _special(coding) if row == coding.missing_row]
    return f"A missing value has row {coding.missing_row}" + (f", as {' and '.join(also)} have." if also else ".")


def _special(coding: TableCoding) -> list[tuple[str, int | None]]:
    rare = [("rare values", coding.rare_row)] if coding.has_rare else []
    return [*rare, ("unseen ones", coding.oov_row)]


def _counted(data: DataConfig) -> str:
    return "Training rows." if data.vocabulary_rows == "train" else "All rows, those that validate and test included."


def _threshold(coding: TableCoding) -> str:
    if coding.kind != "vocabulary":
        return "None: nothing is counted."
    parts = []
    if coding.min_count > 1:
        parts.append(
            f"A value seen fewer than {coding.min_count} times has row {coding.rare_row}, the row of rare values."
        )
    if coding.max_values is not None:
        parts.append(
            f"Only the {coding.max_values:,} most frequent values have rows; the others have {coding.rare_row}."
        )
    return " ".join(parts) or "None: every value counted has a row."


def _numbering(coding: TableCoding) -> str:
    if coding.kind == "hash":
        return f"A value has the row {coding.first_id} + a hash of it, modulo the rows of its table."
    if coding.kind == "modulo":
        first = f"{coding.first_id} + its number" if coding.first_id else "of its number"
        return f"A value has the row {first} modulo the rows of its table; different values may share one."
    text = f"Rows of values start at {coding.first_id}"
    wrapped = ", and are taken modulo the rows of the table in the end, so that values may share one"
    return text + (wrapped if coding.id_modulus else "") + "."


def _unseen(coding: TableCoding) -> str:
    if coding.oov_row is None:
        return "A value that was not counted has no row: it is an error, and serving must be told (`export.unseen`)."
    what = "that was not counted" if coding.kind == "vocabulary" else "that is none (text where a number should be)"
    return f"A value {what} has row {coding.oov_row}."


def _of_tables(tables: dict[str, TableCoding], say: Callable[[TableCoding], str]) -> str:
    return _by_text({name: say(coding) for name, coding in tables.items()})


def _by_text(texts: dict[str, str]) -> str:
    """Return the text that all have, or each text with the names of those that have it."""
    names: dict[str, list[str]] = {}
    for name, text in texts.items():
        names.setdefault(text, []).append(name)
    if len(names) == 1:
        return next(iter(names))
    return " ".join(f"{', '.join(own)}: {text}" for text, own in names.items())


def _warnings(data: DataConfig, tables: dict[str, TableCoding]) -> Iterable[str]:
    if data.vocabulary_rows == "all" and any(coding.kind == "vocabulary" for coding in tables.values()):
        yield (
            "The vocabulary is counted on validation and test rows: no value of theirs is unseen, as many would be "
            "when serving."
        )
    if data.split.by == "whole_and_half":
        yield "Test rows are trained on: the test result tells how well rows are remembered, not foretold."
    if any(column.transform == "log_file_minimum" for column in data.dense):
        yield (
            "Numbers are shifted by the minimum over all rows of their file, test rows included; serving, which knows "
            "no file, takes the smallest of those that train, and so may shift a number otherwise than `prepare` did."
        )
    if data.drop_negatives:
        yield (
            "Rows without a click are left out of validation and test rows too: log loss, click rate and calibration "
            "are those of the rows that are left."
        )
    if data.split.by == "whole_and_half" or (data.split.by == "days" and data.split.last_day == "test"):
        yield "No rows are for validation alone: what is chosen by validation is chosen on test rows, or not at all."
    if any(coding.oov_row is None for coding in tables.values()):
        yield "Values that were not counted have no row: `export.unseen` must say what serving takes them for."

"""What an export must show before it gets a number, under which servers would find it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from tfdlrm.export.errors import VerifyError
from tfdlrm.export.verify import RAW, VerifyReport, raw_answers, verified_answers
from tfdlrm.export.versions import newest_version
from tfdlrm.metrics.binary import log_loss

Array = npt.NDArray[Any]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """Rows that training did not see, and what the model says of them.

    Attributes:
        rows: Raw columns, each `[n]`: numbers with NaN where missing, strings with `""`.
        ids: The same rows encoded, the inputs of `serve_ids`.
        expected: The model's probabilities, `[n]`.
        labels: 0 or 1, `[n]`.
        weight: Weight of each row in the log loss; `None` for 1.
        batch_size: Rows at a time with which `expected` was computed.
    """

    rows: Mapping[str, Array]
    ids: Mapping[str, Array]
    expected: Array
    labels: Array
    weight: Array | None = None
    batch_size: int = 2048


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Log loss of two versions on the same rows.

    Attributes:
        version: Directory of the version in place.
        rows: Number of rows.
        log_loss: That of the export.
        log_loss_in_place: That of the version in place.
    """

    version: Path
    rows: int
    log_loss: float
    log_loss_in_place: float


@dataclasses.dataclass(frozen=True)
class Blessing:
    """What was found.

    Attributes:
        verified: Answers of every signature against the model, and the warm-up requests replayed.
        comparison: With the version in place; `None` where it was not asked for, or there is none.
    """

    verified: VerifyReport
    comparison: Comparison | None


def bless(
    directory: Path, base: Path, held_out: HeldOut, tolerance: float = 1e-5, max_regression: float | None = None
) -> Blessing:
    """Raise unless a written export may take the place of the version in place.

    A fresh process reloads it, answers held-out rows by every signature and replays the warm-up requests.

    Args:
        directory: The export, which has no number yet.
        base: Folder of the model's versions.
        held_out: What to ask.
        tolerance: Largest difference allowed from the model's probability. Defaults to 1e-5.
        max_regression: By how much the log loss of the version in place may be lower, on the same rows. `None` compares
            nothing.

    Raises:
        VerifyError: it may not; the message says why and what to do.
    """
    try:
        verified, answers = verified_answers(
            directory, held_out.rows, held_out.expected, tolerance, held_out.ids, held_out.batch_size
        )
    except VerifyError as error:
        reason = str(error).replace(f"{directory}: ", "").replace(str(directory), "the export")
        raise VerifyError(f"{base}: not published: {reason.rstrip('.')}. {_in_place(base)}") from None
    newest = newest_version(base)
    if max_regression is None or newest is None:
        return Blessing(verified, None)
    return Blessing(verified, _compared(base, newest, held_out, answers[RAW][:, 0], max_regression))


def refuse_low_auc(base: Path, auc: float, floor: float, rows: int, split: str) -> None:
    """Raise unless the area under the curve is at least `floor`; nan is not."""
    if not auc >= floor:
        raise VerifyError(
            f"{base}: not published: AUC must be at least `export.min_auc`, {floor:g}. Received: {auc:.6f} on "
            f"{rows:,} {split} rows. {_in_place(base)} Train a better model, or lower `export.min_auc`."
        )


def _compared(base: Path, newest: Path, held_out: HeldOut, answers: Array, max_regression: float) -> Comparison:
    try:
        its_answers = raw_answers(newest, held_out.rows, held_out.batch_size)
    except VerifyError as error:
        raise VerifyError(
            f"{base}: not published: `export.no_regression` asks for the answers of the version in place, which gives "
            f"none: {error} Set `export.no_regression` to false to publish without."
        ) from None
    mine, its = (log_loss(held_out.labels, p, held_out.weight) for p in (answers, its_answers))
    if not mine - its <= max_regression:
        raise VerifyError(
            f"{base}: not published: log loss must be at most {max_regression:g} above that of the version in place "
            f"(`export.max_regression`). Received: {mine:.6f}, and {its:.6f} of version {newest.name}, on the same "
            f"{len(held_out.labels):,} rows. {_in_place(base)} Train a better model, raise `export.max_regression`, or "
            "set `export.no_regression` to false."
        )
    return Comparison(newest, len(held_out.labels), mine, its)


def _in_place(base: Path) -> str:
    newest = newest_version(base)
    return "No version is in place." if newest is None else f"Version {newest.name} stays in place."

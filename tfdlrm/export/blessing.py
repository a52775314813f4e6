"""What an export must show before it gets a number, under which servers would find it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tfdlrm.export.errors import VerifyError
from tfdlrm.export.verify import RAW, VerifyReport, raw_answers, verified_answers
from tfdlrm.export.versions import newest_version
from tfdlrm.metrics.binary import row_losses

Array = npt.NDArray[Any]

_BY_CHANCE = 1.96
"""Standard errors of a difference that is none in 19 of 20 samples."""


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
    """Weighted mean log loss of two versions on the same rows.

    Attributes:
        version: Directory of the version in place.
        rows: Number of rows.
        log_loss: That of the export.
        log_loss_in_place: That of the version in place.
        standard_error: Of their difference, row by row.
    """

    version: Path
    rows: int
    log_loss: float
    log_loss_in_place: float
    standard_error: float


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
        max_regression: By how much the log loss of the version in place may be lower, on the same rows, beyond what
            chance explains: 1.96 standard errors of the mean difference of a row. `None` compares nothing.

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


def refuse_low_auc(base: Path, auc: float, floor: float, rows: int, judges: str) -> None:
    """Raise unless the area under the curve is at least `floor`, on so many rows, `judges` in words; nan is not."""
    if not auc >= floor:
        raise VerifyError(
            f"{base}: not published: AUC must be at least `export.min_auc`, {floor:g}. Received: {auc:.6f} on "
            f"{rows:,} {judges}. {_in_place(base)} Train a better model, or lower `export.min_auc`."
        )


def _compared(base: Path, newest: Path, held_out: HeldOut, answers: Array, max_regression: float) -> Comparison:
    try:
        its_answers = raw_answers(newest, held_out.rows, held_out.batch_size)
    except VerifyError as error:
        raise VerifyError(
            f"{base}: not published: `export.no_regression` asks for the answers of the version in place, which gives "
            f"none: {error} Set `export.no_regression` to false to publish without."
        ) from None
    weight = np.ones(len(answers)) if held_out.weight is None else held_out.weight.astype(np.float64)
    losses = [row_losses(held_out.labels, p) for p in (answers, its_answers)]
    mine, its = (float(np.average(of_rows, weights=weight)) for of_rows in losses)
    spread = weight * (losses[0] - losses[1] - (mine - its))
    standard_error = float(np.sqrt(np.square(spread).sum()) / weight.sum())
    if not mine - its - _BY_CHANCE * standard_error <= max_regression:
        raise VerifyError(
            f"{base}: not published: log loss must be at most {max_regression:g} above that of the version in place "
            f"(`export.max_regression`), beyond what chance explains. Received: {mine:.6f}, and {its:.6f} of version "
            f"{newest.name}, on the same {len(held_out.labels):,} rows, standard error of the difference "
            f"{standard_error:.6f}. {_in_place(base)} Train a better model, raise `export.max_regression`, or "
            "set `export.no_regression` to false."
        )
    return Comparison(newest, len(held_out.labels), mine, its, standard_error)


def _in_place(base: Path) -> str:
    newest = newest_version(base)
    return "No version is in place." if newest is None else f"Version {newest.name} stays in place."

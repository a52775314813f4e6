"""Planted-teacher clicks: rows in Criteo's format whose true click probabilities are known.

Twenty-six Zipf-distributed categories of 3 to 100,000 values and thirteen counts go through one fixed teacher:
logit = dense terms + per-id terms + twelve dot products of hidden per-id vectors between pairs of categories, which a
dot interaction can find and a model that adds up its features cannot. Labels are Bernoulli draws of the resulting
probability, so the best AUC and log loss that any model can reach are known. They do not depend on anything that
is trained: a model that falls far short of them has a fault.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.criteo_text import create_text, write_criteo_rows
from tfdlrm.data.files import atomic_path
from tfdlrm.spec.criteo import DENSE_COLUMNS, LABEL, SPARSE_COLUMNS
from tfdlrm.spec.errors import DataError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]

CARDINALITIES = (
    *(1460, 583, 100_000, 50_000, 305, 24, 12517, 633, 3, 30_000, 5683, 80_000, 3194, 27),
    *(14992, 40_000, 10, 5652, 2173, 4, 60_000, 18, 15, 20_000, 105, 10_000),
)
"""Values of C1 to C26, the missing value not counted: those of Criteo Kaggle, the largest ones reduced."""

PAIRS = (
    *(("C9", "C17"), ("C20", "C17"), ("C9", "C22"), ("C20", "C23"), ("C17", "C23"), ("C17", "C22")),
    *(("C23", "C22"), ("C6", "C17"), ("C6", "C23"), ("C14", "C17"), ("C14", "C22"), ("C6", "C20")),
)
"""Pairs of categories whose hidden vectors are multiplied."""

_MISSING_IDS = {
    **{"C3": 0.03, "C4": 0.03, "C12": 0.04, "C16": 0.03, "C19": 0.1, "C20": 0.3, "C21": 0.05, "C22": 0.5},
    **{"C24": 0.02, "C25": 0.3, "C26": 0.3},
}
# Zipf-Mandelbrot: the value of rank r = 0, 1, ... has the share of rows of (x + _OFFSET) ** (-5 / 3) over [r, r + 1].
_OFFSET = 1.5
# A count is floor(exp(mean + spread * normal)) - lowered: mean, spread, share missing, lowered.
_COUNTS = (
    *((1.0, 1.2, 0.45, 0), (2.0, 1.6, 0.0, 2), (2.0, 1.3, 0.2, 0), (1.6, 1.0, 0.2, 0), (7.5, 2.0, 0.02, 0)),
    *((4.0, 1.5, 0.2, 0), (2.0, 1.4, 0.04, 0), (2.0, 1.0, 0.0, 0), (4.0, 1.3, 0.04, 0), (0.3, 0.7, 0.45, 0)),
    *((1.0, 1.0, 0.04, 1), (0.2, 0.9, 0.7, 0), (1.7, 1.1, 0.2, 0)),
)
_CURVED = {"I3": 0.25, "I7": -0.25, "I8": 0.25}  # weight of the square of a standardised count

_TEACHER_SEED = 20190531
_RANK = 2  # length of a hidden vector
# Variances of the three parts of the logit, before _SCALE. Hidden vectors have mean _LEAN in each component, so
# dot products also shift the mean of single ids; the variance given is what is left when that is taken away.
_DENSE, _PER_ID, _DOT, _LEAN = 0.25, 0.25, 0.6, 0.5
_FADE_VALUES = 10  # per-id terms of a column with n values are weighted by (10 / n) ** 0.6 above this many
_FADE_SHARE = 1 / 300  # and those of ids rarer than this by the root of their frequency over this
# Set once so that the Bayes AUC is 0.80 and the click rate 0.25.
_SCALE, _BIAS = 0.8895, -2.3574

_CHUNK_ROWS = 65_536
_BINS = 1 << 16


@dataclasses.dataclass(frozen=True)
class PlantedChunk:
    """Consecutive rows.

    Attributes:
        frame: `label` Float32; I1 to I13 Float64, null where missing; C1 to C26 String of 8 hexadecimal digits,
            "" where missing.
        probability: float32 `[rows]`, the true click probability.
    """

    frame: pl.DataFrame
    probability: Floats


@dataclasses.dataclass(frozen=True)
class PlantedSummary:
    """What was written.

    Attributes:
        rows: Number of rows.
        click_rate: Mean label.
        bayes_auc: AUC of the true probabilities, in expectation over the labels they give.
        bayes_log_loss: Their log loss in nats, likewise: the mean entropy of a label given its row.
    """

    rows: int
    click_rate: float
    bayes_auc: float
    bayes_log_loss: float


def planted_chunks(rows: int, seed: int = 0) -> Iterator[PlantedChunk]:
    """Yield planted rows in chunks of up to 65,536.

    Args:
        rows: Number of rows, at least 1. Fewer rows are the head of more rows of the same seed.
        seed: Seed of the rows, at least 0. The teacher is always the same.

    Raises:
        ValueError: `rows` or `seed` is too small.

    Example:
        >>> [chunk.frame.shape for chunk in planted_chunks(100_000)]
        [(65536, 40), (34464, 40)]
    """
    if rows < 1:
        raise ValueError(f"`rows` must be at least 1. Received: {rows}.")
    if seed < 0:
        raise ValueError(f"`seed` must be at least 0. Received: {seed}.")
    return (_chunk(seed, start // _CHUNK_ROWS, min(_CHUNK_ROWS, rows - start)) for start in range(0, rows, _CHUNK_ROWS))


def write_planted(
    path: str | Path, rows: int, seed: int = 0, progress: Callable[[int], None] = lambda rows: None
) -> PlantedSummary:
    """Write planted rows as Criteo's tab-separated text, and their true probabilities beside it.

    The probabilities go to `<path>.bayes.npy` (float32 `[rows]`). Both files get their names when they are complete,
    the text last. The same rows and seed give the same bytes.

    Args:
        path: File to write; gzip if the name ends in `.gz`. Missing folders are made.
        rows: Number of rows, at least 1.
        seed: Seed of the rows.
        progress: Called with the number of rows just written.

    Raises:
        DataError: the files cannot be written.
        ValueError: as in `planted_chunks`.
    """
    path = Path(path)
    chunks = planted_chunks(rows, seed)
    clicks, entropy = 0.0, 0.0
    histogram = np.zeros((2, _BINS))  # expected clicks and non-clicks by probability
    try:
        with contextlib.ExitStack() as stack:  # closes the last first, so that the text gets its name last
            text, npy = (
                stack.enter_context(create_text(stack.enter_context(atomic_path(name)), name.suffix == ".gz"))
                for name in (path, bayes_path(path))
            )
            np.lib.format.write_array_header_1_0(npy, {"descr": "<f4", "fortran_order": False, "shape": (rows,)})
            for chunk in chunks:
                write_criteo_rows(chunk.frame, text)
                npy.write(chunk.probability.astype("<f4").tobytes())
                p = chunk.probability.astype(np.float64)
                clicks += float(chunk.frame[LABEL].sum())
                entropy -= float(np.sum(p * np.log(p) + (1 - p) * np.log1p(-p)))
                place = (p * _BINS).astype(np.int64)
                histogram += [np.bincount(place, p, _BINS), np.bincount(place, 1 - p, _BINS)]
                progress(p.size)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror or error}.") from None
    return PlantedSummary(rows, clicks / rows, _expected_auc(*histogram), entropy / rows)


def bayes_path(path: str | Path) -> Path:
    """Return where the true probabilities of the rows in `path` lie."""
    return Path(f"{path}.bayes.npy")


def read_bayes(path: str | Path) -> Floats:
    """Return the true click probabilities of the rows in `path`, float32 `[rows]`.

    Raises:
        DataError: `path` has no such file beside it, or it is not one that `write_planted` wrote.
    """
    file = bayes_path(path)
    try:
        values = np.load(file, allow_pickle=False)
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}.") from None
    except ValueError:
        raise DataError(f"{file}: not a NumPy file, or cut short.") from None
    if values.dtype != np.float32 or values.ndim != 1:
        raise DataError(f"{file}: must hold float32 [rows]. Received: {values.dtype} {list(values.shape)}.")
    return cast(Floats, values)


class _Teacher:
    """The hidden effects of every value; arrays over a column's values end with the missing value."""

    def __init__(self) -> None:
        rng = np.random.default_rng(_TEACHER_SEED)
        n = dict(zip(SPARSE_COLUMNS, CARDINALITIES, strict=True))
        fade = {c: min(1.0, (_FADE_VALUES / n[c]) ** 0.6) for c in SPARSE_COLUMNS}
        unit = float(np.sqrt(_PER_ID / sum(f**2 for f in fade.values())))
        self.texts: dict[str, pl.Series] = {}
        self.effects: dict[str, Floats] = {}
        self.vectors: dict[str, Floats] = {}
        for index, c in enumerate(SPARSE_COLUMNS):
            share = _shares(n[c], _MISSING_IDS.get(c, 0.0))
            self.texts[c] = _texts(index, n[c])
            self.effects[c] = (unit * fade[c] * _standard(rng, share, 1)[:, 0]).astype(np.float32)
            if any(c in pair for pair in PAIRS):
                self.vectors[c] = (_LEAN + _standard(rng, share, _RANK).T).astype(np.float32, order="C")
        self.dot_weight = np.float32(np.sqrt(_DOT / (len(PAIRS) * _RANK)))
        slopes = rng.choice((-1.0, 1.0), len(DENSE_COLUMNS)) * rng.uniform(0.6, 1.4, len(DENSE_COLUMNS))
        self.slopes = slopes * np.sqrt(_DENSE / np.sum(slopes**2))

    def logit(self, counts: dict[str, Floats], ids: dict[str, Ids]) -> Floats:
        """Return the logit of each row; a count of nan or below 0 acts as 0."""
        total = np.zeros(len(ids[SPARSE_COLUMNS[0]]), np.float32)
        for c, slope, (mean, spread, *_) in zip(DENSE_COLUMNS, self.slopes, _COUNTS, strict=True):
            level = (np.log1p(np.fmax(counts[c], 0)) - np.float32(mean)) / np.float32(spread)
            total += level * (np.float32(slope) + np.float32(_CURVED.get(c, 0.0) * abs(slope)) * level)
        for c in SPARSE_COLUMNS:
            total += self.effects[c].take(ids[c])
        # [_RANK, rows] each: sums over two long rows are many times faster than over rows of two.
        looked_up = {c: table.take(ids[c], axis=1) for c, table in self.vectors.items()}
        for a, b in PAIRS:
            total += self.dot_weight * np.sum(looked_up[a] * looked_up[b], axis=0)
        # Far beyond what is drawn; it keeps probabilities off 0 and 1 in float32, so entropies are finite.
        return cast(Floats, np.clip(np.float32(_SCALE) * total + np.float32(_BIAS), -15, 15))


_teacher = functools.cache(_Teacher)


def _tail(rank: npt.ArrayLike) -> Doubles:
    """Share of an endless column beyond a rank, but for a factor."""
    return (_OFFSET + np.asarray(rank, np.float64)) ** (-2 / 3)


def _shares(values: int, missing: float) -> Doubles:
    """Share of rows of each value of a column, then that of the missing value."""
    edges = _tail(np.arange(values + 1))
    return np.append(np.diff(edges) / (edges[-1] - edges[0]) * (1 - missing), missing)


def _standard(rng: np.random.Generator, share: Doubles, width: int) -> Doubles:
    """Draw `[values + 1, width]` effects with mean 0 and mean variance 1 over rows; rare values have smaller ones."""
    drawn = rng.standard_normal((share.size, width)) * np.minimum(1, np.sqrt(share / _FADE_SHARE))[:, None]
    drawn -= share @ drawn
    return cast(Doubles, drawn / np.sqrt(np.mean(share @ drawn**2)))


def _texts(column: int, values: int) -> pl.Series:
    """Eight hexadecimal digits for each value of a column, all different, then "" for the missing value."""
    key = np.arange(values, dtype=np.uint32) + np.uint32((column + 1) << 20)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):  # MurmurHash3's finalizer is one to one
        key = (key ^ (key >> np.uint32(shift))) * np.uint32(factor)
    return pl.Series([f"{k:08x}" for k in key.tolist()] + [""])


def _chunk(seed: int, index: int, rows: int) -> PlantedChunk:
    """Draw chunk `index` in full and keep its head: a row must not depend on how many rows are asked for."""
    rng = np.random.default_rng((seed, index))
    counts: dict[str, Floats] = {}
    for c, (mean, spread, missing, lowered) in zip(DENSE_COLUMNS, _COUNTS, strict=True):
        normal = rng.standard_normal(_CHUNK_ROWS, dtype=np.float32)
        value = np.floor(np.exp(np.float32(mean) + np.float32(spread) * normal)) - np.float32(lowered)
        value[rng.random(_CHUNK_ROWS, dtype=np.float32) < missing] = np.nan
        counts[c] = value[:rows]
    ids = {c: _draw_ids(rng, c, n)[:rows] for c, n in zip(SPARSE_COLUMNS, CARDINALITIES, strict=True)}
    teacher = _teacher()
    probability = cast(Floats, 1 / (1 + np.exp(-teacher.logit(counts, ids))))
    label = (rng.random(_CHUNK_ROWS, dtype=np.float32)[:rows] < probability).astype(np.float32)
    frame = pl.DataFrame(
        [
            pl.Series(LABEL, label),
            *(pl.Series(c, value.astype(np.float64), nan_to_null=True) for c, value in counts.items()),
            *(teacher.texts[c].gather(value).alias(c) for c, value in ids.items()),
        ]
    )
    return PlantedChunk(frame, probability)


def _draw_ids(rng: np.random.Generator, column: str, values: int) -> Ids:
    """Draw ranks by the inverse of their distribution function; `values` stands for missing."""
    first, last = _tail(0), _tail(values)
    tail = first + rng.random(_CHUNK_ROWS) * (last - first)
    rank = 1 / (tail * np.sqrt(tail)) - _OFFSET  # the inverse of _tail
    ids = np.clip(rank, 0, values - 1).astype(np.int64)  # rounding can reach just past either end
    missing = _MISSING_IDS.get(column, 0.0)
    if missing:
        ids[rng.random(_CHUNK_ROWS, dtype=np.float32) < missing] = values
    return ids


def _expected_auc(clicks: Doubles, others: Doubles) -> float:
    """AUC from expected clicks and non-clicks by ascending score; those of one bin tie."""
    below = np.cumsum(others) - others / 2
    return float(np.sum(clicks * below) / (clicks.sum() * others.sum()))

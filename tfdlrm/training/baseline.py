"""Hashed logistic regression: the bar that a model with feature interactions has to clear."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from scipy import sparse as matrices
from scipy import special
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from tfdlrm.spec.errors import DataError

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]
Batch = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]

_STRENGTHS = (0.05, 0.2, 0.7, 2.0)  # candidates for scikit-learn's C
_TUNING_ROWS = 50_000
_STEP_ROWS = 512
_LEARNING_RATE, _L2 = 0.05, 10.0
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class HashedLogisticRegression:
    """Logistic regression on hashed ids and standardised numbers, with L2.

    Each id of each feature is one 0/1 input, hashed into `buckets`; each number is standardised and comes with a second
    input that says whether it is 0 (a missing value is 0 after the encoder).

    Up to `exact_rows` rows are solved exactly by scikit-learn's Newton-CG, with the strength of L2 chosen on the last
    fifth of (the last 50,000 of) them. More rows are streamed, never held: FTRL-Proximal (McMahan et al. 2013, made
    for click logs), steps of 512 rows in the order given, statistics of numbers from the first `exact_rows`.

    Args:
        buckets: Weights for hashed ids. Defaults to 2**20.
        groups: Feature of each id column, so that an id weighs the same anywhere in a bag:
            `numpy.repeat(range(features), hotness)`. Defaults to one feature for each column.
        exact_rows: Most rows held in memory. Defaults to 100,000.
        epochs: Passes over the batches where they are streamed. Defaults to 2; an iterator is good for 1.

    Attributes:
        solved_by: After `fit`, how: `"Newton-CG, C = 0.2"` or `"FTRL, 2 epochs"`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> batch = (np.zeros((4, 1)), np.array([[3], [8], [3], [8]]), np.array([[1], [0], [1], [0]]))
        >>> model = HashedLogisticRegression(buckets=64).fit([batch] * 50)
        >>> (model.predict(batch[0], batch[1])[:, 0] > 0.5).tolist()
        [True, False, True, False]
    """

    def __init__(
        self,
        buckets: int = 2**20,
        groups: Sequence[int] | None = None,
        exact_rows: int = 100_000,
        epochs: int = 2,
    ) -> None:
        for name, value in (("buckets", buckets), ("exact_rows", exact_rows), ("epochs", epochs)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1. Received: {value}.")
        self.buckets = buckets
        self.exact_rows = exact_rows
        self.epochs = epochs
        self.solved_by: str | None = None
        self._groups = groups

    def fit(
        self, batches: Iterable[Batch], progress: Callable[[int], None] = lambda rows: None
    ) -> HashedLogisticRegression:
        """Train from scratch.

        Args:
            batches: `(dense [B, n_dense], sparse [B, n_ids] with -1 as padding, label [B, 1] or [B])` of any sizes.
                Walked through `epochs` times if there are more than `exact_rows` rows, else once.
            progress: Called with the number of rows just trained on.

        Returns:
            This object.

        Raises:
            ValueError: there is no row, or `batches` is an iterator but `epochs` is above 1.
            DataError: batches differ in shape, or a label is not 0 or 1.
        """
        stream = iter(batches)
        if self.epochs > 1 and stream is batches:
            raise ValueError(f"`batches` must be iterable {self.epochs} times. Received: an iterator, good for one.")
        head, whole = self._take_head(stream)
        self._start(head)
        if whole:
            strength = self._solve(head)
            progress(sum(len(label) for _, _, label in head))
            self.solved_by = f"Newton-CG, C = {strength:g}"
            return self
        for epoch in range(self.epochs):
            for batch in itertools.chain(head, stream) if epoch == 0 else batches:
                progress(self._learn(batch))
        self.solved_by = f"FTRL, {self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return self

    def predict(self, dense: npt.NDArray[Any], sparse: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Return click probabilities, float32 `[B, 1]`.

        Args:
            dense: `[B, n_dense]`, as in `fit`.
            sparse: `[B, n_ids]`.

        Raises:
            ValueError: `fit` has not been called.
            DataError: the shapes are not those of `fit`.
        """
        if self.solved_by is None:
            raise ValueError("`fit` must be called before `predict`.")
        probability = special.expit(self._margin(*self._inputs(dense, sparse)))
        return cast(npt.NDArray[np.float32], probability.astype(np.float32)[:, None])

    def _take_head(self, stream: Iterator[Batch]) -> tuple[list[Batch], bool]:
        """Take batches while they hold at most `exact_rows` rows, and one more; say whether that was all."""
        head: list[Batch] = []
        held = 0
        for batch in stream:
            head.append(batch)
            held += len(batch[2])
            if held > self.exact_rows:
                return head, False
        if held == 0:
            raise ValueError("`batches` must hold at least one row. Received: none.")
        return head, True

    def _start(self, head: list[Batch]) -> None:
        self._shape = (np.shape(head[0][0])[1], np.shape(head[0][1])[1])
        for dense, sparse, _ in head:
            self._check(dense, sparse)
        numbers = np.concatenate([np.asarray(dense, np.float64) for dense, _, _ in head])
        self._mean, self._spread = numbers.mean(0), numbers.std(0)
        self._spread[self._spread == 0] = 1.0
        groups = range(self._shape[1]) if self._groups is None else self._groups
        if len(groups) != self._shape[1]:
            raise ValueError(f"`groups` must have one entry for each id column. Received: {len(groups)}.")
        self._salts = (np.asarray(groups, np.uint64) + np.uint64(1)) * _GOLDEN
        # Hashed ids, one place for padding whose weight stays 0, numbers, which numbers are 0, and the intercept.
        self._weights, self._sums, self._squares = np.zeros((3, self.buckets + 1 + 2 * self._shape[0] + 1))

    def _check(self, dense: npt.NDArray[Any], sparse: npt.NDArray[Any]) -> None:
        for name, array, width in (("dense", dense, self._shape[0]), ("sparse", sparse, self._shape[1])):
            shape = np.shape(array)
            if shape != (len(sparse), width):
                raise DataError(f"`{name}` must have shape [{len(sparse)}, {width}]. Received: {list(shape)}.")

    def _inputs(self, dense: npt.NDArray[Any], sparse: npt.NDArray[Any]) -> tuple[Floats, Ids]:
        """Return `[B, 2 * n_dense + 1]` numbers and `[B, n_ids]` places of hashed weights."""
        self._check(dense, sparse)
        dense, sparse = np.asarray(dense, np.float64), np.asarray(sparse)
        numbers = np.concatenate([(dense - self._mean) / self._spread, dense == 0, np.ones((len(dense), 1))], axis=1)
        # SplitMix64 over (feature, id), so that ids of one feature and of two spread alike.
        key = sparse.astype(np.uint64) + self._salts
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
        places = ((key ^ (key >> np.uint64(31))) % np.uint64(self.buckets)).astype(np.int64)
        places[sparse < 0] = self.buckets
        return numbers, places

    def _margin(self, numbers: Floats, places: Ids) -> Floats:
        return cast(Floats, self._weights.take(places).sum(axis=1) + numbers @ self._weights[self.buckets + 1 :])

    def _solve(self, head: list[Batch]) -> float:
        """Find the exact weights of all rows in `head`; return the C that was chosen."""
        labels = np.concatenate([_labels(label, len(sparse)) for _, sparse, label in head])
        inputs = [self._inputs(dense, sparse) for dense, sparse, _ in head]
        numbers, places = (np.concatenate(parts) for parts in zip(*inputs, strict=True))
        rate = np.clip(labels.mean(), 1e-6, 1 - 1e-6)
        self._weights[-1] = special.logit(rate)
        if labels.min() == labels.max():
            return 0.0  # with one class there is nothing but the intercept to learn
        used, column = np.unique(places, return_inverse=True)
        rows = np.repeat(np.arange(len(labels), dtype=np.int32), places.shape[1])
        values = (places != self.buckets).reshape(-1).astype(np.float64)
        hot = matrices.coo_array((values, (rows, column.reshape(-1).astype(np.int32))), (len(labels), used.size))
        x = matrices.hstack([hot, numbers[:, :-1]], format="csr")
        strength = _choose_strength(x[-_TUNING_ROWS:], labels[-_TUNING_ROWS:])
        solved = _fitted(strength, x, labels)
        self._weights[used] = solved.coef_[0, : used.size]
        self._weights[self.buckets + 1 :] = [*solved.coef_[0, used.size :], solved.intercept_[0]]
        return strength

    def _learn(self, batch: Batch) -> int:
        """Stream one batch through FTRL; return its rows."""
        dense, sparse, label = batch
        numbers, places = self._inputs(dense, sparse)
        y = _labels(label, len(places))
        for start in range(0, len(y), _STEP_ROWS):
            step = slice(start, start + _STEP_ROWS)
            error = special.expit(self._margin(numbers[step], places[step])) - y[step]
            touched, place = np.unique(places[step], return_inverse=True)
            gradient = np.bincount(place.reshape(-1), np.repeat(error, places.shape[1]), touched.size)
            padding = np.searchsorted(touched, self.buckets)  # last if there is any
            self._move(touched[:padding], cast(Floats, gradient[:padding]), _L2)
            self._move(slice(self.buckets + 1, None), error @ numbers[step], 0.0)
        return len(y)

    def _move(self, index: Ids | slice, gradient: Floats, l2: float) -> None:
        """FTRL-Proximal with beta 1 and no L1: Adagrad's rates, and L2 that is solved for, not stepped along."""
        squares = self._squares[index] + gradient**2
        sigma = (np.sqrt(squares) - np.sqrt(self._squares[index])) / _LEARNING_RATE
        self._sums[index] += gradient - sigma * self._weights[index]
        self._squares[index] = squares
        self._weights[index] = -self._sums[index] / ((1 + np.sqrt(squares)) / _LEARNING_RATE + l2)


def _labels(label: npt.NDArray[Any], rows: int) -> Floats:
    y = np.asarray(label, np.float64).reshape(-1)
    if y.size != rows:
        raise DataError(f"`label` must have as many rows as `sparse`. Received: {y.size} and {rows}.")
    if not np.isin(y, (0, 1)).all():
        raise DataError(f"`label` must be 0 or 1. Received: {y[~np.isin(y, (0, 1))][0]}.")
    return y


def _choose_strength(x: matrices.csr_array, labels: Floats) -> float:
    """Return the candidate C with the least log loss on the last fifth after training on the rest."""
    cut = len(labels) * 4 // 5
    if np.unique(labels[:cut]).size < 2:
        return _STRENGTHS[0]
    losses = []
    for strength in _STRENGTHS:
        margin = _fitted(strength, x[:cut], labels[:cut]).decision_function(x[cut:])
        losses.append(float(np.mean(np.logaddexp(0, margin) - labels[cut:] * margin)))
    return _STRENGTHS[int(np.argmin(losses))]


def _fitted(strength: float, x: matrices.csr_array, labels: Floats) -> LogisticRegression:
    with warnings.catch_warnings():
        # What is left after 200 steps, or below the tolerance, moves no AUC by 0.001.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(C=strength, solver="newton-cg", max_iter=200, tol=3e-4).fit(x, labels)

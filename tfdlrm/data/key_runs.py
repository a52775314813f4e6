"""Counts put aside on disk as sorted runs, and merged piece by piece in bounded memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.key_counts import Counted, merge_counts

_SAMPLES = 8  # of each run in a piece, on average: pieces exceed their size by a share of 1 / _SAMPLES at most


class Run(NamedTuple):
    """Counts of one table, ascending by key.

    Attributes:
        counted: Keys and counts. Where keys are fingerprints that may collide, there are texts, and a key that two
            texts share is there twice.
        texts: The text behind each key, if any.
    """

    counted: Counted
    texts: pl.Series | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays and texts."""
        return self.counted.nbytes + (0 if self.texts is None else int(self.texts.estimated_size()))

    def save(self, folder: Path, name: str) -> None:
        """Write the run into a folder, as files whose names begin with `name`; nothing where it is empty."""
        if not len(self.counted.keys):
            return
        for field, array in self.counted._asdict().items():
            if array is not None:
                np.save(folder / f"{name}.{field}.npy", array)
        if self.texts is not None:
            self.texts.to_frame("text").write_ipc(folder / f"{name}.texts.arrow", compression="uncompressed")

    @classmethod
    def load(cls, folder: Path, name: str) -> Run | None:
        """Return what `save` wrote, mapped into memory; `None` where the run was empty."""
        if not (folder / f"{name}.keys.npy").exists():
            return None
        arrays: dict[str, Any] = {}
        for field in Counted._fields:
            path = folder / f"{name}.{field}.npy"
            arrays[field] = np.load(path, mmap_mode="r") if path.exists() else None
        texts = folder / f"{name}.texts.arrow"
        return cls(Counted(**arrays), pl.read_ipc(texts).to_series() if texts.exists() else None)


class SharedKey(Exception):  # noqa: N818 - no failure of the merge: the caller says what it means
    """Two texts have the same key.

    Attributes:
        texts: Both of them.
    """

    def __init__(self, texts: tuple[str, str]) -> None:
        super().__init__(*texts)
        self.texts = texts


def merged_pieces(runs: Sequence[Run], at_once: int) -> Iterator[Counted]:
    """Merge runs and yield the result in pieces, strictly ascending by key (as an unsigned number) throughout.

    Args:
        runs: What to merge.
        at_once: About how many entries of the runs are held at a time, all of them if they are no more.

    Raises:
        SharedKey: two distinct texts have one key.
    """
    for bounds in _pieces([run.counted.keys for run in runs], at_once):
        parts = [run.counted.slice(start, stop) for run, (start, stop) in zip(runs, bounds, strict=True)]
        if any(run.texts is not None for run in runs):
            texts = [run.texts[a:b] for run, (a, b) in zip(runs, bounds, strict=True) if run.texts is not None]
            yield _merge_texts(parts, texts)
        else:
            yield merge_counts(parts)


def merge_runs(runs: Sequence[Run]) -> Run:
    """Merge runs in memory; unlike `merged_pieces`, texts are kept, and may share a key."""
    if any(run.texts is not None for run in runs):
        merged = _merged_texts([run.counted for run in runs], [run.texts for run in runs if run.texts is not None])
        return Run(Counted(merged["key"].to_numpy(), merged["count"].to_numpy()), merged["text"])
    return Run(merge_counts([run.counted for run in runs]))


def _pieces(keys: Sequence[npt.NDArray[Any]], at_once: int) -> Iterator[list[tuple[int, int]]]:
    """Yield where each run starts and stops in each piece; a key is in the same piece for all runs."""
    starts = [0] * len(keys)
    if sum(map(len, keys)) > at_once:
        step = max(1, at_once // (_SAMPLES * len(keys)))
        samples = np.sort(np.concatenate([array[step - 1 :: step].astype(np.uint64) for array in keys]))
        for pivot in np.unique(samples[:: max(1, at_once // step)]):
            stops = [_after(array, pivot) for array in keys]
            if stops != starts:
                yield list(zip(starts, stops, strict=True))
            starts = stops
    yield [(start, len(array)) for start, array in zip(starts, keys, strict=True)]


def _after(keys: npt.NDArray[Any], pivot: np.uint64) -> int:
    """Return how many ascending keys are at most `pivot`."""
    if pivot > np.iinfo(keys.dtype).max:
        return len(keys)
    return int(np.searchsorted(keys, pivot.astype(keys.dtype), side="right"))  # of the same type: nothing is copied


def _merged_texts(parts: Sequence[Counted], texts: Sequence[pl.Series]) -> pl.DataFrame:
    frames = [
        pl.DataFrame({"key": part.keys.astype(np.uint64), "text": text, "count": part.counts})
        for part, text in zip(parts, texts, strict=True)
    ]
    return pl.concat(frames).group_by("key", "text").agg(pl.col("count").sum()).sort("key", "text")


def _merge_texts(parts: Sequence[Counted], texts: Sequence[pl.Series]) -> Counted:
    merged = _merged_texts(parts, texts)
    keys = merged["key"].to_numpy()
    same = np.flatnonzero(keys[1:] == keys[:-1])
    if same.size:
        place = int(same[0])
        raise SharedKey((merged["text"][place], merged["text"][place + 1]))
    return Counted(keys, merged["count"].to_numpy())

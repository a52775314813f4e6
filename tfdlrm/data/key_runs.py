"""Counts put aside on disk as sorted runs, and merged piece by piece in bounded memory."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.disk_arrays import write_array
from tfdlrm.data.key_counts import Counted, merge_counts
from tfdlrm.spec.errors import DataError

_SAMPLES = 8  # of each run in a piece, on average: pieces exceed their size by a share of 1 / _SAMPLES at most
_TEXTS = 1 << 10  # texts that are written, and read again, together


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
        return self.counted.nbytes + self.text_bytes

    @property
    def text_bytes(self) -> int:
        """Bytes of the texts, 0 without any."""
        return 0 if self.texts is None else int(self.texts.estimated_size())

    @property
    def entries(self) -> int:
        """Number of keys."""
        return len(self.counted.keys)

    @property
    def keys(self) -> npt.NDArray[Any]:
        """The keys."""
        return self.counted.keys

    @property
    def has_firsts(self) -> bool:
        """Whether it is known where each key was first seen."""
        return self.counted.firsts is not None

    @property
    def has_texts(self) -> bool:
        """Whether there are texts."""
        return self.texts is not None

    def slice(self, start: int, stop: int) -> Run:
        """Return some of the entries."""
        return Run(self.counted.slice(start, stop), None if self.texts is None else self.texts[start:stop])

    def save(self, folder: Path, name: str) -> None:
        """Write the run into a folder, as two files whose names begin with `name` and a dot, for `SavedRun`."""
        arrays = {field: array for field, array in self.counted._asdict().items() if array is not None}
        noted: dict[str, Any] = {"entries": self.entries, "types": {f: str(a.dtype) for f, a in arrays.items()}}
        with open(folder / f"{name}.run", "wb") as file:
            for array in arrays.values():
                write_array(file, array)
            if self.texts is not None:
                noted["text_ends"] = ends = [0]
                for start in range(0, self.entries, _TEXTS):
                    block = _packed(self.texts[start : start + _TEXTS])
                    file.write(block)
                    ends.append(ends[-1] + len(block))
            noted["bytes"] = file.tell()
        (folder / f"{name}.json").write_text(json.dumps(noted), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, name: str) -> Run | None:
        """Return what `save` wrote, in memory; `None` where the run was empty.

        Raises:
            DataError: as `SavedRun` does.
        """
        saved = SavedRun(folder, name)
        return saved.slice(0, saved.entries) if saved.entries else None


class SavedRun:
    """A run that `Run.save` wrote. Its files are open only while they are read, so any number of runs may be merged.

    Args:
        folder: Where it was saved.
        name: The name it was saved under.

    Attributes:
        entries: Number of keys.
        has_firsts: Whether it is known where each key was first seen.
        has_texts: Whether there are texts.
        text_bytes: Bytes of the texts, 0 without any.

    Raises:
        DataError: a file is missing, or is not as long as when it was written.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._path = folder / f"{name}.run"
        note = folder / f"{name}.json"
        try:
            noted = json.loads(note.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise DataError(f"{note}: missing, though counts were put aside in its folder.") from None
        except ValueError:
            raise DataError(f"{note}: damaged since it was written.") from None
        self.entries: int = noted["entries"]
        self._types = {field: np.dtype(name) for field, name in noted["types"].items()}
        self._text_ends: list[int] | None = noted.get("text_ends")
        self.has_firsts = "firsts" in self._types
        self.has_texts = self._text_ends is not None
        self.text_bytes = self._text_ends[-1] if self._text_ends else 0
        found = self._path.stat().st_size if self._path.exists() else "no such file"
        if found != noted["bytes"]:
            raise DataError(f"{self._path}: must have the {noted['bytes']} bytes that were written. Received: {found}.")

    @property
    def keys(self) -> npt.NDArray[Any]:
        """The keys, mapped into memory: the file is open as long as the array is there."""
        if not self.entries:  # no file can be mapped of which there is nothing
            return np.empty(0, self._types["keys"])
        return np.memmap(self._path, self._types["keys"], mode="r", shape=(self.entries,))

    def slice(self, start: int, stop: int) -> Run:
        """Read some of the entries."""
        arrays: dict[str, Any] = {}
        begin = 0
        for field, dtype in self._types.items():
            place = begin + start * dtype.itemsize
            arrays[field] = np.fromfile(self._path, dtype, count=stop - start, offset=place)
            begin += self.entries * dtype.itemsize
        texts = None if self._text_ends is None else self._read_texts(begin, self._text_ends, start, stop)
        return Run(Counted(**arrays), texts)

    def _read_texts(self, begin: int, ends: Sequence[int], start: int, stop: int) -> pl.Series:
        blocks = [pl.Series("text", [], pl.String)]
        first = start // _TEXTS
        if start < stop:
            bounds = ends[first : -(-stop // _TEXTS) + 1]
            with open(self._path, "rb") as file:
                file.seek(begin + bounds[0])
                blocks += [_unpacked(file.read(b - a)) for a, b in pairwise(bounds)]
        return pl.concat(blocks)[start - first * _TEXTS : stop - first * _TEXTS]


def _packed(texts: pl.Series) -> bytes:
    block = io.BytesIO()
    # In the older form each block has its own texts only, not those that it was cut out of.
    texts.to_frame("text").write_ipc_stream(block, compat_level=pl.CompatLevel.oldest())
    return block.getvalue()


def _unpacked(block: bytes) -> pl.Series:
    return pl.read_ipc_stream(io.BytesIO(block)).to_series()


class SharedKey(Exception):  # noqa: N818 - no failure of the merge: the caller says what it means
    """Two texts have the same key.

    Attributes:
        texts: Both of them.
    """

    def __init__(self, texts: tuple[str, str]) -> None:
        super().__init__(*texts)
        self.texts = texts


def merged_pieces(runs: Sequence[Run | SavedRun], at_once: int) -> Iterator[Counted]:
    """Merge runs and yield the result in pieces, strictly ascending by key (as an unsigned number) throughout.

    Args:
        runs: What to merge.
        at_once: About how many entries of the runs are held at a time, all of them if they are no more.

    Raises:
        SharedKey: two distinct texts have one key.
    """
    for bounds in _pieces(runs, at_once):
        parts = [run.slice(start, stop) for run, (start, stop) in zip(runs, bounds, strict=True)]
        texts = [part.texts for part in parts if part.texts is not None]
        counted = [part.counted for part in parts]
        yield _merge_texts(counted, texts) if texts else merge_counts(counted)


def merged_on_disk(runs: Sequence[Run | SavedRun], at_once: int, folder: Path, name: str) -> Counted:
    """Merge runs into files and return the result, mapped from them."""
    wide = np.result_type(*(run.keys.dtype for run in runs))
    types = {"keys": wide, "counts": np.dtype(np.int64), "firsts": np.dtype(np.int64)}
    has_firsts = any(run.has_firsts for run in runs)
    paths = {field: folder / f"{name}.merged.{field}" for field in types if has_firsts or field != "firsts"}
    with ExitStack() as stack:
        files = {field: stack.enter_context(open(path, "wb")) for field, path in paths.items()}
        for piece in merged_pieces(runs, at_once):
            for field, file in files.items():
                write_array(file, getattr(piece, field).astype(types[field], copy=False))
    return Counted(**{field: np.memmap(path, types[field], mode="r") for field, path in paths.items()})


def merge_runs(runs: Sequence[Run]) -> Run:
    """Merge runs in memory; unlike `merged_pieces`, texts are kept, and may share a key."""
    if any(run.texts is not None for run in runs):
        merged = _merged_texts([run.counted for run in runs], [run.texts for run in runs if run.texts is not None])
        return Run(Counted(merged["key"].to_numpy(), merged["count"].to_numpy()), merged["text"])
    return Run(merge_counts([run.counted for run in runs]))


def _pieces(runs: Sequence[Run | SavedRun], at_once: int) -> Iterator[list[tuple[int, int]]]:
    """Yield where each run starts and stops in each piece; a key is in the same piece for all runs."""
    starts = [0] * len(runs)
    if sum(run.entries for run in runs) > at_once:
        step = max(1, at_once // (_SAMPLES * len(runs)))
        samples = np.sort(np.concatenate([np.array(run.keys[step - 1 :: step], np.uint64) for run in runs]))
        pivots = np.unique(samples[:: max(1, at_once // step)])
        for stops in np.transpose([_after(run.keys, pivots) for run in runs]).tolist():
            if stops != starts:
                yield list(zip(starts, stops, strict=True))
            starts = stops
    yield [(start, run.entries) for start, run in zip(starts, runs, strict=True)]


def _after(keys: npt.NDArray[Any], pivots: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return how many ascending keys are at most each of `pivots`."""
    pivots = np.minimum(pivots, np.uint64(np.iinfo(keys.dtype).max))  # as many keys are at most that
    return np.searchsorted(keys, pivots.astype(keys.dtype), side="right")  # of the same type: nothing is copied


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

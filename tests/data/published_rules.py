"""The rules of published recipes for Criteo, written down again in plain Python and NumPy: an oracle for `prepare`."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

TRAIN, VALIDATION, TEST = "train", "validation", "test"
HASHES = 26


@dataclass(frozen=True)
class Row:
    """A raw row: texts, empty where missing."""

    file: int
    label: int
    numbers: list[str]
    hashes: list[str]


@dataclass
class Expected:
    """What a recipe must make of raw rows, each split in the order of the raw files."""

    dense: dict[str, list[list[float]]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: [], TEST: []})
    ids: dict[str, list[list[int]]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: [], TEST: []})
    labels: dict[str, list[int]] = field(default_factory=lambda: {TRAIN: [], VALIDATION: [], TEST: []})

    def add(self, split: str, row: Row, dense: Sequence[float], ids: Sequence[int]) -> None:
        self.dense[split].append(list(dense))
        self.ids[split].append(list(ids))
        self.labels[split].append(row.label)


def read_rows(paths: Sequence[Path]) -> list[Row]:
    rows = []
    for file, path in enumerate(paths):
        for line in path.read_text().splitlines():
            label, *fields = line.split("\t")
            rows.append(Row(file, int(label), fields[:13], fields[13:]))
    return rows


def write_rows(folder: Path, files: Sequence[int], seed: int = 0) -> list[Path]:
    """Write files of that many rows with all that is odd in Criteo: gaps, negative numbers, hashes from 2^31 on."""
    rng = random.Random(seed)
    pools = []
    for column in range(HASHES):
        pool = [rng.getrandbits(32) for _ in range(3 + 5 * column)]
        pools.append([*pool, 0, 1, 2**31, 2**31 + 5, 2**32 - 1])
    paths = []
    for file, count in enumerate(files):
        lines = []
        for _ in range(count):
            numbers = []
            for column in range(13):
                lowest = -3 if file % 2 else -2
                number = rng.choice([rng.randint(lowest, 5), rng.randint(0, 300), rng.randint(0, 5_000_000)])
                numbers.append("" if rng.random() < 0.2 else str(number if column == 1 else max(number, -1)))
            hashes = []
            for pool in pools:
                place = min(int(rng.expovariate(4 / len(pool))), len(pool) - 1)  # a few are frequent
                hashes.append("" if rng.random() < 0.15 else f"{pool[place]:08x}")
            lines.append("\t".join([str(int(rng.random() < 0.3)), *numbers, *hashes]))
        paths.append(folder / f"day_{file}")
        paths[-1].write_text("\n".join(lines) + "\n")
    return paths


def last_day_of(rows: Sequence[Row], kaggle: bool) -> int:
    """Return the first row of the last day: of seven equal ones, the first of which take the remainder; or of files."""
    if not kaggle:
        return next(i for i, row in enumerate(rows) if row.file == rows[-1].file)
    lengths = [len(part) for part in np.array_split(np.arange(len(rows)), 7)]
    return sum(lengths[:-1])


def fb(rows: Sequence[Row], kaggle: bool, max_ind_range: int = -1) -> Expected:
    """data_utils.py: an empty field is "0"; hashes modulo max_ind_range; ids as they first come, of all days."""
    known: list[dict[int, int]] = [{} for _ in range(HASHES)]
    start = last_day_of(rows, kaggle)
    tests, _ = np.array_split(np.arange(start, len(rows)), 2)
    expected = Expected()
    for number, row in enumerate(rows):
        ids = []
        for column, text in zip(known, row.hashes, strict=True):
            key = int(text or "0", 16)
            key = key % max_ind_range if max_ind_range > 0 else key
            ids.append(column.setdefault(int(np.uint32(key).view(np.int32)), len(column)))  # X_cat is int32
        dense = np.array([max(int(text or "0"), 0) for text in row.numbers], np.int32)
        split = TRAIN if number < start else TEST if number in tests else VALIDATION
        expected.add(split, row, np.log(dense.astype(np.float32) + 1), ids)
    return expected


def nvidia(rows: Sequence[Row], kaggle: bool, frequency_limit: int) -> Expected:
    """spark_data_utils.py: missing values are not counted; ids by descending count from 1; what has none is 0.

    The order of equally frequent values is open; here the smaller hash comes first.
    """
    models = []
    for column in range(HASHES):
        counts = Counter(row.hashes[column] for row in rows if row.hashes[column])
        kept = sorted((v for v, n in counts.items() if n >= frequency_limit), key=lambda v: (-counts[v], int(v, 16)))
        models.append({value: place + 1 for place, value in enumerate(kept)})
    start = last_day_of(rows, kaggle)
    former = (len(rows) - start) // 2
    expected = Expected()
    for number, row in enumerate(rows):
        dense = [spark_log(text) for text in row.numbers]
        split = TRAIN if number < start else TEST if number < start + former else VALIDATION
        ids = [model.get(value, 0) for model, value in zip(models, row.hashes, strict=True)]
        expected.add(split, row, [float(np.float16(np.float32(x))) for x in dense], ids)
    return expected


def spark_log(text: str) -> float:
    """Return log(x + 3), which Spark makes null where x + 3 is not positive; null is filled with 0."""
    return math.log(int(text) + 3) if text and int(text) + 3 > 0 else 0.0


def tfm(rows: Sequence[Row], kaggle: bool, max_vocab_size: int) -> Expected:
    """criteo_preprocess.py: "0" where missing; hashes modulo; TFT's order: by count, then by text, both descending."""
    keys = [[str(int(text or "0", 16) % max_vocab_size) for text in row.hashes] for row in rows]
    models = []
    for column in range(HASHES):
        counts = Counter(row[column] for row in keys)
        ordered = sorted(((count, key.encode()) for key, count in counts.items()), reverse=True)
        models.append({key.decode(): place for place, (_, key) in enumerate(ordered)})
    start = last_day_of(rows, kaggle)
    expected = Expected()
    for number, (row, own) in enumerate(zip(rows, keys, strict=True)):
        dense = [np.float32(np.log(max(int(text or "0"), 0) + 1)) for text in row.numbers]
        ids = [model[key] for model, key in zip(models, own, strict=True)]
        expected.add(TRAIN if number < start else TEST, row, dense, ids)
    return expected


def torchrec_dense(rows: Sequence[Row]) -> list[np.ndarray]:
    """tsv_to_npys: one matrix a file, shifted by its smallest number, of all columns, to 2."""
    dense = []
    for file in sorted({row.file for row in rows}):
        matrix = np.array([[int(text or "0") for text in row.numbers] for row in rows if row.file == file], np.int32)
        matrix -= matrix.min() - 2
        dense += list(np.log(matrix, dtype=np.float32))
    return dense


def torchrec_terabyte(rows: Sequence[Row], table_rows: Sequence[int], threshold: int) -> Expected:
    """sparse_to_contiguous: rare values are 1, others as they first come from 2 on; then modulo the rows of a table."""
    keys = [[int(text or "0", 16) for text in row.hashes] for row in rows]
    counts = [Counter(row[column] for row in keys) for column in range(HASHES)]
    known: list[dict[int, int]] = [{} for _ in range(HASHES)]
    start = last_day_of(rows, kaggle=False)
    half = start + math.ceil((len(rows) - start) / 2)
    expected = Expected()
    for number, (row, own, dense) in enumerate(zip(rows, keys, torchrec_dense(rows), strict=True)):
        ids = []
        for column, key in enumerate(own):
            if threshold > 1 and counts[column][key] < threshold:
                ids.append(1 % table_rows[column])
            else:
                ids.append(known[column].setdefault(key, len(known[column]) + 2) % table_rows[column])
        expected.add(TRAIN if number < start else VALIDATION if number < half else TEST, row, dense, ids)
    return expected


def torchrec_kaggle(rows: Sequence[Row], table_rows: Sequence[int]) -> Expected:
    """The README's Kaggle run: no vocabulary; hashes modulo the tables' rows; the second half validates and tests."""
    half = len(rows) // 2 + len(rows) % 2
    expected = Expected()
    for number, (row, dense) in enumerate(zip(rows, torchrec_dense(rows), strict=True)):
        ids = [int(text or "0", 16) % size for text, size in zip(row.hashes, table_rows, strict=True)]
        for split in (TRAIN, VALIDATION, TEST) if number >= half else (TRAIN,):
            expected.add(split, row, dense, ids)
    return expected


Rule = Callable[[Sequence[Row]], Expected]

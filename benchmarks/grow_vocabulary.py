"""Seconds and memory that a vocabulary takes to grow by one day.

    python benchmarks/grow_vocabulary.py --keys 10000000 --new 100000

A vocabulary is written; a process of its own reads it, grows it by a day that has a tenth of its values and the new
ones, and writes it with its state. Memory is what the arrays take.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import numpy as np

from tfdlrm.data.grown_rows import grown
from tfdlrm.data.key_counts import Counted
from tfdlrm.data.vocabulary import Vocabulary
from tfdlrm.spec.coding import TableCoding
from tfdlrm.spec.growth import Growth


def main() -> None:
    """Parse the arguments, write the vocabulary, and grow it in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=10_000_000, help="values of the vocabulary (default: %(default)s)")
    parser.add_argument("--new", type=int, default=100_000, help="values that it grows by (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder is not None:
        _grow(args.folder)
        return
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), args.keys, args.new)
        subprocess.run([sys.executable, __file__, "--folder", folder], check=True)


def _write(folder: Path, known: int, new: int) -> None:
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(0, 2**64, known + new, dtype=np.uint64))
    is_new = np.zeros(len(keys), np.bool_)
    is_new[rng.choice(len(keys), new, replace=False)] = True
    own = np.sort(keys[~is_new].view(np.int64))
    Vocabulary(own, 2 + rng.permutation(len(own)).astype(np.int32), 2 + len(own)).save(folder / "parent.npz")
    day = keys[is_new | (rng.random(len(keys)) < 0.1)]
    np.savez(folder / "day.npz", keys=day, counts=rng.integers(1, 100, len(day)))


def _grow(folder: Path) -> None:
    with np.load(folder / "day.npz") as day:
        counted = Counted(day["keys"], day["counts"])
    tracemalloc.start()
    start = time.perf_counter()
    parent = Vocabulary.load(folder / "parent.npz")
    made = grown(TableCoding(), parent, np.ones(len(parent.keys), np.int32), counted, Growth(), 2)
    made.vocabulary.save(folder / "grown.npz")
    np.savez(folder / "grown.growth.npz", last_seen=made.last_seen, new_rows=made.new_rows)
    seconds = time.perf_counter() - start
    print(
        f"{len(parent.keys):,} values and {len(made.new_rows):,} new ones, {len(counted.keys):,} in the day: "
        f"{seconds:.1f} s, {tracemalloc.get_traced_memory()[1] / 2**20:,.0f} MiB at the peak"
    )


if __name__ == "__main__":
    main()

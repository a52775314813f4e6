"""Reading alone: shuffled rows from TFRecord files to batches, without a model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tensorflow as tf

from tfdlrm.data.dataset import packed_dataset
from tfdlrm.data.examples import example_dataset
from tfdlrm.data.generators.write import Format
from tfdlrm.data.manifest import MANIFEST, Manifest
from tfdlrm.pipelines.benchmarks.batches import write_random
from tfdlrm.pipelines.benchmarks.figures import machine_figures, peak_memory_bytes, rate_figures
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.features import FeatureSpec

Progress = Callable[[int], None]


def measure_input(
    spec: FeatureSpec,
    form: Format = "packed",
    rows: int = 1_000_000,
    batch_size: int = 2048,
    repeats: int = 5,
    seed: int = 0,
    directory: Path | None = None,
    progress: Progress = lambda rows: None,
) -> dict[str, Any]:
    """Time epochs of reading and return the figures.

    The files lie in the page cache, as they do on a machine with memory enough: what is measured is the work of
    reading, checking, shuffling and parsing, not the disk.

    Args:
        spec: What random rows look like.
        form: `"packed"` or `"example"`.
        rows: Random rows to write.
        batch_size: Rows per batch.
        repeats: Timed epochs after one warm-up.
        seed: Seed of rows and order.
        directory: Where to keep the rows; one that holds a data set is read as it is. Defaults to a temporary folder.
        progress: Called with the number of rows just read.

    Raises:
        DataError: `directory` holds a data set of the other format, or an epoch does not have the rows it should.
    """
    with tempfile.TemporaryDirectory(prefix="tfdlrm-benchmark-") as folder:
        where = directory or Path(folder)
        if directory is not None and (directory / MANIFEST).exists():
            manifest = Manifest.load(directory)
            manifest.refuse_unless_format(form)
        else:
            manifest = write_random(where, spec, rows, form, seed)
        train = manifest.split("train")
        rates = []
        for repeat in range(repeats + 1):
            open_rows = packed_dataset if form == "packed" else example_dataset
            dataset = open_rows(
                where,
                "train",
                batch_size,
                manifest=manifest,
                shuffle=True,
                seed=seed,
                start_epoch=repeat,
                epochs=repeat + 1,
            )
            started = time.perf_counter()
            # Counted inside the graph: a loop in Python would be half of what is measured.
            count = int(dataset.reduce(tf.constant(0, tf.int64), _count))
            rates.append(count / (time.perf_counter() - started))
            if count != train.rows:
                raise DataError(f"{where}: an epoch must have {train.rows} rows. Received: {count}.")
            progress(count)
    file_bytes = sum(shard.bytes for shard in train.shards)
    return {
        **rate_figures(rates[1:]),
        "peak_memory_bytes": peak_memory_bytes(),
        "format": form,
        "rows": train.rows,
        "bytes_per_row": file_bytes / max(1, train.rows),
        "batch_size": batch_size,
        **machine_figures(),
    }


def _count(rows: tf.Tensor, batch: tuple[Any, ...]) -> tf.Tensor:
    return rows + tf.shape(batch[1], tf.int64)[0]

"""Writing rows as Criteo's tab-separated text."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

import polars as pl

from tfdlrm.spec.criteo import DENSE_COLUMNS, LABEL


@contextlib.contextmanager
def create_text(file: Path, packed: bool) -> Iterator[IO[bytes]]:
    """Open a new file, as gzip if `packed`, with no name and no time in its header: they change from run to run."""
    with open(file, "wb") as raw:
        if not packed:
            yield raw
            return
        with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as zipped:
            yield cast(IO[bytes], zipped)


def write_criteo_rows(frame: pl.DataFrame, file: IO[bytes]) -> None:
    """Append rows: label, 13 whole numbers (null is empty), texts, in the frame's order."""
    whole = frame.with_columns(pl.col(LABEL, *DENSE_COLUMNS).cast(pl.Int64))
    whole.write_csv(file, separator="\t", include_header=False, quote_style="never")

"""Generated rows to files: a prepared data set, or raw text in Criteo's format."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from tfdlrm.data.criteo_text import create_text, write_criteo_rows
from tfdlrm.data.examples import ExampleWriter
from tfdlrm.data.files import atomic_path
from tfdlrm.data.generators.laws import Rows
from tfdlrm.data.manifest import Manifest
from tfdlrm.data.packed import PackedWriter
from tfdlrm.data.partial import is_disk_full, partial_data
from tfdlrm.data.prepare import refuse_foreign
from tfdlrm.spec.coding import Encoding, FeatureCoding, TableCoding
from tfdlrm.spec.criteo import DENSE_COLUMNS, LABEL, SPARSE_COLUMNS
from tfdlrm.spec.errors import ConfigError, DataError
from tfdlrm.spec.features import FeatureSpec

Format = Literal["packed", "example"]
_HEX_PAIRS = np.frombuffer(bytes(range(256)).hex().encode(), np.uint8).reshape(256, 2)
"""The two digits of each octet."""
_HEX_WIDTH = 8
_COUNT_SCALE = 4.0


def write_prepared(
    directory: Path | str,
    spec: FeatureSpec,
    splits: Mapping[str, Iterable[Rows]],
    recipe: Mapping[str, Any],
    form: Format = "packed",
    progress: Callable[[int], None] = lambda rows: None,
) -> Manifest:
    """Write generated rows as a prepared data set, whole or not at all.

    The rows grow in `<directory>.partial`, locked against a second writer, and get their name when all are there.

    Args:
        directory: Folder of the data set: missing, empty, or with prepared data, which are replaced.
        spec: The features.
        splits: Batches of each split.
        recipe: How the rows were drawn, for the manifest.
        form: `"packed"` or `"example"`.
        progress: Called with the number of rows just written.

    Raises:
        DataError: rows are not what the spec says, or the disk is full.
        ConfigError: the folder holds something else, or another process is writing it.
    """
    directory = Path(directory).resolve()
    refuse_foreign(directory)
    with partial_data(directory, {"generated": secrets.token_hex(8)}) as partial:  # never gone on from
        try:
            manifest = _write_splits(partial.out, spec, splits, recipe, form, progress)
        except BaseException as error:
            shutil.rmtree(partial.folder, ignore_errors=True)
            if is_disk_full(error):
                raise DataError(f"{directory.parent}: the disk is full. Nothing of the rows is kept.") from error
            raise
    return manifest


def _write_splits(
    directory: Path,
    spec: FeatureSpec,
    splits: Mapping[str, Iterable[Rows]],
    recipe: Mapping[str, Any],
    form: Format,
    progress: Callable[[int], None],
) -> Manifest:
    make = PackedWriter if form == "packed" else ExampleWriter
    written = {}
    for split, batches in splits.items():
        with make(directory, split, spec) as writer:
            for rows in batches:
                writer.add(**rows)
                progress(len(rows["label"]))
        written[split] = writer.close()
    encoding = Encoding(
        features={name: FeatureCoding(source=name) for name in spec.sparse_names},
        tables={table.name: TableCoding() for table in spec.tables},
    )
    manifest = Manifest(format=form, spec=spec, encoding=encoding, recipe=dict(recipe), splits=written)
    manifest.save(directory)
    return manifest


def refuse_unless_criteo(spec: FeatureSpec) -> None:
    """Raise `ConfigError` unless rows of `spec` fit Criteo's text: its columns, one id each, 8 hexadecimal digits."""
    if spec.dense_names != DENSE_COLUMNS or spec.sparse_names != SPARSE_COLUMNS:
        raise ConfigError(
            "raw text must have Criteo's columns, I1 to I13 and C1 to C26. "
            f"Received: {spec.n_dense} dense and {len(spec.sparse)} sparse features."
        )
    for feature in spec.sparse:
        if feature.hotness != 1 or feature.weighted:
            raise ConfigError(
                f"raw text must have one id a column. Received: bags of {feature.hotness} in `{feature.name}`."
            )
    if (largest := max(table.vocabulary_size for table in spec.tables)) > 16**_HEX_WIDTH:
        raise ConfigError(f"tables of raw text must have at most {16**_HEX_WIDTH} rows. Received: {largest}.")


def write_criteo(
    path: Path | str,
    spec: FeatureSpec,
    batches: Iterable[Rows],
    progress: Callable[[int], None] = lambda rows: None,
) -> tuple[int, float]:
    """Write generated rows as Criteo's tab-separated text, whole or not at all.

    An id becomes its eight hexadecimal digits. A dense number x becomes the count floor(e^(4 |x|)) - 1, since the
    format has whole numbers; a label is rounded.

    Args:
        path: File to write; gzip if the name ends in `.gz`.
        spec: The features; see `refuse_unless_criteo`.
        batches: The rows.
        progress: Called with the number of rows just written.

    Returns:
        Rows written, and their mean label.
    """
    refuse_unless_criteo(spec)
    count, clicks = 0, 0.0
    with atomic_path(path) as temporary, create_text(temporary, Path(path).suffix == ".gz") as text:
        for rows in batches:
            frame = _criteo_frame(rows)
            write_criteo_rows(frame, text)
            count += len(frame)
            clicks += float(frame[LABEL].sum())
            progress(len(frame))
    return count, clicks / max(1, count)


def _criteo_frame(rows: Rows) -> pl.DataFrame:
    counts = np.floor(np.exp(_COUNT_SCALE * np.abs(rows["dense"]).astype(np.float64))) - 1
    return pl.DataFrame(
        [
            pl.Series(LABEL, np.rint(rows["label"][:, 0])),
            *(pl.Series(name, counts[:, column]) for column, name in enumerate(DENSE_COLUMNS)),
            pl.Series("C1 to C26", _hex(rows["sparse"])),  # one text of them all: a tenth of the time of 26
        ]
    )


def _hex(ids: npt.NDArray[Any]) -> npt.NDArray[np.str_]:
    """Return the hexadecimal digits of the ids `[rows, n]` of each row, zeros in front, tabs between."""
    count, width = ids.shape
    octets = ids.astype(">u4").view(np.uint8).reshape(count, width, _HEX_WIDTH // 2)
    fields = np.full((count, width, _HEX_WIDTH + 1), ord("\t"), np.uint8)
    fields[:, :, :_HEX_WIDTH] = _HEX_PAIRS[octets].reshape(count, width, _HEX_WIDTH)
    texts = np.ascontiguousarray(fields.reshape(count, -1)[:, :-1])
    return texts.view(f"S{texts.shape[1]}")[:, 0].astype(np.str_)

"""Criteo's click logs as a TFDS data set, and batches for a model from any TFDS data set.

After `import tfdlrm.data.tfds`, `tfds.load("criteo_click_logs/kaggle", ...)` works like any other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from tfdlrm.data.reader import RawReader
from tfdlrm.data.tfds_batches import batches_of, learn_encoder
from tfdlrm.spec.criteo import DENSE_COLUMNS, LABEL, SPARSE_COLUMNS
from tfdlrm.spec.errors import DataError
from tfdlrm.spec.raw import CRITEO_FORMAT

__all__ = ["CriteoClickLogs", "batches_of", "learn_encoder"]

DAYS = 24
# Keys must grow with the place of a row. No day of the Terabyte logs has as many rows; one that had would be refused.
_MOST_ROWS_A_FILE = 1 << 28
_DESCRIPTION = """
Clicks on display advertisements, published by Criteo: for each row whether it was clicked, 13 counts (`I1` to `I13`)
and 26 categories (`C1` to `C26`) as hexadecimal strings. A missing count is NaN, a missing category the empty string.
Rows keep the order of the raw files, which is that of time.
"""
_CONFIGS = (
    (
        "kaggle",
        "Criteo Display Advertising Challenge (Kaggle): 45.8 million rows of seven days, all in `train`; the own test "
        "rows of the challenge have no labels.",
    ),
    ("terabyte", "Criteo 1TB Click Logs: 24 days, 4.4 billion rows; days 0 to 22 in `train`, day 23 in `test`."),
)


class CriteoClickLogs(tfds.core.GeneratorBasedBuilder):
    """TFDS builder `criteo_click_logs` with the configs `kaggle` and `terabyte`.

    Splits hold rows in the order of the raw files, so that a slice such as `train[:85%]` is a stretch of time. A row
    that is malformed, or a file that is missing or cut short, fails the generation with its name and line.

    With a Beam runner or Beam options in the download config, the files are read by Beam, each by one worker. Without,
    TFDS serializes some thousand rows a second: `max_examples_per_split` of the download config takes the first ones
    only, and `tfdlrm.data.prepare` is the way to train on all of them.

    Example:
        >>> config = tfds.download.DownloadConfig(manual_dir="/data/criteo")  # holds train.txt
        >>> rows = tfds.load(  # doctest: +SKIP
        ...     "criteo_click_logs/kaggle", split="train", download_and_prepare_kwargs={"download_config": config}
        ... )
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = """
    Criteo's terms must be accepted before the files may be downloaded, so put them into the manual folder yourself.
    `kaggle`: train.txt of the Display Advertising Challenge. `terabyte`: day_0 to day_23 of the 1TB Click Logs. All of
    them may be compressed by gzip, with .gz after the name.
    """
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name, description=text) for name, text in _CONFIGS]

    # TFDS looks for this itself with a library that it does not install (importlib_resources).
    code_path = tfds.core.Path(__file__)

    _with_beam = False

    def _info(self) -> Any:
        scalars: dict[str, Any] = {LABEL: tfds.features.Scalar(np.int64, doc="1 for a click, else 0")}
        scalars |= {name: tfds.features.Scalar(np.float32) for name in DENSE_COLUMNS}
        scalars |= {name: tfds.features.Text() for name in SPARSE_COLUMNS}
        inputs = {name: name for name in (*DENSE_COLUMNS, *SPARSE_COLUMNS)}
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(scalars),
            supervised_keys=(inputs, LABEL),
            homepage="https://ailab.criteo.com/ressources/",
            disable_shuffling=True,
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any, **options: Any) -> None:
        self._with_beam = bool(download_config.beam_runner or download_config.beam_options)
        super()._download_and_prepare(dl_manager, download_config, **options)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = os.fspath(dl_manager.manual_dir)
        if self.builder_config.name == "kaggle":
            return {"train": self._generate_examples([_raw_file(folder, "train.txt")])}
        days = [_raw_file(folder, f"day_{day}") for day in range(DAYS)]
        return {"train": self._generate_examples(days[:-1]), "test": self._generate_examples(days[-1:])}

    def _generate_examples(self, paths: Sequence[str]) -> Any:
        if not self._with_beam:
            return (example for place in enumerate(paths) for example in examples_of(place))
        beam = tfds.core.lazy_imports.apache_beam
        return beam.Create(list(enumerate(paths))) | beam.Reshuffle() | beam.FlatMap(examples_of)


def examples_of(place: tuple[int, str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a raw file, each with a key that grows with its place.

    Args:
        place: Number of the file and its path.

    Raises:
        DataError: a row is malformed, or the file is cut short.
    """
    number, path = place
    reader = RawReader(
        CRITEO_FORMAT, [path], DENSE_COLUMNS, SPARSE_COLUMNS, hex_columns=dict.fromkeys(SPARSE_COLUMNS, None)
    )
    key = number * _MOST_ROWS_A_FILE
    for chunk in reader:
        for row in chunk.frame.iter_rows(named=True):
            for name in DENSE_COLUMNS:
                row[name] = math.nan if row[name] is None else row[name]
            yield key, {**row, LABEL: int(row[LABEL])}
            key += 1
        if key >= (number + 1) * _MOST_ROWS_A_FILE:
            raise DataError(f"{path}: must have fewer than {_MOST_ROWS_A_FILE} rows.")


def _raw_file(folder: str, name: str) -> str:
    for path in (os.path.join(folder, name), os.path.join(folder, name + ".gz")):
        if tfds.core.Path(path).exists():
            return path
    raise DataError(f"{folder}: must hold {name} or {name}.gz. Received: neither.")

"""The TFDS builder by TFDS's own test of builders, on invented rows."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("dill", reason="tfds.testing needs dill")
import tensorflow_datasets as tfds  # noqa: E402

from tests.data.test_tfds import write_raw  # noqa: E402
from tfdlrm.data.tfds import CriteoClickLogs  # noqa: E402

RAW = tempfile.TemporaryDirectory()
write_raw(Path(RAW.name))


class KaggleTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = CriteoClickLogs
    BUILDER_CONFIG_NAMES_TO_TEST = ["kaggle"]
    EXAMPLE_DIR = RAW.name
    SPLITS = {"train": 30}


class TerabyteTest(tfds.testing.DatasetBuilderTestCase):
    DATASET_CLASS = CriteoClickLogs
    BUILDER_CONFIG_NAMES_TO_TEST = ["terabyte"]
    EXAMPLE_DIR = RAW.name
    SPLITS = {"train": 46, "test": 2}

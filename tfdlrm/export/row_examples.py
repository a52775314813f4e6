"""Raw rows as serialized `tf.train.Example`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf


def row_examples(rows: Mapping[str, npt.NDArray[Any]]) -> list[bytes]:
    """Return rows as examples, without features for missing values: NaN and `""`; the same bytes for the same rows.

    Args:
        rows: Raw columns, each `[n]`: numbers, strings as `bytes` or `str`.
    """
    examples = []
    for values in zip(*rows.values(), strict=True):
        example = tf.train.Example()
        for name, value in zip(rows, values, strict=True):
            if isinstance(value, (bytes, str)):
                if value:
                    text = value.encode() if isinstance(value, str) else value
                    example.features.feature[name].bytes_list.value.append(text)
            elif not np.isnan(value):
                example.features.feature[name].float_list.value.append(value)
        examples.append(example.SerializeToString(deterministic=True))
    return examples

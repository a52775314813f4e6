"""The features that commands draw rows for where no prepared data set says them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfdlrm.spec.config import RunConfig
from tfdlrm.spec.criteo import click_log_spec
from tfdlrm.spec.derive import encoding_of, spec_of
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec


def recipe_spec(config: RunConfig, path: Path, instead: str) -> FeatureSpec:
    """Return the features of a recipe that hashes every table, so that it alone says how large they are.

    Args:
        config: The recipe.
        path: Where it was read, for the message.
        instead: Arguments that say sizes, for the message.

    Raises:
        ConfigError: it counts vocabularies.
    """
    codings = encoding_of(config.data).tables
    counted = sorted(name for name, coding in codings.items() if coding.buckets is None)
    if counted:
        raise ConfigError(
            f"`--config` must come with {instead} where vocabularies are counted: only prepared rows "
            f"say how large they are. Received: {path}, which counts {', '.join(counted[:3])}"
            f"{' ...' if len(counted) > 3 else ''}."
        )
    sizes = {name: coding.first_id + (coding.buckets or 0) for name, coding in codings.items()}
    return spec_of(config.data, sizes, config.model.embedding_dim)


def tables_spec(table_rows: Sequence[int], embedding_dim: int, hotness: Sequence[int] = (1,)) -> FeatureSpec:
    """Return Criteo's 13 dense features and a sparse feature C1, C2, ... with a table of its own for each size.

    Args:
        table_rows: Rows of each table.
        embedding_dim: Row width of every table.
        hotness: Bag length of each feature; one number stands for all.

    Raises:
        ConfigError: there are not as many bag lengths as tables.

    Example:
        >>> tables_spec([100, 5], 16, [3, 1]).id_columns
        {'C1': (0, 3), 'C2': (3, 4)}
    """
    if len(hotness) == 1:
        hotness = [hotness[0]] * len(table_rows)
    if len(hotness) != len(table_rows):
        raise ConfigError(f"`--hotness` must have 1 or {len(table_rows)} numbers. Received: {len(hotness)}.")
    return click_log_spec(table_rows, embedding_dim, hotness)

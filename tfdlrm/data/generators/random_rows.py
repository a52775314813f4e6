"""Random rows: a batch is a pure function of (seed, split, number), so any of them can be drawn at any time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tfdlrm.data.generators.laws import WRITE_ROWS, IdLaw, RowLaw, Rows, seed_of
from tfdlrm.spec.errors import ConfigError
from tfdlrm.spec.features import FeatureSpec


class RandomRows:
    """Draws random rows for a spec.

    Args:
        spec: The features.
        ids: Law of the ids of every table. Defaults to uniform.
        law: Law of bags, dense numbers and labels.
        seed: Seed, at least 0.
        split: Rows of another split are other rows.

    Example:
        >>> from tfdlrm.spec.criteo import criteo_spec
        >>> rows = RandomRows(criteo_spec([10] * 26, 4), IdLaw(kind="powerlaw")).batch(7, 32)
        >>> rows["dense"].shape, rows["sparse"].shape, rows["label"].shape
        ((32, 13), (32, 26), (32, 1))
    """

    def __init__(
        self,
        spec: FeatureSpec,
        ids: IdLaw | None = None,
        law: RowLaw | None = None,
        seed: int = 0,
        split: str = "train",
    ) -> None:
        seed_of(seed, split)
        self.spec = spec
        self._ids = IdLaw() if ids is None else ids
        self._law = RowLaw() if law is None else law
        self._seed = seed
        self._split = split

    def batch(self, number: int, rows: int) -> Rows:
        """Draw a batch.

        Args:
            number: Which one, at least 0.
            rows: Rows in it, at least 1.

        Returns:
            `dense` float32 `[rows, n_dense]`, `sparse` of the spec's id type `[rows, n_ids]`, padded with -1, `label`
            float32 `[rows, 1]`; `weights` float32 `[rows, n_ids]` where a feature is weighted.

        Raises:
            ConfigError: `number` or `rows` is too small.
        """
        if number < 0 or rows < 1:
            raise ConfigError(f"`number` must be at least 0 and `rows` at least 1. Received: {number} and {rows}.")
        random = np.random.default_rng(seed_of(self._seed, self._split, number))
        sparse = np.empty((rows, self.spec.n_ids), self.spec.id_dtype)
        for feature in self.spec.sparse:
            start, stop = self.spec.id_columns[feature.name]
            table_rows = self.spec.table_of(feature).vocabulary_size
            sparse[:, start:stop] = self._ids.draw(random, (rows, feature.hotness), table_rows)
            sizes = self._law.sizes(random, rows, feature.hotness)
            sparse[:, start:stop][np.arange(feature.hotness) >= sizes[:, np.newaxis]] = -1
        return {"sparse": sparse, **self._law.others(random, rows, self.spec)}

    def batches(self, rows: int) -> Iterator[Rows]:
        """Yield `rows` rows, 65,536 at a time; fewer rows are the head of more."""
        for number, start in enumerate(range(0, rows, WRITE_ROWS)):
            yield {name: array[: rows - start] for name, array in self.batch(number, WRITE_ROWS).items()}

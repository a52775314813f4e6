"""What a model keeps of the tables of a spec: what a memory budget has to count."""

from __future__ import annotations

from typing import NamedTuple

from tfdlrm.spec.compression import Compression
from tfdlrm.spec.features import FeatureSpec


class Storage(NamedTuple):
    """What a model keeps in memory for its tables.

    Attributes:
        vectors: Whether it has a vector for each row. Defaults to `True`.
        linear: Whether it has a weight of 4 bytes for each row, alone or beside the vectors. Defaults to `False`.
        features: Sparse features whose tables it makes; `None`, the default, for all.
        other_bytes: What it keeps in tables of its own. Defaults to 0.
        narrow: Whether narrower rows, projected to the full width, suit it. Defaults to `True`.
    """

    vectors: bool = True
    linear: bool = False
    features: tuple[str, ...] | None = None
    other_bytes: int = 0
    narrow: bool = True

    @property
    def beside(self) -> bool:
        """Whether each row has a linear weight beside its vector."""
        return self.vectors and self.linear

    def tables_of(self, spec: FeatureSpec) -> FeatureSpec:
        """Return the tables that the model makes: those it reads, one column wide where it has no vectors."""
        if self.features and set(self.features) <= set(spec.sparse_names):
            spec = spec.only(self.features)
        if self.vectors:
            return spec
        linear = spec.linear_spec()
        # A table that is set to stay as it is stays so, even if nothing of its settings matters to a weight.
        tables = tuple(
            table
            if table.compression or full.compression is None
            else table.model_copy(update={"compression": Compression()})
            for table, full in zip(linear.tables, spec.tables, strict=True)
        )
        return linear.model_copy(update={"tables": tables})

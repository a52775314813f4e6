"""Which tables lie in which stacked variable, and where: plain data, no TensorFlow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tfdlrm.spec.features import FeatureSpec, TableConfig

MAX_ELEMENTS = 2**31 - 1


@dataclass(frozen=True)
class Stack:
    """Tables of one width laid one below the other, with one row of zeros at the end for padding ids.

    Attributes:
        tables: The tables, top to bottom.
        first_rows: First row of each table, by name.
        rows: Rows of the variable, the padding row included.
        columns: Columns of the id matrix that read this stack, in ascending order.
        features: Indices of the features that read it, in spec order.
        row_offsets: For each of `columns`, the first row of its table.
    """

    tables: tuple[TableConfig, ...]
    first_rows: dict[str, int]
    rows: int
    columns: np.ndarray
    features: tuple[int, ...]
    row_offsets: np.ndarray

    @property
    def embedding_dim(self) -> int:
        """Row width of every table in the stack."""
        return self.tables[0].embedding_dim


def plan_stacks(spec: FeatureSpec, stacks_per_dim: int = 4, max_elements: int = MAX_ELEMENTS) -> list[Stack]:
    """Cut the tables into stacks.

    Tables of one width are cut, in the order features first read them, into at most `stacks_per_dim` runs with about
    equally many lookups: several medium gathers and scatters keep more cores busy than one. More stacks are made only
    where one would pass `max_elements`; a table larger than that has a stack of its own.

    Args:
        spec: The features.
        stacks_per_dim: Most stacks for the tables of one width, size permitting. Defaults to 4.
        max_elements: Most elements of one stack. Defaults to 2^31 - 1.
    """
    groups: list[list[TableConfig]] = []
    by_dim: dict[int, list[TableConfig]] = {}
    for feature in spec.sparse:
        table = spec.table_of(feature)
        tables = by_dim.setdefault(table.embedding_dim, [])
        if table not in tables:
            tables.append(table)
    for tables in by_dim.values():
        groups.extend(_cut(spec, tables, stacks_per_dim, max_elements))
    return [_stack(spec, group) for group in groups]


def _cut(
    spec: FeatureSpec, tables: list[TableConfig], stacks_per_dim: int, max_elements: int
) -> list[list[TableConfig]]:
    lookups = {t.name: sum(f.hotness for f in spec.sparse if f.table == t.name) for t in tables}
    share = sum(lookups.values()) / min(stacks_per_dim, len(tables))
    groups: list[list[TableConfig]] = [[]]
    done = elements = 0
    for table in tables:
        size = (table.vocabulary_size + 1) * table.embedding_dim
        full = done >= share * len(groups) - 0.5 * lookups[table.name]
        if groups[-1] and (full or elements + size > max_elements):
            groups.append([])
            elements = 0
        groups[-1].append(table)
        done += lookups[table.name]
        elements += size
    return groups


def _stack(spec: FeatureSpec, tables: list[TableConfig]) -> Stack:
    first_rows, rows = {}, 0
    for table in tables:
        first_rows[table.name] = rows
        rows += table.vocabulary_size
    columns: list[int] = []
    offsets: list[int] = []
    features: list[int] = []
    for index, feature in enumerate(spec.sparse):
        if feature.table in first_rows:
            start, stop = spec.id_columns[feature.name]
            columns.extend(range(start, stop))
            offsets.extend([first_rows[feature.table]] * feature.hotness)
            features.append(index)
    return Stack(tuple(tables), first_rows, rows + 1, np.array(columns), tuple(features), np.array(offsets))

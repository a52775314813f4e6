"""Embedding tables fitted into a number of bytes, table by table, where it costs least."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdlrm.spec.byte_sizes import bytes_in_words, parse_bytes
from tfdlrm.spec.compression import BYTES, Compression
from tfdlrm.spec.errors import SpecError, did_you_mean
from tfdlrm.spec.features import FeatureSpec, TableConfig
from tfdlrm.spec.frozen import Frozen
from tfdlrm.spec.table_signal import ZIPF, Counts, Options, TableSignal, options

METHODS = ("bfloat16", "dim", "hash", "quotient_remainder")
COLUMNS = ("table", "rows", "from", "to", "how", "why")
_NAMED = 3


class TableChoice(Frozen):
    """What becomes of one table.

    Attributes:
        table: Its name.
        rows: Its rows.
        bytes_before: Uncompressed; learned pooling weights included, and linear ones where they count.
        bytes_after: As chosen.
        compression: How it is stored; `None` where it stays whole.
        kept: Estimated share of what the table can teach a model that is left.
        how: The settings in words.
        why: The reason in words.
    """

    table: str
    rows: int
    bytes_before: int
    bytes_after: int
    compression: Compression | None
    kept: float
    how: str
    why: str


class BudgetPlan(Frozen):
    """How the tables of a spec fit into a number of bytes.

    Attributes:
        spec: The features, tables compressed as planned.
        choices: What becomes of each table, in the order of the spec.
        budget: Bytes that all tables together may take.
        bytes_before: Uncompressed.
        bytes_after: As planned, at most `budget`.
        linear: Whether a linear weight of 4 bytes a row is counted too.
        other_bytes: What the model keeps in tables of its own, counted before and after.
        assumes: What was taken for how often rows are read.
    """

    spec: FeatureSpec
    choices: tuple[TableChoice, ...]
    budget: int
    bytes_before: int
    bytes_after: int
    linear: bool
    assumes: str
    other_bytes: int = 0

    @property
    def caption(self) -> str:
        """The whole plan in one line."""
        share = f"{self.bytes_after / self.bytes_before:.1%}; " if self.bytes_before else ""
        return (
            f"{bytes_in_words(self.bytes_before)} of tables in {bytes_in_words(self.bytes_after)} "
            f"({share}budget {bytes_in_words(self.budget)})" + (f"; {self.assumes}" if self.assumes else "")
        )

    def table(self) -> list[list[str]]:
        """Return a line for each table, largest first; the columns are `COLUMNS`."""
        ordered = sorted(self.choices, key=lambda choice: -choice.bytes_before)
        return [
            [c.table, f"{c.rows:,}", bytes_in_words(c.bytes_before), bytes_in_words(c.bytes_after), c.how, c.why]
            for c in ordered
        ]

    def figures(self) -> dict[str, Any]:
        """Return the plan as JSON values."""
        figures: dict[str, Any] = json.loads(self.model_dump_json())
        return figures

    def __str__(self) -> str:
        lines = [list(COLUMNS), *self.table()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
        aligned = [
            "  ".join(
                cell.rjust(width) if 0 < column < 4 else cell.ljust(width)
                for column, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.caption, *aligned])


def fit_budget(
    spec: FeatureSpec,
    bytes: int | str,
    *,
    counts: Mapping[str, Counts | None] | None = None,
    samples: int | None = None,
    methods: Sequence[str] = METHODS,
    whole_rows: int = 1000,
    linear: bool = False,
    other_bytes: int = 0,
) -> BudgetPlan:
    """Choose how each table is stored, so that all of them fit into a number of bytes and little is lost.

    Which bytes are worth most is estimated as `tfdlrm.spec.table_signal` says. Every table starts as small as it may
    be. Then the change that gives back the most signal per byte is made, again and again, until the next one no longer
    fits; of that one, as much is made as fits. So one price of a byte holds in all tables, what is left unused is less
    than one step of one table, and more bytes never make a table smaller.

    Args:
        spec: The features. Tables with a `compression` of their own keep it; their bytes count.
        bytes: What all tables may take, in bytes or as a text such as `"512MB"`.
        counts: How often each row of a table was read, in the order of rows, by table; a sample of the reads will do,
            and so will sums over runs of rows, `BinnedCounts`.
            `None` for a table whose ids are in no order of count. Tables that are not named count as ordered by
            count, and read as Zipf's law has it.
        samples: Training samples. Defaults to four times the rows of the largest table.
        methods: What may be used of `"bfloat16"`, `"dim"` (narrower rows, projected), `"hash"` (the first ids keep
            rows of their own) and `"quotient_remainder"`. Defaults to all. Without `"hash"` steps are coarse, and
            more of the budget may stay unused.
        whole_rows: Tables of up to so many rows stay whole, and no table gets fewer. Defaults to 1000.
        linear: Whether the model has a weight of 4 bytes beside each row, which hashing saves too. Learned pooling
            weights, of features with `learned_weights`, count in any case.
        other_bytes: What the model keeps in tables of its own, such as weights of combinations. Defaults to 0.

    Raises:
        SpecError: `bytes` is no size, or less than the least that the tables can be stored in; a method or table is
            unknown.

    Example:
        >>> from tfdlrm.spec.criteo import KAGGLE, criteo_spec
        >>> plan = fit_budget(criteo_spec(KAGGLE, 16), "512MB")
        >>> plan.bytes_after <= 512_000_000 < plan.bytes_before
        True
    """
    budget = parse_bytes(bytes)
    _refuse_unknown(methods, METHODS, "methods")
    _refuse_unknown(counts or {}, [table.name for table in spec.tables], "counts")
    if whole_rows < 1:
        raise SpecError(f"`whole_rows` must be at least 1. Received: {whole_rows}.")
    samples = samples or 4 * max((table.vocabulary_size for table in spec.tables), default=0)
    tables = [_Table(spec, table, samples, counts or {}, methods, whole_rows, linear) for table in spec.tables]
    places = _places([table.options for table in tables], budget - other_bytes)
    if places is None:
        least = {table.config.name: int(table.options.bytes[0]) for table in tables}
        raise SpecError(
            f"`bytes` must be at least {other_bytes + sum(least.values())}, the least that the tables can be stored in "
            f"by {', '.join(methods) or 'no method'}{_largest(least)}. Received: {bytes!r}. "
            f"Tables of up to {whole_rows} rows stay whole (`whole_rows`)."
        )
    choices = tuple(table.choice(place) for table, place in zip(tables, places, strict=True))
    compressed = tuple(
        TableConfig(**{**dict(table), "compression": choice.compression})
        for table, choice in zip(spec.tables, choices, strict=True)
    )
    return BudgetPlan(
        spec=spec.model_copy(update={"tables": compressed}),
        choices=choices,
        budget=budget,
        bytes_before=other_bytes + sum(choice.bytes_before for choice in choices),
        bytes_after=other_bytes + sum(choice.bytes_after for choice in choices),
        linear=linear,
        other_bytes=other_bytes,
        assumes=_assumption(spec, counts or {}),
    )


class _Table:
    """A table, its signal, and the ways to store it."""

    def __init__(
        self,
        spec: FeatureSpec,
        config: TableConfig,
        samples: int,
        counts: Mapping[str, Counts | None],
        methods: Sequence[str],
        whole_rows: int,
        linear: bool,
    ) -> None:
        self.config, self._whole_rows = config, whole_rows
        readers = [feature for feature in spec.sparse if feature.table == config.name]
        self._weights = weights_beside(spec, config.name, linear)
        self._reads = samples * sum(feature.hotness for feature in readers)
        self._signal = TableSignal(
            config.vocabulary_size, config.embedding_dim, self._reads, counts.get(config.name, "zipf")
        )
        if config.compression is not None:
            own = table_bytes(config, self._weights)
            self.options = Options(np.array([own]), np.array([self._signal.whole]), [config.compression])
            return
        found = options(self._signal, methods if config.vocabulary_size > whole_rows else (), whole_rows, self._weights)
        # A table that more features read says more.
        self.options = found._replace(signal=found.signal * len(readers))

    def choice(self, place: int) -> TableChoice:
        compression, config = self.options.compressions[place], self.config
        kept = float(self.options.signal[place] / self.options.signal[-1])
        full = config.model_copy(update={"compression": None})
        return TableChoice(
            table=config.name,
            rows=config.vocabulary_size,
            bytes_before=table_bytes(full, self._weights),
            bytes_after=int(self.options.bytes[place]),
            compression=compression,
            kept=kept,
            how=in_words(compression),
            why=self._reason(compression, kept),
        )

    def _reason(self, compression: Compression | None, kept: float) -> str:
        if self.config.compression is not None:
            return "set for this table"
        rows = self.config.vocabulary_size
        if compression is None:
            return f"up to {self._whole_rows:,} rows" if rows <= self._whole_rows else "worth its bytes"
        reasons = []
        if compression.hash_rows:
            shared = self._signal.shared_reads(compression.exact_rows)
            reasons.append(f"{shared:.1%} of reads share rows")
        if compression.dim or compression.quotient_remainder:
            reasons.append(f"{self._reads / rows:,.0f} reads a row")
        return ", ".join([*reasons, f"keeps {kept:.1%}"])


def weights_beside(spec: FeatureSpec, table: str, linear: bool) -> int:
    """Return how many single weights stand beside each row that ids are mapped to: learned in a bag, and linear."""
    return int(linear) + any(feature.learned_weights for feature in spec.sparse if feature.table == table)


def table_bytes(table: TableConfig, weights: int = 0) -> int:
    """Return the bytes of a table, and of the single weights beside each row that ids are mapped to.

    Args:
        table: The table.
        weights: How many there are of them, float32.
    """
    rows = (table.compression and table.compression.hash_rows) or table.vocabulary_size
    return table.stored_bytes + rows * weights * BYTES["float32"]


def in_words(compression: Compression | None) -> str:
    """Say in a few words how a table is stored.

    >>> in_words(Compression(hash_rows=1000, exact_rows=500, dim=4, dtype="bfloat16"))
    '1,000 rows (500 exact), 4 columns, bfloat16'
    """
    if compression is None or compression == Compression():
        return "whole"
    words = []
    if compression.hash_rows:
        words.append(f"{compression.hash_rows:,} rows ({compression.exact_rows:,} exact)")
    if compression.quotient_remainder:
        split = compression.quotient_remainder
        words.append(f"quotient-remainder {split.collisions} ({split.operation})")
    if compression.dim:
        words.append(f"{compression.dim} column{'s' if compression.dim > 1 else ''}")
    if compression.dtype != "float32":
        words.append(compression.dtype)
    return ", ".join(words)


def _places(tables: Sequence[Options], budget: int) -> list[int] | None:
    """Return which option each table takes; `None` where not even the smallest ones fit."""
    left = budget - sum(int(table.bytes[0]) for table in tables)
    if left < 0:
        return None
    places = [0] * len(tables)
    steps = [(-gain, number, place) for number, table in enumerate(tables) for gain, place in _steps(table)]
    for _, number, place in sorted(steps):
        sizes = tables[number].bytes
        more = int(sizes[place] - sizes[places[number]])
        if more > left:
            places[number] = int(np.searchsorted(sizes, sizes[places[number]] + left, side="right")) - 1
            break
        places[number], left = place, left - more
    return places


def _steps(table: Options) -> list[tuple[float, int]]:
    """Return the corners of the concave hull of signal over bytes, each with the signal per byte of the way there."""
    size, signal = table.bytes.tolist(), table.signal.tolist()
    corners: list[tuple[float, int]] = [(float("inf"), 0)]
    for place in range(1, len(size)):
        while True:
            last = corners[-1][1]
            gain = (signal[place] - signal[last]) / (size[place] - size[last])
            if gain < corners[-1][0]:
                break
            corners.pop()
        corners.append((gain, place))
    return corners[1:]


def _assumption(spec: FeatureSpec, counts: Mapping[str, Counts | None]) -> str:
    names = [table.name for table in spec.tables]
    known = sum(counts.get(name) is not None for name in names)
    unordered = sum(name in counts and counts[name] is None for name in names)
    words = []
    if known:
        words.append(f"reads counted in {known} of {len(names)} tables")
    if unordered:
        words.append(f"no order of count assumed in {unordered}")
    if known + unordered < len(names):
        words.append(
            f"ids assumed in order of count and read by Zipf's law, exponent {ZIPF}" + (" elsewhere" if words else "")
        )
    return ", ".join(words)


def _largest(least: Mapping[str, int]) -> str:
    """Say which tables take most of the least bytes."""
    largest = sorted(least.items(), key=lambda item: -item[1])[:_NAMED]
    named = ", ".join(f"`{name}` {size}" for name, size in largest)
    return f" ({named}{', ...' if len(least) > _NAMED else ''})" if largest else ""


def _refuse_unknown(names: Sequence[str] | Mapping[str, Any], known: Sequence[str], argument: str) -> None:
    for name in names:
        if name not in known:
            raise SpecError(
                f"`{argument}` must name some of {', '.join(known[:6])}{', ...' if len(known) > 6 else ''}. "
                f"Received: `{name}`.{did_you_mean(name, known)}"
            )

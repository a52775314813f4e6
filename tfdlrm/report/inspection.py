"""What a prepared data set holds, as tables and as one HTML page, from the figures of `tfdlrm.data.inspection`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tfdlrm.report.html import Plot, Section, Table, render
from tfdlrm.report.inspection_plots import click_rates, coverage_curves, drift_map, quantile_ranges

Figures = Mapping[str, Any]
_MOST_LINES = 30
_MOST_DRIFTS = 20


def tables(figures: Figures) -> list[Table]:
    """Return everything as tables; those of parts and drift are cut to the lines that matter most."""
    found = [split_table(figures), *_rate_tables(figures, _MOST_LINES), table_table(figures)]
    found += [sparse_table(figures), *_dense_tables(figures), *_drift_tables(figures)]
    return [table for table in found if table is not None]


def page(figures: Figures, title: str) -> str:
    """Return the HTML page."""
    dense_text = ["Values as the model reads them, after the transform."] if figures["dense"] else []
    sections = [
        Section("Splits", text=notes(figures), tables=[split_table(figures)]),
        Section("Click rate", tables=list(_rate_tables(figures, None)), plots=_rate_plots(figures)),
        Section("Tables", tables=[*_some(table_table(figures)), *_top_tables(figures)], plots=_table_plots(figures)),
        Section("Sparse features", tables=_some(sparse_table(figures))),
        Section("Dense features", dense_text, tables=list(_dense_tables(figures)), plots=_dense_plots(figures)),
        Section("Drift", tables=list(_drift_tables(figures)), plots=list(_drift_plots(figures))),
    ]
    return render(title, sections)


def notes(figures: Figures) -> list[str]:
    """Return what must be known to read the figures: how much was read, what was counted how."""
    lines = []
    if figures["read_rows"] < figures["rows"]:
        lines.append(
            f"From {figures['read_rows']:,} of {figures['rows']:,} rows, in blocks spread evenly over the shards; "
            "used rows are those of the sample."
        )
    sketched = [table for table in figures["tables"] if table["counted"] == "sketch"]
    if sketched:
        worst = max(table["error"] / max(table["values"], 1) for table in sketched)
        names = ", ".join(table["name"] for table in sketched)
        lines.append(
            f"Counts of the most used rows of {names} are low by up to {worst:.2%} of the values of the table."
        )
    return lines


def split_table(figures: Figures) -> Table:
    """Return a line for each split."""
    rows = [
        [s["name"], f"{s['rows']:,}", _share(s["click_rate"], 4), f"{s['shards']:,}", _bytes(s["bytes"])]
        for s in figures["splits"]
    ]
    caption = f"{figures['directory']}: {figures['format']}, {figures['rows']:,} rows"
    return Table(caption, ["split", "rows", "click rate", "shards", "size"], rows)


def table_table(figures: Figures) -> Table | None:
    """Return a line for each embedding table."""
    if not figures["tables"]:
        return None
    rows = []
    for table in figures["tables"]:
        best = ", ".join(f"{_value(entry)} {entry['share']:.1%}" for entry in table["top"][:3])
        trained = table["used_in_training"]
        cells = [f"{table['rows']:,}", f"{table['used']:,}", "" if trained is None else f"{trained:,}"]
        rows.append([table["name"], *cells, best])
    return Table("Embedding tables", ["table", "rows", "used", "used in training", "most used"], rows)


def sparse_table(figures: Figures) -> Table | None:
    """Return a line for each sparse feature and split: values per row, and what share of them has a reserved row."""
    features = figures["sparse"]
    if not features:
        return None
    kinds = list(dict.fromkeys(k for f in features for s in f["splits"].values() for k in s if k != "values_per_row"))
    rows = []
    for feature in features:
        for split, shares in feature["splits"].items():
            cells = [_share(shares.get(kind), 2) for kind in kinds]
            rows.append([feature["name"], split, f"{shares['values_per_row']:.4g}", *cells])
    return Table("Sparse features", ["feature", "split", "values a row", *kinds], rows)


def _rate_tables(figures: Figures, most: int | None) -> Iterator[Table]:
    """Yield click rates by shard and, where they are something else, by part."""
    lists = [("shard", [{**shard, "name": shard["file"]} for shard in figures["shards"]])]
    if figures["parts"]["kind"] != "shard":
        lists.append((figures["parts"]["kind"], figures["parts"]["items"]))
    for kind, items in lists:
        shown = items if most is None else items[:most]
        rows = [[item["name"], item["split"], f"{item['rows']:,}", _share(item["click_rate"], 4)] for item in shown]
        more = "" if len(shown) == len(items) else f" (the first {len(shown)} of {len(items)})"
        if rows:
            yield Table(f"Click rate by {kind}{more}", [kind, "split", "rows", "click rate"], rows)


def _top_tables(figures: Figures) -> Iterator[Table]:
    for table in figures["tables"]:
        rows = [
            [_value(entry), f"{entry['row']:,}", f"{entry['count']:,}", f"{entry['share']:.2%}"]
            for entry in table["top"]
        ]
        if rows:
            yield Table(f"Most used rows of {table['name']}", ["value", "row", "count", "share"], rows)


def _dense_tables(figures: Figures) -> Iterator[Table]:
    columns = ("mean", "std", "min", "q5", "q50", "q95", "max")
    rows = []
    for feature in figures["dense"]:
        for split, summary in feature["splits"].items():
            numbers = [_number(summary[column]) for column in columns]
            rows.append([feature["name"], split, _share(summary["missing"], 2), _share(summary["zero"], 2), *numbers])
    if rows:
        caption = "Dense features after their transform"
        yield Table(caption, ["feature", "split", "missing", "zero", *columns], rows)


def _drift_tables(figures: Figures) -> Iterator[Table]:
    """Yield the largest distances, between parts and between splits."""
    for which, caption in (
        ("parts", f"consecutive {figures['parts']['kind']}s"),
        ("splits", "training and other rows"),
    ):
        found = [
            (values["beyond_chance"], pair["from"], pair["to"], name, values)
            for pair in figures["drift"][which]
            for name, values in pair["features"].items()
        ]
        found.sort(key=lambda entry: (-entry[0], entry[3]))
        rows = [
            [name, a, b, f"{beyond:.4f}", *(f"{values[key]:.4f}" for key in ("jensen_shannon", "by_chance", "psi"))]
            for beyond, a, b, name, values in found[:_MOST_DRIFTS]
        ]
        if rows:
            most = f" (the {len(rows)} largest of {len(found):,})" if len(rows) < len(found) else ""
            columns = ["feature", "from", "to", "beyond chance", "Jensen-Shannon", "by chance", "PSI"]
            yield Table(f"Drift between {caption}{most}", columns, rows)


def _rate_plots(figures: Figures) -> list[Plot]:
    parts = [item for item in figures["parts"]["items"] if item["read_rows"]]
    caption = f"Click rate by {figures['parts']['kind']}, with 95% intervals."
    return [Plot(caption, click_rates(parts))] if parts else []


def _table_plots(figures: Figures) -> list[Plot]:
    used = [table for table in figures["tables"] if table["used"]]
    return [Plot("Share of values that the most used rows have.", coverage_curves(used))] if used else []


def _dense_plots(figures: Figures) -> list[Plot]:
    splits = [split["name"] for split in figures["splits"] if split["rows"]]
    if not splits or not figures["dense"]:
        return []
    return [Plot("5th, 25th, 50th, 75th and 95th percentile.", quantile_ranges(figures["dense"], splits))]


def _drift_plots(figures: Figures) -> Iterator[Plot]:
    captions = {
        "parts": "Jensen-Shannon distance of consecutive parts, chance taken off: 0 is the same, 1 shares no value.",
        "splits": "The same between training rows and other splits.",
    }
    for which, caption in captions.items():
        if figures["drift"][which]:
            yield Plot(caption, drift_map(figures["drift"][which]))


def _some(table: Table | None) -> Sequence[Table]:
    return [] if table is None else [table]


def _value(entry: Mapping[str, Any]) -> str:
    return str(entry["value"]) if entry["value"] is not None else f"row {entry['row']}"


def _share(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}" if digits == 4 else f"{value:.{digits}%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} TiB"

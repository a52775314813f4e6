"""How well a model does on slices of the rows: those with one value of a feature, or those of one day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tfdlrm.metrics.binary import BinaryMetrics, evaluate_binary
from tfdlrm.report.html import Plot, Section, Table
from tfdlrm.report.plots import COLOURS, new_figure, png_of

Array = npt.NDArray[np.generic]
LEAST_ROWS = 100
LEAST_OF_A_LABEL = 10
"""A slice with fewer rows, or fewer rows of one label, has no AUC worth the name."""
OTHERS = "all others"
_TIMES = ("day", "file")
_PANELS = 6
_MOST_SHOWN = 8
_LABEL_LENGTH = 16
_WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


@dataclass(frozen=True)
class Slice:
    """Some of the rows.

    Attributes:
        name: What they have in common.
        rows: How many they are.
        positives: How many of them have label 1.
        metrics: How well the model does on them, `None` where they are too few.
    """

    name: str
    rows: int
    positives: int
    metrics: BinaryMetrics | None


def slice_of(
    name: str,
    labels: npt.NDArray[np.floating],
    probabilities: npt.NDArray[np.floating],
    sample_weight: npt.NDArray[np.floating] | None = None,
) -> Slice:
    """Judge the rows of one slice.

    Args:
        name: What they have in common.
        labels: 0 or 1, `[n]`; n may be 0.
        probabilities: What the model says, `[n]`.
        sample_weight: Weight of each row. Defaults to 1.

    Example:
        >>> slice_of("few", np.array([0.0, 1.0]), np.array([0.1, 0.2])).metrics is None
        True
    """
    positives = int(np.count_nonzero(labels))
    large = len(labels) >= LEAST_ROWS and min(positives, len(labels) - positives) >= LEAST_OF_A_LABEL
    metrics = evaluate_binary(labels, probabilities, sample_weight) if large else None
    return Slice(name, len(labels), positives, metrics)


def slice_section(
    slices: Mapping[str, Sequence[Slice]], whole: BinaryMetrics, read_rows: int, first: Sequence[str] = ()
) -> Section:
    """Return the section of a page.

    Args:
        slices: What the rows are sliced by to the slices, in the order in which they are to be shown.
        whole: How well the model does on all rows that were sliced.
        read_rows: How many these are.
        first: Features to draw before others, the most important first; days and files come before them. All are in
            the table.
    """
    judged = {name: own for name, own in slices.items() if sum(part.metrics is not None for part in own) > 1}
    ranks = {name: rank for rank, name in enumerate((*_TIMES, *first))}
    drawn = sorted(judged, key=lambda name: ranks.get(name, len(ranks)))[:_PANELS]
    text = [
        f"How well the model does on the rows that have one value of a feature, of {read_rows:,} held-out rows. "
        f"A slice with fewer than {LEAST_ROWS} rows, or fewer than {LEAST_OF_A_LABEL} of one label, is too small to be "
        "judged. Of 95% intervals, one in twenty misses the truth by chance."
    ]
    plots = [_plot(drawn, judged, whole)] if drawn else []
    return Section("Slices", text, [_table(slices)], plots)


def _plot(names: Sequence[str], slices: Mapping[str, Sequence[Slice]], whole: BinaryMetrics) -> Plot:
    worst, best = _extremes({name: slices[name] for name in names})
    caption = (
        f"AUC with 95% intervals by value; the dotted line is the AUC of all rows, {whole.auc:.4f}. Lowest of these: "
        f"{worst}. Highest: {best}."
    )
    alt = f"AUC of slices, one panel each for {', '.join(names)}"
    return Plot(caption, slice_panels({name: slices[name] for name in names}, whole.auc), alt)


def _extremes(slices: Mapping[str, Sequence[Slice]]) -> tuple[str, str]:
    judged = [
        (part.metrics.auc, f"{name} {part.name} at {part.metrics.auc:.4f} ({part.rows:,} rows)")
        for name, own in slices.items()
        for part in own
        if part.metrics is not None
    ]
    return min(judged)[1], max(judged)[1]


def slice_panels(slices: Mapping[str, Sequence[Slice]], auc: float) -> bytes:
    """Draw the AUC of slices with its interval, a panel for each feature.

    Args:
        slices: At least one feature, its slices in order; those without metrics are said to be too small.
        auc: That of all rows.
    """
    columns = min(3, len(slices))
    lines = -(-len(slices) // columns)
    most = min(_MOST_SHOWN, max(len(own) for own in slices.values()))
    figure, panels = new_figure(columns, lines, width=3.6, height=0.28 * most + 0.9)
    for axes in panels[len(slices) :]:
        axes.set_axis_off()
    for axes in panels[1 : len(slices)]:
        axes.sharex(panels[0])
    for axes, (name, own) in zip(panels, slices.items(), strict=False):
        shown = own[-_MOST_SHOWN:]  # of days the latest; features have fewer values
        axes.axvline(auc, color="#888888", linestyle=":")
        for place, part in enumerate(shown):
            if part.metrics is None:
                axes.annotate(
                    "too small",
                    (0.5, place),
                    xycoords=("axes fraction", "data"),
                    ha="center",
                    va="center",
                    fontsize=8,
                    bbox=_WHITE,
                )
                continue
            low, high = part.metrics.auc - part.metrics.auc_low, part.metrics.auc_high - part.metrics.auc
            axes.errorbar(
                part.metrics.auc, place, xerr=[[low], [high]], fmt="o", markersize=4, capsize=2, color=COLOURS[0]
            )
        axes.set_yticks(range(len(shown)), [f"{_short(part.name)} ({part.rows:,})" for part in shown], fontsize=8)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.tick_params(axis="x", labelsize=8)
        axes.locator_params(axis="x", nbins=4)
        axes.set_title(name, fontsize=10)
    return png_of(figure)


def _short(name: str) -> str:
    name = name.replace("fingerprint ", "#")
    return name if len(name) <= _LABEL_LENGTH else name[: _LABEL_LENGTH - 1] + "…"


def _table(slices: Mapping[str, Sequence[Slice]]) -> Table:
    rows = []
    for name, own in slices.items():
        for part in own:
            cells = [name, part.name, f"{part.rows:,}", f"{part.positives / part.rows:.4f}" if part.rows else "-"]
            if part.metrics is None:
                rows.append([*cells, "too small", "", "", ""])
                continue
            m = part.metrics
            cells += [f"{m.auc:.4f}", f"{m.auc_low:.4f} to {m.auc_high:.4f}", f"{m.log_loss:.5f}"]
            rows.append([*cells, f"{m.calibration:.3f}"])
    columns = ["by", "value", "rows", "share of label 1", "AUC", "95% interval", "log loss", "calibration"]
    return Table("Metrics of slices", columns, rows)

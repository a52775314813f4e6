"""Plots of a run as PNG images."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from tfdlrm.report.curves import Bin
from tfdlrm.report.html import RESOLUTION

# Told apart under the common colour-vision deficiencies (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_GREY = "#888888"
_MOST_MARKERS = 60


def learning_curve(runs: Mapping[str, Sequence[Mapping[str, Any]]], best_rows: float | None = None) -> bytes:
    """Draw training and validation log loss, and validation AUC, over rows seen.

    Args:
        runs: Name to one entry a validation, with `rows_seen`, `training_loss`, `log_loss` and `auc`; what is `None` is
            left out. The first is the run itself, others are beside it.
        best_rows: Rows after which the best weights were noted, to mark.
    """
    figure, (left, right) = new_figure(columns=2, height=3.6)
    for number, (name, history) in enumerate(runs.items()):
        # A colour for each run; a single one has two.
        colours = (COLOURS[number],) * 2 if len(runs) > 1 else COLOURS[:2]
        rows = [entry["rows_seen"] for entry in history]
        marker = "o" if len(rows) <= _MOST_MARKERS else ""
        own = f", {name}" if len(runs) > 1 else ""
        for axes, key, label, style in (
            (left, "training_loss", "training", "--"),
            (left, "log_loss", "validation", "-"),
            (right, "auc", "validation", "-"),
        ):
            values = [np.nan if entry.get(key) is None else entry[key] for entry in history]
            colour = colours[label == "validation"]
            axes.plot(rows, values, style, marker=marker, markersize=3.5, color=colour, label=label + own)
    for axes, metric in ((left, "log loss"), (right, "AUC")):
        if best_rows is not None:
            axes.axvline(best_rows, color=_GREY, linestyle=":", label="best weights")
        axes.set(xlabel="training rows seen", ylabel=metric)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.legend(frameon=False, fontsize=9)
    return png_of(figure)


def roc_curves(curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]) -> bytes:
    """Draw ROC curves: name to false and true positive rates."""
    figure, (axes,) = new_figure()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    for (name, (false, true)), style in zip(curves.items(), _line_styles(), strict=False):
        axes.plot(false, true, label=name, **style)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(frameon=False, loc="lower right", fontsize=9)
    return png_of(figure)


def precision_recall_curves(
    curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]], base_rate: float, height: float
) -> bytes:
    """Draw precision over recall: name to recall and precision.

    Args:
        curves: What to draw.
        base_rate: Share of positives, the precision of chance.
        height: Highest precision to show; that of a handful of rows says little.
    """
    figure, (axes,) = new_figure()
    axes.axhline(base_rate, color=_GREY, linestyle=":", label="by chance")
    for (name, (recall, precision)), style in zip(curves.items(), _line_styles(), strict=False):
        axes.plot(recall, precision, label=name, **style)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, height))
    axes.legend(frameon=False, loc="upper right", fontsize=9)
    return png_of(figure)


def reliability_diagram(bins: Mapping[str, Sequence[Bin]]) -> bytes:
    """Draw mean observed over mean predicted probability with 95% intervals: name to bins."""
    figure, (axes,) = new_figure()
    highest = max(max(b.predicted, b.high) for own in bins.values() for b in own)
    axes.plot([0, highest], [0, highest], color=_GREY, linestyle=":")
    for (name, own), colour in zip(bins.items(), COLOURS, strict=False):
        observed = np.array([b.observed for b in own])
        reach = [observed - [b.low for b in own], [b.high for b in own] - observed]
        axes.errorbar(
            [b.predicted for b in own],
            observed,
            yerr=np.maximum(reach, 0),
            fmt="o",
            markersize=3,
            capsize=2,
            linewidth=1,
            color=colour,
            label=name,
        )
    axes.set(xlabel="mean predicted probability", ylabel="mean observed", aspect="equal")
    axes.set(xlim=(0, highest * 1.02), ylim=(0, highest * 1.02))
    axes.legend(frameon=False, loc="upper left", fontsize=9)
    return png_of(figure)


def score_distribution(
    labels: npt.ArrayLike, probabilities: npt.ArrayLike, sample_weight: npt.ArrayLike | None = None
) -> bytes:
    """Draw how predicted probabilities of clicks and of non-clicks are distributed, each with an area of 1."""
    figure, (axes,) = new_figure()
    y, p = np.asarray(labels), np.asarray(probabilities)
    w = np.ones(len(y)) if sample_weight is None else np.asarray(sample_weight)
    edges = np.linspace(0, max(float(p.max()), 1e-6), 51).tolist()
    for value, name, colour in ((0, "label 0", COLOURS[0]), (1, "label 1", COLOURS[1])):
        own = y == value
        if w[own].sum():
            shape: dict[str, Any] = {"histtype": "stepfilled", "alpha": 0.45, "color": colour}
            axes.hist(p[own], edges, weights=w[own], density=True, label=name, **shape)
    axes.set(xlabel="predicted probability", ylabel="density")
    axes.legend(frameon=False, fontsize=9)
    return png_of(figure)


def stage_bars(seconds: Mapping[str, float]) -> bytes:
    """Draw how long each stage took, the first at the top."""
    figure, (axes,) = new_figure(width=5.6, height=0.34 * len(seconds) + 0.8)
    bars = axes.barh(range(len(seconds)), list(seconds.values()), color=COLOURS[0], height=0.62)
    axes.bar_label(bars, [f"{value:,.1f} s" for value in seconds.values()], padding=4, fontsize=9)
    axes.set_yticks(range(len(seconds)), list(seconds))
    axes.invert_yaxis()
    axes.margins(x=0.16)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("seconds")
    return png_of(figure)


def group_bars(milliseconds: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw how the time of a training step is split among groups of operators: group to phase to milliseconds."""
    figure, (axes,) = new_figure(width=5.6, height=0.34 * len(milliseconds) + 1.0)
    phases = list(next(iter(milliseconds.values())))
    left = np.zeros(len(milliseconds))
    for phase, colour in zip(phases, COLOURS, strict=False):
        widths = np.array([own[phase] for own in milliseconds.values()])
        axes.barh(range(len(widths)), widths, left=left, color=colour, height=0.62, label=phase)
        left += widths
    axes.set_yticks(range(len(left)), list(milliseconds))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("busy thread time of a step, ms")
    axes.legend(frameon=False, fontsize=9)
    return png_of(figure)


def cumulative_shares(curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike, npt.ArrayLike]], quantity: str) -> bytes:
    """Draw two distribution functions a panel: title to values, shares that went in, shares that came out.

    Args:
        curves: One panel each, at least one.
        quantity: What the values are, at least 0; those from 1 on are drawn to their logarithm.
    """
    figure, panels = new_figure(columns=len(curves))
    for axes, (title, (values, went_in, came_out)) in zip(panels, curves.items(), strict=True):
        places = np.asarray(values)
        axes.step(places, np.asarray(went_in), where="post", color=COLOURS[0], linewidth=3, alpha=0.5, label="in")
        axes.step(places, np.asarray(came_out), where="post", color=COLOURS[1], linewidth=1, label="out")
        axes.set_xscale("symlog", linthresh=1)
        axes.set(title=title, xlabel=quantity, ylabel="share of draws up to it", ylim=(0, 1.02))
        axes.legend(frameon=False, loc="lower right")
    return png_of(figure)


def new_figure(columns: int = 1, rows: int = 1, width: float = 4.8, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels, row by row, each `width` by `height` inches."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(rows, columns, i + 1) for i in range(columns * rows)]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
    return figure, panels


def png_of(figure: Figure) -> bytes:
    """Return a figure as a PNG image."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=RESOLUTION)
    return out.getvalue()


def _line_styles() -> Iterator[dict[str, Any]]:
    """Yield styles of lines that can be told apart where they lie over one another: first ones wide, later fine."""
    for colour, dash, width in zip(COLOURS, ("-", "--", "-.", ":", "-"), (2.2, 1.6, 1.4, 1.6, 1.0), strict=True):
        yield {"color": colour, "linestyle": dash, "linewidth": width}

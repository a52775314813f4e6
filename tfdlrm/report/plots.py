"""Plots of a run as PNG images."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tfdlrm.report.curves import Bin

# Told apart under the common colour-vision deficiencies (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
_GREY = "#888888"
_MOST_MARKERS = 60


def learning_curve(history: Sequence[Mapping[str, Any]], best_step: int | None = None) -> bytes:
    """Draw training and validation log loss, and validation AUC, over steps.

    Args:
        history: One entry a validation, with `step`, `training_loss`, `log_loss` and `auc`.
        best_step: Step to mark.
    """
    figure, (left, right) = new_figure(columns=2)
    steps = [entry["step"] for entry in history]
    marker = "o" if len(steps) <= _MOST_MARKERS else ""
    for axes, names in ((left, ("training_loss", "log_loss")), (right, ("auc",))):
        for name, colour in zip(names, COLOURS, strict=False):
            values = [np.nan if entry[name] is None else entry[name] for entry in history]
            label = {"training_loss": "training", "log_loss": "validation", "auc": "validation"}[name]
            axes.plot(steps, values, marker=marker, markersize=3, color=colour, label=label)
        if best_step is not None:
            axes.axvline(best_step, color=_GREY, linestyle=":", label="best")
        axes.set_xlabel("step")
        axes.legend(frameon=False)
    left.set_ylabel("log loss")
    right.set_ylabel("AUC")
    return png_of(figure)


def roc_curves(curves: Mapping[str, tuple[npt.ArrayLike, npt.ArrayLike]]) -> bytes:
    """Draw ROC curves: name to false and true positive rates."""
    figure, (axes,) = new_figure()
    axes.plot([0, 1], [0, 1], color=_GREY, linestyle=":")
    for (name, (false, true)), colour in zip(curves.items(), COLOURS, strict=False):
        axes.plot(false, true, color=colour, label=name)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.legend(frameon=False, loc="lower right")
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
            color=colour,
            label=name,
        )
    axes.set(xlabel="mean predicted probability", ylabel="mean observed", aspect="equal")
    axes.set(xlim=(0, highest * 1.02), ylim=(0, highest * 1.02))
    axes.legend(frameon=False, loc="upper left")
    return png_of(figure)


def score_distribution(labels: npt.ArrayLike, probabilities: npt.ArrayLike) -> bytes:
    """Draw how predicted probabilities of clicks and of non-clicks are distributed."""
    figure, (axes,) = new_figure()
    y, p = np.asarray(labels), np.asarray(probabilities)
    edges = np.linspace(0, max(float(p.max()), 1e-6), 51).tolist()
    for value, name, colour in ((0, "label 0", COLOURS[0]), (1, "label 1", COLOURS[1])):
        if (y == value).any():
            axes.hist(p[y == value], edges, density=True, histtype="stepfilled", alpha=0.5, color=colour, label=name)
    axes.set(xlabel="predicted probability", ylabel="density")
    axes.legend(frameon=False)
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
    return figure, panels


def png_of(figure: Figure) -> bytes:
    """Return a figure as a PNG image."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=110)
    return out.getvalue()

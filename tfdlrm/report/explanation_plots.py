"""Plots of what a model listens to and how long its vectors are, as PNG images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdlrm.report.plots import COLOURS, new_figure, png_of

Figures = Mapping[str, Any]


def importance_bars(features: Sequence[Figures]) -> bytes:
    """Draw the rise of the log loss and the fall of the AUC by feature, with their spread, the first at the top.

    Args:
        features: Each with `name`, and `log_loss` and `auc` with `mean` and `spread`.
    """
    figure, panels = new_figure(columns=2, width=5.2, height=max(2.4, 0.22 * len(features) + 0.8))
    places = np.arange(len(features))
    titles = {"log_loss": "rise of the log loss", "auc": "fall of the AUC"}
    for axes, (metric, title), colour in zip(panels, titles.items(), COLOURS, strict=False):
        means, spreads = (
            [np.nan if f[metric][key] is None else f[metric][key] for f in features] for key in ("mean", "spread")
        )
        axes.barh(places, means, xerr=spreads, color=colour, alpha=0.8, error_kw={"linewidth": 1, "capsize": 2})
        axes.set_yticks(places, [f["name"] for f in features], fontsize=8)
        axes.set_ylim(len(features) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(title)
    return png_of(figure)


def norm_curves(tables: Sequence[Figures]) -> bytes:
    """Draw mean norm over rank by use, both logarithmic.

    Args:
        tables: Each with `table` and `curve`: rank, mean reads, mean norm.
    """
    figure, (axes,) = new_figure(width=6.4)
    for table, colour in zip(tables, COLOURS, strict=False):
        ranks, _, norms = zip(*table["curve"], strict=True)
        axes.plot(ranks, norms, marker="o", markersize=3, color=colour, label=table["table"])
    axes.set(xscale="log", yscale="log", xlabel="rank of the row by reads", ylabel="norm of its vector")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return png_of(figure)

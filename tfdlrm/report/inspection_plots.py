"""Plots of what a prepared data set holds, as PNG images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tfdlrm.report.curves import wilson_interval
from tfdlrm.report.plots import COLOURS, new_figure, png_of

Figures = Mapping[str, Any]
_MOST_LABELS = 25
_MOST_CURVES = 5


def click_rates(parts: Sequence[Figures]) -> bytes:
    """Draw the click rate of each part with its 95% interval, one colour a split.

    Args:
        parts: Each with `name`, `split`, `read_rows` above 0 and `click_rate`.
    """
    figure, (axes,) = new_figure(width=max(4.8, min(12, 0.35 * len(parts) + 2)))
    splits = list(dict.fromkeys(part["split"] for part in parts))
    for split, colour in zip(splits, COLOURS, strict=False):
        own = [(place, part) for place, part in enumerate(parts) if part["split"] == split]
        rates = np.array([part["click_rate"] for _, part in own])
        # A mean label that is not made of 0 and 1 may lie outside the interval that rounding leaves.
        ends = np.array([wilson_interval(part["click_rate"], part["read_rows"]) for _, part in own]).T
        reach = np.maximum([rates - ends[0], ends[1] - rates], 0)
        places = [place for place, _ in own]
        axes.errorbar(places, rates, yerr=reach, fmt="o", markersize=3, capsize=2, color=colour, label=split)
    step = -(-len(parts) // _MOST_LABELS)
    axes.set_xticks(range(0, len(parts), step), [p["name"] for p in parts[::step]], rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("click rate")
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return png_of(figure)


def drift_map(pairs: Sequence[Figures]) -> bytes:
    """Draw the Jensen-Shannon distance beyond chance of every feature between the two of each pair.

    Args:
        pairs: Each with `from`, `to` and `features`: name to distances.
    """
    names = list(dict.fromkeys(name for pair in pairs for name in pair["features"]))
    values = np.array([[pair["features"].get(n, {}).get("beyond_chance", np.nan) for pair in pairs] for n in names])
    width = max(4.8, min(14, 0.35 * len(pairs) + 3))
    figure, (axes,) = new_figure(width=width, height=max(3.2, 0.17 * len(names) + 1.6))
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
    axes.grid(False)
    step = -(-len(pairs) // _MOST_LABELS)
    labels = [f"{pair['from']} - {pair['to']}" for pair in pairs[::step]]
    axes.set_xticks(range(0, len(pairs), step), labels, rotation=60, ha="right", fontsize=7)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    figure.colorbar(image, ax=axes, label="Jensen-Shannon distance beyond chance")
    return png_of(figure)


def coverage_curves(tables: Sequence[Figures]) -> bytes:
    """Draw which share of values the n most used rows have, for the tables with the most used rows.

    Args:
        tables: Each with `name`, `used` and `coverage`, pairs of n and share.
    """
    figure, (axes,) = new_figure()
    largest = sorted(tables, key=lambda table: -table["used"])[:_MOST_CURVES]
    for table, colour in zip(largest, COLOURS, strict=False):
        numbers, shares = zip(*table["coverage"], strict=True) if table["coverage"] else ((), ())
        axes.plot(numbers, shares, marker="o", markersize=3, color=colour, label=table["name"])
    axes.set(xscale="log", xlabel="most used rows", ylabel="share of values", ylim=(0, 1.02))
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return png_of(figure)


def quantile_ranges(features: Sequence[Figures], splits: Sequence[str]) -> bytes:
    """Draw quantiles of every dense feature, one colour a split.

    Args:
        features: Each with `name` and `splits`: name of the split to `q5`, `q25`, `q50`, `q75`, `q95`.
        splits: The splits to draw.
    """
    figure, (axes,) = new_figure(width=max(4.8, 0.45 * len(features) + 1.5))
    for number, (split, colour) in enumerate(zip(splits, COLOURS, strict=False)):
        known = [(i, f["splits"][split]) for i, f in enumerate(features) if f["splits"][split]["q50"] is not None]
        places = np.array([i for i, _ in known]) + 0.22 * (number - (len(splits) - 1) / 2)
        quantiles = {key: [summary[key] for _, summary in known] for key in ("q5", "q25", "q50", "q75", "q95")}
        axes.vlines(places, quantiles["q5"], quantiles["q95"], color=colour, linewidth=1)
        axes.vlines(places, quantiles["q25"], quantiles["q75"], color=colour, linewidth=4, label=split)
        axes.plot(places, quantiles["q50"], "o", markersize=3, color="white", markeredgecolor=colour)
    axes.set_xticks(range(len(features)), [f["name"] for f in features], rotation=60, ha="right", fontsize=8)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    return png_of(figure)

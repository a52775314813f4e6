"""Pictures of a sweep: parallel coordinates, and what nothing beats."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps

from tfdlrm.report.plots import COLOURS, new_figure, png_of

_GREY = "#888888"
_MOST_TICKS = 8
_WIDTH = 24


def parallel_coordinates(
    columns: Mapping[str, Sequence[Any]], objective: str, scores: Sequence[float], less_is_better: bool
) -> bytes:
    """Draw a line for each trial over one axis for each key, and the objective last.

    Args:
        columns: The value of each trial by key; `None` where it did not set it. Numbers, or any values.
        objective: What the last axis is called.
        scores: The objective of each trial.
        less_is_better: Whether the best is at the bottom.
    """
    axes_of = [(key, *_places(values)) for key, values in columns.items()]
    axes_of.append((objective, *_places(scores)))
    figure, (axes,) = new_figure(width=max(6.0, 1.7 * len(axes_of)), height=5.0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_yticks([])
    better = np.argsort(np.argsort(scores)) / max(1, len(scores) - 1)
    shade = 1 - better if less_is_better else better
    places = np.array([own for _, own, _ in axes_of])
    for trial in np.argsort(shade):
        # The best ones are drawn last, above the others.
        colour = colormaps["viridis_r"](0.1 + 0.9 * float(shade[trial]))
        axes.plot(places[:, trial], color=colour, linewidth=1.0 + float(shade[trial]), marker="o", markersize=3)
    for number, (_, _, ticks) in enumerate(axes_of):
        axes.axvline(number, color=_GREY, linewidth=0.8, zorder=0)
        for place, text in ticks:
            axes.annotate(
                "\n".join(textwrap.wrap(text, _WIDTH)),
                (number, place),
                xytext=(4, 0),
                textcoords="offset points",
                fontsize=7,
                va="center",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.5},
            )
    axes.set_xticks(range(len(axes_of)), [_wrapped(key) for key, _, _ in axes_of], fontsize=8)
    axes.set_ylim(-0.05, 1.05)
    return png_of(figure)


def pareto(points: Sequence[tuple[float, float]], front: Sequence[int], cost: str, logarithmic: bool) -> bytes:
    """Draw AUC over a cost or a rate, and mark what nothing beats.

    Args:
        points: Cost and AUC of each trial.
        front: Places of the points to mark, in the order in which they are joined.
        cost: What the first coordinate is.
        logarithmic: Whether it spans magnitudes.
    """
    figure, (axes,) = new_figure(width=5.4)
    x, y = np.array(points, np.float64).T
    axes.scatter(x, y, s=18, color=_GREY, label="trials")
    axes.plot(x[list(front)], y[list(front)], color=COLOURS[1], marker="o", markersize=5, label="nothing is better")
    if logarithmic:
        axes.set_xscale("log")
    axes.set(xlabel=cost, ylabel="AUC, validation")
    axes.legend(frameon=False)
    return png_of(figure)


def _places(values: Sequence[Any]) -> tuple[list[float], list[tuple[float, str]]]:
    """Return where values lie on an axis from 0 to 1, nan for what is missing, and what is written beside it."""
    known = [value for value in values if value is not None]
    if known and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return _numbers(values, known)
    texts = sorted({_text(value) for value in known})
    place = {text: 0.5 if len(texts) == 1 else number / (len(texts) - 1) for number, text in enumerate(texts)}
    own = [float("nan") if value is None else place[_text(value)] for value in values]
    return own, [(place[text], text) for text in texts]


def _numbers(values: Sequence[Any], known: Sequence[float]) -> tuple[list[float], list[tuple[float, str]]]:
    low, high = min(known), max(known)
    spans = low > 0 and high / low >= 20  # magnitudes
    scale = np.log if spans else np.asarray

    def place(value: float) -> float:
        return 0.5 if low == high else float((scale(value) - scale(low)) / (scale(high) - scale(low)))

    distinct = sorted(set(known))
    shown = (
        distinct if len(distinct) <= _MOST_TICKS else (np.geomspace if spans else np.linspace)(low, high, 5).tolist()
    )
    own = [float("nan") if value is None else place(value) for value in values]
    return own, [(place(value), f"{value:.4g}") for value in shown]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _wrapped(key: str) -> str:
    return key.replace(".", ".\n")

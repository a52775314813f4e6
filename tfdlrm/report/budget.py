"""The picture of a budget plan: bytes of each table before and after."""

from __future__ import annotations

import numpy as np

from tfdlrm.report.plots import COLOURS, new_figure, png_of
from tfdlrm.spec.budget import BudgetPlan
from tfdlrm.spec.byte_sizes import bytes_in_words

_MOST_TABLES = 40


def budget_picture(plan: BudgetPlan) -> bytes:
    """Draw bytes before and after on a logarithmic scale, largest table first, as a PNG image.

    Args:
        plan: What `fit_budget` chose. Of more than 40 tables the largest are drawn.
    """
    choices = sorted(plan.choices, key=lambda choice: -choice.bytes_before)[:_MOST_TABLES]
    figure, (axes,) = new_figure(width=max(4.8, 1.5 + 0.35 * len(choices)), height=4.2)
    places = np.arange(len(choices))
    for shift, colour, label, sizes in (
        (-0.2, COLOURS[0], "whole", [c.bytes_before for c in choices]),
        (0.2, COLOURS[1], "planned", [c.bytes_after for c in choices]),
    ):
        axes.bar(places + shift, sizes, 0.4, color=colour, label=label)
    axes.set_yscale("log")
    axes.set_xticks(places, [choice.table for choice in choices], rotation=90 if len(choices) > 8 else 0)
    more = f" (the largest of {len(plan.choices)} tables)" if len(choices) < len(plan.choices) else ""
    axes.set(
        ylabel="bytes",
        title=f"{bytes_in_words(plan.bytes_before)} in {bytes_in_words(plan.bytes_after)}{more}",
    )
    axes.legend(frameon=False)
    return png_of(figure)

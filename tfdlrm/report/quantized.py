"""What tables in fewer bytes cost, as a table and a plot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tfdlrm.report.html import Table
from tfdlrm.report.plots import COLOURS, new_figure, png_of

Judged = Mapping[str, Any]

_COLUMNS = ["tables", "bytes", "ratio", "AUC", "AUC loss", "log loss", "NE", "calibration", "max |dp|", "mean |dp|"]
_MIB = 2**20


def quantized_table(judged: Judged) -> Table:
    """Return a line for each form that was judged; see `tfdlrm.pipelines.quantized_loss.judge_tables`."""
    rows = [
        [
            form,
            f"{found['bytes']:,}",
            f"{found['ratio']:.4f}",
            *(
                "-" if found[key] is None else format(found[key], shown)
                for key, shown in (
                    ("auc", ".5f"),
                    ("auc_loss", ".6f"),
                    ("log_loss", ".5f"),
                    ("normalized_entropy", ".4f"),
                    ("calibration", ".4f"),
                    ("difference_max", ".1e"),
                    ("difference_mean", ".1e"),
                )
            ),
        ]
        for form, found in judged["forms"].items()
    ]
    caption = f"Embedding tables as stored when served, judged on {judged['rows']:,} {judged['split']} rows"
    return Table(f"{caption}; dp: difference of a probability", _COLUMNS, rows)


def quantized_plot(judged: Judged) -> bytes:
    """Draw what is lost of the AUC over the bytes of the tables, as a PNG image."""
    figure, (axes,) = new_figure(width=5.2)
    for (form, found), colour in zip(judged["forms"].items(), COLOURS, strict=False):
        if found["auc_loss"] is not None:
            place = (found["bytes"] / _MIB, found["auc_loss"])
            axes.plot(*place, marker="o", color=colour)
            axes.annotate(form, place, xytext=(6, 6), textcoords="offset points", color=colour)
    axes.axhline(0, color="#888888", linestyle=":")
    axes.margins(x=0.2, y=0.25)
    axes.set(xlabel="MiB of tables", ylabel="AUC loss")
    axes.set_xlim(left=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3))
    return png_of(figure)

"""The figure of a comparison: learning curves of several models, a panel for each optimizer; PNG, SVG and HTML."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal
from xml.etree import ElementTree

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from tfdlrm.report.plots import COLOURS, new_figure, png_of

LABELS = {"accuracy": "accuracy", "log_loss": "log loss", "auc": "AUC"}
_STYLES: dict[str, Literal["--", "-"]] = {"training": "--", "validation": "-"}
_MORE_COLOURS = ("#56B4E9", "#8C510A", "#762A83", "#1B7837", "#BF812D", "#4D4D4D", "#F0E442")
_SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Curve:
    """The mean learning curve of a model.

    Attributes:
        model: Its label.
        part: `"training"` or `"validation"`.
        steps: Iterations.
        means: Mean over seeds at each of them.
        spreads: Standard deviation over seeds.
    """

    model: str
    part: str
    steps: Sequence[int]
    means: Sequence[float]
    spreads: Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Curves in one pair of axes; the panels of a data set share their vertical axis."""

    dataset: str
    optimizer: str
    curves: Sequence[Curve]


def draw(panels: Sequence[Panel], metric: str) -> Figure:
    """Return the figure: a row of panels for each data set, a column for each optimizer.

    Args:
        panels: At least one, all optimizers of a data set together.
        metric: Key of `LABELS`; named on the vertical axis.
    """
    datasets = list(dict.fromkeys(panel.dataset for panel in panels))
    columns = len(panels) // len(datasets)
    colours = _colours(panels)
    figure, all_axes = new_figure(columns, rows=len(datasets))
    for number, (panel, axes) in enumerate(zip(panels, all_axes, strict=True)):
        for index, curve in enumerate(panel.curves):
            means, spreads = np.asarray(curve.means), np.asarray(curve.spreads)
            colour, name = colours[curve.model], f"{metric}-{number}-{index}"
            (line,) = axes.plot(curve.steps, means, _STYLES[curve.part], color=colour, linewidth=1.5)
            band = axes.fill_between(curve.steps, means - spreads, means + spreads, color=colour, alpha=0.15, lw=0)
            line.set_gid(f"line-{name}")
            band.set_gid(f"band-{name}")
        axes.set(title=f"{panel.dataset}, {panel.optimizer}", xlabel="iteration", ylabel=LABELS[metric])
        if number % columns:
            axes.sharey(all_axes[number - number % columns])
    keys = [Line2D([], [], color=colour, label=model) for model, colour in colours.items()]
    keys += [Line2D([], [], color="#444444", linestyle=style, label=part) for part, style in _STYLES.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 6), frameon=False)
    return figure


def png(panels: Sequence[Panel], metric: str) -> bytes:
    """Return the figure as a PNG image."""
    return png_of(draw(panels, metric))


def svg(panels: Sequence[Panel], metric: str) -> str:
    """Return the figure as an SVG document that names no other file."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text: searchable, and small.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": metric}):
        draw(panels, metric).savefig(out, format="svg", metadata=nothing)
    return re.sub(r"<!DOCTYPE[^>]*>\s*", "", out.getvalue())


def html(title: str, panels: Mapping[str, Sequence[Panel]]) -> str:
    """Return an interactive page that needs no other file.

    One figure a metric; models and parts can be switched off, and a curve under the pointer tells what it is.

    Args:
        title: Heading of the page.
        panels: Those of each metric.
    """
    first = next(iter(panels))
    colours = _colours([panel for own in panels.values() for panel in own])
    metrics = "".join(
        f'<label><input type="radio" name="metric" value="{name}"{" checked" * (name == first)}> {LABELS[name]}</label>'
        for name in panels
    )
    boxes = "".join(
        f'<label style="color:{colour}"><input type="checkbox" data-model="{escape(model)}" checked> '
        f"{escape(model)}</label>"
        for model, colour in colours.items()
    )
    boxes += "".join(f'<label><input type="checkbox" data-part="{part}" checked> {part}</label>' for part in _STYLES)
    figures = "".join(
        f'<div class="figure" id="{metric}"{"" if metric == first else " hidden"}>{_labelled(own, metric)}</div>'
        for metric, own in panels.items()
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<h1>{escape(title)}</h1>\n"
        f"<fieldset>{metrics}</fieldset>\n<fieldset>{boxes}</fieldset>\n{figures}\n"
        f"<p>Bands: one standard deviation over seeds.</p>\n<script>{_SCRIPT}</script>\n</body>\n</html>\n"
    )


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    models = list(dict.fromkeys(curve.model for panel in panels for curve in panel.curves))
    every = (*COLOURS, *_MORE_COLOURS)
    return {model: every[index % len(every)] for index, model in enumerate(models)}


def _labelled(panels: Sequence[Panel], metric: str) -> str:
    """Return the SVG with model and part noted on every curve, and a tip for the pointer."""
    ElementTree.register_namespace("", "http://www.w3.org/2000/svg")
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg(panels, metric))
    places = {element.get("id"): element for element in root.iter() if element.get("id")}
    for number, panel in enumerate(panels):
        for index, curve in enumerate(panel.curves):
            for kind in ("line", "band"):
                element = places.get(f"{kind}-{metric}-{number}-{index}")
                if element is None or not len(curve.steps):
                    continue
                element.set("data-model", curve.model)
                element.set("data-part", curve.part)
                tip = ElementTree.SubElement(element, f"{_SVG}title")
                tip.text = (
                    f"{curve.model}, {curve.part} {LABELS[metric]}: {curve.means[-1]:.4f} ± {curve.spreads[-1]:.4f} "
                    f"at iteration {curve.steps[-1]:,}"
                )
    return ElementTree.tostring(root, encoding="unicode")


_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; }
fieldset { border: 0; padding: .2rem 0; } label { margin-right: 1.2rem; } svg { max-width: 100%; height: auto; }
g[data-model]:hover path { stroke-width: 3; }
"""
_SCRIPT = """
const show = () => {
  const off = kind => [...document.querySelectorAll(`input[data-${kind}]`)].filter(i => !i.checked)
    .map(i => i.dataset[kind]);
  const models = off("model"), parts = off("part");
  const metric = document.querySelector("input[name=metric]:checked").value;
  document.querySelectorAll(".figure").forEach(f => { f.hidden = f.id !== metric; });
  document.querySelectorAll("g[data-model]").forEach(g => {
    g.style.display = models.includes(g.dataset.model) || parts.includes(g.dataset.part) ? "none" : "";
  });
};
document.querySelectorAll("input").forEach(i => i.addEventListener("change", show));
show();
"""

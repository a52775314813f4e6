from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tfdlrm.report.curves import Bin, reliability_bins, roc_points
from tfdlrm.report.html import Plot, Section, Table, render
from tfdlrm.report.plots import learning_curve, reliability_diagram, roc_curves, score_distribution

PNG = b"\x89PNG\r\n\x1a\n"


class Checker(HTMLParser):
    """Checks that tags nest, and collects text and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_page_holds_everything_and_escapes_it() -> None:
    image = PNG + b"rest"
    sections = [
        Section("R & D", ["1 < 2"], [Table("cap", ["a", "<b>"], [["x", '"y"']])], [Plot("what it 'shows'", image)]),
        Section("Code", code=["k = '</pre>'"]),
    ]
    checker = Checker()
    checker.feed(render("<run>", sections))
    assert checker.open == []
    assert {"<run>", "R & D", "1 < 2", "cap", "a", "<b>", "x", '"y"', "what it 'shows'", "k = '</pre>'"} <= set(
        checker.texts
    )
    (source,) = checker.loads
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == image


def test_page_names_no_other_file() -> None:
    assert not re.search(r"https?://|<script|<link|url\(", render("run", [Section("s", plots=[Plot("p", PNG)])]))


HISTORY = [
    {"step": 10, "training_loss": 0.6, "log_loss": 0.7, "auc": 0.6},
    {"step": 20, "training_loss": 0.5, "log_loss": 0.6, "auc": None},
]
LABELS, PROBABILITIES = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.9])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: learning_curve(HISTORY, 20),
        lambda: learning_curve(HISTORY[:1]),
        lambda: roc_curves({"a": roc_points(LABELS, PROBABILITIES)}),
        lambda: reliability_diagram({"a": reliability_bins(LABELS, PROBABILITIES), "b": [Bin(1, 0.5, 0.0, 0.0, 0.8)]}),
        lambda: score_distribution(LABELS, PROBABILITIES),
        lambda: score_distribution(np.zeros(3), np.zeros(3)),
    ],
)
def test_plots_are_images(draw) -> None:
    image = draw()
    assert image.startswith(PNG)
    assert len(image) > 5000


def test_plots_of_equal_data_are_equal() -> None:
    assert learning_curve(HISTORY, 20) == learning_curve(HISTORY, 20)

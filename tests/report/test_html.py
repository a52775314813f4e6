from __future__ import annotations

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tfdlrm.report.curves import Bin, precision_recall_points, reliability_bins, roc_points
from tfdlrm.report.html import Plot, Section, Table, render
from tfdlrm.report.plots import (
    group_bars,
    learning_curve,
    precision_recall_curves,
    reliability_diagram,
    roc_curves,
    score_distribution,
    stage_bars,
)

PNG = b"\x89PNG\r\n\x1a\n"
IMAGE = PNG + b"\0\0\0\rIHDR" + (300).to_bytes(4, "big") + (150).to_bytes(4, "big")


class Checker(HTMLParser):
    """Checks that tags nest, and collects text and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        loads = [value or "" for name, value in attrs if name in ("src", "href")]
        self.loads += [value for value in loads if not value.startswith("#")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


def test_page_holds_everything_and_escapes_it() -> None:
    image = IMAGE + b"rest"
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
    assert not re.search(r"https?://|<script|<link|url\(", render("run", [Section("s", plots=[Plot("p", IMAGE)])]))


def test_contents_lead_to_every_section_and_long_tables_are_folded() -> None:
    long = Table("long", ["a"], [[str(number)] for number in range(60)])
    page = render("run", [Section("One & two", tables=[long]), Section("One & two", code=["short"])])
    names = re.findall(r'<a href="#([^"]*)">One &amp; two</a>', page)
    assert len(set(names)) == 2 and re.findall(r'<section id="([^"]*)">', page) == names
    assert page.count("<details>") == 1 and "long: 60 lines" in page
    assert "<nav" not in render("run", [Section("alone")])


def test_images_are_shown_as_large_as_they_were_drawn_and_say_what_they_show() -> None:
    page = render("run", [Section("s", plots=[Plot("numbers", IMAGE, "a <curve>"), Plot("only", IMAGE)])])
    assert page.count('width="192" height="96"') == 2  # 300 x 150 pixels at 150 an inch, 96 to an inch of the page
    assert 'alt="a &lt;curve&gt;"' in page and 'alt="only"' in page


HISTORY = [
    {"rows_seen": 10, "training_loss": 0.6, "log_loss": 0.7, "auc": 0.6},
    {"rows_seen": 20, "training_loss": 0.5, "log_loss": 0.6, "auc": None},
]
LABELS, PROBABILITIES = np.array([0, 1, 0, 1]), np.array([0.1, 0.2, 0.3, 0.9])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: learning_curve({"run": HISTORY}, 20),
        lambda: learning_curve({"run": HISTORY[:1], "other": HISTORY}),
        lambda: precision_recall_curves({"a": precision_recall_points(LABELS, PROBABILITIES)}, 0.5, 1.0),
        lambda: stage_bars({"train": 2.0, "evaluate": 0.5}),
        lambda: group_bars({"input": {"forward": 1.0, "backward": 0.0}, "top MLP": {"forward": 1.0, "backward": 2.0}}),
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
    assert learning_curve({"run": HISTORY}, 20) == learning_curve({"run": HISTORY}, 20)

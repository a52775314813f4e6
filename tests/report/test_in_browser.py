"""The page of a real, tiny run in a real browser; with TFDLRM_SCREENSHOTS=docs/img, pictures of the demo's page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser, look, require_browser
from tests.pipelines.small_runs import call, write_recipe
from tfdlrm.pipelines import criteo

STAGES = ("--stages", "prepare,train,evaluate,report")
SECTIONS = {
    "Results": 4,
    "Comparison with another run": 3,
    "Training": 1,
    "Slices": 1,
    "Importance of features": 1,
    "Embedding tables": 1,
    "Data": 0,
    "Time": 1,
    "Environment": 0,
    "Configuration": 0,
}
PICTURES = ("results", "comparison-with-another-run", "training", "slices", "importance-of-features", "time")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as running:
        yield running


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the page of a run that is compared with one of another seed."""
    require_browser()
    folder = tmp_path_factory.mktemp("report")
    recipe = write_recipe(folder, data={"planted": {"rows": 4000}}, train={"epochs": 1, "eval_every_steps": 10})
    other, work_dir = folder / "other", folder / "run"
    assert call(criteo.main, "--config", recipe, "--work-dir", other, *STAGES, "--set", "seed=7").code == 0
    whole = ("--set", "report.importance_rows=500", "--set", "report.slice_rows=500000")
    compared = (*whole, "--compare", other)
    assert call(criteo.main, "--config", recipe, "--work-dir", work_dir, *STAGES, *compared).code == 0
    return work_dir / "report" / "index.html"


@pytest.mark.parametrize("width", [400, 1200])
def test_page_is_whole(chromium: Any, page: Path, width: int) -> None:
    with look(chromium, page, width=width) as seen:
        assert seen.page.locator("h1").inner_text() == "small"
        assert seen.broken_images() == []
        assert not seen.is_wider_than_window()
        assert seen.overflowing() == []
        found = {
            section.locator("h2").inner_text(): section.locator("figure img").count()
            for section in seen.page.locator("section").all()
        }
        assert found == SECTIONS
        assert (seen.complaints, seen.requests) == ([], [page.resolve().as_uri()[:100]])


def test_every_section_is_reached_from_the_contents(chromium: Any, page: Path) -> None:
    with look(chromium, page) as seen:
        links = seen.page.locator("nav a")
        assert links.all_inner_texts() == list(SECTIONS)
        for link in links.all():
            link.click()
            target = seen.page.locator("section:target")
            assert target.locator("h2").inner_text() == link.inner_text()
            target.locator("h2").wait_for(state="visible")
        assert seen.complaints == []


def test_figures_say_what_they_show(chromium: Any, page: Path) -> None:
    with look(chromium, page) as seen:
        figures = seen.page.locator("figure").all()
        assert len(figures) == sum(SECTIONS.values())
        for figure in figures:
            assert len(figure.locator("figcaption").inner_text()) > 20
            assert len(figure.locator("img").get_attribute("alt")) > 10
            assert figure.locator("img").bounding_box()["width"] > 300


@pytest.mark.parametrize("dark", [False, True])
def test_text_is_readable_by_day_and_by_night(chromium: Any, page: Path, dark: bool) -> None:
    with look(chromium, page, dark=dark) as seen:
        back = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert back == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")
        assert seen.least_contrast() >= 4.5
        image = seen.page.locator("figure img").first
        assert image.evaluate("e => getComputedStyle(e).backgroundColor") == "rgb(255, 255, 255)"


def test_it_prints_without_contents(chromium: Any, page: Path) -> None:
    with look(chromium, page) as seen:
        seen.page.emulate_media(media="print")
        assert not seen.page.locator("nav").is_visible()
        assert seen.page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.skipif("TFDLRM_SCREENSHOTS" not in os.environ, reason="TFDLRM_SCREENSHOTS names no folder for pictures")
def test_screenshots(chromium: Any, tmp_path: Path) -> None:
    """Draw the pictures of docs/report.md from the demo, 200,000 planted rows, beside one of narrower tables."""
    folder = Path(os.environ["TFDLRM_SCREENSHOTS"])
    other, work_dir = tmp_path / "narrow", tmp_path / "demo"
    narrow = ("--set", "model.embedding_dim=4", "--set", "model.bottom_units=[64,4]", "--set", "name=narrow")
    assert call(criteo.main, "--work-dir", other, *STAGES, *narrow).code == 0
    assert call(criteo.main, "--work-dir", work_dir, *STAGES, "--set", f"report.compare={other}").code == 0
    draw(chromium, work_dir / "report" / "index.html", folder)
    assert all(picture.stat().st_size < 300_000 for picture in folder.glob("report*.png"))


def draw(chromium: Any, page: Path, folder: Path) -> None:
    """Draw the top of the page, some of its sections, and what a telephone shows at night."""
    folder.mkdir(parents=True, exist_ok=True)
    with look(chromium, page, width=1100, height=1000) as seen:
        seen.page.screenshot(path=folder / "report.png")
        for name in PICTURES:
            seen.page.locator(f"#{name}").screenshot(path=folder / f"report-{name}.png")
    with look(chromium, page, width=400, height=800, dark=True) as seen:
        seen.page.screenshot(path=folder / "report-narrow-dark.png")

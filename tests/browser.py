"""Pages looked at in a real browser: Chromium as the system has it, driven by playwright.

Without them a test skips, or fails where TFDLRM_REQUIRE_BROWSER=1.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_OVERFLOWING = """() => {
  const within = node => node.closest('.wide, pre, details:not([open])');
  const shown = [...document.querySelectorAll('body, body *')].filter(e => e.getClientRects().length && !within(e));
  const edge = document.documentElement.clientWidth;
  const inner = e => e.clientWidth > 0 && e.scrollWidth > e.clientWidth + 1;
  return shown.filter(e => inner(e) || e.getBoundingClientRect().right > edge + 1)
    .map(e => `${e.tagName} ${e.textContent.trim().slice(0, 40)}`);
}"""
_CONTRAST = """() => {
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = text => { const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); };
  const clear = colour => /, 0\\)$/.test(colour);
  const back = e => { while (e && clear(getComputedStyle(e).backgroundColor)) e = e.parentElement;
    return e ? getComputedStyle(e).backgroundColor : 'rgb(255, 255, 255)'; };
  const texts = [...document.querySelectorAll('p, td, th, caption, figcaption, a, h1, h2, pre, summary')];
  return Math.min(...texts.map(e => { const pair = [light(getComputedStyle(e).color), light(back(e))];
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05); }));
}"""


@dataclass
class Look:
    """A page that is open.

    Attributes:
        page: Playwright's page.
        complaints: What the browser's console said, errors in scripts, and requests that failed.
        requests: Addresses that the page asked for, data in the page itself aside.
    """

    page: Any
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def broken_images(self) -> list[str]:
        """Return the alternative texts of images that are not there or were not decoded."""
        return self.page.evaluate(
            "async () => { const all = [...document.images];"
            " const decoded = await Promise.all(all.map(i => i.decode().then(() => true, () => false)));"
            " return all.filter((i, n) => !decoded[n] || !i.naturalWidth || !i.naturalHeight).map(i => i.alt); }"
        )

    def overflowing(self) -> list[str]:
        """Return what is wider than its place, or than the window, and does not scroll on its own."""
        return self.page.evaluate(_OVERFLOWING)

    def is_wider_than_window(self) -> bool:
        """Tell whether the page must be scrolled sideways."""
        root = "document.documentElement"
        return self.page.evaluate(f"{root}.scrollWidth > {root}.clientWidth")

    def least_contrast(self) -> float:
        """Return the lowest contrast of text to what is behind it, as WCAG 2.1 defines it: 1 to 21."""
        return self.page.evaluate(_CONTRAST)


def require_browser() -> str:
    """Return the path of the browser; skip the test, or fail it where one is required, if there is none."""
    chromium = shutil.which("chromium")
    lacking = [
        name
        for name, found in (("Chromium", chromium), ("playwright", importlib.util.find_spec("playwright")))
        if found is None
    ]
    if chromium is not None and not lacking:
        return chromium
    reason = f"{' and '.join(lacking)} not installed"
    if os.environ.get("TFDLRM_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{reason}, and TFDLRM_REQUIRE_BROWSER=1 asks for a look in a browser")
    pytest.skip(reason)


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a running browser."""
    path = require_browser()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield running
        finally:
            running.close()


@contextmanager
def look(
    running: Any, page: Path, width: int = 1200, height: int = 900, dark: bool = False, scale: float = 1
) -> Iterator[Look]:
    """Open a page that lies on disk, and note what the browser complains of.

    Args:
        running: From `browser`.
        page: The HTML file.
        width: Of the window, in its pixels; so is `height`.
        height: Of the window.
        dark: Whether the reader prefers a dark page.
        scale: Pixels of the screen to a pixel of the window.
    """
    context = running.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        device_scale_factor=scale,
        offline=True,
    )
    try:
        seen = Look(context.new_page())
        seen.page.on("console", lambda message: seen.complaints.append(f"{message.type}: {message.text}"))
        seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
        seen.page.on("requestfailed", lambda request: seen.complaints.append(f"failed: {request.url[:100]}"))
        seen.page.on("request", lambda request: seen.requests.append(request.url[:100]))
        seen.page.goto(page.resolve().as_uri(), wait_until="load")
        seen.requests = [url for url in seen.requests if not url.startswith("data:")]
        yield seen
    finally:
        context.close()

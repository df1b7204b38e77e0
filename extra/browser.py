"""browser.py - the system's Chromium, driven by playwright, for the tests of pages."""

import contextlib
import os
import shutil

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None
MISSING = "playwright" if not sync_playwright else "Chromium" if not CHROMIUM else None

# For the body of a function in the page: how light a colour is, the contrast of two such values as
# WCAG defines it, and the colour that lies behind an element.
COLOURS = """
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const light = colour => {
    pen.clearRect(0, 0, 1, 1), pen.fillStyle = colour, pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].map(x => x / 255).map(
      x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  const behind = e => getComputedStyle(e).backgroundColor === "rgba(0, 0, 0, 0)" && e.parentNode !==
    document ? behind(e.parentNode) : getComputedStyle(e).backgroundColor;
"""


@contextlib.contextmanager
def chromium():
    root = hasattr(os, "getuid") and os.getuid() == 0        # whom Chromium's sandbox refuses
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] * root)
        yield browser
        browser.close()

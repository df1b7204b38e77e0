#!/usr/bin/env python3
"""picture.py PAGE.html OUT.png - takes the README's picture of a page of `generate --page`: the
start of a text, with a token chosen."""

import os
import sys

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from browser import chromium  # noqa: E402

page, out = sys.argv[1:]
os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
with chromium() as browser:
    window = browser.new_page(viewport={"width": 1080, "height": 720}, device_scale_factor=1.25)
    window.goto("file://" + os.path.abspath(page))
    window.locator("#text span").nth(24).click()
    window.evaluate("scrollTo(0, 0)")
    window.screenshot(path=out)

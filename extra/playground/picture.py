#!/usr/bin/env python3
"""picture.py PAGE.html OUT.png - takes the README's picture of the playground: a page that trains a
model with the penalty and one without it. Without OUT.png it trains with the default settings and
says how fast that is, and how long one waits for the page and for the worker."""

import os
import sys
import time

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from browser import chromium  # noqa: E402

READY = "runs.every(r => r.sample.textContent && r.shape)"
WATCH = """() => { window.seen = { gaps: [], asked: [], rates: [], below: 0, began: 0 };
    let last = performance.now();
    const frame = () => { const now = performance.now(); seen.gaps.push(now - last);
      last = now; setTimeout(frame, 0); }; frame();
    const run = runs[0], hear = run.worker.onmessage, send = run.worker.postMessage;
    run.worker.postMessage = message => { if (message.line) run.sent = performance.now();
      send.call(run.worker, message); };
    run.worker.onmessage = event => { const now = performance.now();
      if (event.data.line) seen.asked.push(now - run.sent);
      if (event.data.rate) seen.rates.push(event.data.rate);
      hear(event);
      if (event.data.evaluated && !seen.below && run.valid[run.valid.length - 1][1] < 2.1)
        seen.below = now - seen.began; };
    seen.began = performance.now(); }"""


def take_picture(window, out):
    window.select_option("#preset", "HMoE: with and without the penalty")
    window.wait_for_function(READY)
    window.click("#go")
    window.wait_for_function("runs.every(r => r.valid.length > 8)")
    window.click("#go")
    window.wait_for_timeout(500)
    window.evaluate("scrollTo(0, runs[0].sizes.getBoundingClientRect().top - 100)")
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    window.screenshot(path=out)


def show_figures(window):
    window.evaluate(WATCH)
    began = time.time()
    window.click("#go")
    window.wait_for_function("runs[0].state !== 'ready'", polling=50)
    seen, loss = window.evaluate("[seen, runs[0].valid[runs[0].valid.length - 1][1]]")
    rates, asked, gaps = sorted(seen["rates"]), sorted(seen["asked"]), sorted(seen["gaps"])
    print("%.0f tok/s (median), below 2.1 after %.1f s, %.4f at the end after %.1f s" % (
        rates[len(rates) // 2], seen["below"] / 1e3, loss, time.time() - began))
    for what, waits in ("page", gaps), ("worker", asked):
        print("the %s answered after %.0f ms (median), %.0f (99 of 100), %.0f (at most)" % (
            what, waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1]))


with chromium() as browser:
    page = browser.new_page(viewport={"width": 1160, "height": 900})
    page.set_default_timeout(1e6)
    page.goto("file://" + os.path.abspath(sys.argv[1]))
    page.wait_for_function(READY)
    if len(sys.argv) > 2:
        take_picture(page, sys.argv[2])
    else:
        show_figures(page)

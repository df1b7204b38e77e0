#!/usr/bin/env python3
"""test_lab.py - the laboratory's statistics against tables and other formulas, its plan, what its
report says of invented results, and a whole tiny run of it, killed on the way. It needs the
environment of `make lab` (extra/requirements.txt) and skips without it; LAB_STEPS is the length of
the tiny runs. BIN stands before the programs' names."""

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.dom.minidom

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "tests"), os.path.join(ROOT, "extra")]
import browser  # noqa: E402
from harness import check, done  # noqa: E402

os.chdir(ROOT)
here = tempfile.mkdtemp(prefix="hmoe-lab-")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
TEXT = os.path.join(here, "text")
os.environ.update(QUICK="1", LAB_STEPS=os.environ.get("LAB_STEPS") or "8", LAB_OUT=here, DATA=TEXT)
sys.dont_write_bytecode = True


try:
    import numpy as np
    import scipy.stats
    import matplotlib  # noqa: F401
    import safetensors  # noqa: F401
except ImportError as error:
    print("no %s here: skipped (make lab installs it)" % error.name)
    shutil.rmtree(here)
    done("test_lab")
with open(os.path.join(ROOT, "LICENSE"), "rb") as licence, open(TEXT, "wb") as text:
    text.write(licence.read() * 4)
import lab       # noqa: E402
import report    # noqa: E402


def close(a, b, far=1e-6):
    return abs(a - b) <= far * max(1, abs(b))


# --- statistics -----------------------------------------------------------------------------------

def statistics():
    # Student's sleep data (1908): the gain of ten patients, mean 1.58, t = 4.0621, and by R's
    # t.test the interval 0.7001142 to 2.4598858
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    e = report.paired(dict(enumerate(second)), dict(enumerate(first)))
    check("sleep: mean", close(e.mean, 1.58), e.mean)
    check("sleep: interval", close(e.low, 0.7001142) and close(e.high, 2.4598858), (e.low, e.high))
    check("sleep: sign", e.sign() == 1 and report.Effect(-v for v in (1, 1.1, 1.2)).sign() == -1)
    check("pairs are by seed", report.paired({1: 5, 2: 7, 9: 0}, {2: 4, 1: 1}).low
          == report.Effect([4, 3]).low)
    # tables: t(0.975) of 1, 2, 4 degrees of freedom
    for values, t in (([0, 2], 12.7062), ([0, 1, 2], 4.30265), ([0, 1, 2, 3, 4], 2.77645)):
        e = report.Effect(values)
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        check("t with %d values" % e.n, close((e.high - e.low) / 2, t * error, 1e-5), e.high)
    e = report.Effect([0.3])
    check("one seed tells nothing", e.sign() == 0 and np.isnan(e.low))
    check("no seed tells nothing", report.Effect([]).sign() == 0)
    check("not a number is left out", report.Effect([1, float("nan"), 2]).n == 2)
    # the interval and the p-value of scipy's paired test agree about 5 %
    random = np.random.default_rng(1)
    for shift in (0, 0.6, 1.2, 2.4):
        a, b = random.normal(size=5) + shift, random.normal(size=5)
        p = scipy.stats.ttest_rel(a, b).pvalue
        told = report.Effect(a - b).sign() != 0
        check("sign and p agree, shift %g" % shift, told == (p < 0.05), p)
    # power: of so many experiments with that effect, so many must find it; by drawing them
    for n in (3, 5):
        least = report.Effect(np.linspace(-1, 1, n)).least
        spread = np.std(np.linspace(-1, 1, n), ddof=1)
        x = random.normal(least, spread, size=(40000, n))
        t = x.mean(1) / (x.std(1, ddof=1) / np.sqrt(n))
        found = (abs(t) > scipy.stats.t.ppf(0.975, n - 1)).mean()
        check("power of %d seeds" % n, abs(found - 0.8) < 0.01, found)


def sentences():
    """Invented losses with an effect, without one, reversed."""
    base = {1: 1.50, 2: 1.52, 3: 1.49}
    noise = {1: 0.0010, 2: -0.0006, 3: 0.0002}

    def sentence(shift, wild=1):
        other = {s: v + shift + wild * noise[s] for s, v in base.items()}
        return report.claim("Ours", "theirs", report.paired(other, base), paper="HMoE")[1]
    lower, higher, none = sentence(-0.05), sentence(0.05), sentence(0.0, 30)
    check("lower is said", "0.0498 nats lower than theirs" in lower and "what HMoE found" in lower
          and "opposite" not in lower, lower)
    check("higher is said", "0.0502 nats higher than theirs" in higher
          and "the opposite of what HMoE found" in higher, higher)
    check("cannot tell is said", "cannot tell" in none and "Neither for nor against HMoE" in none
          and "four times in five" in none and "found." not in none, none)
    check("few seeds are said", "too few" in report.claim("a", "b", report.Effect([0.5]))[1])
    check("a minus is a minus", report.num(-0.5, 1) == "−0.5" and report.num(float("nan")) == "–")


# --- parsing --------------------------------------------------------------------------------------

def parsing():
    path = os.path.join(here, "routes.csv")
    rows = ["position,byte,nll,entropy,layer,experts,widths,gates,P",
            "0,65,1.500000,2.000000,0,5 3,152 120,0.6 0.4,0 0 0 0.4 0 0.6 0 0",
            "0,65,1.500000,2.000000,1,0,72,1,1 0 0 0 0 0 0 0",
            "1,10,0.250000,0.500000,0,7 1 2,184 88 104,0.5 0.3 0.2,0 0.3 0.2 0 0 0 0 0.5",
            "1,10,0.250000,0.500000,1,3,120,1,0 0 0 1 0 0 0 0"]
    with open(path, "w") as file:
        file.write("\n".join(rows) + "\n")
    seen = lab.read_routes(path, 2)
    check("routes: bytes and losses", list(seen["byte"]) == [65, 10]
          and list(seen["nll"]) == [1.5, 0.25])
    check("routes: first choices", seen["first"].tolist() == [[5, 0], [7, 3]], seen["first"])
    check("routes: sets", [[list(np.flatnonzero(s)) for s in t] for t in lab.bits(seen["mask"])]
          == [[[3, 5], [0]], [[1, 2, 7], [3]]], seen["mask"])
    with open(path, "w") as file:
        file.write("\n".join(rows[:-1]) + "\n")
    try:
        lab.read_routes(path, 2)
        check("routes: a missing row is seen", False)
    except lab.Failure:
        check("routes: a missing row is seen", True)
    os.remove(path)
    # shares, distances and stability by hand: two tokens, one layer, widths in no order
    # (three looks, of which the last two agree)
    a = report.derived(
        widths=np.array([30, 10, 20, 40, 50, 60, 70, 80]), byte=np.array([1, 2], np.uint8),
        mask=np.array([[[1], [2]], [[3], [2]], [[3], [2]]], np.uint32), alike=np.diag(np.arange(8)),
        first=np.array([[[0], [1]], [[1], [1]], [[1], [1]]], np.uint8))
    check("share by rising width", np.allclose(a["share"][-1, :3], [2 / 3, 0, 1 / 3])
          and np.allclose(a["share"][0, :3], [1 / 2, 0, 1 / 2]), a["share"])
    check("first choices by rising width", a["first"].tolist() == [[[2], [0]]] + [[[0], [0]]] * 2)
    check("cosines by rising width", np.diag(a["alike"]).tolist() == [1, 2, 0, 3, 4, 5, 6, 7])
    check("activated width", a["work"][-1].ravel().tolist() == [40, 10], a["work"])
    check("bytes", a["bytes"][[0, 2]][:, [1, 2]].tolist() == [[1, 1], [1, 0]], a["bytes"])
    check("distance of bytes", close(report.variation(a)[0, 2], 0.5), report.variation(a)[0, 2])
    check("stability", report.same("first")(a).tolist() == [0.5, 1]
          and report.same("mask")(a).tolist() == [0.5, 1])


# --- the plan -------------------------------------------------------------------------------------

def widths(run):
    out = os.path.join(here, "widths")
    said = subprocess.run([str(x) for x in lab.arguments(run, out, steps=0)], text=True,
                          capture_output=True).stdout
    shutil.rmtree(out, ignore_errors=True)
    return ([int(w) for w in re.search(r"widths([ 0-9]+)", said).group(1).split()],
            *(int(x) for x in re.search(r": (\d+) parameters, (\d+) activated", said).groups()))


def planned():
    runs = lab.plan({})
    check("keys differ", len({r.key for r in runs}) >= len(runs) - lab.SCALE["seeds"][0])
    main = {r.name: r for r in runs if r.kind == "main" and r.seed == 1}
    check("every run of the table", set(main) == set(lab.VARIANTS) and len(main) == 14)
    check("only grids are ready", all(r.ready == (r.kind == "grid") for r in runs))
    check("the grid's seed is not reported", {r.seed for r in runs if r.kind == "grid"} == {7}
          and all(r.seed != 7 for r in runs if r.kind != "grid"))
    check("batches are the same", len({tuple(r.options[o] for o in ("batch", "context", "steps"))
                                       for r in main.values()}) == 1)
    seen = {name: widths(run) for name, run in main.items()}
    equal, total, active = seen["homogeneous"]
    for name, (w, parameters, _) in seen.items():
        if "dense" not in name:
            check("total of %s" % name, sum(w) == sum(equal) and parameters == total, w)
    check("dense by activated", abs(seen["dense"][2] / active - 1) < 0.01, seen["dense"][2])
    check("dense by total", abs(seen["dense_total"][1] / total - 1) < 0.01, seen["dense_total"][1])
    for ratio in lab.RATIOS:
        w = widths(next(r for r in runs if r.name == "ratio %g" % ratio))[0]
        check("ratio %g" % ratio, sum(w) == sum(equal) and w == sorted(w)
              and abs(w[-1] / w[0] / ratio - 1) < 0.2, w)     # widths are whole eights
    o = {name: run.options for name, run in main.items()}
    check("coefficients", o["arithmetic_free"]["pp"] == o["arithmetic_free"]["lb"] == 0
          and o["arithmetic"]["pp"] > 0 and o["modse"]["lb"] > 0 and o["modse"]["pp"] == 0
          and o["arithmetic_lb"]["pp"] == 0 and o["arithmetic_lb"]["lb"] > 0
          and o["topp_no_entropy"]["ent"] == 0 and o["topp_no_entropy"]["pp"] > 0
          and o["topp_raw"]["gate"] == "raw" and o["arithmetic_topp"]["ent"] > 0
          and o["homogeneous_topp"]["lb"] > 0 and o["homogeneous_topp"]["routing"] == "topp")
    # a grid with a clear winner is followed; a diverged run never wins
    results = {}
    for r in runs:
        if r.kind == "grid":
            good = r.options["lr"] == lab.SCALE["lr"][0]
            results[r.key] = dict(status="ok" if good else "diverged", val_loss="2.0" * good)
    again = lab.plan(results)
    check("the grid's winner is taken", {r.options["lr"] for r in again if r.kind != "grid"}
          == {lab.SCALE["lr"][0]})
    check("all but MoDSE's width is ready", {r.name for r in again if not r.ready}
          == {"equal_wide"})
    for r in again:
        if r.name == "modse":
            results[r.key] = dict(status="ok", val_loss="2.0", mean_width="70.4")
    wide = [r for r in lab.plan(results) if r.name == "equal_wide"]
    check("MoDSE's width is taken", all(r.ready and r.options["hidden"] == 70 for r in wide))


# --- a whole laboratory ---------------------------------------------------------------------------

def start(**more):
    return subprocess.Popen([sys.executable, "extra/lab/lab.py"], env=dict(os.environ, **more),
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def rows():
    return lab.read_results()


def whole():
    """Killed as soon as some runs are kept, and once in the middle; then to its end."""
    for kept in (4, 30):
        process, limit = start(), time.time() + 300
        while len(rows()) < kept and process.poll() is None and time.time() < limit:
            time.sleep(0.05)
        process.kill()
        process.communicate()
    before = rows()
    check("killed in the middle", 30 <= len(before) < 50, len(before))
    out, errors = start().communicate()
    after = rows()
    check("it ends well", "report.html are written" in out, errors[-500:])
    check("what was there is not repeated", out.count(" of 50") == 50 - len(before) and all(
        after[k][c] == v for k, row in before.items() for c, v in row.items()), out[:300])
    plan = lab.plan(after)
    check("every run has a row", all(r.key in after for r in plan))
    check("tokens/s of each", sum(r["kind"] == "speed" for r in after.values()) == 14)
    check("folders are gone", [f for f in os.listdir(lab.RUNS) if os.path.isdir(
        os.path.join(lab.RUNS, f))] == ["docs"])
    out, _ = start().communicate()
    check("a second time nothing is trained", " of 50" not in out and rows() == after, out)
    # a run that was interrupted at any place is the run that was not
    run = next(r for r in plan if r.name == "arithmetic" and r.kind == "main" and r.seed == 2)
    straight = os.path.join(here, "straight")
    out = subprocess.run([str(x) for x in lab.arguments(run, straight)], text=True,
                         capture_output=True).stdout
    shutil.rmtree(straight)
    check("in pieces as in one", "val_loss " + after[run.key]["val_loss"] in out, out[-200:])
    a = dict(np.load(os.path.join(lab.RUNS, run.key + ".npz")))
    check("cosines", np.allclose(np.diag(a["alike"]), 1, atol=1e-5) and np.allclose(
        a["alike"], a["alike"].T) and abs(a["alike"]).max() < 1.001)
    check("Top-2 chooses two", (report.derived(**a)["chosen"].sum(-1) == 2).all())
    check("results name every option", all(after[r.key][o] == str(v) for r in plan
                                           for o, v in r.options.items()))
    return after


def pieces():
    """One run, interrupted before the second look: no piece is trained twice."""
    run, said, real = next(r for r in lab.plan({}) if r.kind == "main"), [], lab.call

    def call(*what):
        said.append([str(x) for x in what])
        if len(said) == 4:
            raise KeyboardInterrupt
        return real(*what)
    lab.call = call
    try:
        lab.make(run)
        check("it was interrupted", False)
    except KeyboardInterrupt:
        row = lab.make(run)
    lab.call = real
    trained = [what for what in said if what[0].endswith("train_tiny")]
    stops = [int(what[what.index("--stop-at") + 1]) for what in trained]
    check("every piece once", stops == run.points, stops)
    check("each goes on", ["--resume" in what for what in trained] == [False] + [True] * 3, trained)
    check("and it ends", row["status"] == "ok" and float(row["val_loss"]) > 0)
    shutil.rmtree(os.path.join(lab.RUNS, run.key))
    os.remove(os.path.join(lab.RUNS, run.key + ".npz"))


def page(results):
    with open(os.path.join(here, "report.html"), encoding="utf-8") as file:
        text = file.read()
    parts = re.findall(r"<section class=question.*?</section>", text, re.S)
    check("13 questions", len(parts) == 13)
    for part in parts:
        title = re.search(r"<h2>(.*?)</h2>", part).group(1)
        check("%s: filled" % title, ("<svg" in part or "<table" in part) and len(re.findall(
            r"<p>[^<]{20,}", part)) >= 1 and "nan" not in part and "$" not in part)
        check("%s: pictures drawn" % title, all(
            svg.count("<path") + svg.count("<use") > 5
            for svg in re.findall(r"<svg.*?</svg>", part, re.S)))
    check("marked as quick", "<p ><b>Quick form" in text)
    looks()
    check("self-contained", not re.search(r"https?:|<script|<link|<img|@import|src=|url\([^#]",
                                          text))
    names = re.findall(r' id="?([^" >]+)', text)
    check("names are unique", len(names) == len(set(names)))
    check("links lead somewhere", {r for r in re.findall(r'(?:href="?#|url\(#)([^" >)]+)', text)}
          <= set(names))
    for name in ("differences", "usage", "activated"):
        with open(os.path.join(lab.RUNS, "docs", name + ".svg"), encoding="utf-8") as file:
            svg = file.read()
        check("%s.svg" % name, svg.startswith("<svg xmlns=") and len(svg) < 80000)
        xml.dom.minidom.parseString(svg)
    report.write(results)
    with open(os.path.join(here, "report.html"), encoding="utf-8") as file:
        check("drawn again it is the same", file.read() == text)
    # the page follows the numbers: arithmetic well below equal, then well above
    for shift, word in ((-0.5, "lower"), (0.5, "higher")):
        moved = {"homogeneous": 2.0, "arithmetic": 2.0 + shift}
        report.write({k: dict(r, val_loss="%.6f" % (moved[r["name"]] + 1e-3 * int(r["seed"]) * (
            r["name"] == "arithmetic"))) if r["name"] in moved and r["kind"] == "main" else r
            for k, r in results.items()})
        with open(os.path.join(here, "report.html"), encoding="utf-8") as file:
            said = re.search(r"<p>(Arithmetic, Top-2: [^<]*equal, Top-2 [^<]*)</p>", file.read())
        check("the page says %s" % word, said and " nats %s than" % word in said.group(1), said)
    # runs that diverged are left out and said: the baseline's, and then all
    for names in (["homogeneous"], list(lab.VARIANTS)):
        report.write({k: dict(r, status="diverged") if r["name"] in names and r["kind"] == "main"
                      else r for k, r in results.items()})
        with open(os.path.join(here, "report.html"), encoding="utf-8") as file:
            check("diverged runs are said", "diverged, and are left out: %d." % sum(
                lab.SCALE["seeds"][lab.VARIANTS[n]["many"]] for n in names) in file.read())


# Contrast of all text on the paper, in pictures too; maps have their own ink.
LOOK = "() => {" + browser.COLOURS + """
  const paper = light(getComputedStyle(document.body).backgroundColor);
  return {
    dark: paper < .2, wide: document.documentElement.scrollWidth - innerWidth,
    drawn: [...document.querySelectorAll("section svg")].map(s => s.getBoundingClientRect()).filter(
      r => r.width > 200 && r.height > 80).length,
    weak: [...document.querySelectorAll("h1, h2, p, a, td, th, small, figcaption, svg text")]
      .map(e => [ratio(paper, light(getComputedStyle(e)[e.closest("svg") ? "fill" : "color"])),
                 e.outerHTML.slice(0, 80), getComputedStyle(e).fill])
      .filter(([c, html, fill]) => c < 4.5 && !/rgb\\((255, 255, 255|28, 39, 51)\\)/.test(fill)) };
}"""


def looks():
    """The report in a browser: light, dark, on a phone; nothing is asked for, nothing complains."""
    if browser.MISSING:
        return print("no %s here: how the report looks is skipped" % browser.MISSING)
    address = "file://" + os.path.join(here, "report.html")
    with open(os.path.join(here, "report.html"), encoding="utf-8") as file:
        figures = file.read().count("<svg")
    with browser.sync_playwright() as play:
        chromium = browser.launch(play)
        for scheme, width in (("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)):
            window = chromium.new_page(viewport=dict(width=width, height=800), color_scheme=scheme)
            heard = []
            window.on("console", lambda m: heard.append(m.text))
            window.on("pageerror", lambda e: heard.append(str(e)))
            window.on("request", lambda r: heard.append(r.url))
            window.goto(address)
            name, seen = "report, %s, %d pixels: " % (scheme, width), window.evaluate(LOOK)
            check(name + "one request, no complaint", heard == [address], heard)
            check(name + "%d figures" % figures, seen["drawn"] == figures >= 25, seen["drawn"])
            check(name + "nothing sticks out", seen["wide"] == 0, seen["wide"])
            check(name + "colours", seen["dark"] == (scheme == "dark"))
            check(name + "contrast", not seen["weak"], seen["weak"][:5])
            window.get_by_role("link", name="Do harder tokens").click()
            top = window.evaluate(
                "document.querySelector(location.hash)?.getBoundingClientRect().top")
            check(name + "a link leads to its answer", top is not None and abs(top) < 5, top)
            window.close()
        chromium.close()


def refuses():
    out = start(DATA="nowhere").communicate()[1]
    check("no text: one line", out.startswith("lab: ") and out.count("\n") == 1
          and "nowhere" in out, out)
    out = start(BIN="nowhere/").communicate()[1]
    check("no program: one line", out.startswith("lab: ") and out.count("\n") == 1, out)


try:
    statistics()
    sentences()
    parsing()
    if not os.path.exists(lab.BIN + "train_tiny"):
        print("no %strain_tiny: make builds it; the rest is skipped" % lab.BIN)
    else:
        os.makedirs(lab.RUNS)
        lab.write_validation()
        planned()
        pieces()
        page(whole())
        refuses()
finally:
    shutil.rmtree(here, ignore_errors=True)
done("test_lab")

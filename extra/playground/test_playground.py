#!/usr/bin/env python3
"""test_playground.py - opens build/playground.html in a browser, from the disk, and trains there.

What the page shows is held against train_tiny and generate: same settings, same losses; same
checkpoint, same score. It needs playwright (`sh extra/python.sh extra/requirements.txt
build/python`), the system's Chromium, `make playground`, and BIN, where the programs are. It
asserts no times.

    test_playground.py --picture docs/playground.png     takes the README's picture instead
    test_playground.py --figures                         says how fast it is here"""

import atexit
import csv
import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path[:0] = [os.path.join(ROOT, "tests"), os.path.join(ROOT, "extra")]
from browser import COLOURS, MISSING, launch, skip, sync_playwright  # noqa: E402
from harness import check, done, same  # noqa: E402

BIN = os.path.abspath(os.environ.get("BIN") or ".")
PAGE = os.path.abspath(os.path.join(os.environ.get("BUILD") or "build", "playground.html"))
TINY = os.path.join(ROOT, "tinyshakespeare", "input.txt")

if MISSING:
    skip("test_playground", MISSING)
if not os.path.exists(PAGE):
    if os.path.exists(PAGE.replace(".html", "/probe.wasm")):   # what builds it is there
        check("make playground", False)
        done("test_playground")
    skip("test_playground", "playground.html (make playground)")


def near(name, seen, wanted, allowed):
    check(name, seen is not None and abs(seen - wanted) <= allowed,
          "saw %r, not %r within %g" % (seen, wanted, allowed))


class Visitor:
    """A tab with the page; what it complains of, and what it asks for, fails."""

    def __init__(self, browser, address="", width=1200, height=900, scheme="light", script=None,
                 root="file://" + os.path.dirname(PAGE) + "/"):
        self.root = root + os.path.basename(PAGE)
        self.context = browser.new_context(viewport={"width": width, "height": height},
                                           color_scheme=scheme, accept_downloads=True)
        self.page, self.complaints = self.context.new_page(), []
        self.page.set_default_timeout(120000)
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.complaints.append(r.url))
        if script:
            self.page.add_init_script(script)
        self.page.goto(self.root + address)
        self.js, self.press = self.page.evaluate, self.page.keyboard.press
        if not script or "WebAssembly = " not in script:
            self.ready()

    def close(self, name):
        asked = [c for c in self.complaints if not c.startswith((self.root, "blob:"))]
        same(name + ": no complaint, no request", asked, [])
        self.context.close()

    def wait(self, what):
        self.page.wait_for_function(what, polling=50)

    def ready(self):
        """Every run has its first sample, or failed."""
        self.wait("runs.every(r => r.state === 'failed' || r.sample.textContent && r.shape)")

    def steps(self, n):
        for _ in range(n):
            at = self.js("runs.map(r => r.losses.length)")
            self.page.click("#step")
            self.wait("runs.every((r, i) => r.losses.length > %s[i])" % at)

    def train(self):
        self.page.click("#go")
        self.wait("runs.every(r => r.state !== 'ready')")

    def figure(self, name, run=0):
        return self.js("""([name, run]) => { const at = [...runs[run].card.querySelectorAll("dt")]
            .find(e => e.textContent === name); return at && parseFloat(
            at.nextSibling.textContent.replace(/,/g, "")) }""", [name, run])

    def validation(self, run=0):
        return self.js("run => runs[run].valid[runs[run].valid.length - 1]?.[1]", run)

    def losses(self, run=0):
        return self.js("run => runs[run].losses.map(l => l[1])", run)

    def says(self):
        return self.page.inner_text("#says")

    def problem(self, run=0):
        return self.js("run => runs[run].problem.textContent", run)

    def set(self, name, value, run=0):
        field = self.page.locator(".run").nth(run).locator("[name=%s]" % name)
        if field.evaluate("e => e.tagName") == "SELECT":
            field.select_option(value)
        else:
            field.fill(str(value))
            field.press("Tab")
        self.ready()


def native(work, name, *options):
    """Runs train_tiny; the rows of its log, and its directory."""
    out = os.path.join(work, name)
    again = [] if "--resume" in options else ["--overwrite"]
    run = subprocess.run([os.path.join(BIN, "train_tiny"), "--out", out, "--threads", "1", *again,
                          *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if run.returncode:
        sys.exit("train_tiny %s\n%s" % (" ".join(options), run.stdout.decode()))
    return list(csv.DictReader(open(os.path.join(out, "log.csv")))), out


def score(directory, path):
    out = subprocess.run([os.path.join(BIN, "generate"), directory, "--score", path],
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode()
    return float(out.split()[1]) if out.startswith("nll") else check("generate --score", 0, out)


# The text has 6,401 bytes to validate on: whole windows of 64, so page and program see the same.
LENGTH = 64010
SMALL = {"width": 32, "layers": 2, "experts": 4, "hidden": 16, "steps": 200, "lr": 0.01}
ADDRESS = "#" + "&".join("%s=%s" % item for item in SMALL.items())
NATIVE = ("--width 32 --heads 1 --layers 2 --experts 4 --hidden 16 --steps 200 --lr 0.01 "
          "--eval-tokens 8192").split()


# --- the checks -----------------------------------------------------------------------------------

def check_training(browser, work, data):
    """Learns a pasted text to the end; the checkpoint is what train_tiny would write."""
    visitor, page = Visitor(browser, ADDRESS), None
    page = visitor.page
    text = open(data, encoding="ascii").read()
    page.fill("#own", text)
    page.click("#learn")
    visitor.ready()
    first = visitor.validation()
    near("at first it knows nothing", first, 4.14, .1)
    visitor.train()
    same("trained to the end", (visitor.figure("Step"), visitor.js("runs[0].state")), (200, "done"))
    last = visitor.validation()
    check("it has learned: validation loss below 2.65", last < 2.65, last)
    check("and the training loss is as low", visitor.losses()[-1] < 2.65, visitor.losses()[-1])
    check("the sample has improved", visitor.js("runs[0].sample.textContent.length") > 100)
    same("Train is off", page.is_disabled("#go"), True)
    rows, out = native(work, "run", "--data", data, *NATIVE)
    near("train_tiny gets as far", last, float(rows[-1]["val_loss"]), .05)
    near("as many activated parameters", visitor.figure("Activated") /
         float(rows[-1]["activated"]), 1, .05)

    with page.expect_download() as got:
        page.click("text=Download the checkpoint")
    path = os.path.join(work, "page.zip")
    got.value.save_as(path)
    with zipfile.ZipFile(path) as packed:
        same("a whole zip", packed.testzip(), None)
        same("uncompressed", {i.compress_type for i in packed.infolist()}, {zipfile.ZIP_STORED})
        packed.extractall(work)
    made, part = os.path.join(work, "hmoe"), os.path.join(work, "validation")
    with open(part, "w") as file:
        file.write(text[-6401:])
    near("generate scores it the same", score(made, part), last, 1e-4)
    same("the same files", sorted(os.listdir(made)),
         sorted(f for f in os.listdir(out) if "." in f and f != "log.csv"))
    for name in "config.json", "tokenizer.json", "tokenizer_config.json":
        same(name + " is the same bytes", open(os.path.join(made, name), "rb").read(),
             open(os.path.join(out, name), "rb").read())
    resumed = native(work, "hmoe", "--resume", "--data", data, "--steps", "201")[0]
    same("train_tiny goes on with it", [row["step"] for row in resumed], ["201"])

    page.set_input_files("#files", path)
    visitor.wait("runs[0].files && runs[0].valid.length")
    near("the zip, opened here", visitor.validation(), last, 1e-6)
    check("is named", "hmoe" in visitor.js("runs[0].title.textContent"))
    same("only what is known of it", visitor.js(
        "[...document.querySelectorAll('dt')].map(e => e.textContent)"),
        ["Validation", "Activated", "Parameters", "Experts a token"])
    page.check("#two")
    visitor.ready()
    page.fill("#seed", "2")
    page.press("#seed", "Tab")
    visitor.wait("runs[1].shape && runs[1].sample.textContent")
    same("beside another run it stays", visitor.js("runs.map(r => !!r.files)"), [True, False])
    page.click("#step")
    visitor.wait("runs[1].losses.length")
    page.uncheck("#two")
    page.click("#reset")
    visitor.ready()
    page.fill("#seed", "1337")
    page.press("#seed", "Tab")
    visitor.ready()
    near("Reset: the settings again", visitor.validation(), first, 1e-9)
    visitor.close("training")


def drop(visitor, path):
    """As a hand does it."""
    mouse = visitor.context.new_cdp_session(visitor.page)
    for what in "dragEnter", "dragOver", "drop":
        mouse.send("Input.dispatchDragEvent", {"type": what, "x": 9, "y": 9, "data": {
            "items": [], "files": [path], "dragOperationsMask": 1}})


class Server(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
        super().__init__(*args, directory=os.path.dirname(PAGE))

    def do_GET(self):
        if self.path.startswith("/favicon"):     # browsers ask for it, the page does not
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


def check_native(browser, work, data):
    """A checkpoint of train_tiny's, deflated and as files, shows."""
    _, out = native(work, "native", "--data", data, *NATIVE, "--experts", "5", "--routing", "topp",
                    "--sizes", "1,2,3,4,6", "--layers", "3", "--hidden", "40", "--steps", "60")
    best, part = os.path.join(out, "best"), os.path.join(work, "validation")
    widths = json.load(open(os.path.join(out, "config.json")))["expert_sizes"]
    zipped = os.path.join(work, "native.zip")
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in os.listdir(best):
            packed.write(os.path.join(best, name), "some/place/" + name)
    visitor = Visitor(browser, ADDRESS)
    visitor.page.set_input_files("#files", data)
    visitor.ready()
    for how, paths in ("zip", [zipped]), ("files", [os.path.join(best, f)
                                                    for f in os.listdir(best)]):
        visitor.page.set_input_files("#files", paths)
        visitor.wait("runs[0].files && (runs[0].from === 'some/place') === %s && "
                     "runs[0].valid.length && runs[0].routes.querySelector('td')" %
                     json.dumps(how == "zip"))
        same(how + ": widths", visitor.js("runs[0].shape.H"), widths)
        near(how + ": its loss", visitor.validation(), score(best, part), 1e-4)
        same(how + ": layers", visitor.page.locator(".use").count(), 3)
        visitor.wait("runs[0].sample.textContent.length > 100")
        same(how + ": nothing to train", visitor.page.is_disabled("#go"), True)
    drop(visitor, best)                     # Chromium lets no page from the disk read a folder
    visitor.wait("document.getElementById('says').textContent.includes('folders are not read')")
    visitor.close("native")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    visitor = Visitor(browser, ADDRESS, root="http://127.0.0.1:%d/" % server.server_port)
    visitor.page.set_input_files("#files", data)
    visitor.ready()
    drop(visitor, best)
    visitor.wait("runs[0].files && runs[0].valid.length")
    near("folder: its loss", visitor.validation(), score(best, part), 1e-4)
    visitor.close("served")
    server.shutdown()


CONTROLS = [   # a control, a value, what train_tiny calls it
    ("sizes", "geometric", "--sizes geometric"), ("sizes", "modse", "--sizes modse"),
    ("width", 96, "--width 96 --heads 3"), ("layers", 1, "--layers 1"),
    ("experts", 6, "--experts 6"), ("hidden", 40, "--hidden 40"),
    ("routing", "topp", "--routing topp --ent 0"), ("k", 3, "--k 3"), ("gate", "raw", "--gate raw"),
    ("pp", 2, "--pp 2"), ("lb", 2, "--lb 2"), ("ent", 2, "--ent 2"), ("z", 1, "--z 1"),
    ("lr", .3, "--lr 0.3")]


def check_controls(browser, work, data):
    """Each control makes the run that the same option of train_tiny makes."""
    visitor = Visitor(browser, ADDRESS)
    visitor.page.set_input_files("#files", data)
    visitor.ready()
    visitor.steps(3)
    base = visitor.losses() + [visitor.figure("Gradient norm")]
    worst = 0
    for name, value, options in [("lr", .01, "")] + CONTROLS:
        if options:
            visitor.set(name, value)
            visitor.steps(3)
        seen = visitor.losses() + [visitor.figure("Gradient norm")]
        rows, out = native(work, "three", "--data", data, *NATIVE, *options.split(),
                           "--stop-at", "3")
        said = "%s %s: " % (name, value)
        for i, row in enumerate(rows):
            near(said + "loss of step %d" % (i + 1), seen[i], float(row["ce"]), 2e-5)
            worst = max(worst, abs(seen[i] - float(row["ce"])))
        near(said + "gradient", seen[3], float(rows[2]["grad_norm"]), .0051)
        same(said + "widths", visitor.js("runs[0].shape.H"),
             json.load(open(os.path.join(out, "config.json")))["expert_sizes"])
        if options:
            check(said + "acts", seen != base, seen)
            check(said + "in the address", "%s=%s" % (name, value) in visitor.js("location.hash"),
                  visitor.js("location.hash"))
            visitor.js("address => { location.hash = address }", ADDRESS)
            visitor.wait("JSON.stringify(runs[0].settings) === JSON.stringify(fromAddress()[0]) && "
                         "!location.hash.includes('%s=%s')" % (name, value))
            visitor.ready()
    print("largest difference from train_tiny in three steps: %.2g" % worst)
    for field, value in ("#seed", "7"), ("#steps", "2"):
        visitor.page.fill(field, value)
        visitor.page.press(field, "Tab")
        visitor.ready()
        check(field + " in the address", field[1:] + "=" + value in visitor.js("location.hash"))
    visitor.train()
    same("two steps", visitor.figure("Step"), 2)
    check("another seed", abs(visitor.losses()[0] - base[0]) > 1e-3, visitor.losses())
    visitor.page.fill("#seed", "-1")
    visitor.page.press("#seed", "Tab")
    check("a bad seed: a line", "Seed: it must be from 0" in visitor.says(), visitor.says())
    same("and the old one", visitor.page.input_value("#seed"), "7")
    visitor.close("controls")


def check_hands(browser):
    """Dragging, keys, pause, two settings, presets, the line, links."""
    visitor = Visitor(browser, ADDRESS.replace("experts=4", "experts=8").replace("=200", "=100000"))
    page, js = visitor.page, visitor.js
    widths = js("runs[0].shape.H")
    handle = page.locator(".sizes b").nth(2)
    box, strip = handle.bounding_box(), page.locator(".sizes").bounding_box()
    page.mouse.move(box["x"] + 5, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 5 + strip["width"] * 8 / sum(widths), box["y"] + 20, steps=4)
    page.mouse.up()
    visitor.ready()
    dragged = [w + 8 * (i == 2) - 8 * (i == 3) for i, w in enumerate(widths)]
    same("dragged by 8", js("runs[0].shape.H"), [max(8, w) for w in dragged]
         if min(dragged) >= 8 else widths)
    page.locator(".sizes b").nth(6).focus()
    before = js("runs[0].shape.H")
    visitor.press("ArrowLeft")
    visitor.ready()
    after = js("runs[0].shape.H")
    same("a key moves a border, the sum stays", (after[6], after[7], sum(after)),
         (before[6] - 8, before[7] + 8, sum(before)))
    same("and keeps the focus", js("document.activeElement.getAttribute('role')"), "slider")
    check("drawn sizes are in the address", "sizes=" in js("location.hash"), js("location.hash"))
    drawn = page.eval_on_selector_all(".sizes i", "all => all.map(e => e.offsetWidth)")
    near("drawn to width", drawn[7] / sum(drawn), after[7] / sum(after), .03)

    page.click("#go")
    visitor.wait("runs[0].losses.length > 3")
    same("the button says Pause", page.inner_text("#go"), "Pause")
    page.fill("#line", "Zounds!")
    visitor.wait("runs[0].routes.querySelectorAll('td').length === 14")
    page.click("#go")
    page.wait_for_timeout(300)
    paused = js("runs[0].losses.length")
    page.wait_for_timeout(500)
    same("paused", js("runs[0].losses.length"), paused)
    same("the line's letters", js("[...runs[0].routes.querySelectorAll('tr:first-child th')]"
                                  ".map(e => e.textContent).join('')"), "Zounds!")
    page.locator(".routes").focus()
    visitor.press("ArrowRight")
    visitor.press("ArrowRight")
    told = page.inner_text(".run [data-is=told]")
    gates = [float(part.split(",")[0]) for part in told.split("gate ")[1:]]
    check("a cell is told", told.startswith("o, layer 1, foreseen with") and len(gates) == 2
          and abs(sum(gates) - 1) < .011, told)
    page.fill("#line", "\u00e9")
    page.keyboard.press("Tab")
    visitor.wait("runs[0].routes.textContent.includes('None of these')")

    page.check("#two")
    visitor.ready()
    visitor.steps(2)
    same("two settings, same seed and batches", visitor.losses(0), visitor.losses(1))
    visitor.set("pp", 5, run=1)
    check("B's own", "b.pp=5" in js("location.hash") and "&pp" not in js("location.hash"))
    link = js("location.hash")
    same("no preset is like that", page.input_value("#preset"), "")
    for preset in js("Object.keys(PRESETS)"):
        page.select_option("#preset", preset)
        visitor.ready()
        same(preset + " is shown", page.input_value("#preset"), preset)
        visitor.steps(1)
        visitor.set("layers", 2)
        same(preset + " is not", page.input_value("#preset"), "")
        page.select_option("#preset", preset)
        visitor.ready()
        same(preset + ": again", js("runs[0].settings.layers"), 3)
        visitor.steps(1)
        same(preset + ": runs", (js("runs.length"), js("runs.map(r => r.problem.textContent)")),
             (1, [""]) if preset == "one model" else (2, ["", ""]))
    other = Visitor(browser, link + "&nonsense=1")
    same("a link is an experiment", other.js("runs.map(r => r.settings.pp)"), [.01, 5])
    same("with its sizes", other.js("runs[0].shape.H"), after)
    check("what it does not know, it says", "nonsense=1" in other.says(), other.says())
    other.close("link")
    page.uncheck("#two")
    visitor.ready()
    same("one again", js("runs.length"), 1)
    same("labels", js("""[...document.querySelectorAll("input, select, textarea, button, svg, " +
        "[role=slider], [tabindex]")].filter(e => !(e.labels?.length || e.textContent ||
        e.ariaLabel)).map(e => e.outerHTML)"""), [])
    visitor.close("hands")


def check_failures(browser, work):
    visitor = Visitor(browser, ADDRESS)
    page = visitor.page

    def bad(name, files, words):
        page.set_input_files("#files", files)
        visitor.wait("document.getElementById('says').textContent.includes(%r)" % words)
        check(name + ": one line", 0 < len(visitor.says()) < 200 and "\n" not in visitor.says())
        same(name + ": the run is as it was", visitor.js("runs[0].state"), "ready")

    def file(name, data):
        return {"name": name, "mimeType": "", "buffer": data}

    bad("short text", [file("a.txt", b"short")], "needs at least 1,000")
    bad("long text", [file("a.txt", b"x" * 5000001)], "may have 5,000,000")
    bad("not a text", [file("a.png", bytes(2000))], "is no text")
    page.evaluate("scrollTo(0, 1e6)")
    same("said where one looks", visitor.js(
        "document.getElementById('says').getBoundingClientRect().top >= 0"), True)
    bad("cut zip", [file("a.zip", b"PK\x03\x04" + bytes(99))], "cut off")
    whole = open(os.path.join(work, "page.zip"), "rb").read()
    bad("damaged zip", [file("a.zip", whole[:9999] + b"!" + whole[10000:])], "is damaged")
    bad("no config", [file("model.safetensors", bytes(9)), file("b", b"b")], "no config.json")
    bad("two texts", [file("a.txt", b"a" * 2000), file("b.txt", b"b")], "a text comes alone")
    page.set_input_files("#files", [file("config.json", b"{}"), file("model.safetensors", b"")])
    visitor.wait("runs[0].state === 'failed'")
    check("bad config: which, and why", "config.json: " in visitor.problem(), visitor.problem())
    same("nothing to download", page.is_disabled("text=Download the checkpoint"), True)
    page.click("#reset")
    visitor.ready()
    visitor.set("experts", 3)
    visitor.set("sizes", "modse")
    check("impossible sizes: why", "even" in visitor.problem(), visitor.problem())
    check("and Reset would not help", "Reset" not in visitor.problem(), visitor.problem())
    visitor.set("sizes", "arithmetic")
    same("mended", visitor.problem(), "")
    page.evaluate("""() => { const data = new DataTransfer();
        data.items.add(new File(["abc ".repeat(999)], "dropped.txt"));
        dispatchEvent(new DragEvent("drop", { dataTransfer: data })); }""")
    visitor.wait("document.getElementById('name').textContent.includes('dropped.txt, 3,996')")
    visitor.ready()
    visitor.steps(1)
    page.click("#go")
    visitor.js("runs[0].worker.terminate()")
    visitor.wait("runs[0].state === 'failed'")
    check("a lost worker: a line", "does not answer" in visitor.problem(), visitor.problem())
    check("and Reset helps", "Reset" in visitor.problem(), visitor.problem())
    same("its model is lost", page.is_disabled("text=Download the checkpoint"), True)
    page.click("#reset")
    visitor.ready()
    visitor.steps(1)
    visitor.js("""() => { window.newest = true; for (let i = 2; i < 1500; i++) {
        runs[0].report(new Float64Array(100).fill(i));
        newest &&= runs[0].losses.at(-1)[0] === i; } }""")
    check("a long curve is thinned, and has its newest point",
          visitor.js("newest && runs[0].losses.length < 1000"))
    visitor.close("failures")
    without = Visitor(browser, script="delete window.WebAssembly; window.WebAssembly = undefined;")
    check("no WebAssembly: a line", "no WebAssembly" in without.says(), without.says())
    same("nothing to press", without.page.is_disabled("#go"), True)
    without.close("no WebAssembly")
    losses = []
    for script in None, "WebAssembly.validate = () => false":
        visitor = Visitor(browser, ADDRESS, script=script)
        visitor.steps(3)
        losses.append(visitor.losses())
        visitor.close("vectors or none")
    near("without vectors: the same", losses[1][2], losses[0][2], 4e-3)


CONTRAST = "() => {" + COLOURS + """
  return [...document.querySelectorAll("h1, h2, h3, p, b, small, button, dt, dd, label, th, pre," +
    ".sizes i")].filter(e => e.textContent && !e.disabled).map(
      e => [ratio(light(behind(e)), light(getComputedStyle(e).color)), e.outerHTML.slice(0, 60)])
    .filter(([contrast]) => contrast < 4.5); }"""


def check_looks(browser):
    for scheme, width in ("light", 1200), ("dark", 1200), ("light", 360):
        visitor = Visitor(browser, ADDRESS + "&two=1", width=width, scheme=scheme)
        visitor.steps(1)
        name = "%s, %d wide" % (scheme, width)
        same(name + ": contrast", visitor.js(CONTRAST), [])
        same(name + ": fits", visitor.js("document.documentElement.scrollWidth - innerWidth"), 0)
        visitor.close(name)


def check_file():
    page = open(PAGE, "rb").read()
    check("below 1.5 MB", len(page) < 1500000, len(page))
    check("asks for nothing", not any(word in page for word in
          (b"http://", b"https://", b"fetch(", b"import(", b" src=", b"<link")))


# --- not tests ------------------------------------------------------------------------------------

def take_picture(browser, out):
    visitor = Visitor(browser, width=1160, height=900)
    visitor.page.set_default_timeout(1e6)
    visitor.page.select_option("#preset", "HMoE: with and without the penalty")
    visitor.ready()
    visitor.page.click("#go")
    visitor.wait("runs.every(r => r.valid.length > 8)")
    visitor.page.click("#go")
    visitor.page.wait_for_timeout(500)
    visitor.js("scrollTo(0, runs[0].sizes.getBoundingClientRect().top - 100)")
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    visitor.page.screenshot(path=out)


def show_figures(browser):
    """Default settings, to the end: tokens/s, when it was below 2.1, how long the page, and how
    long the worker kept one waiting."""
    visitor = Visitor(browser)
    visitor.js("""() => { window.seen = { gaps: [], asked: [], rates: [], below: 0, began: 0 };
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
        seen.began = performance.now(); }""")
    began = time.time()
    visitor.train()
    seen = visitor.js("seen")
    rates, asked, gaps = sorted(seen["rates"]), sorted(seen["asked"]), sorted(seen["gaps"])
    print("%.0f tok/s (median), below 2.1 after %.1f s, %.4f at the end after %.1f s" % (
        rates[len(rates) // 2], seen["below"] / 1e3, visitor.validation(), time.time() - began))
    for what, waits in ("page", gaps), ("worker", asked):
        print("the %s answered after %.0f ms (median), %.0f (99 of 100), %.0f (at most)" % (
            what, waits[len(waits) // 2], waits[len(waits) * 99 // 100], waits[-1]))


def main():
    with sync_playwright() as play:
        browser = launch(play)
        if sys.argv[1:2] == ["--picture"]:
            return take_picture(browser, sys.argv[2])
        if sys.argv[1:2] == ["--figures"]:
            return show_figures(browser)
        work = tempfile.mkdtemp(prefix="hmoe-playground-")
        atexit.register(shutil.rmtree, work, ignore_errors=True)
        data = os.path.join(work, "text")
        with open(data, "wb") as file:
            file.write(open(TINY, "rb").read(LENGTH))
        check_file()
        check_training(browser, work, data)
        check_native(browser, work, data)
        check_controls(browser, work, data)
        check_hands(browser)
        check_failures(browser, work)
        check_looks(browser)
        browser.close()
    done("test_playground")


main()

"""test_playground.py - opens build/playground.html in a browser, from the disk, and trains there.

What the page shows is held against train_tiny and generate: same settings, same losses; same
checkpoint, same score. It needs playwright (`sh extra/python.sh extra/requirements.txt
build/python`), the system's Chromium, `make playground`, and BIN, where the programs are. It
asserts no times."""

import csv
import http.server
import json
import os
import subprocess
import threading
import types
import zipfile
from pathlib import Path

import pytest
from browser import COLOURS
from harness import GENERATE, ROOT, TRAIN

PAGE = Path(os.environ.get("BUILD") or "build", "playground.html").absolute()
# The text has 6,401 bytes to validate on: whole windows of 64, so page and program see the same.
LENGTH = 64010
SMALL = {"width": 32, "layers": 2, "experts": 4, "hidden": 16, "steps": 200, "lr": 0.01}
ADDRESS = "#" + "&".join("%s=%s" % item for item in SMALL.items())
NATIVE = ("--width 32 --heads 1 --layers 2 --experts 4 --hidden 16 --steps 200 --lr 0.01 "
          "--eval-tokens 8192").split()


@pytest.fixture(autouse=True, scope="module")
def built():
    if not PAGE.exists():
        assert not (PAGE.parent / "playground/probe.wasm").exists(), "what builds the page is here"
        pytest.skip("no playground.html here: make playground builds it, with clang")


class Visitor:
    """A tab with the page."""

    def __init__(self, browser, address="", width=1200, height=900, scheme="light", script=None,
                 root="file://%s/" % PAGE.parent):
        self.root = root + PAGE.name
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

    def close(self):
        """What the page complains of, and what it asks for, fails."""
        self.context.close()
        assert [c for c in self.complaints if not c.startswith((self.root, "blob:"))] == []

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

    def paste(self, path):
        """Learns this text. To type it would take Chromium a minute."""
        self.js("text => { document.getElementById('own').value = text }", path.read_text("ascii"))
        self.page.click("#learn")
        self.ready()

    def enter(self, field, value):
        self.page.fill(field, value)
        self.page.press(field, "Tab")


@pytest.fixture
def visit(chromium):
    """Opens visitors, of an address with the small model."""
    visitors = []

    def visit(address=ADDRESS, **options):
        visitors.append(Visitor(chromium, address, **options))
        return visitors[-1]
    yield visit
    for visitor in visitors:
        visitor.close()


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("playground")


@pytest.fixture(scope="module")
def data(work):
    text = (ROOT / "tinyshakespeare/input.txt").read_bytes()[:LENGTH]
    (work / "validation").write_bytes(text[-6401:])
    (work / "text").write_bytes(text)
    return work / "text"


def native(out, data, *options):
    """Runs train_tiny; the rows of its log."""
    again = [] if "--resume" in options else ["--overwrite"]
    run = subprocess.run([TRAIN, "--out", out, "--data", data,
                          "--threads", "1", *again, *options], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT)
    assert run.returncode == 0, run.stdout.decode()
    with open(out / "log.csv") as file:
        return list(csv.DictReader(file))


def score(folder, data):
    """What generate makes of the text to validate on."""
    out = subprocess.run([GENERATE, folder, "--score",
                          data.parent / "validation"], stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT).stdout.decode()
    assert out.startswith("nll"), out
    return float(out.split()[1])


def test_the_page_is_one_small_file():
    page = PAGE.read_bytes()
    assert len(page) < 1500000
    for word in (b"http://", b"https://", b"fetch(", b"import(", b" src=", b"<link"):
        assert word not in page, "it asks for nothing"


# --- a run to the end -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def learned(chromium, work, data):
    """What a page shows that learns a pasted text to the end, and its checkpoint."""
    visitor = Visitor(chromium, ADDRESS)
    visitor.paste(data)
    seen = types.SimpleNamespace(first=visitor.validation(), zip=work / "page.zip",
                                 folder=work / "hmoe")
    visitor.train()
    seen.last, seen.losses = visitor.validation(), visitor.losses()
    seen.step, seen.activated = visitor.figure("Step"), visitor.figure("Activated")
    seen.state = visitor.js("runs[0].state")
    seen.sample = visitor.js("runs[0].sample.textContent")
    seen.train_is_off = visitor.page.is_disabled("#go")
    with visitor.page.expect_download() as got:
        visitor.page.click("text=Download the checkpoint")
    got.value.save_as(seen.zip)
    visitor.close()
    with zipfile.ZipFile(seen.zip) as packed:
        packed.extractall(work)
    return seen


@pytest.fixture(scope="module")
def program(work, data):
    """What train_tiny makes of the same: the rows of its log, and its folder."""
    return native(work / "run", data, *NATIVE), work / "run"


def test_the_page_learns_a_pasted_text(learned):
    assert learned.first == pytest.approx(4.14, abs=.1), "at first it knows nothing"
    assert (learned.step, learned.state) == (200, "done")
    assert learned.last < 2.65
    assert learned.losses[-1] < 2.65
    assert len(learned.sample) > 100
    assert learned.train_is_off


def test_train_tiny_gets_as_far(learned, program):
    last = program[0][-1]
    assert learned.last == pytest.approx(float(last["val_loss"]), abs=.05)
    assert learned.activated == pytest.approx(float(last["activated"]), rel=.05)


def test_the_checkpoint_is_what_train_tiny_would_write(learned, program, data):
    with zipfile.ZipFile(learned.zip) as packed:
        assert packed.testzip() is None
        assert {i.compress_type for i in packed.infolist()} == {zipfile.ZIP_STORED}
    assert score(learned.folder, data) == pytest.approx(learned.last, abs=1e-4)
    out = program[1]
    assert sorted(os.listdir(learned.folder)) == sorted(
        f for f in os.listdir(out) if "." in f and f not in ("log.csv", "recipe.txt"))
    for name in "config.json", "tokenizer.json", "tokenizer_config.json":
        assert (learned.folder / name).read_bytes() == (out / name).read_bytes(), name


def test_train_tiny_goes_on_with_the_checkpoint(learned, data, tmp_path):
    with zipfile.ZipFile(learned.zip) as packed:
        packed.extractall(tmp_path)
    rows = native(tmp_path / "hmoe", data, "--resume", "--steps", "201")
    assert [row["step"] for row in rows] == ["201"]


def test_the_page_opens_its_zip_and_resets(learned, data, visit):
    visitor = visit()
    page = visitor.page
    visitor.paste(data)
    page.set_input_files("#files", learned.zip)
    visitor.wait("runs[0].files && runs[0].valid.length")
    assert visitor.validation() == pytest.approx(learned.last, abs=1e-6)
    assert "hmoe" in visitor.js("runs[0].title.textContent")
    assert visitor.js("[...document.querySelectorAll('dt')].map(e => e.textContent)") == [
        "Validation", "Activated", "Parameters", "Experts a token"], "only what is known of it"
    page.check("#two")
    visitor.ready()
    visitor.enter("#seed", "2")
    visitor.wait("runs[1].shape && runs[1].sample.textContent")
    assert visitor.js("runs.map(r => !!r.files)") == [True, False], "it stays beside another run"
    page.click("#step")
    visitor.wait("runs[1].losses.length")
    page.uncheck("#two")
    page.click("#reset")
    visitor.ready()
    visitor.enter("#seed", "1337")
    visitor.ready()
    assert visitor.validation() == pytest.approx(learned.first, abs=1e-9), "the settings again"


# --- checkpoints of train_tiny --------------------------------------------------------------------

@pytest.fixture(scope="module")
def best(work, data):
    out = work / "native"
    native(out, data, *NATIVE, "--experts", "5", "--routing", "topp", "--sizes", "1,2,3,4,6",
           "--layers", "3", "--hidden", "40", "--steps", "60")
    with zipfile.ZipFile(work / "native.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for path in (out / "best").iterdir():
            packed.write(path, "some/place/" + path.name)
    return out / "best"


@pytest.mark.parametrize("how", ["zip", "files"])
def test_a_checkpoint_of_train_tiny_opens(how, best, work, data, visit):
    visitor = visit()
    visitor.page.set_input_files("#files", data)
    visitor.ready()
    visitor.page.set_input_files(
        "#files", [work / "native.zip"] if how == "zip" else [*best.iterdir()])
    visitor.wait("runs[0].files && (runs[0].from === 'some/place') === %s && "
                 "runs[0].valid.length && runs[0].routes.querySelector('td')" %
                 json.dumps(how == "zip"))
    widths = json.loads((best / "config.json").read_text())["expert_sizes"]
    assert visitor.js("runs[0].shape.H") == widths
    assert visitor.validation() == pytest.approx(score(best, data), abs=1e-4)
    assert visitor.page.locator(".use").count() == 3, "layers"
    visitor.wait("runs[0].sample.textContent.length > 100")
    assert visitor.page.is_disabled("#go"), "nothing to train"


def drop(visitor, path):
    """As a hand does it."""
    mouse = visitor.context.new_cdp_session(visitor.page)
    for what in "dragEnter", "dragOver", "drop":
        mouse.send("Input.dispatchDragEvent", {"type": what, "x": 9, "y": 9, "data": {
            "items": [], "files": [str(path)], "dragOperationsMask": 1}})


class Server(http.server.SimpleHTTPRequestHandler):
    def __init__(self, *args):
        super().__init__(*args, directory=PAGE.parent)

    def do_GET(self):
        if self.path.startswith("/favicon"):     # browsers ask for it, the page does not
            self.send_response(204)
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


def test_a_page_from_the_disk_reads_no_folder(best, visit):
    """Chromium does not let it."""
    visitor = visit()
    drop(visitor, best)
    visitor.wait("document.getElementById('says').textContent.includes('folders are not read')")


def test_a_served_page_reads_a_folder(best, data, visit):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visitor = visit(root="http://127.0.0.1:%d/" % server.server_port)
        visitor.page.set_input_files("#files", data)
        visitor.ready()
        drop(visitor, best)
        visitor.wait("runs[0].files && runs[0].valid.length")
        assert visitor.validation() == pytest.approx(score(best, data), abs=1e-4)
        server.shutdown()


# --- controls -------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def shared(chromium, data):
    """One page for all controls, with the small model; base: what its first three steps show."""
    visitor = Visitor(chromium, ADDRESS)
    visitor.page.set_input_files("#files", data)
    visitor.ready()
    visitor.steps(3)
    visitor.base = shown(visitor)
    yield visitor
    visitor.close()


def shown(visitor):
    return visitor.losses() + [visitor.figure("Gradient norm")]


def check_native(visitor, work, data, *options):
    """The three steps in the page are those of train_tiny."""
    seen = shown(visitor)
    rows = native(work / "three", data, *NATIVE, *options, "--stop-at", "3")
    assert seen[:3] == pytest.approx([float(row["ce"]) for row in rows], abs=2e-5)
    assert seen[3] == pytest.approx(float(rows[2]["grad_norm"]), abs=.0051)
    config = json.loads((work / "three/config.json").read_text())
    assert visitor.js("runs[0].shape.H") == config["expert_sizes"]


def test_train_tiny_makes_the_same_steps(shared, work, data):
    check_native(shared, work, data)


@pytest.mark.parametrize("name, value, options", [
    ("sizes", "geometric", "--sizes geometric"), ("sizes", "modse", "--sizes modse"),
    ("width", 96, "--width 96 --heads 3"), ("layers", 1, "--layers 1"),
    ("experts", 6, "--experts 6"), ("hidden", 40, "--hidden 40"),
    ("routing", "topp", "--routing topp --ent 0"), ("k", 3, "--k 3"), ("gate", "raw", "--gate raw"),
    ("pp", 2, "--pp 2"), ("lb", 2, "--lb 2"), ("ent", 2, "--ent 2"), ("z", 1, "--z 1"),
    ("lr", .3, "--lr 0.3")])
def test_a_control_is_an_option_of_train_tiny(name, value, options, shared, work, data):
    shared.set(name, value)
    shared.steps(3)
    check_native(shared, work, data, *options.split())
    assert shown(shared) != shared.base, "it acts"
    assert "%s=%s" % (name, value) in shared.js("location.hash")
    shared.js("address => { location.hash = address }", ADDRESS)
    shared.wait("JSON.stringify(runs[0].settings) === JSON.stringify(fromAddress()[0]) && "
                "!location.hash.includes('%s=%s')" % (name, value))
    shared.ready()


def test_seed_and_steps_are_settings(shared, data, visit):
    visitor = visit()
    visitor.page.set_input_files("#files", data)
    visitor.ready()
    for field, value in ("#seed", "7"), ("#steps", "2"):
        visitor.enter(field, value)
        visitor.ready()
        assert field[1:] + "=" + value in visitor.js("location.hash")
    visitor.train()
    assert visitor.figure("Step") == 2
    assert abs(visitor.losses()[0] - shared.base[0]) > 1e-3, "another seed"
    visitor.enter("#seed", "-1")
    assert "Seed: it must be from 0" in visitor.says()
    assert visitor.page.input_value("#seed") == "7", "the old one"


# --- hands ----------------------------------------------------------------------------------------

HANDS = ADDRESS.replace("experts=4", "experts=8").replace("=200", "=100000")


def move_border(visitor):
    """By a key; the widths before and after."""
    visitor.page.locator(".sizes b").nth(6).focus()
    before = visitor.js("runs[0].shape.H")
    visitor.press("ArrowLeft")
    visitor.ready()
    return before, visitor.js("runs[0].shape.H")


def test_a_mouse_drags_sizes(visit):
    visitor = visit(HANDS)
    widths, mouse = visitor.js("runs[0].shape.H"), visitor.page.mouse
    box = visitor.page.locator(".sizes b").nth(2).bounding_box()
    strip = visitor.page.locator(".sizes").bounding_box()
    mouse.move(box["x"] + 5, box["y"] + 20)
    mouse.down()
    mouse.move(box["x"] + 5 + strip["width"] * 8 / sum(widths), box["y"] + 20, steps=4)
    mouse.up()
    visitor.ready()
    dragged = [w + 8 * (i == 2) - 8 * (i == 3) for i, w in enumerate(widths)]
    assert visitor.js("runs[0].shape.H") == (dragged if min(dragged) >= 8 else widths)


def test_a_key_moves_a_border(visit):
    visitor = visit(HANDS)
    before, after = move_border(visitor)
    assert (after[6], after[7], sum(after)) == (before[6] - 8, before[7] + 8, sum(before))
    assert visitor.js("document.activeElement.getAttribute('role')") == "slider", "focus stays"
    assert "sizes=" in visitor.js("location.hash")
    drawn = visitor.page.eval_on_selector_all(".sizes i", "all => all.map(e => e.offsetWidth)")
    assert drawn[7] / sum(drawn) == pytest.approx(after[7] / sum(after), abs=.03)


def test_training_pauses_and_a_line_is_routed(visit):
    visitor = visit(HANDS)
    page, js = visitor.page, visitor.js
    page.click("#go")
    visitor.wait("runs[0].losses.length > 3")
    assert page.inner_text("#go") == "Pause"
    page.fill("#line", "Zounds!")
    visitor.wait("runs[0].routes.querySelectorAll('td').length === 14")
    page.click("#go")
    page.wait_for_timeout(300)
    paused = js("runs[0].losses.length")
    page.wait_for_timeout(500)
    assert js("runs[0].losses.length") == paused
    assert js("[...runs[0].routes.querySelectorAll('tr:first-child th')]"
              ".map(e => e.textContent).join('')") == "Zounds!"
    page.locator(".routes").focus()
    visitor.press("ArrowRight")
    visitor.press("ArrowRight")
    told = page.inner_text(".run [data-is=told]")
    assert told.startswith("o, layer 1, foreseen with")
    gates = [float(part.split(",")[0]) for part in told.split("gate ")[1:]]
    assert len(gates) == 2
    assert sum(gates) == pytest.approx(1, abs=.011)
    visitor.enter("#line", "\u00e9")
    visitor.wait("runs[0].routes.textContent.includes('None of these')")


def test_a_link_is_an_experiment(visit):
    visitor = visit(HANDS)
    page, js = visitor.page, visitor.js
    _, widths = move_border(visitor)
    page.check("#two")
    visitor.ready()
    visitor.steps(2)
    assert visitor.losses(0) == visitor.losses(1), "same seed and batches"
    visitor.set("pp", 5, run=1)
    link = js("location.hash")
    assert "b.pp=5" in link and "&pp" not in link
    assert page.input_value("#preset") == "", "no preset is like that"
    other = visit(link + "&nonsense=1")
    assert other.js("runs.map(r => r.settings.pp)") == [.01, 5]
    assert other.js("runs[0].shape.H") == widths
    assert "nonsense=1" in other.says(), "what it does not know, it says"
    page.uncheck("#two")
    visitor.ready()
    assert js("runs.length") == 1


def test_presets_are_experiments(visit):
    visitor = visit(HANDS)
    page, js = visitor.page, visitor.js
    page.check("#two")
    visitor.ready()
    for preset in js("Object.keys(PRESETS)"):
        page.select_option("#preset", preset)
        visitor.ready()
        assert page.input_value("#preset") == preset
        visitor.steps(1)
        visitor.set("layers", 2)
        assert page.input_value("#preset") == "", preset + " with other layers is none"
        page.select_option("#preset", preset)
        visitor.ready()
        assert js("runs[0].settings.layers") == 3, preset
        visitor.steps(1)
        assert js("runs.map(r => r.problem.textContent)") == (
            [""] if preset == "one model" else ["", ""]), preset
    page.uncheck("#two")
    visitor.ready()
    assert js("""[...document.querySelectorAll("input, select, textarea, button, svg, " +
        "[role=slider], [tabindex]")].filter(e => !(e.labels?.length || e.textContent ||
        e.ariaLabel)).map(e => e.outerHTML)""") == [], "all have labels"


# --- failures -------------------------------------------------------------------------------------

def file(name, data):
    return {"name": name, "mimeType": "", "buffer": data}


def test_bad_files_are_said_in_one_line(learned, visit):
    visitor, whole = visit(), learned.zip.read_bytes()
    for words, *files in (
            ("needs at least 1,000", file("a.txt", b"short")),
            ("may have 5,000,000", file("a.txt", b"x" * 5000001)),
            ("is no text", file("a.png", bytes(2000))),
            ("cut off", file("a.zip", b"PK\x03\x04" + bytes(99))),
            ("is damaged", file("a.zip", whole[:9999] + b"!" + whole[10000:])),
            ("no config.json", file("model.safetensors", bytes(9)), file("b", b"b")),
            ("a text comes alone", file("a.txt", b"a" * 2000), file("b.txt", b"b"))):
        visitor.page.set_input_files("#files", files)
        visitor.wait("document.getElementById('says').textContent.includes(%r)" % words)
        assert 0 < len(visitor.says()) < 200
        assert "\n" not in visitor.says()
        assert visitor.js("runs[0].state") == "ready", "the run is as it was"
    visitor.js("scrollTo(0, 1e6)")
    assert visitor.js("document.getElementById('says').getBoundingClientRect().top") >= 0


def test_a_bad_config_is_said_and_reset_helps(visit):
    visitor = visit()
    visitor.page.set_input_files("#files", [file("config.json", b"{}"),
                                            file("model.safetensors", b"")])
    visitor.wait("runs[0].state === 'failed'")
    assert "config.json: " in visitor.problem()
    assert visitor.page.is_disabled("text=Download the checkpoint")
    visitor.page.click("#reset")
    visitor.ready()
    visitor.set("experts", 3)
    visitor.set("sizes", "modse")
    assert "even" in visitor.problem(), "impossible sizes: why"
    assert "Reset" not in visitor.problem(), "it would not help"
    visitor.set("sizes", "arithmetic")
    assert visitor.problem() == ""


def test_a_dropped_text_is_learned_and_a_lost_worker_said(visit):
    visitor = visit()
    page = visitor.page
    page.evaluate("""() => { const data = new DataTransfer();
        data.items.add(new File(["abc ".repeat(999)], "dropped.txt"));
        dispatchEvent(new DragEvent("drop", { dataTransfer: data })); }""")
    visitor.wait("document.getElementById('name').textContent.includes('dropped.txt, 3,996')")
    visitor.ready()
    visitor.steps(1)
    page.click("#go")
    visitor.js("runs[0].worker.terminate()")
    visitor.wait("runs[0].state === 'failed'")
    assert "does not answer" in visitor.problem()
    assert "Reset" in visitor.problem()
    assert page.is_disabled("text=Download the checkpoint"), "the model is lost"
    page.click("#reset")
    visitor.ready()
    visitor.steps(1)


def test_a_long_curve_is_thinned_and_has_its_newest_point(visit):
    visitor = visit()
    visitor.steps(1)
    visitor.js("""() => { window.newest = true; for (let i = 2; i < 1500; i++) {
        runs[0].report(new Float64Array(100).fill(i));
        newest &&= runs[0].losses.at(-1)[0] === i; } }""")
    assert visitor.js("newest")
    assert visitor.js("runs[0].losses.length") < 1000


def test_no_webassembly_is_said(visit):
    visitor = visit("", script="delete window.WebAssembly; window.WebAssembly = undefined;")
    assert "no WebAssembly" in visitor.says()
    assert visitor.page.is_disabled("#go")


def test_without_vectors_losses_are_the_same(visit):
    losses = []
    for script in None, "WebAssembly.validate = () => false":
        visitor = visit(script=script)
        visitor.steps(3)
        losses.append(visitor.losses())
    assert losses[1][2] == pytest.approx(losses[0][2], abs=4e-3)


# --- looks ----------------------------------------------------------------------------------------

CONTRAST = "() => {" + COLOURS + """
  return [...document.querySelectorAll("h1, h2, h3, p, b, small, button, dt, dd, label, th, pre," +
    ".sizes i")].filter(e => e.textContent && !e.disabled).map(
      e => [ratio(light(behind(e)), light(getComputedStyle(e).color)), e.outerHTML.slice(0, 60)])
    .filter(([contrast]) => contrast < 4.5); }"""


@pytest.mark.parametrize("scheme, width", [("light", 1200), ("dark", 1200), ("light", 360)])
def test_the_page_is_readable_and_fits(scheme, width, visit):
    visitor = visit(ADDRESS + "&two=1", width=width, scheme=scheme)
    visitor.steps(1)
    assert visitor.js(CONTRAST) == []
    assert visitor.js("document.documentElement.scrollWidth - innerWidth") == 0

"""test_page.py - opens pages of `generate --page` in a browser and holds them against --routes.

It trains tiny models, lets them read texts, nasty ones too, and compares what a reader sees with
the rows of the CSV, which another part of generate.c writes. It needs playwright (`sh
extra/python.sh extra/requirements.txt build/python`) and the system's Chromium; BIN is where the
programs are, as "build/"."""

import collections
import csv
import math
import os
import random
import re
import subprocess
import unicodedata
from pathlib import Path

import pytest
from browser import COLOURS
from harness import GENERATE, ROOT, TRAIN

HERE = Path(__file__).parent
PLAIN = (ROOT / "LICENSE").read_bytes()
PAGE_TOKENS = 20000
TINY = ("--width 16 --layers 3 --heads 2 --context 16 --hidden 24 --steps 20 --batch 8 --lr 0.02 "
        "--min-lr 0.02 --warmup 3 --threads 1").split()
MODELS = {"topk": "--experts 4 --sizes 1,2,3,4 --k 2", "topp": "--experts 14 --routing topp --p .6",
          "one": "--experts 1", "null": "--experts 4 --sizes 0,2,3,4 --balance tokens "
          "--balance-rate 0.05"}
# What a text can do to a page: end its script, control a terminal, be no UTF-8 (a continuation
# alone, an overlong slash, a surrogate, beyond Unicode), turn around, pile up, be invisible.
NASTY = (b"</script><!--<script>alert(1)</script>&lt;\"'`${1}\\ @DATA@\n"
         + bytes(range(32)) + b"\x7f\x80\xbf\xc0\xaf\xed\xa0\x80\xf4\x90\x80\x80\xff\xfe"
         + "é€😀ß中 \u202eabc\u202c e\u0301\u200b\ufeff\u2028\u00a0\u0085 ".encode()
         + "\u05e9\u05dc\u05d5\u05dd\r\n\ttab  two\n\n".encode()
         + b"\xe2\x82 cut \xe2\x82\xac\nthe end \xf0\x9f\x98\x80")


# --- what the page should show, from the text and the CSV -----------------------------------------

def characters(text):
    """(offset, bytes, what is drawn) of each character."""
    at, found = 0, []
    while at < len(text):
        for n in (1, 2, 3, 4):
            try:
                char = text[at:at + n].decode()
            except UnicodeDecodeError:
                continue
            break
        else:
            n, char = 1, None
        if char is None or char < " " and char not in "\n\t" or char == "\x7f":
            n, shown = 1, "%02X" % text[at]
        elif char not in " \n\t" and unicodedata.category(char)[0] in "CMZ":
            shown = "%04X" % ord(char)
        else:
            shown = char
        found.append((at, n, shown))
        at += n
    return found


class Routes:
    """The CSV, and the text: layers[l][i] is (experts, gates, P) of token i."""

    def __init__(self, path, text, shown=None):
        self.text, self.nll, self.entropy, self.widths = text, {}, {}, {}
        self.layers = collections.defaultdict(list)
        for row in csv.DictReader(open(path)):
            i, layer = int(row["position"]), int(row["layer"])
            if shown and i >= shown:
                break
            experts = [int(e) for e in row["experts"].split()]
            self.nll[i], self.entropy[i] = float(row["nll"]), float(row["entropy"])
            self.widths.update(zip(experts, map(int, row["widths"].split())))
            self.layers[layer].append((experts, [float(g) for g in row["gates"].split()],
                                       [float(p) for p in row["P"].split()]))
        self.n, self.L = len(self.nll), len(self.layers)
        self.E = len(self.layers[0][0][2])
        self.chars = characters(text[:self.n + 1])

    def width(self, i, layers):
        return sum(self.widths[e] for l in layers for e in self.layers[l][i][0])

    def values(self, colour, layers):
        """Of each character, or None: the sum of its bytes' nats, or the mean of their widths."""
        in_nats = {"loss": self.nll, "entropy": self.entropy}.get(colour)
        for at, n, _ in self.chars:
            if in_nats:
                yield sum(in_nats[i - 1] for i in range(at, at + n)) if at else None
            else:
                own = [self.width(i, layers) for i in range(at, at + n) if i < self.n]
                yield sum(own) / len(own) if own else None


def percent(x):
    return "%.*f\u00a0%%" % (1 if x and x < .0995 else 0, 100 * x + 1e-9)   # halves go up, as there


def shown(text):
    """The number in a text, as exact as it is shown. Data of the page are rounded a second time."""
    digits = re.search(r"-?[\d,]+(\.\d+)?", text)
    decimals = len(digits.group(1) or ".") - 1
    return pytest.approx(float(digits.group().replace(",", "")), abs=.501 * 10 ** -decimals + 2e-5)


# --- making pages, and opening them ---------------------------------------------------------------

def run(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout.decode(errors="replace")


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Has a model read a text; where the page is, and what it should show."""
    work = tmp_path_factory.mktemp("page")
    data = work / "data"
    data.write_bytes(PLAIN * 8 + bytes(range(256)) * 8 + NASTY * 8)

    def make(model, name, text):
        if not (work / model).exists():
            run(TRAIN, "--data", data, "--out", work / model, *TINY,
                *MODELS[model].split())
        folder = tmp_path_factory.mktemp("text")
        path = os.path.join(os.fsencode(folder), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(text)
        page, routes = folder / "page.html", folder / "routes.csv"
        run(GENERATE, work / model, "--score", name, "--page", page,
            "--routes", routes, cwd=folder)
        return page, Routes(routes, text, PAGE_TOKENS)
    return make


@pytest.fixture(scope="module")
def nasty(make):
    evil = b"a<b \x1b\xff\xe2\x80\xae/script><b>&amp; \xc3\xa9.txt"    # this is a file's name
    return make("topk", evil, NASTY + PLAIN[:300] + NASTY + b".")


class Reader:
    """A browser's window on a page."""

    def __init__(self, browser, path, width=1280, height=860, scheme="light"):
        self.context = browser.new_context(viewport={"width": width, "height": height},
                                           color_scheme=scheme)
        self.page, self.complaints = self.context.new_page(), []
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("dialog", lambda d: (self.complaints.append(d.message), d.dismiss()))
        self.page.on("request", lambda r: self.complaints.append(r.url))
        self.page.goto("file://%s" % path)
        self.complaints.remove("file://%s" % path)
        self.js, self.press = self.page.evaluate, self.page.keyboard.press

    def click(self, char):
        self.page.locator("#text span").nth(char).click()

    def spans(self):
        return self.js("""[...document.querySelectorAll("#text span")].map(
            s => [s.textContent, s.className, s.getAttribute("role")])""")

    def focus(self):
        return self.js("document.activeElement.id || document.activeElement.parentNode.className")

    def selected(self):
        """The marked characters: those read, those to be foreseen, the one that is read aloud."""
        return self.js("""(all => ["[aria-selected=true]", ".next",
            `[id="${document.getElementById("text").getAttribute("aria-activedescendant")}"]`].map(
            what => all.findIndex(s => s.matches(what))))(
            [...document.querySelectorAll("#text span")])""")

    def panel(self):
        return self.js("""({
          head: document.getElementById("head").innerText,
          said: document.getElementById("said").innerText,
          view: document.getElementById("view").innerText,
          titles: [...document.querySelectorAll("#view h3")].map(h => h.innerText),
          strips: [...document.querySelectorAll(".strip")].map(s => [...s.children].map(b => ({
            label: b.getAttribute("aria-label"), took: b.className === "took",
            width: b.getBoundingClientRect().width,
            height: parseFloat(getComputedStyle(b.firstChild, "::after").height) /
                    (parseFloat(getComputedStyle(b.firstChild).height) - 2)}))),
          chips: [...document.querySelectorAll(".chips")].map(s =>
            [...s.children].map(b => b.innerText)),
          rows: [...document.querySelectorAll(".rows")].map(t => [...t.querySelectorAll("dt")].map(
            d => [d.innerText, d.nextSibling.nextSibling.innerText])) })""")

    def overflows(self):
        return self.js("document.documentElement.scrollWidth - innerWidth")


@pytest.fixture
def visit(chromium):
    """Opens readers; what their pages complain of, and requests but the first, fail."""
    readers = []

    def visit(*arguments, **options):
        readers.append(Reader(chromium, *arguments, **options))
        return readers[-1]
    yield visit
    for reader in readers:
        reader.context.close()
        assert reader.complaints == []


@pytest.fixture
def reader(visit, nasty):
    return visit(nasty[0])


@pytest.fixture
def routes(nasty):
    return nasty[1]


# --- what a reader sees ---------------------------------------------------------------------------

def check_text(reader, routes):
    spans = reader.spans()
    assert [s[0] for s in spans] == [c[2] for c in routes.chars]
    assert {s[2] for s in spans} == {"option"}


def check_colours(reader, routes, colour, layers):
    """Each character's shade is one of 16, from the lowest value to the highest, or 5 nats."""
    values = list(routes.values(colour, layers))
    known = [v for v in values if v is not None]
    low, high = (0, 5) if colour != "width" else (min(known), max(known))
    spans = reader.spans()
    assert len(spans) == len(values)
    for k, (value, (text, kind, _)) in enumerate(zip(values, spans)):
        shade = re.search(r"\bq(\d+)", kind)
        what = "character %d, %r, of value %s: %s" % (k, text, value, kind)
        assert (shade is None) == (value is None), what
        if shade:
            exact = 15 * min(1, (value - low) / (high - low))
            assert int(shade.group(1)) == pytest.approx(exact, abs=.501), what


def check_token(reader, routes, i, layers):
    """The panel of token i: what was foreseen, and for each layer the experts, P and gates."""
    panel = reader.panel()
    at, n, text = next(c for c in routes.chars if c[0] <= i < c[0] + c[1])
    following = next(c for c in routes.chars if c[0] <= i + 1 < c[0] + c[1])
    names = {"\n": "newline", " ": "blank", "\t": "tab"}
    before, after = panel["said"].split("these experts had to foresee")
    assert names.get(text, text) in before
    assert names.get(following[2], following[2]) in after
    nats, chance, expected = re.split(r",|The model had expected", after.rsplit(":", 1)[1])
    assert routes.nll[i] == shown(nats)
    assert routes.entropy[i] == shown(expected)
    assert 100 * math.exp(-routes.nll[i]) == shown(chance)
    if n > 1:
        assert re.search("byte %d of %d of .?%s" % (i - at + 1, n, text), before)
    if i:
        own = re.search(r"foreseen with (\S+)", panel["view"]).group(1)
        assert routes.nll[i - 1] == shown(own)
    assert "place %d of" % (i % 16) in panel["view"]
    assert len(panel["strips"]) == len(layers)
    for l, strip, chips, title in zip(layers, panel["strips"], panel["chips"], panel["titles"]):
        experts, gates, P = routes.layers[l][i]
        where = "token %d, layer %d" % (i, l + 1)
        assert re.match(r"Layer %d\s+%d of " % (l + 1, routes.width(i, [l])),
                        title.replace(",", "")), where
        assert [e for e, b in enumerate(strip) if b["took"]] == sorted(experts), where
        assert len(strip) == routes.E, where
        if len(routes.widths) == routes.E:
            drawn, wide = sum(b["width"] for b in strip), sum(routes.widths.values())
            for e, b in enumerate(strip):       # nothing wide is a line
                assert (abs(b["width"] / drawn - routes.widths[e] / wide) < 2e-3
                        if routes.widths[e] else 0 < b["width"] < 3), "%s, width of %d" % (where, e)
        top = max(max(routes.layers[k][i][2]) for k in layers)
        assert [b["height"] for b in strip] == pytest.approx([p / top for p in P], abs=.01), where
        assert len(chips) == len(experts), where
        for (e, gate), chip in zip(sorted(zip(experts, gates)), chips):
            number, p, weight = chip.split("\u00b7")
            assert number.strip() == "no. %d" % e, where
            assert (100 * P[e], gate) == (shown(p), shown(weight)), "%s, label of %d" % (where, e)


def check_expert(reader, routes, l, e):
    """An expert's panel: its statistics, from the CSV alone."""
    panel, rows, spans = reader.panel(), routes.layers[l], reader.spans()
    own = [i for i in range(routes.n) if e in rows[i][0]]
    share = len(own) / routes.n
    assert panel["head"].startswith("Expert %d of layer %d" % (e, l + 1))
    chars = {k for k, c in enumerate(routes.chars) if any(c[0] <= i < c[0] + c[1] for i in own)}
    assert {k for k, s in enumerate(spans) if "off" not in s[1].split()} == chars, "coloured"
    assert {k for k, s in enumerate(spans) if "mine" in s[1].split()} == chars, "underlined"
    if not own:
        assert "No token" in panel["said"]
        return
    gate = sum(rows[i][1][rows[i][0].index(e)] for i in own) / len(own)
    work = len(own) * routes.widths[e] / sum(routes.width(i, [l]) for i in range(routes.n))
    assert [len(own), routes.n, 100 * share, gate, 100 * work,
            sum(routes.nll[i] for i in own) / len(own), sum(routes.nll.values()) / routes.n] == [
        shown(number) for number in re.findall(r"[\d,.]*\d", panel["said"])]
    shares = [sum(g in row[0] for row in rows) / routes.n for g in range(routes.E)]
    for f, bar in enumerate(panel["strips"][0]):
        assert bar["height"] == pytest.approx(shares[f] / max(shares), abs=.01), f
        assert 100 * shares[f] == shown(bar["label"].split(":")[1]), f
    edges = [0, .1, .5, 1, 2, 3, 4, 1e9]
    kinds = [lambda i: routes.text[i], lambda i: i % 16 // 2,
             lambda i: sum(routes.nll[i] >= x for x in edges[1:])]
    for which, kind in enumerate(kinds):
        all_of = collections.Counter(map(kind, range(routes.n)))
        took = collections.Counter(map(kind, own))
        table = panel["rows"][which]
        if which:
            order = sorted(all_of)
        else:               # those with as much beyond the share may stand in any order
            signs = {"\u2423": 32, "\u21b5": 10, "\u21e5": 9}
            order = [signs.get(s) or (ord(s) if len(s) == 1 else int(s, 16)) for s, _ in table]
            best = sorted((took[k] - share * all_of[k] for k in took), reverse=True)[:12]
            assert [took[k] - share * all_of[k] for k in order] == pytest.approx(best, abs=1e-6)
        assert [s[1] for s in table] == [
            "%s of %s" % (percent(took[k] / all_of[k]), format(all_of[k], ",")) for k in order]


# --- a nasty text ---------------------------------------------------------------------------------

def test_the_page_is_its_template_with_base64(nasty):
    """All that the text decides is base64; the rest is page.html, in ASCII."""
    page, template = nasty[0].read_bytes(), (HERE / "page.html").read_bytes()
    before, after = template.split(b"@DATA@")
    assert page.startswith(before)
    assert page.endswith(after)
    data = page[len(before):len(page) - len(after)]
    assert re.fullmatch(rb"[A-Za-z0-9+/]+", data)
    assert len(data) % 4 == 0
    assert template.isascii()


def test_a_nasty_text_is_shown(reader, routes):
    check_text(reader, routes)
    check_colours(reader, routes, "loss", range(3))
    name = "a<b [1B][FF][202E]/script><b>&amp; é.txt"
    assert reader.js("document.getElementById('name').textContent") == name
    assert reader.page.title() == "The router reads " + name


def marked(routes, i):
    """What is selected where token i is marked, and the one after it."""
    of = [k for k, c in enumerate(routes.chars) for _ in range(c[1])]
    return [of[i], of[i + 1] if of[i + 1] != of[i] else of[i], of[i]]


def test_arrows_move_the_mark(reader, routes):
    assert reader.selected()[:2] == [-1, -1], "nothing at first"
    for _ in range(20):
        reader.press("Tab")
        if reader.focus() == "text":
            break
    assert reader.focus() == "text"
    starts = [0] + [at + 1 for at, _, shown in routes.chars if shown == "\n" and at + 1 < routes.n]
    for keys, i in (("Right", 0), ("Left", 0), ("Right Right Right", 3), ("Down", starts[1]),
                    ("Down", starts[2]), ("Right Up", starts[2]), ("Up", starts[1])):
        for key in keys.split():
            reader.press("Arrow" + key)
        assert reader.selected() == marked(routes, i), keys
        if i == 3:
            check_token(reader, routes, 3, range(routes.L))
    reader.click(3)
    reader.press("ArrowUp")
    assert reader.selected() == marked(routes, 0), "no further"


def test_keys_choose_layers_and_colours(reader, routes):
    reader.click(3)
    assert len(reader.panel()["strips"]) == routes.L
    for key, layers in (("2", [1]), ("]", [2]), ("]", [2]), ("[", [1]), ("9", [1]),
                        ("0", [0, 1, 2]), ("[", [0, 1, 2]), ("1", [0])):
        reader.press(key)
        check_token(reader, routes, 3, layers)
        menu = reader.js("document.getElementById('layer').value")
        assert menu == (str(layers[0]) if len(layers) == 1 else "-1"), key
    for key, colour, layers in (("c", "entropy", [0]), ("c", "width", [0]),
                                ("0", "width", [0, 1, 2]), ("c", "loss", [0, 1, 2]),
                                ("Control+c", "loss", [0, 1, 2])):      # that copies
        reader.press(key)
        check_colours(reader, routes, colour, layers)
        assert reader.selected() == marked(routes, 3), "the token stays"


def test_keys_reach_the_experts(reader, routes):
    reader.click(3)
    reader.press("Enter")
    assert reader.focus() == "strip"
    first = min(routes.layers[0][3][0])
    assert reader.js("[...document.activeElement.parentNode.children]"
                     ".indexOf(document.activeElement)") == first, "the first taken"
    reader.press("Tab" if first == 0 else "Shift+Tab")
    reader.press("Enter")
    neighbour = 1 if first == 0 else first - 1
    check_expert(reader, routes, 0, neighbour)
    assert reader.focus() == "head", "the focus stays in the panel"
    reader.press("2")
    check_expert(reader, routes, 1, neighbour)
    reader.press("Escape")
    assert reader.selected() == marked(routes, 3), "back to the token"
    check_token(reader, routes, 3, [1])
    reader.press("Escape")
    assert reader.selected()[:2] == [-1, -1], "closed"
    assert reader.focus() == "text"
    assert len(reader.panel()["strips"]) == 1, "all experts of the layer"


def test_a_click_shows_a_token(reader, routes):
    select = random.Random(7)
    for k in [len(routes.chars) - 2] + select.sample(range(len(routes.chars) - 2), 8):
        at, n, _ = routes.chars[k]
        reader.click(k)
        check_token(reader, routes, at, range(routes.L))
        if n > 1 and at + 1 < routes.n:
            reader.click(k)
            check_token(reader, routes, at + 1, range(routes.L))
            reader.press("Escape")


@pytest.fixture
def several(reader, routes):
    """A character of four bytes; clicked."""
    k = next(k for k, c in enumerate(routes.chars) if c[1] == 4)
    reader.click(k)
    return k


def test_clicks_go_through_the_bytes_of_a_character(reader, routes, several):
    for part in 0, 1, 2, 3, 0:
        check_token(reader, routes, routes.chars[several][0] + part, range(routes.L))
        reader.click(several)
    reader.click(len(routes.chars) - 1)
    assert reader.selected()[0] == several, "the last character is foreseen, not read"


def test_menus_choose_layers_and_colours(reader, routes, several):
    reader.page.select_option("#layer", index=3)
    check_token(reader, routes, routes.chars[several][0], [2])
    reader.page.select_option("#layer", index=0)
    for colour in "width", "entropy", "loss":
        reader.page.select_option("#colour", colour)
        check_colours(reader, routes, colour, [0, 1, 2])


def test_clicks_show_the_experts(reader, routes, several):
    reader.page.locator(".chips").nth(2).locator("button").first.click()
    check_expert(reader, routes, 2, min(routes.layers[2][routes.chars[several][0]][0]))
    for e in range(routes.E):
        reader.page.locator(".strip button").nth(e).click()
        check_expert(reader, routes, 2, e)
    reader.page.click("#close")
    reader.page.click("#close")
    for l, strip in enumerate(reader.panel()["strips"]):
        shares = [sum(e in row[0] for row in routes.layers[l]) / routes.n for e in range(routes.E)]
        assert [100 * share for share in shares] == [
            shown(bar["label"].split(":")[1]) for bar in strip], "layer %d" % (l + 1)


# --- looks ----------------------------------------------------------------------------------------

# Contrast between an element's colour and what lies behind it.
CONTRAST = "() => {" + COLOURS + """
  const text = e => ratio(light(getComputedStyle(e).color), light(behind(e)));
  const shades = [...document.querySelectorAll("#steps i")];
  return { shades: shades.map(e => light(behind(e))), on: shades.map(text),
           texts: [...document.querySelectorAll("h1, p, b, small, button, dt, dd, label, option, .off")]
             .map(e => [text(e), e.outerHTML.slice(0, 60)]).filter(([c]) => c < 4.5) };
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_are_readable(scheme, visit, nasty):
    reader = visit(nasty[0], scheme=scheme)
    for colour in "loss", "entropy", "width":
        look = reader.js(CONTRAST)
        assert min(look["on"]) >= 4.5, colour
        order = sorted(look["shades"], reverse=scheme == "light")
        assert look["shades"] == order, "%s: lightness tells the order" % colour
        assert len(set(order)) == 16, colour
        reader.press("c")
    reader.click(3)
    assert reader.js(CONTRAST)["texts"] == [], "of a token"
    reader.page.locator(".strip button").first.click()
    assert reader.js(CONTRAST)["texts"] == [], "of an expert"


def test_all_fits_on_a_phone(visit, nasty, routes):
    reader = visit(nasty[0], 360, 740)
    visible = reader.page.locator("#panel").is_visible
    assert not visible(), "no panel at first"
    assert reader.overflows() == 0
    reader.page.click("#overview")
    assert visible() and len(reader.panel()["strips"]) == routes.L, "all experts on demand"
    assert reader.overflows() == 0
    reader.page.click("#close")
    assert not visible()
    reader.click(len(routes.chars) // 2)
    assert visible(), "a token opens it"
    token = reader.js("document.querySelector('[aria-selected]').getBoundingClientRect().bottom")
    sheet = reader.js("document.getElementById('panel').getBoundingClientRect().top")
    assert 0 < token <= sheet, "the token is not under it"
    assert reader.overflows() == 0
    reader.page.locator(".chips button").first.click()
    assert reader.overflows() == 0
    reader.press("Escape")
    reader.press("Escape")
    assert not visible()


# --- other models, and lengths of text ------------------------------------------------------------

@pytest.mark.parametrize("model", ["topp", "one", "null"])
def test_other_models_are_shown(model, make, visit):
    path, routes = make(model, b"text", PLAIN)
    reader = visit(path)
    check_text(reader, routes)
    check_colours(reader, routes, "loss", range(3))
    reader.press("c")
    reader.press("c")
    if model != "one":
        check_colours(reader, routes, "width", range(3))
    for k in 0, 77, len(routes.chars) - 2:
        reader.click(k)
        check_token(reader, routes, k, range(3))
    reader.page.locator(".strip button").nth(routes.E - 1).click()
    check_expert(reader, routes, 0, routes.E - 1)


def test_two_bytes_are_shown(make, visit):
    path, routes = make("topk", b"two", b"ab")
    reader = visit(path)
    check_text(reader, routes)
    reader.click(0)
    check_token(reader, routes, 0, range(3))


@pytest.mark.parametrize("n", [5001, 26000])
def test_long_texts_are_shown(n, make, visit):
    path, routes = make("topk", b"long", (PLAIN * (n // len(PLAIN) + 1))[:n])
    reader = visit(path)
    assert len(reader.spans()) == len(routes.chars)
    assert routes.n == min(n - 1, PAGE_TOKENS)
    for act in ("show({ token: (Math.random() * N) | 0 })", "document.dispatchEvent("
                "new KeyboardEvent('keydown', { key: 'c' }))", "show({ layer: 1, expert: "
                "(now.expert + 1) % E })", "scrollBy(0, 5000)"):
        for _ in range(3):
            reader.js("act => { eval(act) }", act)
    last = len(routes.chars) - 2
    reader.click(last)
    check_token(reader, routes, routes.chars[last][0], range(routes.L))
    says = reader.js("says.innerText")
    if n == 26000:
        assert "first 20,000 of 25,999 bytes" in says
    else:
        assert "first" not in says
